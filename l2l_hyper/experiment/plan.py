"""A comparison as it was asked for: from the flags of the command line, a preset or keywords of Python."""

from __future__ import annotations

import dataclasses
import json
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Gt, Le, MinLen

from ..errors import InputError
from ..registry import unknown_name
from ..settings import Name, Seed, check_fields, described, hints, parse_pairs, parse_value, tomllib
from .config import Experiment, Run, renamed, renamed_options

__all__ = ["SETTINGS", "Plan", "Setting", "from_flags", "make_plan", "merged", "read_preset"]

# This module imports no torch, so that a bad flag is told at once.


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to train and where.

    Each field but ``experiment`` and ``grids`` is a flag of ``l2l-hyper compare`` and a key of a preset, as are the
    fields of the experiment.

    Attributes:
        experiment: what all methods share.
        methods: methods to compare, separated by commas; names or ``package.module:object``.
        options: an option of a method; may be repeated.
        seeds: training seeds, separated by commas.
        baseline: method to pair the others with; protonet, where it is compared, if not given.
        device: device to compute on, such as cuda.
        memory_limit: MiB for the graphs of the episodes that are trained on together.
        data_root: folder of the data sets.
        kernels: whether the fast kernels of l2l_hyper.kernels are on; results are the same but for rounding.
        log: where training is logged besides OUT/progress.log, separated by commas; tensorboard, wandb or
            package.module:object.
        grids: for each method of a sweep, the values to try of each option.

    Raises:
        InputError: for a value of another type or out of its range.
    """

    experiment: Experiment = field(default_factory=Experiment)
    methods: Annotated[tuple[Name, ...], MinLen(1)] = ("hyper-adapter", "maml", "protonet")
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    seeds: Annotated[tuple[Seed, ...], MinLen(1)] = (0,)
    baseline: Name | None = None
    device: Name = "cpu"
    memory_limit: Annotated[float, Gt(0), Le(2**30)] = 2048.0
    data_root: Name = "~/data"
    kernels: bool = False
    log: tuple[Name, ...] = ()
    grids: dict[str, dict[str, Annotated[list[Any], MinLen(1)]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self, without=("experiment",))
        for name in ("methods", "seeds"):
            object.__setattr__(self, name, tuple(dict.fromkeys(getattr(self, name))))

    def runs(self, options: Mapping[str, Mapping[str, Any]]) -> list[Run]:
        """All methods with the first seed, then with the next, so a comparison grows row by row.

        Args:
            options: every option of each method, the defaults included.
        """
        return [
            Run(experiment=self.experiment, method=method, seed=seed, options=options[method])
            for seed in self.seeds
            for method in self.methods
        ]


@dataclass(frozen=True)
class Setting:
    """One setting of a comparison: a flag, a key of a preset, a keyword of :func:`l2l_hyper.compare`.

    Attributes:
        name: its key.
        type: annotated type, with its range.
        help: one sentence.
        default: as help shows it, ``None`` where there is none.
    """

    name: str
    type: Any
    help: str
    default: str | None

    @property
    def flag(self) -> str:
        """As the command line spells it; what can be given several times is in the singular."""
        return f"--{self.name.removesuffix('s') if self.is_table else self.name}".replace("_", "-")

    @property
    def is_table(self) -> bool:
        """Whether it is given as KEY=VALUE, several times."""
        return get_origin(self.type) is dict

    @property
    def form(self) -> str:
        """What the flag takes, as help shows it."""
        if self.name == "options":
            return "METHOD.KEY=VALUE"
        return {bool: "true|false", int: "INTEGER", float: "NUMBER", tuple: "A,B,...", dict: "KEY=VALUE"}.get(
            _kind(self.type), "TEXT"
        )

    def parse(self, text: str) -> Any:
        """The value that the text of a flag spells."""
        kind = _kind(self.type)
        if kind is tuple:
            texts = [part.strip() for part in text.split(",")]
            return texts if _kind(get_args(_bare(self.type))[0]) is str else [parse_value(part) for part in texts]
        return text if kind is str else parse_value(text)


def _bare(annotation: Any) -> Any:
    """The type without its range, and without ``None`` where it may be that."""
    if get_origin(annotation) is Annotated:
        return _bare(get_args(annotation)[0])
    if get_origin(annotation) in (types.UnionType, Union):
        return _bare(get_args(annotation)[0])
    return annotation


def _kind(annotation: Any) -> Any:
    bare = _bare(annotation)
    return str if get_origin(bare) is Literal else get_origin(bare) or bare


def _shown(value: Any) -> str | None:
    if value is None or value == {}:
        return None
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _settings(defaults: object, without: Iterable[str] = ()) -> dict[str, Setting]:
    texts, annotated = described(type(defaults)), hints(type(defaults))
    return {
        name: Setting(name, annotated[name], text[:1].upper() + text[1:], _shown(getattr(defaults, name)))
        for name, text in texts.items()
        if name not in without
    }


SETTINGS = _settings(Experiment()) | _settings(Plan(), without=("experiment", "grids"))
"""Every setting by its key."""

_TABLES = {"backbone_options": "layers=4", "tasksets_options": "image_size=28"}  # each with an example


def read_preset(path: Path) -> dict[str, Any]:
    """Settings from a TOML file: those of :data:`SETTINGS`, ``[options.METHOD]`` and ``[sweep.METHOD]`` tables.

    A record (JSON) is a preset as well: that of its own run.

    Raises:
        InputError: when the file is missing or not such a file.
    """
    is_record = path.suffix == ".json"
    try:
        text = path.read_text(encoding="utf-8")
        content = _of_record(json.loads(text)) if is_record else tomllib.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        kind = "a record" if is_record else "a preset in TOML"
        raise InputError(f"expected {kind}, but {path} cannot be read ({reason})") from error
    content = renamed({name.replace("-", "_"): value for name, value in content.items()})
    for name, value in content.items():
        if name not in SETTINGS and name != "sweep":
            raise unknown_name(f"setting in {path}", name, [*SETTINGS, "sweep"])
        if isinstance(value, str) and name in ("methods", "seeds"):
            content[name] = SETTINGS[name].parse(value)
    if "iterations" in content and "train_seconds" in content:
        raise InputError(f"{path} has both iterations and train_seconds: keep one")
    if "sweep" in content:
        content["grids"] = content.pop("sweep")
    try:
        make_plan(content)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return content


def _of_record(record: Any) -> dict[str, Any]:
    try:
        experiment, method, seed, options = (record["run"][key] for key in ("experiment", "method", "seed", "options"))
        settings = {name: value for name, value in experiment.items() if value is not None}
        if "train_seconds" in settings:
            settings.pop("iterations", None)
    except (AttributeError, KeyError, TypeError):
        raise ValueError("no record of a run") from None
    return settings | {"methods": [method], "seeds": [seed], "options": {method: options}}


def from_flags(flags: Mapping[str, str | list[str] | None]) -> dict[str, Any]:
    """Settings from the texts of those flags that were given.

    Raises:
        InputError: when flags contradict each other, or a KEY=VALUE cannot be read.
    """
    values: dict[str, Any] = {}
    for name, text in flags.items():
        if isinstance(text, str):
            values[name] = SETTINGS[name].parse(text)
    if "iterations" in values and "train_seconds" in values:
        raise InputError("expected either --iterations or --train-seconds, got both: keep one")
    for name, example in _TABLES.items():
        pairs = parse_pairs(flags.get(name) or (), SETTINGS[name].flag, "KEY=VALUE", example)
        if pairs:
            values[name] = pairs
    for name, value in parse_pairs(flags.get("options") or (), "--option", "METHOD.KEY=VALUE", "maml.lr=0.01").items():
        method, _, key = name.rpartition(".")
        values.setdefault("options", {}).setdefault(method, {})[key] = value
        if "methods" in values and method not in values["methods"]:
            named = ",".join(values["methods"])
            raise InputError(f"--option is for {method}, which is not among --methods {named}")
    return values


def merged(preset: Mapping[str, Any], flags: Mapping[str, Any]) -> dict[str, Any]:
    """The preset with the flags over it; tables of options are merged key by key."""
    # Length of training is one choice with two names: the flag replaces whichever the preset made.
    replaced = {"iterations", "train_seconds"} if {"iterations", "train_seconds"} & flags.keys() else set()
    values = {**{name: value for name, value in preset.items() if name not in replaced}, **flags}
    for name in _TABLES.keys() & flags.keys():
        values[name] = {**preset.get(name, {}), **flags[name]}
    if "options" in flags:
        tables = preset.get("options", {})
        values["options"] = {
            method: {**renamed_options(method, tables.get(method, {})), **renamed_options(method, changed)}
            for method, changed in {**tables, **flags["options"]}.items()
            for changed in (flags["options"].get(method, {}),)
        }
    return values


def make_plan(values: Mapping[str, Any]) -> Plan:
    """The plan of some settings; whether the names in it exist, :class:`~l2l_hyper.experiment.parts.Parts` tells.

    Raises:
        InputError: for a name that is no setting, and for a value of another type or out of its range.
    """
    values = renamed(values)
    of_experiment = {field.name for field in dataclasses.fields(Experiment)}
    for name in values:
        if name not in SETTINGS and name != "grids":
            raise unknown_name("setting", name, SETTINGS)
    plan = Plan(
        experiment=Experiment(**{name: value for name, value in values.items() if name in of_experiment}),
        **{name: value for name, value in values.items() if name not in of_experiment},
    )
    return dataclasses.replace(
        plan,
        options={method: renamed_options(method, table) for method, table in plan.options.items()},
        grids={method: renamed_options(method, table) for method, table in plan.grids.items()},
    )
