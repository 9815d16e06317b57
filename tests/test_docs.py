"""What the README and docs/ say: commands that exist, tables that are those of the records, formulas of methods.md."""

from __future__ import annotations

import csv
import importlib.util
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from helpers_docs import PAGES, ROOT, commands, steps
from torch import Tensor, nn
from torch.nn import functional as F

import l2l_hyper
from l2l_hyper import cli
from l2l_hyper._learn2learn import learn2learn
from l2l_hyper.data import SupportSet
from l2l_hyper.experiment.plan import SETTINGS, from_flags, make_plan, merged, read_preset
from l2l_hyper.experiment.records import read_records
from l2l_hyper.methods import METHODS, HyperAdapter
from l2l_hyper.report import summarize
from l2l_hyper.report.controls import control_table

CIFARFS = ROOT / "benchmarks" / "results" / "cifarfs"


@pytest.mark.parametrize("page", [*PAGES, ROOT / "benchmarks" / "README.md"], ids=lambda p: p.name)
def test_commands_exist(page: Path) -> None:
    """Commands, flags, settings, presets, targets and files, also of those that take hours or a GPU."""
    text = page.read_text(encoding="utf-8")
    files = re.findall(r"\b(?:benchmarks|l2l_hyper|tests)/[\w/.-]+\.(?:md|png|py|toml|txt)\b", text)
    assert [file for file in files if not (ROOT / file).exists()] == []
    shells = [source for _, language, source in steps(page) if language in ("", "console", "indented", "sh")]
    for program, *words in commands("\n".join(shells)):
        if program == "torchrun":
            assert words[2:4] == ["-m", "l2l_hyper"]
            program, words = "l2l-hyper", words[4:]
        if program == "make":
            targets = re.search(r"\.PHONY: (.*)", (ROOT / "Makefile").read_text(encoding="utf-8"))
            assert targets and {word for word in words if "=" not in word} <= set(targets[1].split())
        elif program == "python" and words[0] == "-m":
            assert importlib.util.find_spec(words[1])
        elif program == "python" and words[0] != "-c":
            assert (ROOT / words[0]).exists()
        elif program == "l2l-hyper":
            check_command(words)


def check_command(words: list[str]) -> None:
    group = typer.main.get_command(cli.app)
    if words[0].startswith("-"):
        return
    context = group.commands[words[0]].make_context(words[0], list(words[1:]))  # type: ignore[attr-defined]
    preset = context.params.get("preset")
    if preset is not None and preset.parts[0] == "benchmarks":
        preset = read_preset(ROOT / preset)
    flags = from_flags({name: value for name, value in context.params.items() if name in SETTINGS})
    make_plan(merged(preset if isinstance(preset, dict) else {}, flags))


@pytest.mark.parametrize("path", sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")), ids=lambda p: p.stem)
def test_notebooks_are_kept_with_their_outputs(path: Path) -> None:
    """As GitHub shows them; `make docs` runs them."""
    cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == [*range(1, len(cells) + 1)]
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert outputs and all(o["output_type"] != "error" and o.get("name") != "stderr" for o in outputs)


def test_every_method_is_in_the_table_of_methods() -> None:
    text = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    assert [name for name in METHODS._paths if f"| `{name}` |" not in text] == []


def test_every_preset_and_every_folder_of_results_is_listed() -> None:
    text = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    presets = [path.name for path in (ROOT / "benchmarks" / "presets").glob("*.toml")]
    folders = [path.name for path in (ROOT / "benchmarks" / "results").iterdir() if path.is_dir()]
    assert [name for name in presets + folders if f"`{name}`" not in text] == []


def test_price_of_the_swap() -> None:
    model = learn2learn().vision.models.CNN4(output_size=5, hidden_size=32)
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for learned in (model, l2l_hyper.HyperAdapter(model)):
        assert f"{sum(p.numel() for p in learned.parameters()):,}" in text


def interval(mean: float, half_width: float, sign: str = "") -> str:
    return f"{mean:{sign}.2f} ± {half_width:.2f}".replace("-", "−")


def table_rows(page: str) -> set[str]:
    """Rows of a page's tables, without the marks of significance."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return {line.replace(r" \*", "") for line in text.splitlines() if line.startswith("|")}


def results_of(folder: Path) -> list[tuple[dict[str, str], dict[str, str]]]:
    """Rows of the CSV files at 1 and 5 shots, which another test holds equal to the records."""
    ones, fives = (
        {row["label"]: row for row in csv.DictReader((folder / name).read_text("utf-8").splitlines())}
        for name in ("results.csv", "results-5-shot.csv")
    )
    return [(one, fives[label]) for label, one in ones.items()]


def row_of(rows: Sequence[dict[str, str]]) -> str:
    cells = [rows[0]["label"]]
    for row in rows:
        cells.append(interval(float(row["accuracy"]), float(row["accuracy_half_width"])))
        given = row["difference"]
        cells.append(interval(float(given), float(row["difference_half_width"]), "+") if given else "–")
    return f"| {' | '.join(cells)} |"


def test_table_of_methods_is_that_of_the_records() -> None:
    results = table_rows("docs/results.md")
    for pair in results_of(CIFARFS / "rows"):
        assert row_of(pair) in results


@pytest.mark.parametrize(
    ("name", "reader", "large", "pages"),
    [
        ("cifarfs-small-8", "Conv4-64", "cifarfs-encoder/pretrain", ["docs/results.md"]),
        ("cifarfs-small-8-wrn28", "WRN-28-1", "cifarfs-wrn28", ["docs/results.md"]),
        ("cifarfs-small-8-subclasses", "WRN-28-1", "cifarfs-wrn28", ["docs/results.md", "README.md"]),
        ("cifarfs-small-4-subclasses", "WRN-28-1", "cifarfs-wrn28", ["docs/results.md"]),
        ("cifarfs-small-16-subclasses", "WRN-28-1", "cifarfs-wrn28", ["docs/results.md"]),
        ("cifarfs-small-32-subclasses", "WRN-28-1", "cifarfs-wrn28", ["docs/results.md"]),
        ("cifarfs-conv4-wrn28", "WRN-28-1", "cifarfs-wrn28", ["docs/results.md"]),
        ("mini-small-8", "WRN-28-1", "mini-wrn28", ["docs/results.md"]),
    ],
)
def test_table_of_small_networks_is_that_of_the_records(name: str, reader: str, large: str, pages: list[str]) -> None:
    folder = CIFARFS.with_name(name)
    shown = [{line.replace("**", "") for line in table_rows(page)} for page in pages]
    rows = {row_of(pair) for pair in results_of(folder)}
    assert rows <= shown[0]
    labels = {row.split(" | ")[0] for row in rows}
    for lines in shown[1:]:  # which need not have every row
        some = {line for line in lines if line.split(" | ")[0] in labels}
        assert len(some) > 2 and some <= rows
    records = read_records(folder)
    one, five = (summarize([r.at(shots) for r in records], "protonet@map") for shots in (1, 5))
    of_large = read_records(CIFARFS.parent / large)
    (itself,), (itself_5,) = (summarize([r.at(shots) for r in of_large]).rows for shots in (1, 5))
    scores = [interval(100 * row.score.mean, 100 * row.score.half_width) for row in (itself, itself_5)]
    ratio = itself.multiply_adds_per_query / one.rows[0].multiply_adds_per_query
    start = f"ProtoNet, the {reader} itself, {ratio:.0f} times the cost per query"
    assert all(f"| {start} | {scores[0]} | | {scores[1]} | |" in lines for lines in shown)
    names = {
        "no residual": "none",
        "another task's": "another task's",
        "mean": "mean of the tasks that are tested together",
        "random": "random numbers",
    }
    controls = [{(c[0], c[1]): c[-1] for c in control_table(summary)[1:]} for summary in (one, five)]
    assert controls[0]
    for (label, control), difference in controls[0].items():
        row = f"| {label} | {names[control]} | {difference} | {controls[1][label, control]} |"
        assert row in shown[0]


@pytest.mark.parametrize(
    ("folder", "large"),
    [
        ("cifarfs-small-8-subclasses", "cifarfs-wrn28"),
        ("cifarfs-conv4-wrn28", "cifarfs-wrn28"),
        ("mini-small-8", "mini-wrn28"),
    ],
)
def test_row_of_three_encoders_read_as_one_is_that_of_the_record(folder: str, large: str) -> None:
    (record,) = read_records(CIFARFS.with_name(large) / "ensemble")
    deployed = read_records(CIFARFS.with_name(folder))[0].result.multiply_adds_per_query
    (one,), (five,) = (summarize([record.at(shots)]).rows for shots in (1, 5))
    scores = [interval(100 * row.score.mean, 100 * row.score.half_width) for row in (one, five)]
    ratio = record.result.multiply_adds_per_query / deployed
    start = f"ProtoNet, three WRN-28-1 read as one, {ratio:.0f} times the cost per query"
    assert f"| {start} | {scores[0]} | | {scores[1]} | |" in table_rows("docs/results.md")


def test_without_its_residual_the_distilled_adapter_is_the_distilled_network() -> None:
    records = {(r.run.method, r.run.seed): r for r in read_records(CIFARFS.with_name("cifarfs-small-8"))}
    for seed in (0, 1, 2):
        ours, theirs = (records[name, seed] for name in ("hyper-adapter@distilled", "protonet-distilled@map"))
        for shots in (1, 5):
            (without,) = (c for c in ours.result.controls if c.control == "no residual" and c.shots == shots)
            assert np.abs(np.asarray(without.scores) - theirs.at(shots).scores).max() < 1e-4


def test_tables_of_spoken_words_are_those_of_the_records() -> None:
    folder, rows = CIFARFS.with_name("speech"), table_rows("docs/uses/speech.md")
    for pair in results_of(folder):
        assert row_of(pair) in rows
    records = read_records(folder)
    one, five = (control_table(summarize([r.at(shots) for r in records], "protonet@cosine"))[1:] for shots in (1, 5))
    assert one
    for row, row_5 in zip(one, five, strict=True):
        assert f"| {row[1]} | {row[-1]} | {row_5[-1]} |" in rows


def test_table_of_sine_waves_is_that_of_the_records() -> None:
    folder, rows = CIFARFS.with_name("sinusoids"), table_rows("docs/results.md")
    five, ten = (
        {row["label"]: row for row in csv.DictReader((folder / name).read_text("utf-8").splitlines())}
        for name in ("results.csv", "results-10-shot.csv")
    )
    for label in five:
        cells = [label]
        for row in (five[label], ten[label]):
            cells.append(f"{float(row['squared_error']):.4f} ± {float(row['squared_error_half_width']):.4f}")
            given = row["difference"]
            difference = f"{float(given or 0):+.4f} ± {float(row['difference_half_width'] or 0):.4f}"
            cells.append(difference.replace("-", "−") if given else "–")
        assert f"| {' | '.join(cells)} |" in rows


def test_table_of_other_sizes_is_that_of_the_records() -> None:
    rows = table_rows("docs/results.md")
    for channels in (16,):
        for pair in results_of(CIFARFS.with_name(f"cifarfs-small-{channels}")):
            assert f"| {channels} {row_of(pair)}" in rows


@pytest.mark.parametrize(("name", "channels"), [("cifarfs-to-mini-8", 8), ("cifarfs-to-mini-conv4", 64)])
def test_table_of_cifarfs_to_mini_imagenet_is_that_of_the_records(name: str, channels: int) -> None:
    rows = {row.replace("**", "") for row in table_rows("docs/results.md")}
    for pair in results_of(CIFARFS.with_name(name)):
        assert f"| {channels} {row_of(pair)}".replace(", trained on cifarfs", "") in rows


def test_table_of_ten_ways_is_that_of_the_records() -> None:
    rows = {row.replace("**", "") for row in table_rows("docs/results.md")}
    assert {row_of(pair) for pair in results_of(CIFARFS.with_name("cifarfs-small-8-ways"))} <= rows


def test_table_of_methods_that_read_queries_is_that_of_the_records() -> None:
    reads, page = CIFARFS.with_name("cifarfs-transductive-8"), table_rows("docs/results.md")
    inductive = CIFARFS.with_name("cifarfs-small-8-subclasses")
    for balanced, other in ((reads, reads / "unbalanced"), (inductive, reads / "unbalanced-inductive")):
        rows: dict[str, list[str]] = {}
        for records in (read_records(balanced), read_records(other)):
            for shots in (1, 5):
                for row in summarize([r.at(shots) for r in records]).rows:
                    rows.setdefault(row.label, []).append(interval(100 * row.score.mean, 100 * row.score.half_width))
        whole = {label: cells for label, cells in rows.items() if len(cells) == 4}
        assert len(whole) == 3
        for label, cells in whole.items():
            assert f"| {label} | {' | '.join(cells)} |" in {row.replace("**", "") for row in page}


def test_table_of_other_numbers_of_shots_is_that_of_the_records() -> None:
    records, rows = read_records(CIFARFS.with_name("cifarfs-small-8-shots")), table_rows("docs/results.md")
    for shots in (1, 2, 5, 10, 20):
        summary = summarize([record.at(shots) for record in records], "protonet@map")
        ours, theirs = (
            next(row for row in summary.rows if row.method == m) for m in ("hyper-adapter@linear", "protonet@map")
        )
        assert ours.difference
        cells = [interval(100 * row.score.mean, 100 * row.score.half_width) for row in (theirs, ours)]
        cells.append(interval(100 * ours.difference.mean, 100 * ours.difference.half_width, "+"))
        assert f"| {shots} | {' | '.join(cells)} |" in rows


def test_table_of_omniglot_with_a_small_network_is_that_of_the_records() -> None:
    folder, rows = CIFARFS.with_name("omniglot-20way-small"), table_rows("docs/results.md")
    plain = {row.replace("**", "") for row in rows}
    for row in csv.DictReader((folder / "results.csv").read_text("utf-8").splitlines()):
        assert f"{row_of([row])} {float(row['multiply_adds_per_query']) / 1e6:.3f} |" in plain
    for row in control_table(summarize(read_records(folder), "protonet@map"))[1:]:
        assert f"| {row[1]} | {row[-1]} |" in rows


def test_learning_rates_of_omniglot_with_a_small_network_are_those_of_the_sweep() -> None:
    sweep = json.loads((CIFARFS.with_name("sweep-omniglot-20way-small") / "sweep.json").read_text("utf-8"))
    preset = read_preset(ROOT / "benchmarks" / "presets" / "omniglot-20way-small.toml")["options"]
    for choice in sweep["chosen"]:
        assert choice["values"].items() <= preset[choice["method"]].items()
    assert len(sweep["chosen"]) == len(preset)


def test_table_of_one_data_set_after_the_other_is_that_of_the_records() -> None:
    folders = ("omniglot-small", "glyphs-to-omniglot", "omniglot-to-glyphs")
    files = [CIFARFS.with_name(name) / "results.csv" for name in folders]
    tables = [
        {row["label"].partition(", trained on")[0]: row for row in csv.DictReader(file.read_text("utf-8").splitlines())}
        for file in files
    ]
    names = {
        "ProtoNet, large": "ProtoNet with the large network",
        "HyperAdapter": "**HyperAdapter**",
        "ProtoNet": "ProtoNet, cosine, map",
        "MAML": "MAML",
    }
    assert all(set(table) == set(names) for table in tables)
    for label, name in names.items():
        cells = row_of([table[label] for table in tables]).split(" | ", 1)[1]
        assert f"| {name} | {cells}" in table_rows("docs/results.md")
    means = {(r.run.method, r.run.seed): 100 * r.scores.mean() for r in read_records(CIFARFS.with_name(folders[1]))}
    gains = [means["hyper-adapter@glyphs", seed] - means["protonet@glyphs", seed] for seed in range(3)]
    assert f"({', '.join(f'{gain:.2f}' for gain in gains)})" in (ROOT / "docs" / "results.md").read_text("utf-8")


@pytest.mark.parametrize("problem", ["quadratics", "digits"])
def test_table_of_learned_optimizers_is_that_of_the_records(problem: str) -> None:
    table = CIFARFS.with_name(f"learned_optimizer_{problem}") / "results.md"
    page = [[cell.strip(" *") for cell in row.split("|")] for row in table_rows("docs/uses/learned_optimizer.md")]
    for row in table.read_text("utf-8").splitlines()[2:]:
        cells = [cell.strip() for cell in row.split("|")]
        assert any(cells[2:] == of_page[2:] and of_page[1].endswith(cells[1]) for of_page in page), row


@pytest.mark.parametrize(
    ("folder", "rates"),
    [
        ("sweep-cifarfs-small", [0.0003, 0.001, 0.003, 0.01, 0.03]),
        ("sweep-cifarfs-small-subclasses", [0.0003, 0.001, 0.003, 0.01, 0.03]),
        ("sweep-cifarfs-small-baselines", [0.0003, 0.001, 0.003, 0.01, 0.03]),
        ("sweep-cifarfs-wrn28-conv4", [0.0001, 0.0003, 0.001, 0.003, 0.01]),
    ],
)
def test_table_of_learning_rates_is_that_of_the_sweep(folder: str, rates: list[float]) -> None:
    sweep = json.loads((CIFARFS.with_name(folder) / "sweep.json").read_text("utf-8"))
    best = {choice["method"]: choice["values"] for choice in sweep["chosen"]}
    names = {
        ("protonet@map", None): "ProtoNet, map",
        ("hyper-adapter@linear", None): "HyperAdapter, linear",
        ("hyper-adapter@mlp", 0.5): "HyperAdapter, mlp, dropout 0.5",
        ("hyper-adapter@mlp", 0.0): "HyperAdapter, mlp, no dropout",
        ("protonet-distilled@map", None): "ProtoNet, distilled, map",
        ("r2d2", None): "R2-D2",
        ("hyper-adapter@linear-teacher", None): "HyperAdapter, linear-teacher",
        ("gidaris", None): "Gidaris & Komodakis",
        ("hypertransformer", None): "HyperTransformer",
        ("feat", None): "FEAT",
        ("simpleshot", None): "SimpleShot",
        ("hypershot", None): "HyperShot",
    }
    cells: dict[str, dict[float, str]] = {name: {} for (method, _), name in names.items() if method in best}
    for point in sweep["points"]:
        score, values = f"{100 * point['validation_score']:.2f}", point["values"]
        bold = values == best[point["method"]]
        cells[names[point["method"], values.get("dropout")]][values["lr"]] = f"**{score}**" if bold else score
    rows = table_rows("docs/results.md")
    for name, scores in cells.items():
        assert re.sub(" +", " ", f"| {name} | {' | '.join(scores.get(rate, '') for rate in rates)} |") in rows


@pytest.mark.parametrize(
    ("row", "rate", "seed", "trained", "tested"),
    [
        ("protonet-distilled@map", "0.001", 0, "rates/0.001", "rates/0.001"),
        ("protonet-distilled@map", "0.003", 0, ".", "."),
        ("protonet-distilled@map", "0.01", 0, "rates/0.01", "rates/0.01-test"),
        ("protonet-distilled@map", "0.003", 1, ".", "."),
        ("protonet-distilled@map", "0.01", 1, "rates/0.01-seed1", "rates/0.01-seed1"),
        ("hyper-adapter@linear-ensemble", "0.003", 0, ".", "."),
        ("hyper-adapter@linear-ensemble", "0.01", 0, "rates/0.01-ensemble", "rates/0.01-ensemble"),
    ],
)
def test_rates_of_whole_trainings_at_conv4_are_those_of_the_records(
    row: str, rate: str, seed: int, trained: str, tested: str
) -> None:
    folder = CIFARFS.with_name("cifarfs-conv4-wrn28")
    training, test = (
        next(r for r in read_records(folder / name) if (r.run.method, r.run.seed) == (row, seed))
        for name in (trained, tested)
    )
    assert training.run == replace(test.run, experiment=training.run.experiment)
    assert str(test.run.options["lr"]) == rate
    scores = [max(p.score for p in training.result.validation), *(test.at(k).scores.mean() for k in (1, 5))]
    cells = [test.label, rate, str(seed), *(f"{100 * score:.2f}" for score in scores)]
    assert f"| {' | '.join(cells)} |" in table_rows("docs/results.md")


@pytest.mark.parametrize(
    ("folder", "row", "seeds", "rates"),
    [
        ("cifarfs-small-8-subclasses", "protonet@map", 3, {"0.003": "rates/0.003", "0.01": "."}),
        ("cifarfs-small-8-subclasses", "protonet-distilled@map", 3, {"0.003": "rates/0.003", "0.01": "."}),
        ("mini-small-8", "protonet@map", 1, {"0.003": "rates/0.003", "0.01": "."}),
        ("mini-small-8", "protonet-distilled@map", 1, {"0.003": "rates/0.003", "0.01": "."}),
        ("mini-small-8", "hyper-adapter@linear-teacher", 1, {"0.003": "rates/0.003", "0.01": "."}),
        ("cifarfs-transductive-8", "soft-kmeans@map", 3, {"0.003": ".", "0.01": "rates/0.01"}),
        ("cifarfs-transductive-8", "hyper-adapter-transductive@distilled", 1, {"0.003": "rates/0.003", "0.01": "."}),
    ],
)
def test_rates_of_whole_trainings_with_8_channels_are_those_of_the_records(
    folder: str, row: str, seeds: int, rates: dict[str, str]
) -> None:
    for rate, name in rates.items():
        held = {r.run.seed: r for r in read_records(CIFARFS.with_name(folder) / name) if r.run.method == row}
        records = [held[seed] for seed in range(seeds)]
        assert {str(r.run.options["lr"]) for r in records} == {rate}
        validation = np.mean([max(p.score for p in r.result.validation) for r in records])
        scores = [validation, *(np.mean([r.at(k).scores.mean() for r in records]) for k in (1, 5))]
        cells = [records[0].label, rate, *(f"{100 * score:.2f}" for score in scores)]
        assert f"| {' | '.join(cells)} |" in table_rows("docs/results.md")


def rms(x: Tensor) -> Tensor:
    return x.square().mean().sqrt()


def attention(module: nn.Module, z: Tensor, t: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    """Of one task, with a bias (heads, C, N), one head after the other."""
    width, heads = z.shape[-1], module.heads
    q, (k, v) = module.query(z), module.key_value(t).split(width, -1)
    parts = [slice(j * width // heads, (j + 1) * width // heads) for j in range(heads)]
    logits = torch.stack([q[:, part] @ k[:, part].T / (width / heads) ** 0.5 for part in parts]) + bias
    return module.out(torch.cat([w @ v[:, part] for w, part in zip(logits.softmax(-1), parts, strict=True)], -1))


@pytest.mark.parametrize("labels", [[0, 0, 1, 1, 2, 2], [0, 0, 0, 1, 1, 2]], ids=["equal shots", "unequal shots"])
def test_hyper_adapter_is_what_the_page_says(labels: list[int]) -> None:
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Linear(4, 7), nn.Softplus(), nn.Linear(7, 3)).double()
    method = HyperAdapter(backbone).double()
    with torch.no_grad():
        for p in method.parameters():
            p.add_(0.1 * torch.randn_like(p))  # so that nothing is at its zero
    x, y, query = torch.randn(6, 4).double(), torch.tensor(labels), torch.randn(5, 4).double()
    body, base, residual = backbone[:2], method.base_learner, method.residual
    read, generator = residual.encoder, residual.generator.linear

    def read_features(samples: Tensor) -> Tensor:
        return F.normalize(body(samples) - method.network.head.centre, dim=1)

    h, one_hot = read_features(x), F.one_hot(y, 3).double()
    shots = one_hot.sum(0)
    mean = torch.stack([h[y == k].mean(0) for k in range(3)])
    variance = (h - mean[y]).square().sum() / (6 - 3)
    length = (mean.square().sum(1) + variance * (1 / shots.min() - 1 / shots)).sqrt()
    w, b = base.log_scale.exp() * mean / length.unsqueeze(1), torch.zeros(3).double()
    p = (h @ w.T).softmax(1)

    unit_w, unit_h = rms(w), rms(h)
    unit_b = unit_w * unit_h * 7**0.5
    u = torch.cat([w / unit_w, (b / unit_b).unsqueeze(1)], 1)
    average = u.mean(0).expand_as(u)
    z, t = read.rows(torch.cat([u - average, average], 1)), read.sample_norm(read.samples(h / unit_h))
    for i in range(2):
        a_j, b_j = (numbers.view(-1, 1, 1) for numbers in read.label_bias[i])
        z = z + attention(read.reads[i], read.norms[2 * i](z), t, a_j * one_hot.T + b_j * p.T)
        normed = read.norms[2 * i + 1](z)
        z = z + attention(read.mixes[i], normed, normed)
        z = z + read.mlps[i](z)
    delta = generator(read.norm(z))
    turned = w + 0.2 * unit_w * delta[:, :7]
    turned = turned * (w.norm(dim=1) / turned.norm(dim=1)).unsqueeze(1)
    outputs = read_features(query) @ turned.T + 0.2 * unit_b * delta[:, 7]
    penalty = (0.2 * delta[:, :7]).square().mean() + (0.2 * delta[:, 7]).square().mean()

    adapted = method.adapt(SupportSet(x[None], y[None], 3))
    torch.testing.assert_close(method.predict(adapted, query[None])[0], outputs)
    torch.testing.assert_close(torch.as_tensor(method.penalty(adapted)).squeeze(), penalty)
    assert penalty > 1e-3
