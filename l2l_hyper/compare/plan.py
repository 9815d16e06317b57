"""Settings checked against what the package has: the experiment and the runs that a command is about."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import engine, tasks
from ..engine.config import Experiment, Run
from ..errors import InputError
from .files import plain
from .presets import Settings, unknown

__all__ = ["DEFAULT_METHODS", "Plan", "make_plan"]

DEFAULT_METHODS = ("hyper-adapter", "maml", "protonet")
DEFAULT_SEEDS = (0,)
DEFAULT_DATA_ROOT = "~/data"
NORMALIZATIONS = ("support", "transductive", "running")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What to run and where; ``options`` holds every option of every known method, the defaults included."""

    experiment: Experiment
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    options: Mapping[str, Mapping[str, Any]]
    grids: Mapping[str, Mapping[str, list[Any]]]
    baseline: str | None
    device: str
    memory_limit: float
    data_root: Path

    def runs(self) -> list[Run]:
        """All methods with the first seed, then with the next: a comparison grows row by row."""
        return [
            Run(experiment=self.experiment, method=method, seed=seed, options=self.options[method])
            for seed in self.seeds
            for method in self.methods
        ]


def make_plan(settings: Settings) -> Plan:
    """Fill in defaults and check every name.

    Raises:
        InputError: for an unknown method, tasksets, backbone, option or normalization, an option's value of the
            wrong type, a setting out of range, or a device that this machine lacks.
    """
    values = dict(settings.values)
    names = {field.name for field in dataclasses.fields(Experiment)}
    experiment = Experiment(**{"tasksets": "glyphs", **{name: values[name] for name in names & values.keys()}})
    _require_known("tasksets", experiment.tasksets, tasks.list_tasksets())
    _require_known("backbone", experiment.backbone, engine.BACKBONES)
    _require_known("normalization", experiment.normalization, NORMALIZATIONS)
    methods = tuple(values.get("methods", DEFAULT_METHODS))
    baseline = values.get("baseline")
    for method in (*methods, *settings.options, *settings.grids, *([baseline] if baseline else [])):
        _require_known("method", method, engine.METHODS)
    return Plan(
        experiment=experiment,
        methods=methods,
        seeds=tuple(values.get("seeds", DEFAULT_SEEDS)),
        options={name: _options(name, settings.options.get(name, {})) for name in engine.METHODS},
        grids={name: _grid(name, table) for name, table in settings.grids.items()},
        baseline=baseline,
        device=_device(values.get("device", "cpu")),
        memory_limit=_positive("memory_limit", values.get("memory_limit", engine.MEMORY_LIMIT_MB)),
        data_root=Path(values.get("data_root", DEFAULT_DATA_ROOT)).expanduser(),
    )


def _require_known(kind: str, name: str, known: Any) -> None:
    if name not in known:
        raise unknown(kind, name, known)


def _options(method: str, given: Mapping[str, Any]) -> dict[str, Any]:
    defaults = engine.METHODS[method].defaults
    checked = {key: _coerce(method, key, value) for key, value in given.items()}
    return {**{key: plain(value) for key, value in defaults.items()}, **checked}


def _grid(method: str, table: Mapping[str, Any]) -> dict[str, list[Any]]:
    return {key: [_coerce(method, key, value) for value in values] for key, values in table.items()}


def _coerce(method: str, key: str, value: Any) -> Any:
    """The value in the type of the option's default; an option whose default is ``None`` takes anything."""
    defaults = engine.METHODS[method].defaults
    if key not in defaults:
        raise unknown(f"option of {method}", key, defaults)
    default = defaults[key]
    if default is None:
        return None if value == "none" else value
    try:
        if isinstance(default, float) and not isinstance(value, bool):
            number = float(value)
            if math.isfinite(number):
                return number
        elif type(value) is type(plain(default)):
            return value
    except (TypeError, ValueError):
        pass
    kind = {bool: "true or false", int: "a whole number", float: "a number", str: "a string", list: "a list"}
    expected = kind.get(type(plain(default)), type(default).__name__)
    raise InputError(f"{method}.{key} must be {expected}, got {value!r}: its default is {default!r}")


def _positive(name: str, value: float) -> float:
    if not value > 0:
        raise InputError(f"{name} must be positive, got {value}")
    return value


def _device(name: str) -> str:
    import torch

    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"--device must be a device of torch, got {name!r}: try cpu or cuda") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"--device {name} needs that GPU, torch sees {torch.cuda.device_count()} here: try cpu")
    return name
