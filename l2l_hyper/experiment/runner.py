"""Carries out a plan: trains and tests what has no record yet."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from ..statistics import episode_interval
from .config import Run
from .distributed import from_first
from .parts import Parts, label_of
from .progress import RunProgress, score_text
from .provenance import Provenance
from .records import Record, Result, existing_record, make_record, write_record
from .settings import defaults
from .training import train_and_test

__all__ = ["carry_out", "existing", "recorded", "say"]


def carry_out(parts: Parts, out: Path | None, provenance: Provenance, console: Console) -> list[Record]:
    """Train and test every run of a plan that has no record in ``out`` yet; of several processes the first decides.

    Args:
        parts: the plan, and what the names in it stand for.
        out: folder of records and checkpoints; ``None`` to keep none.
        provenance: where the records come from.
        console: where progress is shown.

    Returns:
        The records of all runs of the plan.

    Raises:
        InputError: before anything is trained, when records there were made with other settings.
    """
    runs = parts.plan.runs(parts.options)
    held = [None if out is None else existing(run, parts, out) for run in runs]
    records = []
    for run, record in zip(runs, held, strict=True):
        title = f"{run.method} seed {run.seed}"
        if record is not None:
            say(console, f"{title}: its record is there, skipped")
            records.append(record)
            continue
        with RunProgress(console, title, train_seconds=run.experiment.train_seconds) as progress:
            _, result = train_and_test(run, parts, folder=out, progress=progress)
        records.append(recorded(run, parts, result, out, provenance))
        interval = episode_interval(records[-1].scores)
        score = score_text(result.metric, interval.mean, interval.half_width)
        episodes, seconds = len(result.scores), result.seconds_to_train
        say(console, f"{title}: {score} on {episodes} test episodes, trained in {seconds:.0f} s")
    return records


def existing(run: Run, parts: Parts, folder: Path) -> Record | None:
    """The record of this run in the folder, if there is one; of several processes the first looks."""
    return from_first(lambda: existing_record(folder, run, defaults(parts.methods[run.method].options)))


def recorded(run: Run, parts: Parts, result: Result, folder: Path | None, provenance: Provenance) -> Record:
    """The record of what a run measured; where there is a folder, the first of several processes writes it there."""
    record = make_record(run, label_of(parts.methods[run.method], run.options), provenance, result)
    return record if folder is None else from_first(lambda: write_record(folder, record))


def say(console: Console, line: str) -> None:
    """Print one line as it is."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)
