"""A trained checkpoint tested on tasks of any tasksets, with a record of it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

from ..data import TASKSETS, TensorTaskset
from ..errors import InputError
from ..methods import METHODS
from .checkpoint import Checkpoint
from .config import Experiment
from .memory import tasks_at_once
from .parts import Parts, label_of
from .plan import Plan, make_plan
from .provenance import Provenance
from .records import Record, make_record
from .testing import Testing, in_precision, tested_form
from .trained import build
from .trial import require_contract

__all__ = ["record_of", "transfer_plan"]


def transfer_plan(checkpoint: Checkpoint, changes: Mapping[str, Any]) -> Plan:
    """The plan of a test: as the checkpoint was trained, but for the changes.

    On other tasksets than those of the training the method is called ``METHOD@TASKSETS-OF-THE-TRAINING``.
    """
    run = checkpoint.run
    trained = run.experiment.spelled_out()
    e = {field.name: getattr(trained, field.name) for field in fields(Experiment)}
    if "shots" in changes:
        e["test_shots"] = None
    method = run.method
    if changes.get("tasksets", e["tasksets"]) != e["tasksets"]:
        method = f"{method}{'-' if '@' in method else '@'}{e['tasksets']}"
        e |= {"tasksets_options": {}, "metric": None}
    named = {"methods": [method], "seeds": [run.seed], "options": {method: dict(run.options)}}
    return make_plan({**e, **named, **changes})


def record_of(checkpoint: Checkpoint, path: Path, parts: Parts, provenance: Provenance) -> Record:
    """Test a checkpoint on the test episodes of a plan.

    Pixels are scaled as in the training.  The learning curves stay in the record of the training.

    Args:
        checkpoint: what was read.
        path: from where.
        parts: the objects of :func:`transfer_plan`.
        provenance: where the record comes from.

    Raises:
        InputError: for samples of another shape than those of the training, and tasks that the method cannot adapt to.
    """
    (run,) = parts.plan.runs(parts.options)
    e, trained = run.experiment, checkpoint.run.experiment
    test = parts.tasksets.test
    scale = _scale(trained)
    if isinstance(test, TensorTaskset) and test.x.dtype == torch.uint8 and scale is not None:
        test = copy.copy(test)
        test.scale = scale
        parts.tasksets = parts.tasksets._replace(test=test)
    first = test.batch([0], **tested_form(e, e.shots)).to(parts.device)
    shape = tuple(first.support.shape[2:])
    if shape != checkpoint.sample_shape:
        raise InputError(
            f"{path} was trained on samples of shape {checkpoint.sample_shape}, those of {e.tasksets} have {shape}; "
            "try other tasksets, or folder:PATH with the tasksets options image_size and color"
        )
    method, model = build(checkpoint, path)
    method.to(parts.device)
    with in_precision(e, parts.device):
        require_contract(method, run.method, first)
        at_once = tasks_at_once(method, first, parts.plan.memory_limit)
    testing = Testing(
        run=run,
        parts=parts,
        method=method,
        model=model,
        metric=parts.metric or first.metric,
        at_once=at_once,
        first=first,
    )
    elsewhere = None if e.tasksets == trained.tasksets else trained.tasksets
    result = testing.result(checkpoint.state, e.test_shots or (e.shots,), trained_on=elsewhere)
    result = replace(result, validation=[], training=[])  # which were of the tasks of the training
    label = label_of(METHODS[checkpoint.run.method], run.options)
    return make_record(run, label if elsewhere is None else f"{label}, trained on {elsewhere}", provenance, result)


def _scale(e: Experiment) -> float | None:
    """What 8-bit levels were multiplied by in an experiment, where its tasksets tell."""
    with suppress(InputError):  # tasksets that Python gave as objects have no name that leads to them
        return TASKSETS[e.tasksets].scale(e.tasksets_options)
    return None
