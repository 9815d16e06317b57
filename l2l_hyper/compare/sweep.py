"""Tries every point of a grid of options and chooses by accuracy on the validation episodes."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from tabulate import tabulate

from .. import engine
from ..engine.config import Run
from ..errors import InputError
from .files import SCHEMA, to_json, write_atomically
from .plan import Plan
from .provenance import Provenance
from .records import Record, existing_record
from .runner import train

__all__ = ["Choice", "Point", "choose", "grid_points", "run_sweep"]


@dataclass(frozen=True)
class Point:
    """One point of a method's grid, with the record of each seed."""

    method: str
    values: Mapping[str, Any]
    records: tuple[Record, ...]

    @property
    def accuracy(self) -> float:
        """Best accuracy on the validation episodes, mean over seeds."""
        return float(np.mean([record.measured["best_validation_accuracy"] for record in self.records]))


@dataclass(frozen=True)
class Choice:
    """The best point of a method, and the options for which it lies at the edge of the grid."""

    point: Point
    at_edge: tuple[str, ...]


def run_sweep(plan: Plan, methods: Sequence[str], out: Path, provenance: Provenance, console: Console) -> list[Choice]:
    """Train every point that is still to be done, then write ``sweep.json`` and ``sweep.md`` over all that are.

    A point whose training fails (a learning rate too large, say) is told and left out; the next run tries it again.

    Raises:
        InputError: when every point of a method fails, or ``out`` holds records of other settings.
    """
    for method in methods:
        failures = []
        for values, run in _runs(plan, method):
            folder = _folder(out, method, values)
            if existing_record(folder, run) is not None:
                continue
            title = f"{method} {_text(values)} seed {run.seed}"
            try:
                record = train(run, plan, folder, provenance, console, test=False, title=title)
            except InputError as error:
                failures.append(error)
                console.print(f"{title}: left out, {error}", markup=False, highlight=False, soft_wrap=True)
                continue
            accuracy = 100 * record.measured["best_validation_accuracy"]
            console.print(f"{title}: {accuracy:.2f} % on validation", markup=False, highlight=False, soft_wrap=True)
        if len(failures) == len(_runs(plan, method)):
            raise failures[-1]
    points = [point for method in plan.grids for point in _measured_points(plan, method, out)]
    choices = [choose(points, method, plan.grids[method]) for method in plan.grids if _of(points, method)]
    write_atomically(out / "sweep.json", _json(plan, points, choices))
    write_atomically(out / "sweep.md", sweep_table(points, choices))
    return choices


def grid_points(grid: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Every combination of the values of a grid.

    >>> grid_points({"lr": [0.1, 0.2], "steps": [1]})
    [{'lr': 0.1, 'steps': 1}, {'lr': 0.2, 'steps': 1}]
    """
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def choose(points: Sequence[Point], method: str, grid: Mapping[str, Sequence[Any]]) -> Choice:
    """The point of ``method`` with the best validation accuracy; of equals the first."""
    best = max(_of(points, method), key=lambda point: point.accuracy)
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
    for point in sorted(points, key=lambda point: (point.method, -point.accuracy)):
        choice = chosen.get(id(point))
        remark = "" if choice is None else "**chosen**"
        if choice is not None and choice.at_edge:
            remark += f", at the edge of {', '.join(choice.at_edge)}: widen the grid"
        seconds = np.mean([record.measured["seconds_to_train"] for record in point.records])
        accuracy, seeds = f"{100 * point.accuracy:.2f}", len(point.records)
        rows.append([point.method, _text(point.values), accuracy, seeds, f"{seconds:,.0f}", remark])
    titles = ["method", "options", "validation accuracy %", "seeds", "training s", ""]
    return tabulate(rows, titles, tablefmt="pipe", disable_numparse=True) + "\n"


def _runs(plan: Plan, method: str) -> list[tuple[dict[str, Any], Run]]:
    return [
        (values, Run(experiment=plan.experiment, method=method, seed=seed, options={**plan.options[method], **values}))
        for values in grid_points(plan.grids[method])
        for seed in plan.seeds
    ]


def _measured_points(plan: Plan, method: str, out: Path) -> list[Point]:
    """The points that have a record for every seed."""
    found: list[Point] = []
    for values, group in itertools.groupby(_runs(plan, method), key=lambda pair: pair[0]):
        records = [existing_record(_folder(out, method, values), run) for _, run in group]
        done = tuple(record for record in records if record is not None)
        if len(done) == len(records):
            found.append(Point(method, values, done))
    return found


def _folder(out: Path, method: str, values: Mapping[str, Any]) -> Path:
    """A folder for each point: checkpoints and records are named by method and seed alone."""
    return out / "points" / re.sub(r"[^\w.,=+-]", "_", f"{method},{_text(values)}".replace(" ", ","))


def _text(values: Mapping[str, Any]) -> str:
    return " ".join(f"{key}={value}" for key, value in values.items())


def _of(points: Sequence[Point], method: str) -> list[Point]:
    return [point for point in points if point.method == method]


def _ordered(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _json(plan: Plan, points: Sequence[Point], choices: Sequence[Choice]) -> str:
    chosen = {id(choice.point): choice for choice in choices}
    listed = [
        {
            "method": point.method,
            "values": dict(point.values),
            "options": dict(record.run.options),
            "seed": record.run.seed,
            "validation_accuracy": record.measured["best_validation_accuracy"],
            "selected_iteration": record.measured["selected_iteration"],
            "seconds_to_train": record.measured["seconds_to_train"],
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
            "label": engine.METHODS[choice.point.method].label,
            "values": dict(choice.point.values),
            "validation_accuracy": choice.point.accuracy,
            "at_edge": list(choice.at_edge),
        }
        for choice in choices
    ]
    return to_json({"schema": SCHEMA, "experiment": asdict(plan.experiment), "chosen": decided, "points": listed})
