"""Carries out a plan: trains and tests what has no record yet."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from .. import engine
from ..engine.config import Run
from ..engine.distributed import from_first
from .plan import Plan
from .progress import RunProgress
from .provenance import Provenance
from .records import Record, existing_record, write_record
from .statistics import episode_interval

__all__ = ["carry_out", "train"]


def carry_out(plan: Plan, out: Path, provenance: Provenance, console: Console) -> None:
    """Train and test every run of the plan that has no record in ``out`` yet; of several processes the first decides.

    Raises:
        InputError: before anything is trained, when records there were made with other settings.
    """
    runs = plan.runs()
    done = from_first(lambda: [existing_record(out, run) is not None for run in runs])
    for run, is_done in zip(runs, done, strict=True):
        if is_done:
            _say(console, f"{run.method} seed {run.seed}: its record is there, skipped")
            continue
        record = train(run, plan, out, provenance, console)
        interval = episode_interval(record.accuracies)
        _say(
            console,
            f"{run.method} seed {run.seed}: {100 * interval.mean:.2f} ± {100 * interval.half_width:.2f} % on "
            f"{run.experiment.test_episodes} test episodes, trained in {record.measured['seconds_to_train']:.0f} s",
        )


def train(
    run: Run, plan: Plan, folder: Path, provenance: Provenance, console: Console, *, test: bool = True, title: str = ""
) -> Record:
    """Train one run, going on from its checkpoint in ``folder`` if there is one, and write its record there, once."""
    title = title or f"{run.method} seed {run.seed}"
    with RunProgress(console, title, train_seconds=run.experiment.train_seconds) as progress:
        measured = engine.train_and_test(
            run,
            folder=folder,
            data_root=plan.data_root,
            device=plan.device,
            memory_limit_mb=plan.memory_limit,
            test=test,
            resume=True,
            progress=progress,
        )
    label = engine.METHODS[run.method].label
    return from_first(lambda: write_record(folder, run, label, provenance, measured))


def _say(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)
