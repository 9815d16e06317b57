"""What the studies have in common: settings from a preset and flags, one record per seed, and a report of the records.

    python -m benchmarks.uses.described --preset benchmarks/presets/uses/described.toml --out runs/described --seeds 0 1

Given again, it goes on with the seeds that have no record.  Several processes may share ``--out``, each with its seeds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from matplotlib.figure import Figure
from tabulate import tabulate
from torch import Tensor

from l2l_hyper import InputError
from l2l_hyper.experiment.provenance import collect, public_command
from l2l_hyper.files import SCHEMA, plain, read_json, to_json, write_atomically
from l2l_hyper.report.style import COLORS, MARKERS, draw_legend, looks, render, styled
from l2l_hyper.settings import checked, described, parse_value, tomllib

__all__ = ["Record", "controls", "lines", "main", "markdown", "save", "spread"]

S = TypeVar("S")
Record = dict[str, Any]


def main(
    settings_class: type[S],
    run: Callable[[S, int, torch.device], dict[str, Any]],
    report: Callable[[list[Record], Path], None],
    arguments: Sequence[str] | None = None,
) -> None:
    """Run a study: the seeds that have no record, then the report.

    Args:
        settings_class: a frozen dataclass with a default for each field; its ``Attributes:`` are the help text.
        run: one seed, with torch's random numbers seeded by it, to a result of JSON values or arrays.
        report: writes ``results.md`` and plots from all records of a folder, which have equal settings.
        arguments: of the command line.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    program = f"python -m benchmarks.uses.{Path(run.__code__.co_filename).stem}"
    try:
        options = _parser(settings_class, program).parse_args(given)
        settings = _settings(settings_class, options)
        options.out.mkdir(parents=True, exist_ok=True)
        records = _records(options.out, settings)  # refuses other settings before hours are spent
        for seed in options.seeds:
            if all(record["seed"] != seed for record in records):
                print(f"{options.out.name}, seed {seed}", file=sys.stderr)
                provenance = asdict(collect(public_command(given, program=program), options.device))
                torch.manual_seed(seed)
                start = time.perf_counter()
                result = run(settings, seed, torch.device(options.device))
                provenance["seconds"] = round(time.perf_counter() - start, 1)
                values = {"seed": seed, "settings": asdict(settings), "result": result, "provenance": provenance}  # type: ignore[call-overload]
                write_atomically(options.out / f"seed{seed}.json", to_json({"schema": SCHEMA, **values}))
        styled(report)(_records(options.out, settings), options.out)
    except InputError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None


def _parser(settings_class: type[Any], program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=program)
    parser.add_argument("--preset", type=Path, help="TOML file of settings; a flag wins over it")
    parser.add_argument("--out", type=Path, required=True, help="folder of the records, the table and the plots")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--device", default="cpu")
    for name, text in described(settings_class).items():
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, type=parse_value, default=argparse.SUPPRESS, help=text.replace("%", "%%"))
    return parser


def _settings(settings_class: type[S], options: argparse.Namespace) -> S:
    values = {} if options.preset is None else tomllib.loads(options.preset.read_text(encoding="utf-8"))
    names = [field.name for field in fields(settings_class)]  # type: ignore[arg-type]
    values |= {name: getattr(options, name) for name in names if hasattr(options, name)}
    return settings_class(**checked(settings_class, values, "setting"))


def _records(out: Path, settings: Any) -> list[Record]:
    records = []
    for path in sorted(out.glob("seed*.json")):
        records.append(read_json(path, remedy="remove it and run its seed again"))
        if records[-1]["settings"] != json.loads(json.dumps(plain(asdict(settings)))):
            raise InputError(f"{path} has other settings than this study, {records[-1]['settings']}: try another --out")
    return records


def controls(z: Tensor, generator: torch.Generator | None = None) -> dict[str, Tensor]:
    """The descriptions ``(T, Z)`` of T tasks under each control: another task's, their mean, and random ones.

    Random ones are normal, with the mean and the standard deviation that each entry has over the tasks.
    """
    noise = torch.randn(z.shape, generator=generator, dtype=z.dtype).to(z.device)
    return {
        "another task's z": z.roll(1, 0),
        "mean z": z.mean(0).expand_as(z),
        "random z": z.mean(0) + z.std(0) * noise,
    }


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Mean ± standard deviation over the seeds.

    >>> spread([1.0, 2.0, 3.0], 1)
    '2.0 ± 1.0'
    """
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def lines(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Colour, marker and dashes by name, as arguments of ``Axes.plot``; MAML looks as in the figures of ``compare``.

    >>> [lines(["MAML", "other"])[name]["color"] for name in ("MAML", "other")]
    ['#D55E00', '#CC79A7']
    """
    maml = looks(["maml"])["maml"]
    others = [color for color in COLORS if "MAML" not in names or color != maml["color"]]
    rest = {
        name: {
            "color": others[k % len(others)],
            "marker": MARKERS[1 + k % (len(MARKERS) - 1)],
            "linestyle": ("-", "--", ":")[k // len(others) % 3],
        }
        for k, name in enumerate(name for name in names if name != "MAML")
    }
    return {name: maml if name == "MAML" else rest[name] for name in names}


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG and as PDF, with the legend of its first panel below the panels."""
    draw_legend(figure)
    for form in ("png", "pdf"):
        write_atomically(path.with_suffix(f".{form}"), render(figure, form))


def markdown(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, with its numbers as they are."""
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True) + "\n"
