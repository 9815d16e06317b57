"""Tries every point of a grid of options and chooses by the score on the validation episodes."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from tabulate import tabulate

from ..errors import InputError
from ..files import SCHEMA, CannotWrite, to_json, write_atomically
from ..terminal import one_line
from .config import Experiment, Run
from .distributed import is_first
from .parts import Parts
from .progress import score_text
from .provenance import Provenance
from .records import Record
from .runner import Task, each_alone, existing, recorded, say, watched
from .training import train_and_test

__all__ = ["Choice", "Point", "choose", "grid_points", "run_sweep"]


@dataclass(frozen=True)
class Point:
    """One point of a method's grid, with the record of each seed."""

    method: str
    values: Mapping[str, Any]
    records: tuple[Record, ...]

    @property
    def score(self) -> float:
        """Best score on the validation episodes, mean over seeds."""
        return float(np.mean([record.result.best_validation_score for record in self.records]))

    @property
    def rank(self) -> float:
        """The score with the sign by which more is better."""
        return self.score if self.records[0].result.metric.higher_is_better else -self.score


@dataclass(frozen=True)
class Choice:
    """The best point of a method, and the options for which it lies at the edge of the grid."""

    point: Point
    at_edge: tuple[str, ...]


def run_sweep(
    parts: Parts, methods: Sequence[str], out: Path, provenance: Provenance, console: Console
) -> list[Choice]:
    """Train every point that is still to be done, then write ``sweep.json`` and ``sweep.md`` over all that are.

    A point whose training fails (a learning rate too large, say) is reported and left out; the next run tries it again.

    Raises:
        InputError: when every point of a method fails, or ``out`` holds records of other settings.
    """
    for method in methods:
        failures: list[InputError] = []
        runs = _runs(parts, method, out)
        tasks = [Task(run, folder, f"{method} {_text(values)} seed {run.seed}") for values, folder, run in runs]
        with closing(each_alone(tasks, parts, console)) as claimed:
            for task, record in claimed:
                if record is not None:
                    continue
                run, folder, title = task.run, task.folder, task.title
                try:
                    with watched(task, parts, console) as progress:
                        _, result = train_and_test(run, parts, folder=folder, test=False, progress=progress)
                    recorded(run, parts, result, folder, provenance)
                except CannotWrite:  # which says nothing of the point
                    raise
                except InputError as error:
                    failures.append(error)
                    say(console, f"{title}: left out, {error}")
                    continue
                say(console, f"{title}: {score_text(result.metric, result.best_validation_score)} on validation")
        if len(failures) == len(runs):
            raise failures[-1]
    points = [point for method in parts.grids for point in _measured_points(parts, method, out)]
    choices = [choose(points, method, parts.grids[method]) for method in dict.fromkeys(p.method for p in points)]
    if is_first():
        write_atomically(out / "sweep.json", _json(parts.plan.experiment, points, choices))
        write_atomically(out / "sweep.md", sweep_table(points, choices))
    return choices


def grid_points(grid: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Every combination of the values of a grid.

    >>> grid_points({"lr": [0.1, 0.2], "steps": [1]})
    [{'lr': 0.1, 'steps': 1}, {'lr': 0.2, 'steps': 1}]
    """
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def choose(points: Sequence[Point], method: str, grid: Mapping[str, Sequence[Any]]) -> Choice:
    """The point of ``method`` with the best validation score; of equals the first."""
    best = max((point for point in points if point.method == method), key=lambda point: point.rank)
    edges = [
        key
        for key, values in grid.items()
        if len(values) > 1 and _ordered(values) and best.values[key] in (min(values), max(values))
    ]
    return Choice(best, tuple(edges))


def sweep_table(points: Sequence[Point], choices: Sequence[Choice]) -> str:
    """The points as a table in Markdown, best first within each method."""
    chosen = {id(choice.point): choice for choice in choices}
    rows = []
    for point in sorted(points, key=lambda point: (point.method, -point.rank)):
        choice = chosen.get(id(point))
        remark = "" if choice is None else "**chosen**"
        if choice is not None and choice.at_edge:
            remark += f", at the edge of {', '.join(choice.at_edge)}: widen the grid"
        seconds = np.mean([record.result.seconds_to_train for record in point.records])
        score, seeds = score_text(point.records[0].result.metric, point.score), len(point.records)
        cells = [point.method, _text(point.values), score, seeds, f"{seconds:,.0f}", remark]
        rows.append([one_line(str(cell)).replace("|", r"\|") for cell in cells])
    titles = ["method", "options", "on validation", "seeds", "training s", ""]
    return tabulate(rows, titles, tablefmt="pipe", disable_numparse=True) + "\n"


def _runs(parts: Parts, method: str, out: Path) -> list[tuple[dict[str, Any], Path, Run]]:
    """Each point's values, its folder (checkpoints and records are named by method and seed alone), and its runs."""
    plan, options = parts.plan, parts.options[method]
    return [
        (
            values,
            out / "points" / re.sub(r"[^\w.,=+-]", "_", f"{method},{_text(values)}".replace(" ", ",")),
            Run(experiment=plan.experiment, method=method, seed=seed, options={**options, **values}),
        )
        for values in grid_points(parts.grids[method])
        for seed in plan.seeds
    ]


def _measured_points(parts: Parts, method: str, out: Path) -> list[Point]:
    """The points that have a record for every seed."""
    found: list[Point] = []
    for values, group in itertools.groupby(_runs(parts, method, out), key=lambda run: run[0]):
        records = [existing(run, parts, folder) for _, folder, run in group]
        done = tuple(record for record in records if record is not None)
        if len(done) == len(records):
            found.append(Point(method, values, done))
    return found


def _text(values: Mapping[str, Any]) -> str:
    return " ".join(f"{key}={value}" for key, value in values.items())


def _ordered(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _json(experiment: Experiment, points: Sequence[Point], choices: Sequence[Choice]) -> str:
    chosen = {id(choice.point) for choice in choices}
    listed = [
        {
            "method": point.method,
            "values": dict(point.values),
            "options": dict(record.run.options),
            "seed": record.run.seed,
            "validation_score": record.result.best_validation_score,
            "selected_iteration": record.result.selected_iteration,
            "seconds_to_train": record.result.seconds_to_train,
            "commit": record.provenance.commit,
            "dirty": record.provenance.dirty,
            "environment": dict(record.provenance.environment),
            "chosen": id(point) in chosen,
        }
        for point in points
        for record in point.records
    ]
    decided = [
        {
            "method": choice.point.method,
            "label": choice.point.records[0].label,
            "values": dict(choice.point.values),
            "validation_score": choice.point.score,
            "at_edge": list(choice.at_edge),
        }
        for choice in choices
    ]
    return to_json({"schema": SCHEMA, "experiment": asdict(experiment), "chosen": decided, "points": listed})
