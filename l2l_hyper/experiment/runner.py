"""Carries out a plan: trains and tests what has no record yet."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from ..methods import Method
from ..report.statistics import episode_interval
from .config import Run
from .distributed import from_first
from .parts import Parts, label_of
from .plan import Plan
from .progress import RunProgress, score_text
from .provenance import Provenance
from .records import Record, existing_record, make_record, write_record
from .settings import defaults
from .training import train_and_test

__all__ = ["carry_out", "recorded", "say", "train_run"]


def carry_out(plan: Plan, parts: Parts, out: Path | None, provenance: Provenance, console: Console) -> list[Record]:
    """Train and test every run of the plan that has no record in ``out`` yet; of several processes the first decides.

    Args:
        plan: what to run.
        parts: what the names in it stand for.
        out: folder of records and checkpoints; ``None`` to keep none.
        provenance: where the records come from.
        console: where progress is shown.

    Returns:
        The records of all runs of the plan.

    Raises:
        InputError: before anything is trained, when records there were made with other settings.
    """
    runs = plan.runs(parts.options)
    records = [None if out is None else recorded(out, run, parts) for run in runs]
    for i, run in enumerate(runs):
        title = f"{run.method} seed {run.seed}"
        if records[i] is not None:
            say(console, f"{title}: its record is there, skipped")
            continue
        _, record = train_run(run, plan, parts, out, provenance, console, title=title)
        interval = episode_interval(record.scores)
        score = score_text(record.result.metric, interval.mean, interval.half_width)
        say(
            console,
            f"{title}: {score} on {len(record.scores)} test episodes, "
            f"trained in {record.result.seconds_to_train:.0f} s",
        )
        records[i] = record
    return [record for record in records if record is not None]


def train_run(
    run: Run,
    plan: Plan,
    parts: Parts,
    folder: Path | None,
    provenance: Provenance,
    console: Console,
    *,
    title: str,
    test: bool = True,
) -> tuple[Method, Record]:
    """Train one run, going on from its checkpoint in ``folder`` if there is one, and write its record there, once."""
    with RunProgress(console, title, train_seconds=run.experiment.train_seconds) as progress:
        method, result = train_and_test(
            run, parts, folder=folder, memory_limit_mb=plan.memory_limit, test=test, progress=progress
        )
    record = make_record(run, label_of(parts.methods[run.method], run.options), provenance, result)
    return method, record if folder is None else from_first(lambda: write_record(folder, record))


def recorded(folder: Path, run: Run, parts: Parts) -> Record | None:
    """The record of this run in the folder, if there is one; of several processes the first looks."""
    return from_first(lambda: existing_record(folder, run, defaults(parts.methods[run.method].options)))


def say(console: Console, line: str) -> None:
    """Print one line as it is."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)
