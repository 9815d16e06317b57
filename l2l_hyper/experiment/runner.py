"""Carries out a plan: trains and tests what has no record yet."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from ..errors import InputError
from ..settings import defaults
from ..statistics import episode_interval
from .card import card_path, write_card
from .config import Run
from .distributed import from_first, is_first
from .folder import claim
from .logs import log_file
from .parts import Parts, label_of
from .progress import RunProgress, score_text
from .provenance import Provenance
from .records import Record, existing_record, make_record, write_record
from .result import Result
from .training import Progress, Step, train_and_test

__all__ = ["Task", "carry_out", "each_alone", "existing", "recorded", "say", "watched"]

_SECONDS_BETWEEN_LOOKS = 0.5


@dataclass(frozen=True, eq=False)
class Task:
    """A run, the folder of its files if they are kept, and what progress calls it."""

    run: Run
    folder: Path | None
    title: str

    def needs(self, other: Task) -> bool:
        """Whether the other one's network is the encoder of this one, or what this one starts from."""
        rows = [self.run.options.get(name) for name in ("encoder", "pretrained")]
        return other.run.seed == self.run.seed and other.run.method in rows


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
    to_do = sum(existing(run, parts, out) is None for run in runs)
    if parts.logs and out is None:
        raise InputError(f"log={','.join(parts.plan.log)} needs a folder to write into, got none; give out=")
    records: dict[str, Record] = {}
    tasks = [Task(run, out, f"{run.method} seed {run.seed}") for run in runs]
    with closing(each_alone(tasks, parts, console)) as claimed:
        for task, record in claimed:
            run = task.run
            if record is not None:
                say(console, f"{task.title}: its record is there, skipped")
                records[run.name] = record
                if out is not None and is_first() and not card_path(out, run).exists():  # a process killed before it
                    write_card(out, record)
                continue
            with watched(task, parts, console, runs=to_do) as progress:
                _, result = train_and_test(run, parts, folder=out, progress=progress)
            to_do -= 1
            record = records[run.name] = recorded(run, parts, result, out, provenance)
            if out is not None and is_first():
                write_card(out, record)
            interval = episode_interval(record.scores)
            score = score_text(result.metric, interval.mean, interval.half_width)
            episodes, seconds = len(result.scores), result.seconds_to_train
            say(console, f"{task.title}: {score} on {episodes} test episodes, trained in {seconds:.0f} s")
    return [records[run.name] for run in runs]


def each_alone(
    tasks: Sequence[Task], parts: Parts, console: Console
) -> Generator[tuple[Task, Record | None], None, None]:
    """Every task while no other process is at it; those that another one is at come last, when it is done.

    Args:
        tasks: what is to be done.
        parts: the plan, and what the names in it stand for.
        console: where is said which process is waited for.

    Yields:
        A task, and its record if it has one.  One without is this process's until the next is asked for.
    """
    told: set[Task] = set()
    while tasks:
        later: list[Task] = []
        for task in tasks:
            if any(task.needs(other) for other in later):
                later.append(task)
                continue
            record = existing(task.run, parts, task.folder)
            if record is not None:
                yield task, record
                continue
            with claim(task.run, task.folder) as holder:
                if holder is None:
                    yield task, existing(task.run, parts, task.folder)  # another may just have finished it
                    continue
            later.append(task)
            if task not in told:
                say(console, f"{task.title}: {holder} trains it; its record is waited for when all else is done")
                told.add(task)
        if len(later) == len(tasks):
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        tasks = later


def existing(run: Run, parts: Parts, folder: Path | None) -> Record | None:
    """The record of this run in the folder, if there is one; of several processes the first looks."""
    if folder is None:
        return None
    return from_first(lambda: existing_record(folder, run, defaults(parts.methods[run.method].options)))


def recorded(run: Run, parts: Parts, result: Result, folder: Path | None, provenance: Provenance) -> Record:
    """The record of what a run measured; where there is a folder, the first of several processes writes it there."""
    record = make_record(run, label_of(parts.methods[run.method], run.options), provenance, result)
    return record if folder is None else from_first(lambda: write_record(folder, record))


@contextmanager
def watched(task: Task, parts: Parts, console: Console, *, runs: int = 1) -> Iterator[Progress]:
    """Shows the progress of a run that is one of ``runs`` to be done, and logs it where it has a folder."""
    with ExitStack() as stack:
        shown = RunProgress(console, task.title, train_seconds=task.run.experiment.train_seconds, runs=runs)
        watching: list[Progress] = [stack.enter_context(shown)]
        if task.folder is not None and is_first():
            watching += [stack.enter_context(log(task.run, task.folder)) for log in (log_file, *parts.logs)]

        def tell(step: Step) -> None:
            for watcher in watching:
                watcher(step)

        yield tell


def say(console: Console, line: str) -> None:
    """Print one line as it is."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)
