"""Tables and a plot of what was measured; the same for the same measurements."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cases import ALGORITHMS, CONTENDERS, GROWTH, Setting
from matplotlib.figure import Figure
from peers import PRODUCT
from tabulate import tabulate

from l2l_hyper.report.style import WIDTH, render, styled

__all__ = ["write_tables"]

Cells = list[dict[str, Any]]
OURS, KERNELS, TWO = "engine", "engine, kernels", "engine, kernels, 2 processes"
KINDS = ("convolutions", "matrix products", "element by element", "copies", "sums", "between operations")


def write_tables(measured: dict[str, Any], out: Path) -> None:
    """Write ``speed.md``, and the figure as ``speed.png`` and ``speed.pdf``."""
    cells = measured["measurements"]
    environment = measured["provenance"][-1]["environment"]
    commits = ", ".join(dict.fromkeys(p["commit"][:10] for p in measured["provenance"]))
    commands = ", ".join(dict.fromkeys(f"`{p['command'].strip()}`" for p in measured["provenance"]))
    turns = sorted({len(m["seconds"]) for m in cells if m["cell"]["measure"] == "train"})
    parts = [
        "# Speed\n",
        f"{commands}, commit {commits}; {environment['cpu']}, {environment['cpu_count']} cores, "
        f"torch {environment['torch']}, learn2learn {environment['learn2learn']}. Times are medians of "
        f"{' or '.join(map(str, turns))} turns. As in learn2learn's scripts there are as many queries as shots, "
        "and normalization layers use the statistics of whatever passes (transductive).\n",
    ]
    for title, table in (
        ("Ratios", ratios(cells)),
        ("Episodes per second, meta-training end to end", episodes_per_second(cells)),
        ("Sampling alone", sampling(cells)),
        ("Adapting to one task, and memory", adaptation(cells)),
        ("Where the time of an iteration goes, in the engine", breakdowns(cells)),
        ("Adapting to one task, in the engine", adapting(cells)),
        ("Growth of an episode's time as the work doubles", growth(cells)),
        ("Weights per second, of hypernetwork libraries", peers(cells)),
    ):
        if table:
            parts.append(f"## {title}\n\n{tabulate(table, headers='keys', tablefmt='github', disable_numparse=True)}\n")
    compiled = {"compiled": 'after `method.compile(options={"cpp_wrapper": True})`'}
    parts.append("\n".join(f"- {name}: {what}" for name, what in {**CONTENDERS, **compiled}.items()) + "\n")
    (out / "speed.md").write_text("\n".join(parts))
    for form in ("png", "pdf"):
        (out / f"speed.{form}").write_bytes(render(plot(cells), form))


def find(cells: Cells, **wanted: Any) -> dict[str, Any] | None:
    """The measurement of the cell that has these values."""
    return next((m for m in cells if all(m["cell"].get(key) == value for key, value in wanted.items())), None)


def seconds(measurement: dict[str, Any] | None) -> float:
    """Median over the turns of the median of each."""
    if measurement is None or not measurement["seconds"][0]:
        return math.nan
    return statistics.median(statistics.median(turn) for turn in measurement["seconds"])


def an_episode(cells: Cells, **wanted: Any) -> float:
    """Seconds per episode, nan where it was not measured."""
    measurement = find(cells, measure="train", growth=None, **wanted)
    return seconds(measurement) / measurement["cell"]["meta_batch"] if measurement else math.nan


def ratios(cells: Cells) -> list[dict[str, str]]:
    """How many times faster than learn2learn, at every meta-batch."""
    rows = []
    for setting in dict.fromkeys(m["cell"].get("setting") for m in cells):
        if setting is None:
            continue
        batches = sorted(
            {
                m["cell"]["meta_batch"]
                for m in cells
                if m["cell"]["measure"] == "train" and m["cell"]["setting"] == setting
            }
        )
        for what, ours in (
            ("HyperAdapter, head / MAML, 1 step", "HyperAdapter, head"),
            ("HyperAdapter, head + affine / MAML, 1 step", "HyperAdapter, head + affine"),
            *((name, name) for name in list(ALGORITHMS)[:4]),
        ):
            for batch in batches:
                stock = an_episode(cells, setting=setting, algorithm=ours, meta_batch=batch, contender="learn2learn")
                values = [
                    stock / an_episode(cells, setting=setting, algorithm=ours, meta_batch=batch, contender=contender)
                    for contender in (OURS, KERNELS, TWO)
                ]
                rows += _row(f"{setting}: {what}, end to end, meta-batch {batch}", *map(_times, values))
        rows += list(single_ratios(cells, setting))
    return rows


def single_ratios(cells: Cells, setting: str) -> Iterator[dict[str, str]]:
    """Drawing, opening, adapting, convolutions."""
    draw, opened = (
        [find(cells, setting=setting, contender=c, **wanted) for c in ("learn2learn", OURS)]
        for wanted in ({"measure": "draw", "queries": 15}, {"measure": "open"})
    )
    drawing, opening = (_times(seconds(theirs) / seconds(ours)) for theirs, ours in (draw, opened))
    yield from _row(f"{setting}: drawing 32 episodes with 15 queries per class", drawing)
    yield from _row(f"{setting}: opening the second time, time", opening)
    if opened[0] and opened[1]:
        peaks = [statistics.median(o["peak_mb"]) for o in opened]
        yield from _row(f"{setting}: opening the second time, peak memory", _times(peaks[0] / max(peaks[1], 0.1)))
    adapting = [find(cells, measure="adapt", setting=setting, contender=c) for c in ("learn2learn", OURS, KERNELS)]
    compiled = find(cells, measure="adapt", setting=setting, contender=f"{KERNELS}, compiled")
    theirs, *ours = map(seconds, adapting)
    what = f"{setting}: adapting to one task, HyperAdapter, head / MAML, 5 steps"
    yield from _row(what, *(_times(theirs / each) for each in ours))
    yield from _row(f"{what}, compiled", "", _times(theirs / seconds(compiled)))
    measured = find(cells, measure="breakdown", setting=setting, algorithm="HyperAdapter, head")
    if measured:
        gflop, there, alone = (measured[key][0] for key in ("gflop", "convolutions", "alone"))
        what = f"{setting}: convolutions in training {gflop / there:.0f} GFLOP/s, alone {gflop / alone:.0f}"
        yield from _row(what, f"{100 * alone / there:.0f} %")


def _row(what: str, *values: str) -> Iterator[dict[str, str]]:
    """A row of the ratios, if there is anything in it."""
    if any(values):
        yield dict(itertools.zip_longest(("what", OURS, KERNELS, TWO), (what, *values), fillvalue=""))


def breakdowns(cells: Cells) -> list[dict[str, str]]:
    """Share of each kind of operation in an iteration, which being watched makes longer."""
    rows = []
    for m in cells:
        if m["cell"]["measure"] == "breakdown":
            whole, kinds = m["iteration"][0], m["kinds"][0]
            name = f"{m['cell']['setting']}, {m['cell']['algorithm']}, {m['cell']['meta_batch']} tasks"
            watched = max(whole, sum(kinds.values()))
            parts = {**kinds, "between operations": watched - sum(kinds.values())}
            rows.append(
                {
                    "iteration": name,
                    "ms": _number(1000 * whole),
                    **{kind: f"{100 * parts.get(kind, 0.0) / watched:.0f} %" for kind in KINDS},
                }
            )
    return rows


def adapting(cells: Cells) -> list[dict[str, str]]:
    """Where the time goes with one task in hand; watching makes each operation some microseconds longer."""
    rows = []
    for m in cells:
        if m["cell"]["measure"] == "breakdown":
            one = m["adapting"][0]
            kinds = {kind: _number(1000 * one["kinds"].get(kind, 0.0)) for kind in KINDS[:-1]}
            rows.append(
                {
                    "task": f"{m['cell']['setting']}, {m['cell']['algorithm']}",
                    "ms": _number(1000 * one["seconds"]),
                    "operations": str(one["operations"]),
                    "convolutions alone, ms": _number(1000 * one["alone"]),
                    **{f"{kind}, watched": ms for kind, ms in kinds.items()},
                }
            )
    return rows


def episodes_per_second(cells: Cells) -> list[dict[str, str]]:
    """One row per algorithm and way of running, one column per setting and meta-batch."""
    trained = [m for m in cells if m["cell"]["measure"] == "train" and "growth" not in m["cell"]]
    columns = dict.fromkeys((m["cell"]["setting"], m["cell"]["meta_batch"]) for m in trained)
    rows = []
    for algorithm, contender in itertools.product(ALGORITHMS, CONTENDERS):
        if not _is_mamls(algorithm, contender):
            values = {
                f"{setting}, {batch}": 1
                / an_episode(cells, setting=setting, meta_batch=batch, algorithm=algorithm, contender=contender)
                for setting, batch in columns
            }
            if not all(map(math.isnan, values.values())):
                rows.append({"algorithm": algorithm, "by": contender, **{k: _number(v) for k, v in values.items()}})
    return rows


def _is_mamls(algorithm: str, contender: str) -> bool:
    """Whether it is MAML's script with one step, measured beside HyperAdapter, that has rows of its own."""
    return contender == "learn2learn" and ALGORITHMS[algorithm].method == "hyper-adapter"


def sampling(cells: Cells) -> list[dict[str, str]]:
    """Milliseconds to draw an episode of as many queries as shots."""
    rows: dict[str, dict[str, str]] = {}
    for m in cells:
        cell = m["cell"]
        if cell["measure"] == "draw" and cell["queries"] == Setting.of(cell["setting"]).shots:
            row = rows.setdefault(cell["setting"], {"ms per episode": cell["setting"]})
            row[cell["contender"]] = _number(1000 * seconds(m) / cell["episodes"])
    return list(rows.values())


def adaptation(cells: Cells) -> list[dict[str, str]]:
    """Milliseconds to adapt to one task and peak memory of the process."""
    rows = []
    for m in cells:
        cell = m["cell"]
        trained = cell["measure"] == "train" and "growth" not in cell and cell["meta_batch"] in (2, 4)
        if trained and not _is_mamls(cell["algorithm"], cell["contender"]):
            rows.append(
                {
                    "setting": cell["setting"],
                    "algorithm": cell["algorithm"],
                    "by": cell["contender"],
                    "adapt ms": _number(statistics.median(m["adapt_ms"])),
                    "peak MB": f"{statistics.median(m['peak_mb']):,.0f}",
                }
            )
    return rows


def growth(cells: Cells) -> list[dict[str, str]]:
    """Milliseconds of an episode, or of a call of a generator, and the ratio to the one before."""
    rows = []
    for what, names in GROWTH.items():
        times = [1000 * seconds(find(cells, setting=name, growth=True)) / 16 for name in names]
        rows += _doubling(what, [name.removeprefix("omniglot ") for name in names], times, "engine, HyperAdapter, head")
    batches = (1, 4, 16, 64)
    times = [
        1000
        * b
        * an_episode(
            cells, setting="omniglot 5-way 1-shot", algorithm="HyperAdapter, head", meta_batch=b, contender=OURS
        )
        for b in batches
    ]
    rows += _doubling("meta-batch", [str(b) for b in batches], times, "an iteration, twice doubled")
    widths = [25 * 2**i for i in range(5)]
    for contender in ("l2l_hyper", PRODUCT):
        found = [find(cells, measure="generate", width=w, descriptions=64, contender=contender) for w in widths]
        labels = [f"{m['weights'][0] / 64:,.0f}" if m else "" for m in found]
        times = [1000 * seconds(m) for m in found]
        rows += _doubling("generated parameters", labels, times, f"64 descriptions, {contender}")
    return rows


def _doubling(what: str, labels: list[str], times: list[float], note: str) -> list[dict[str, str]]:
    before = [math.nan, *times[:-1]]
    return [
        {"what": what, "of": note, "at": label, "ms": _number(t), "to the one before": _times(t / b)}
        for label, t, b in zip(labels, times, before, strict=True)
        if not math.isnan(t)
    ]


def peers(cells: Cells) -> list[dict[str, str]]:
    """Generated weights per second, one description and 64 at once."""
    rows: dict[str, dict[str, str]] = {}
    for m in cells:
        cell = m["cell"]
        if cell["measure"] == "generate" and cell["width"] == 100:
            per_second = m["weights"][0] / seconds(m) / 1e6
            row = rows.setdefault(cell["contender"], {"library": cell["contender"]})
            row[f"{cell['descriptions']} at once, million per second"] = _number(per_second)
    return list(rows.values())


@styled
def plot(cells: Cells) -> Figure:
    """Episodes per second against the meta-batch."""
    names = ["MAML, 1 step", "MAML, 5 steps", "ANIL, 5 steps", "ProtoNet", "HyperAdapter, head"]
    figure = Figure(figsize=(WIDTH, 4.2))
    *panels, rest = figure.subplots(2, 3, sharey=True).flat
    palette = ("#777777", "#a08060", "#4477aa", "#88aa44", "#e8a33d", "#c1440e", "#7a1fa2", "#d48ac0")
    measured = (m["cell"]["contender"] for m in cells if m["cell"]["measure"] == "train")
    colors = dict(zip(dict.fromkeys([*CONTENDERS, *measured]), palette, strict=False))  # earlier ones had other names
    setting = next((m["cell"]["setting"] for m in cells if m["cell"]["measure"] == "train"), "")
    handles = {}
    for axes, name in zip(panels, names, strict=True):
        for contender, color in colors.items():
            points = [
                (m["cell"]["meta_batch"], m["cell"]["meta_batch"] / seconds(m))
                for m in cells
                if (m["cell"].get("setting"), m["cell"].get("algorithm")) == (setting, name)
                and m["cell"].get("contender") == contender
                and "growth" not in m["cell"]
            ]
            if points:
                (handles[contender],) = axes.plot(*zip(*sorted(points), strict=True), "o-", color=color, markersize=3)
        axes.set(title=name, xlabel="meta-batch", xscale="log", yscale="log")
        axes.set_xticks([1, 4, 16, 64], ["1", "4", "16", "64"])
        axes.set_xticks([], minor=True)
    panels[-1].set_title("HyperAdapter, head\n(learn2learn: MAML, 1 step)")
    figure.suptitle(f"{setting}: episodes per second")
    labels = [{"script": "learn2learn's script, swapped"}.get(name, name) for name in handles]
    rest.legend(handles.values(), labels, loc="center left", fontsize=7)
    rest.set_axis_off()
    return figure


def _times(ratio: float) -> str:
    return "" if math.isnan(ratio) else f"{ratio:.3g}×"


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
