"""What a report makes of records: summary, tables, the page and the files of a folder."""

from __future__ import annotations

import csv
import dataclasses
import io
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from helpers_records import EXPERIMENT, records
from rich.console import Console

from l2l_hyper import report
from l2l_hyper.cli import main
from l2l_hyper.errors import InputError
from l2l_hyper.experiment.records import Record, read_records, write_record
from l2l_hyper.experiment.result import ControlScores, MetricInfo, ScoresAtShots
from l2l_hyper.report import write
from l2l_hyper.report.columns import columns, describe, notes
from l2l_hyper.statistics import hierarchical_bootstrap, paired_difference

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
SQUARED_ERROR = MetricInfo(name="squared error", higher_is_better=False, percent=False)


def scores(found: list[Record], method: str) -> np.ndarray:
    return np.stack([record.scores for record in found if record.run.method == method])


def folder(path: Path, found: list[Record] | None = None) -> Path:
    for record in found or records():
        write_record(path, record)
    return path


def contents(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


# summary


def test_summary_holds_the_statistics_of_the_records():
    found = records()
    summary = report.summarize(found)
    assert summary.baseline == "protonet"
    assert [row.method for row in summary.rows] == ["hyper-adapter", "protonet", "maml"]
    ours, baseline, maml = summary.rows
    assert ours.difference == paired_difference(scores(found, "hyper-adapter"), scores(found, "protonet"))
    assert baseline.difference is None and baseline.p_corrected is None and baseline.seed_difference is None
    larger = max(maml.difference.p_value, ours.difference.p_value)
    assert maml.p_corrected == pytest.approx(maml.difference.p_value * (1 if maml.difference.p_value == larger else 2))
    assert ours.seed_difference.mean == pytest.approx(ours.difference.mean)
    assert ours.seeds == (0, 1)
    assert (ours.training_seconds, ours.training_episodes, ours.peak_memory_mb) == (8.5, 400, 101)
    assert ours.loss == pytest.approx(0.1)


def test_from_three_seeds_on_intervals_are_over_seeds_and_episodes():
    found = records(["hyper-adapter", "maml"], [0, 1, 2]) + records(["protonet"], [3, 2, 1, 0])
    summary = report.summarize(found)
    ours = summary.rows[0]
    common = np.stack([r.scores for seed in (0, 1, 2) for r in found if r.run.name == f"protonet-seed{seed}"])
    assert ours.difference == hierarchical_bootstrap(scores(found, "hyper-adapter"), common)
    assert ours.score.half_width == hierarchical_bootstrap(scores(found, "hyper-adapter")).half_width
    assert all(row.score_over_seeds for row in summary.rows) and ours.difference_over_seeds
    assert "over training seeds and the 40 test episodes" in notes(summary)[0]
    assert not any("over episodes alone" in note for note in notes(summary))
    figure = report.accuracy_figure(summary)
    bars = figure.axes[0]
    assert "over seeds and episodes" in figure.legends[0].get_texts()[0].get_text()
    ends = bars.collections[-1].get_segments()[0][:, 0]  # the uppermost bar, which is of the first row
    assert ends[1] - ends[0] == pytest.approx(2 * 100 * ours.score.half_width)


def test_with_fewer_seeds_the_notes_say_that_seeds_are_left_out():
    few = report.summarize(records(seeds=[0, 1]))
    assert not any(row.score_over_seeds or row.difference_over_seeds for row in few.rows)
    assert any("another training run" in note for note in notes(few))
    mixed = report.summarize(records(["hyper-adapter", "protonet"], [0, 1, 2]) + records(["maml"], [0]))
    text = " ".join(notes(mixed))
    assert "with fewer than 3 seeds" in text and "another training run" in text


def test_seeds_are_paired_with_the_same_seeds():
    found = records(["maml"], [0, 1, 2]) + records(["protonet"], [1, 2, 3])
    row = next(row for row in report.summarize(found).rows if row.method == "maml")
    by_name = {record.run.name: record.scores.mean() for record in found}
    expected = np.mean([by_name[f"maml-seed{seed}"] - by_name[f"protonet-seed{seed}"] for seed in (1, 2)])
    assert row.seed_difference.mean == pytest.approx(expected)
    assert row.difference.mean == pytest.approx(expected)
    assert not row.difference_over_seeds
    apart = report.summarize(records(["maml"], [0]) + records(["protonet"], [1]))
    assert apart.rows[1].difference is not None and apart.rows[1].seed_difference is None


def test_an_option_that_came_later_than_a_record_has_its_default():
    first, second = records(["protonet"], [0, 1])
    options = {**first.run.options, "linear_map": False}
    later = dataclasses.replace(second, run=dataclasses.replace(second.run, options=options))
    assert [len(row.records) for row in report.summarize([first, later]).rows] == [2]
    options["linear_map"] = True
    with pytest.raises(InputError, match="the seeds of protonet were trained with different options"):
        report.summarize([first, later])


def test_records_that_do_not_belong_together_are_refused():
    found = records()
    others = records(experiment=dataclasses.replace(EXPERIMENT, ways=20))
    with pytest.raises(InputError, match="two experiments"):
        report.summarize([*found, *others])
    with pytest.raises(InputError, match="tested on the same episodes, but the manifest of maml-seed5 is 0000"):
        report.summarize([*found, *records(["maml"], [5], manifest={"hash": "0" * 16})])
    with pytest.raises(InputError, match="same metric, but that of maml-seed5 is squared error"):
        report.summarize([*found, *records(["maml"], [5], metric=SQUARED_ERROR)])
    other_options = dataclasses.replace(found[0], run=dataclasses.replace(found[0].run, seed=5, options={}))
    with pytest.raises(InputError, match="different options"):
        report.summarize([*found, other_options])
    with pytest.raises(InputError, match="not tested"):
        report.summarize(records(scores=[]))
    with pytest.raises(InputError, match="baseline must be .* got anil: try hyper-adapter, maml, protonet"):
        report.summarize(found, "anil")
    with pytest.raises(InputError, match="got none"):
        report.summarize([])


def test_best_are_those_that_do_not_differ_from_the_best():
    close = records(["protonet"], [0])[0]
    run = dataclasses.replace(close.run, method="another")
    wobbling = [score + (0.05 if i % 2 else -0.05) * (1 - score) for i, score in enumerate(close.result.scores)]
    other = dataclasses.replace(close, run=run, result=dataclasses.replace(close.result, scores=wobbling))
    summary = report.summarize([close, other, *records(["maml"], [0])])
    p = paired_difference(close.scores, other.scores).p_value
    assert p > 0.05 > paired_difference(close.scores, summary.rows[2].records[0].scores).p_value
    assert [(row.method, row.best) for row in summary.rows[2:]] == [("maml", False)]
    assert all(row.best for row in summary.rows[:2])
    assert not report.summarize([close]).rows[0].best
    worse_is_better = report.summarize(records(["maml", "protonet"], [0], metric=SQUARED_ERROR))
    assert [row.method for row in worse_is_better.rows if row.best] == ["maml"]


# tables


def test_tables_agree():
    summary = report.summarize(records())
    ours = summary.rows[0]
    shown = f"{100 * ours.score.mean:.2f} ± {100 * ours.score.half_width:.2f}"
    markdown, latex = report.to_markdown(summary), report.to_latex(summary)
    assert f"**{shown}**" in markdown
    assert rf"\bfseries {shown.replace('±', chr(92) + 'pm')}" in latex
    assert "HyperAdapter" in markdown and "HyperAdapter" in latex
    assert "−" in markdown and "−" not in latex
    rows = list(csv.DictReader(report.to_csv(summary).splitlines()))
    assert [row["method"] for row in rows] == ["hyper-adapter", "protonet", "maml"]
    assert float(rows[0]["accuracy"]) == pytest.approx(100 * ours.score.mean)
    assert float(rows[0]["difference"]) == pytest.approx(100 * ours.difference.mean)
    assert float(rows[0]["p"]) == ours.difference.p_value
    assert float(rows[0]["loss"]) == pytest.approx(0.1)
    assert rows[1]["difference"] == rows[1]["p"] == ""
    assert "5-way 1-shot" in markdown and "fedcba987654" in markdown and "A processor" in markdown


def with_costs(costs: dict[str, int | None]) -> report.Summary:
    return report.summarize([r for method, n in costs.items() for r in records([method], multiply_adds_per_query=n)])


def test_columns_that_say_nothing_are_left_out_with_their_notes():
    same, none, differ = (
        with_costs({"maml": n, "protonet": m}) for n, m in [(10**6,) * 2, (None,) * 2, (10**6, 2 * 10**9)]
    )
    for summary, shown in ((same, False), (none, False), (differ, True)):
        tables = report.to_markdown(summary), report.to_latex(summary), report.to_html([summary], [])
        assert {"Mops/query: millions" in table for table in tables} == {shown}
        assert any(column.title == "Mops/query" for column in columns(summary)) == shown
    assert "Mops/query 1.00" in describe(same)[-1] and "norm. support" in describe(same)[-1]
    assert not any("Mops" in line for line in describe(none))
    assert "2,000" in report.to_markdown(differ)
    assert "multiply_adds_per_query" in report.to_csv(same) and "multiply_adds_per_query" not in report.to_csv(none)
    (alone,) = report.summarize(records(["maml"], [0])).rows
    assert "| norm." in report.to_markdown(report.summarize(list(alone.records)))


LATEX = [shutil.which("pdflatex"), shutil.which("kpsewhich")]


def test_latex_is_a_table_of_six_columns(tmp_path):
    imagenet = dataclasses.replace(EXPERIMENT, tasksets="mini-imagenet")
    found = [
        dataclasses.replace(r, label=rf"{r.label} \x{{}}$_%&#^~<>[1]*|±“” Przewięźlikowski, 汉 Ærøskøbing")
        for r in records(experiment=imagenet)
    ]
    latex = report.to_latex(report.summarize(found))
    rows = [line for line in latex.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 4 and all(len(re.findall(r"(?<!\\)&", row)) == 5 for row in rows)
    assert r"\caption{Accuracy on mini-imagenet, 5-way 1-shot" in latex and "40 test episodes" in latex
    assert r"\usepackage{booktabs,siunitx}" in latex and r"\bfseries" in latex
    if not all(LATEX) or not subprocess.run(["kpsewhich", "siunitx.sty"], capture_output=True, check=False).stdout:
        pytest.skip("LaTeX with siunitx is not installed")
    preamble = r"\documentclass{article}\usepackage{booktabs,siunitx}\begin{document}"
    (tmp_path / "page.tex").write_text(preamble + latex + r"\end{document}")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "page.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace", check=False)
    assert done.returncode == 0, done.stdout[-2000:]


def test_controls_are_compared_with_the_method_on_the_same_episodes():
    control = ControlScores(control="no residual", shots=1, scores=[0.5] * 10)
    elsewhere = dataclasses.replace(control, shots=5)
    found = records(["hyper-adapter"], [0, 1, 2], controls=[control, elsewhere]) + records(["protonet"])
    own = np.stack([r.scores[:10] for r in found[:3]])
    expected = hierarchical_bootstrap(np.full((3, 10), 0.5), own)
    markdown = report.to_markdown(report.summarize(found))
    cells = f"50.00 | {100 * expected.mean:+.2f} ± {100 * expected.half_width:.2f}".replace("-", "−")
    (row,) = [line for line in markdown.splitlines() if "no residual" in line]
    assert re.sub(" +", " ", row) == f"| HyperAdapter | no residual | 10 | {cells} |"
    assert "Controls:" not in report.to_markdown(report.summarize(records()))


class Page(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(content)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_page_is_one_file_in_which_text_stays_text():
    hostile = '<script>alert("1")</script><img src=x>'
    found = [
        dataclasses.replace(r, label=hostile, run=dataclasses.replace(r.run, options={hostile: hostile}))
        for r in records()
    ]
    picture = report.Picture(b"<svg/>", hostile)
    page = Page(report.to_html([report.summarize(found)], [picture]))
    assert page.text.count(hostile) >= 3 and "script" not in {tag for tag, _ in page.tags}
    assert [values["src"] for tag, values in page.tags if tag == "img"] == ["data:image/svg+xml;base64,PHN2Zy8+"]
    assert not any("href" in values or values.get("src", "data:")[:5] != "data:" for _, values in page.tags)
    for shown in ("l2l-hyper compare --out runs", "A processor", "test_episodes", "95 % interval"):
        assert shown in page.text


def test_a_metric_that_is_no_share_and_better_when_lower():
    summary = report.summarize(records(metric=SQUARED_ERROR))
    assert [row.method for row in summary.rows] == ["maml", "protonet", "hyper-adapter"]
    markdown = report.to_markdown(summary)
    header = next(line for line in markdown.splitlines() if line.startswith("| method"))
    assert " squared error |" in header and "%" not in header
    assert f"{summary.rows[0].score.mean:.3f} ± {summary.rows[0].score.half_width:.3f}" in markdown
    assert "lower is better" in markdown and "chance" not in markdown and "points above" not in markdown
    rows = list(csv.DictReader(report.to_csv(summary).splitlines()))
    assert float(rows[0]["squared_error"]) == pytest.approx(summary.rows[0].score.mean)
    accuracy = report.accuracy_figure(summary).axes[0]
    assert accuracy.get_xlabel() == "mean test squared error" and "chance" not in accuracy.figure.get_suptitle()


def test_a_loss_that_is_not_finite_is_not_printed():
    summary = report.summarize(records(["maml"], [0], losses=[None] * 40))
    assert summary.rows[0].loss is None
    assert "loss" not in list(csv.DictReader(report.to_csv(summary).splitlines()))[0]


@pytest.mark.parametrize("width", [80, 100, 140, 200])
def test_nothing_is_cut_off_on_the_screen(width):
    summary = report.summarize(records())
    console = Console(width=width, record=True, file=io.StringIO())
    report.print_summary(summary, console)
    text = console.export_text()
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    for title in ("accuracy %", "difference", "seeds", "over seeds", "adapt ms 1.5"):
        assert title in text


def test_without_a_baseline_there_are_no_differences():
    summary = report.summarize(records(["maml"], [0]))
    markdown = report.to_markdown(summary)
    assert "difference" not in markdown and "over seeds |" not in markdown
    assert len(report.to_csv(summary).splitlines()) == 2


def test_published_figures_stand_apart():
    imagenet = dataclasses.replace(EXPERIMENT, tasksets="mini-imagenet")
    summary = report.summarize(records(experiment=imagenet))
    assert "49.42 ± 0.78" in report.to_markdown(summary)
    assert any("Snell et al. 2017" in note for note in notes(summary))
    for elsewhere in (records(), records(experiment=imagenet, metric=SQUARED_ERROR)):
        assert "published" not in report.to_markdown(report.summarize(elsewhere)).lower()


def test_the_backbone_is_described_by_what_it_has():
    for backbone, shown in (("omniglot-cnn", "omniglot-cnn, 64 channels;"), ("mlp", "mlp;"), ("theirs", "theirs;")):
        summary = report.summarize(records(experiment=dataclasses.replace(EXPERIMENT, backbone=backbone)))
        assert f"backbone {shown}" in report.to_markdown(summary)
    experiment = dataclasses.replace(EXPERIMENT, backbone="cnn4", backbone_options={"pooling": "mean"})
    assert "backbone cnn4, 64 channels, pooling mean" in report.to_markdown(
        report.summarize(records(experiment=experiment))
    )


# folders


def test_report_writes_everything_and_the_same_again(tmp_path):
    console = Console(width=140, record=True, file=io.StringIO())
    summary = report.write_report(folder(tmp_path), console)
    assert summary == report.summarize(read_records(tmp_path))
    assert "HyperAdapter" in console.export_text()
    first = contents(tmp_path)
    report.write_report(tmp_path)
    names = {f"results.{form}" for form in ("html", "md", "csv", "tex")}
    names |= {f"{figure}.{form}" for figure in ("accuracy", "learning_curves") for form in ("png", "pdf")}
    assert names == {name for name in first if "/" not in name}
    assert contents(tmp_path) == first
    assert first["accuracy.pdf"].startswith(b"%PDF")


def test_report_of_other_shots_stands_beside_the_first(tmp_path, monkeypatch):
    monkeypatch.setattr(write, "render", lambda figure, form: form.encode())  # drawing takes longer than all the rest
    other = ScoresAtShots(shots=5, scores=[0.9] * 40, losses=[0.1] * 40, manifest={"hash": "5" * 16})
    experiment = dataclasses.replace(EXPERIMENT, test_shots=(1, 5))
    report.write_report(folder(tmp_path, records(experiment=experiment, other_shots=[other])))
    first = contents(tmp_path)
    assert first["shots.pdf"] == b"pdf"
    assert all(f"5-way {shots}-shot, 15 queries" in first["results.html"].decode() for shots in (1, 5))
    summary = report.write_report(tmp_path, shots=5)
    assert summary.experiment.shots == 5
    assert [row.score.mean for row in summary.rows] == pytest.approx([0.9] * 3)
    both = contents(tmp_path)
    assert first.items() <= both.items()
    assert both.keys() - first.keys() == {
        f"{name}-5-shot.{form}"
        for name, forms in {"results": ("md", "csv", "tex"), "accuracy": ("png", "pdf")}.items()
        for form in forms
    }
    assert "5-way 5-shot" in both["results-5-shot.md"].decode()
    report.write_report(tmp_path, shots=1)
    assert contents(tmp_path) == both
    with pytest.raises(InputError, match="was tested with, 1, 5, got 2"):
        report.write_report(tmp_path, shots=2)


def test_report_over_networks_has_a_figure_of_their_costs(tmp_path, monkeypatch):
    monkeypatch.setattr(write, "render", lambda figure, form: form.encode())
    for channels in (8, 64):
        experiment = dataclasses.replace(EXPERIMENT, channels=channels)
        folder(tmp_path / str(channels), records(experiment=experiment, multiply_adds_per_query=channels**2 * 1000))
    with pytest.raises(SystemExit) as end:
        main(["report", str(tmp_path / "64"), "--networks", str(tmp_path / "8")])
    assert not end.value.code
    assert {"cost.png", "cost.pdf"} <= contents(tmp_path / "64").keys()
    assert "a curve over networks" in (tmp_path / "64" / "results.html").read_text()


@pytest.mark.parametrize(("cost", "drawn"), [(1_000_000, False), (1_005_000, False), (2_000_000, True), (None, False)])
def test_costs_have_a_figure_where_they_differ(cost, drawn, tmp_path, monkeypatch):
    monkeypatch.setattr(write, "render", lambda figure, form: form.encode())
    rows = [*records(["maml"], multiply_adds_per_query=1_000_000), *records(["protonet"], multiply_adds_per_query=cost)]
    folder(tmp_path, rows)
    report.write_report(tmp_path)
    assert ("cost.png" in contents(tmp_path)) == drawn


@pytest.mark.parametrize(("looks", "drawn"), [(0, False), (1, False), (2, True)])
def test_learning_curves_are_drawn_of_two_looks_or_more(looks, drawn, tmp_path, monkeypatch):
    monkeypatch.setattr(write, "render", lambda figure, form: form.encode())
    points = records(["protonet"])[0].result.validation[:looks]
    folder(tmp_path, records(["protonet"], validation=points))
    report.write_report(tmp_path)
    assert ("learning_curves.png" in contents(tmp_path)) == drawn


def test_report_needs_records(tmp_path):
    with pytest.raises(InputError, match="expected a folder with records"):
        report.write_report(tmp_path)


@pytest.mark.parametrize(
    "written", sorted(RESULTS.rglob("results*.csv")), ids=lambda path: f"{path.parent.name}-{path.stem}"
)
def test_recorded_results_give_the_tables_beside_them(written):
    found = read_records(written.parent)
    shots = re.search(r"-(\d+)-shot$", written.stem)
    table = list(csv.DictReader(io.StringIO(written.read_text())))
    summary = report.summarize(
        found if shots is None else [r.at(int(shots[1])) for r in found], table[0].get("baseline") or None
    )
    for old, new in zip(table, csv.DictReader(io.StringIO(report.to_csv(summary))), strict=True):
        for name, value in old.items():
            try:
                assert float(new.get(name, "")) == pytest.approx(float(value), rel=1e-9), name
            except ValueError:
                assert new.get(name, "") == value, name


def test_statistics_do_not_wait_for_matplotlib():
    code = "import sys, l2l_hyper.statistics; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_public_names_are_there():
    assert all(hasattr(report, name) for name in report.__all__) and dir(report) == report.__all__
    with pytest.raises(AttributeError, match="no attribute 'sumarize'"):
        report.sumarize  # noqa: B018
