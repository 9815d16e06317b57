"""Checkpoints in the format of safetensors, with a checksum: whole or not there, and checked before they are used."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import safetensors.torch
import torch
from annotated_types import Ge
from pydantic import AllowInfNan, ConfigDict, TypeAdapter, ValidationError
from safetensors import SafetensorError
from torch import Tensor

from .._version import __version__
from ..errors import InputError
from ..files import cannot_write, replacing
from .config import Run
from .result import Point

__all__ = [
    "SUFFIX",
    "Checkpoint",
    "Damaged",
    "State",
    "checkpoint_path",
    "load_checkpoint",
    "read_checkpoint",
    "read_finished",
    "save_checkpoint",
]

SUFFIX = ".safetensors"

_FORMAT = "l2l_hyper checkpoint"
_SCHEMA = "1"
_KEY, _UNKNOWN = b'"sha256":"', b"0" * 64
_Count = Annotated[int, Ge(0)]
_Amount = Annotated[float, Ge(0), AllowInfNan(False)]


class Damaged(Exception):
    """A file that is not what a run has written; the message names it and says what is wrong."""


@dataclass(kw_only=True)
class State:
    """How far training is.

    Attributes:
        iteration: iterations so far.
        seconds: seconds so far.
        peak_memory_mb: peak memory so far.
        training: the episodes trained on, between two looks at the validation episodes.
        validation: one point per look.
        best: the point of the selected weights.
        window: loss and score of each iteration since the last look.
        pretrained: SHA-256 of the file of the weights that training started from, if there was one.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    iteration: _Count = 0
    seconds: _Amount = 0.0
    peak_memory_mb: _Amount = 0.0
    training: list[Point] = field(default_factory=list)
    validation: list[Point] = field(default_factory=list)
    best: Point | None = None
    window: list[tuple[float, float]] = field(default_factory=list)
    pretrained: str | None = None


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a run is, how far it is, and its tensors.

    Attributes:
        run: what is trained.
        sample_shape: shape of a sample, for which the backbone was built.
        outputs: number of outputs, for which it was built.
        state: how far training is.
        tensors: by part and name; the part "selected" is the state dict of the trained method.
    """

    run: Run
    sample_shape: tuple[int, ...]
    outputs: int
    state: State
    tensors: dict[str, dict[str, Tensor]]

    @property
    def finished(self) -> bool:
        """Whether training is at its end."""
        e = self.run.experiment
        state = self.state
        enough = state.iteration >= e.iterations if e.train_seconds is None else state.seconds >= e.train_seconds
        return enough and not state.window


@dataclass(frozen=True, kw_only=True)
class _About:
    """What the header of the file says besides the tensors."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    version: str
    run: dict[str, Any]
    sample_shape: tuple[_Count, ...]
    outputs: Annotated[int, Ge(1)]
    state: State


def checkpoint_path(folder: Path, run: Run) -> Path:
    """Where the checkpoint of a run lies in the folder of its comparison."""
    return folder / "checkpoints" / f"{run.name}{SUFFIX}"


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write it in one step, so a kill leaves the old checkpoint or the new one.

    The metadata of the file are "format", "schema", "about", which is JSON, and "sha256": that of the file with 64
    zeros in its place.  Tensors are called by part and name, such as ``selected.network.head.weight``.

    Raises:
        InputError: when the file cannot be written.
    """
    about = {
        "version": __version__,
        "run": checkpoint.run.to_dict(),
        "sample_shape": checkpoint.sample_shape,
        "outputs": checkpoint.outputs,
        "state": asdict(checkpoint.state),
    }
    tensors = {
        # each with memory of its own, which the format asks for
        f"{part}.{name}": value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for part, values in checkpoint.tensors.items()
        for name, value in values.items()
    }
    metadata = {"format": _FORMAT, "schema": _SCHEMA, "about": json.dumps(about), "sha256": _UNKNOWN.decode()}
    content = memoryview(safetensors.torch.save(tensors, metadata))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            for piece in _with_checksum(content, _sha256(content).encode()):
                file.write(piece)
    except OSError as error:
        raise cannot_write(path, error) from error


def load_checkpoint(path: Path) -> Checkpoint:
    """Read what :func:`save_checkpoint` wrote, onto the CPU.

    Raises:
        InputError: when the file cannot be read, or another version of this package wrote it.
        Damaged: when it is not what :func:`save_checkpoint` wrote.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"expected a checkpoint, but {path} cannot be read ({error.strerror})") from error
    return read_checkpoint(content, path)


def read_checkpoint(content: bytes, path: Path) -> Checkpoint:
    """What the content of a file is; ``path`` is its name, for messages.

    Raises:
        InputError: when another version of this package wrote it.
        Damaged: when it is not what :func:`save_checkpoint` wrote.
    """
    try:
        metadata = _verified_metadata(content)
        if metadata["schema"] == _SCHEMA:
            return _checkpoint(metadata["about"], safetensors.torch.load(content))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
        raise Damaged(f"checkpoint {path} is damaged ({_reason(error)})") from error
    raise InputError(
        f"checkpoint {path} must have schema {_SCHEMA}, got {metadata['schema']}: use the version that wrote it"
    )


def read_finished(content: bytes, path: Path) -> Checkpoint:
    """As :func:`read_checkpoint`, of a training that is at its end.

    Raises:
        InputError: for another version's, and for one of a training that is not at its end.
        Damaged: when it is not what :func:`save_checkpoint` wrote.
    """
    saved = read_checkpoint(content, path)
    if not saved.finished:
        raise InputError(
            f"expected a checkpoint of a training at its end in {path}, got one of iteration "
            f"{saved.state.iteration} of {saved.run.experiment.iterations}; train it to its end"
        )
    return saved


def _verified_metadata(content: bytes) -> dict[str, str]:
    length = int.from_bytes(content[:8], "little")
    metadata: dict[str, str] = json.loads(content[8 : 8 + length])["__metadata__"]
    if metadata["format"] != _FORMAT or metadata["sha256"] != _sha256(memoryview(content)):
        raise ValueError("its checksum does not match")
    return metadata


def _checkpoint(about_json: str, named: dict[str, Tensor]) -> Checkpoint:
    about = TypeAdapter(_About).validate_json(about_json)
    run = Run.from_dict(about.run)
    tensors: dict[str, dict[str, Tensor]] = {}
    for name, value in named.items():
        part, _, rest = name.partition(".")
        tensors.setdefault(part, {})[rest] = value
    _require_consistent(run, about.state, "selected" in tensors)
    return Checkpoint(
        run=run, sample_shape=about.sample_shape, outputs=about.outputs, state=about.state, tensors=tensors
    )


def _require_consistent(run: Run, state: State, has_selected: bool) -> None:
    e = run.experiment
    looks = [point.iteration for point in state.validation]
    if looks != [point.iteration for point in state.training] or looks != sorted(set(looks)):
        raise ValueError("its curves are not of the same iterations")
    if state.iteration != len(state.window) + (looks or [0])[-1]:
        raise ValueError(f"{state.iteration} iterations are not those of its curves")
    if e.train_seconds is None and state.iteration > e.iterations:
        raise ValueError(f"it is at iteration {state.iteration} of {e.iterations}")
    best = [] if state.best is None else [state.best.iteration]
    if bool(looks) != bool(best) or bool(looks) != has_selected or not set(best) <= set(looks):
        raise ValueError("its selected weights are of none of the iterations of its curves")


def _with_checksum(content: memoryview, checksum: bytes) -> tuple[memoryview, bytes, memoryview]:
    """The content with another checksum, in pieces."""
    length = int.from_bytes(content[:8], "little")
    begin = bytes(content[: 8 + length]).index(_KEY) + len(_KEY)
    return content[:begin], checksum, content[begin + len(checksum) :]


def _sha256(content: memoryview) -> str:
    digest = hashlib.sha256()
    for piece in _with_checksum(content, _UNKNOWN):
        digest.update(piece)
    return digest.hexdigest()


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg'][:1].lower()}{first['msg'][1:]}"
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)
