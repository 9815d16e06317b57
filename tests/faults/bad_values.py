"""Values that no option can mean, made for every option by its default and not by the range that it declares."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from l2l_hyper import HyperAdapter, HyperSGD, compare
from l2l_hyper.backbones import BACKBONES
from l2l_hyper.data import TensorTaskset
from l2l_hyper.experiment.config import Experiment
from l2l_hyper.experiment.plan import SETTINGS, Plan
from l2l_hyper.methods import METHODS
from l2l_hyper.settings import defaults

NAN, INF = math.nan, math.inf
LABELS = torch.arange(8) % 2
WHOLE = [-1, -5, 2.5, NAN, INF, "three", True, [1], 10**30, None]
REAL = [-1.0, -1e-9, NAN, INF, -INF, "fast", True, [0.1], None]
FLAG = [1, 0, 2.5, "maybe", [True], None]
TEXT = [3, 2.5, True, ["a"], None]

ZERO_IS_FINE = {  # of the numbers; every other one has to be positive
    *("split_seed", "class_batch", "weight_decay", "warmup", "label_smoothing", "average", "backbone_lr", "halvings"),
    *("scale of HyperAdapterOptions", "penalty of HyperAdapterOptions", "separation", "contrast", "weight"),
    *("dropout", "attention_dropout", "seeds"),
}
BELOW_ONE = {"dropout", "attention_dropout", "warmup", "label_smoothing", "average"}
AT_LEAST_TWO = {"ways", "train_ways", "test_episodes"}
OPTIONAL = {  # None is one of their values; what they are otherwise
    **{"train_ways": 5, "train_queries": 15, "halvings": 4, "train_seconds": 1.0, "average": 0.9},
    **{"test_shots": (1,), "train_shots": (1,), "metric": "accuracy", "pretrained": "file", "baseline": "maml"},
    "normalization": "support",
}
# Texts that are free, and whose meaning is found where they are used.
FREE = {"encoder", "pretrained", "generate", "layer", "backbone", "tasksets"}


def bad_values(name: str, default: Any, of: str = "") -> list[Any]:
    """Values that an option with this default cannot have."""
    usual = OPTIONAL.get(name, default) if default is None else default
    if isinstance(usual, bool):
        values = list(FLAG)
    elif isinstance(usual, int):
        values = WHOLE + ([1] if name in AT_LEAST_TWO else [])
    elif isinstance(usual, float):
        values = REAL + ([1.0, 2.0] if name in BELOW_ONE else [])
    elif isinstance(usual, str):
        values = TEXT + ([] if name in FREE else ["", "nonsense"])
    elif isinstance(usual, tuple):
        values = [[-1], [1.5], ["a"], [NAN], 3, "a", [True], *([] if name in ZERO_IS_FINE else [[0]])]
    else:
        values = [3, "a", [1], True]
    if isinstance(usual, int | float) and not isinstance(usual, bool) and not {name, f"{name} of {of}"} & ZERO_IS_FINE:
        values.append(0)
    return [value for value in values if not (value is None and default is None)]


def spelled(value: Any) -> str:
    """The value as a flag of the command line has it."""
    if isinstance(value, list):
        return f"[{', '.join(map(spelled, value))}]"
    if isinstance(value, float):
        return repr(value)
    return "nothing" if value is None else value if isinstance(value, str) else json.dumps(value)


def command_lines() -> Iterator[list[str]]:
    """Every setting of a comparison and every option of each method and backbone, with each of its bad values."""
    known = {**defaults(Plan), **defaults(Experiment)}
    for name, setting in SETTINGS.items():
        if setting.is_table or name in ("device", "data_root", "methods", "pretrained", "baseline"):
            continue
        for value in bad_values(name, known[name]):
            usual = OPTIONAL.get(name, known[name]) if known[name] is None else known[name]
            if isinstance(value, list) != isinstance(usual, tuple) and (value == 3 or isinstance(value, list)):
                continue  # a flag spells a list of one number as the number
            if name == "tasksets" or (isinstance(usual, str) and value is None):
                continue
            texts = [spelled(one) for one in value] if isinstance(value, list) else [spelled(value)]
            yield [f"{setting.flag}={','.join(texts)}"]
    for method in METHODS:
        for name, default in defaults(METHODS[method].options).items():
            for value in bad_values(name, default, METHODS[method].options.__name__):
                if isinstance(default, dict) or (isinstance(default, str) and value in (None, "")):
                    continue
                if name in FREE and isinstance(value, list):  # a pattern or a name as any other
                    continue
                yield ["--methods", method, "--option", f"{method}.{name}={spelled(value)}"]
    for backbone in BACKBONES:
        for name, default in BACKBONES[backbone].options.items():
            for value in bad_values(name, default):
                yield ["--backbone", backbone, "--backbone-option", f"{name}={spelled(value)}"]


def calls() -> Iterator[tuple[str, Callable[[], object]]]:
    """The same for Python, by what it is called in the output of a test: options, backbones, tasksets, learners."""
    for method in METHODS:
        options = METHODS[method].options
        for field in dataclasses.fields(options):
            for value in bad_values(field.name, defaults(options)[field.name], options.__name__):
                yield (
                    f"{options.__name__}({field.name}={value!r})",
                    lambda o=options, n=field.name, v=value: o(**{n: v}),
                )
    for backbone in BACKBONES:
        entry, shape = BACKBONES[backbone], (4,) if backbone == "mlp" else (1, 28, 28)
        for name, default in entry.options.items():
            for value in bad_values(name, default):
                yield f"{backbone}({name}={value!r})", lambda e=entry, s=shape, n=name, v=value: e.make(5, s, **{n: v})
        for ways in (0, -1, 2.5, "5", None, True):
            yield f"{backbone}({ways!r})", lambda e=entry, s=shape, w=ways: e.make(w, s)
    for name, default in defaults(Experiment).items():
        for value in bad_values(name, default):
            yield f"compare({name}={value!r})", lambda n=name, v=value: compare(methods=["protonet"], **{n: v})
    wrong = {"ways": [0, *WHOLE], "samples": [0, *WHOLE], "num_tasks": [0, -5, *WHOLE[2:8], None], "seed": WHOLE[2:8]}
    for name, values in {**wrong, "scale": [NAN, INF, "three", True, [1]]}.items():
        for value in values:
            given = {"ways": 2, "samples": 2, name: value}
            yield f"TensorTaskset({name}={value!r})", lambda g=given: TensorTaskset(torch.zeros(8, 3), LABELS, **g)
    learner = {"lr": 0.5, "scale": 0.2, "penalty": 1.0, "width": 128, "blocks": 2, "heads": 4, "dropout": 0.0}
    learner |= {"linear_map": False, "residual": True, "generator": "attention", "modulation": "feature-wise"}
    learner |= {"base_learner": "gaussian", "first_order": False, "allow_nograd": False}
    for name, default in learner.items():
        for value in bad_values(name, default, "HyperAdapterOptions"):
            yield f"HyperAdapter({name}={value!r})", lambda n=name, v=value: HyperAdapter(nn.Linear(4, 3), **{n: v})
    for value in [0, *REAL]:
        yield f"HyperSGD(lr={value!r})", lambda v=value: HyperSGD(nn.Linear(4, 3), lr=v)
