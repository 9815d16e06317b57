"""Where the progress of a run is logged: a file beside its records, TensorBoard, Weights & Biases, or one's own."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..files import cannot_write
from ..registry import Registry
from .config import Run
from .progress import Reporter

if TYPE_CHECKING:
    from .training import Progress, Step

__all__ = ["LOGS", "Log", "log_file", "tensorboard", "weights_and_biases"]

Log = Callable[[Run, Path], AbstractContextManager["Progress"]]
"""A run and the output folder, to a context manager; what it gives is called with each ``Step`` of the run.

>>> @contextmanager
... def to_screen(run, out):
...     yield lambda step: print(run.name, step.iteration, step.loss)
"""


@contextmanager
def log_file(run: Run, out: Path) -> Iterator[Progress]:
    """Append to ``OUT/progress.log`` what a terminal shows: now and then a line, with the time that is left."""
    path = out / "progress.log"
    report = Reporter(f"{run.method} seed {run.seed}", train_seconds=run.experiment.train_seconds)

    def write(step: Step) -> None:
        line = report(step)
        if line is None:
            return
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(f"{datetime.now().astimezone().isoformat(' ', 'seconds')} {line}\n")
        except OSError as error:
            raise cannot_write(path, error) from error

    yield write


@contextmanager
def tensorboard(run: Run, out: Path) -> Iterator[Progress]:
    """Scalars of the run in ``OUT/tensorboard``, which ``tensorboard --logdir OUT/tensorboard`` shows."""
    _needed("tensorboard", "tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(out / "tensorboard" / run.name)) as writer:

        def write(step: Step) -> None:
            for name, value in _scalars(step).items():
                writer.add_scalar(name, value, step.iteration)

        yield write


@contextmanager
def weights_and_biases(run: Run, out: Path) -> Iterator[Progress]:
    """Scalars of the run for Weights & Biases in ``OUT/wandb``, offline unless ``WANDB_MODE`` says otherwise.

    ``wandb sync OUT/wandb/offline-run-*`` sends them.
    """
    wandb = _needed("wandb", "wandb")
    logged = wandb.init(
        project="l2l_hyper",
        name=run.name,
        dir=str(out),
        config=run.to_dict(),
        mode=os.environ.get("WANDB_MODE", "offline"),
        reinit="create_new",
        settings=wandb.Settings(silent=True),
    )
    exit_code = 1
    try:  # as a context manager it would print a traceback of what is told in one line
        yield lambda step: logged.log(_scalars(step), step=step.iteration)
        exit_code = 0
    finally:
        logged.finish(exit_code=exit_code)


def _scalars(step: Step) -> dict[str, float]:
    if step.validation is None:
        return {"training/loss": step.loss, f"training/{step.metric.name}": step.score}
    found = {f"validation/{step.metric.name}": step.validation.score}
    return found if step.validation.loss is None else {**found, "validation/loss": step.validation.loss}


def _needed(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(
            f"expected {module} to be importable, got: {error}; try pip install 'l2l_hyper[{extra}]'"
        ) from error


def _entry(name: str, made_by: object) -> Log:
    if not callable(made_by):
        raise InputError(
            f"expected a function of a run and a folder for the log {name!r}, got {type(made_by).__name__}"
        )
    return made_by


LOGS: Registry[Log] = Registry(
    "log",
    "l2l_hyper.logs",
    {
        "tensorboard": "l2l_hyper.experiment.logs:tensorboard",
        "wandb": "l2l_hyper.experiment.logs:weights_and_biases",
    },
    _entry,
)
"""Logs by the name that ``--log`` takes; others through the entry-point group ``l2l_hyper.logs``."""
