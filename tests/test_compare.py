"""Records, their folder, and what a report makes of them; the measurements are made up."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

import l2l_hyper
from l2l_hyper.compare.files import create_once, read_json, to_json, write_atomically
from l2l_hyper.compare.plots import accuracy_figure, learning_curves_figure, render
from l2l_hyper.compare.provenance import Provenance, collect, public_command
from l2l_hyper.compare.records import existing_record, open_folder, read_record, read_records, write_record
from l2l_hyper.compare.report import write_report
from l2l_hyper.compare.statistics import paired_difference
from l2l_hyper.compare.summary import summarize
from l2l_hyper.compare.tables import notes, print_summary, to_csv, to_latex, to_markdown
from l2l_hyper.engine.config import Experiment, Run
from l2l_hyper.errors import InputError

EXPERIMENT = Experiment(tasksets="glyphs", test_episodes=40, iterations=100, meta_batch=4)
PROVENANCE = Provenance(
    command="l2l-hyper compare --out runs",
    commit="0123456789abcdef",
    dirty=False,
    package_version="0.1.0",
    environment={"cpu": "A processor", "torch_threads": 2, "gpu": None},
)
LABELS = {"hyper-adapter": "HyperAdapter", "maml": "MAML", "protonet": "ProtoNet"}
OFFSETS = {"hyper-adapter": 0.03, "maml": -0.05, "protonet": 0.0}


def measured(run: Run, *, manifest: str = "fedcba9876543210") -> dict:
    """What the engine might have measured."""
    random = np.random.default_rng([run.seed, len(run.method)])
    episodes = np.random.default_rng(7).normal(0.8, 0.05, run.experiment.test_episodes)
    accuracies = np.clip(episodes + OFFSETS[run.method] + random.normal(0, 0.01, len(episodes)), 0, 1)
    curve = [
        {"iteration": 25 * i, "seconds": 2.0 * i + run.seed, "accuracy": 0.2 * i, "half_width": 0.01, "loss": 1 / i}
        for i in range(1, 5)
    ]
    return {
        "accuracies": accuracies.tolist(),
        "losses": [0.1] * len(accuracies),
        "validation": curve,
        "training": [],
        "selected_iteration": 100,
        "best_validation_accuracy": 0.8,
        "iterations": 100,
        "episodes": 400,
        "seconds_to_train": 8.0 + run.seed,
        "adaptation_ms": 1.5,
        "peak_memory_mb": 100.0 + run.seed,
        "parameters": {"meta": 12345, "backbone": 12000, "generated": 320},
        "manifest": {"hash": manifest},
        "normalization": run.experiment.normalization,
    }


def fill(folder: Path, methods=("hyper-adapter", "maml", "protonet"), seeds=(0, 1), experiment=EXPERIMENT) -> Path:
    for method in methods:
        for seed in seeds:
            run = Run(experiment=experiment, method=method, seed=seed, options={"lr": 0.01})
            write_record(folder, run, LABELS[method], PROVENANCE, measured(run))
    return folder


def edit(path: Path, **values) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# files


def test_json_round_trip(tmp_path):
    values = {"floats": [0.1, float("nan")], "array": np.arange(3), "number": np.float64(0.5), "tuple": (1, "ä")}
    write_atomically(tmp_path / "a.json", to_json({"schema": 1, **values}))
    back = read_json(tmp_path / "a.json", remedy="")
    assert back == {"floats": [0.1, None], "array": [0, 1, 2], "number": 0.5, "tuple": [1, "ä"]}


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch, step):
    path = tmp_path / "a.json"
    write_atomically(path, "old")

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, step, stop)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, "new")
    assert contents(tmp_path) == {"a.json": b"old"}


def test_kill_while_writing_leaves_a_whole_file(tmp_path):
    path = tmp_path / "a.json"
    script = (
        "import sys, pathlib, types\n"
        "package = sys.modules['l2l_hyper'] = types.ModuleType('l2l_hyper')\n"  # the real one would load torch
        "package.__path__ = [sys.argv[2]]\n"
        "from l2l_hyper.compare.files import write_atomically\n"
        "while True:\n"
        "    for letter in 'ab':\n"
        "        write_atomically(pathlib.Path(sys.argv[1]), letter * 1_000_000)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", script, str(path), str(Path(l2l_hyper.__file__).parent)])
    try:
        deadline = time.monotonic() + 60
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        seen = [path.read_bytes() for _ in range(50)]
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert {len(content) for content in [*seen, path.read_bytes()]} == {1_000_000}
    assert all(len(set(content)) == 1 for content in seen)
    assert [path.name for path in tmp_path.glob("*.json")] == ["a.json"]  # what is left over is not taken for a record


def test_one_of_several_creates_the_file(tmp_path):
    path, start = tmp_path / "experiment.json", threading.Barrier(8)
    won: list[str] = []

    def create(name: str) -> None:
        start.wait()
        if create_once(path, name * 1000):
            won.append(name)

    threads = [threading.Thread(target=create, args=(name,)) for name in "abcdefgh"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert contents(tmp_path) == {"experiment.json": won[0].encode() * 1000}


# provenance


def test_command_shows_no_path_of_the_machine():
    command = public_command(
        ["compare", "--data-root", "/home/me/data", "--out=/home/me/runs/a", "--preset", "~/p.toml", "--ways", "5"]
    )
    assert command == "l2l-hyper compare --data-root data --out=a --preset p.toml --ways 5"
    assert public_command(["compare", "--data-root=../shared/data", "--out", "runs/b"]) == (
        "l2l-hyper compare --data-root=data --out runs/b"
    )


def test_provenance_of_this_process():
    provenance = collect(["list"], "cpu")
    assert provenance.commit is None or re.fullmatch("[0-9a-f]{40}", provenance.commit)
    assert provenance.environment["python"] == ".".join(map(str, sys.version_info[:3]))
    assert provenance.environment["gpu"] is None
    assert provenance.environment["cpu"]
    assert os.getcwd() not in json.dumps(dataclasses.asdict(provenance))


# records and their folder


def test_record_round_trip(tmp_path):
    run = Run(experiment=EXPERIMENT, method="maml", seed=3, options={"lr": 0.01, "start": "base"})
    values = measured(run)
    write_record(tmp_path, run, "MAML", PROVENANCE, values)
    record = read_record(tmp_path / "records" / "maml-seed3.json")
    assert (record.run, record.label, record.provenance) == (run, "MAML", PROVENANCE)
    assert record.measured == values
    assert record.accuracies.tolist() == values["accuracies"]
    assert record.manifest_hash == "fedcba9876543210"
    assert record.number("adaptation_ms") == 1.5
    assert existing_record(tmp_path, run) == record
    assert existing_record(tmp_path, dataclasses.replace(run, seed=4)) is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"schema": 2}, "must have schema 1, got 2"),
        ({"accuracies": [0.5]}, "1 accuracies for 40 test episodes"),
        ({"accuracies": [0.5] * 39 + [1.5]}, "not all between 0 and 1"),
        ({"accuracies": [0.5] * 39 + [None]}, "not all between 0 and 1"),
        ({"manifest": {}}, "'hash' is missing"),
        ({"adaptation_ms": "fast"}, "adaptation_ms is not a number"),
        ({"validation": [{"iteration": 1, "seconds": 2, "accuracy": None}]}, "not made of numbers"),
        ({"run": {"method": "maml"}}, "'experiment' is missing"),
        ({"run": {"experiment": {"tasksets": "glyphs", "ways": 1}, "method": "maml"}}, "ways must be at least 2"),
    ],
)
def test_damaged_record_is_named(tmp_path, values, message):
    path = fill(tmp_path, ["maml"], [0]) / "records" / "maml-seed0.json"
    edit(path, **values)
    with pytest.raises(InputError, match=re.escape(message)) as error:
        read_record(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("content", ["", "{", "[]", '"text"', "\x00\xff"])
def test_damaged_file_is_named(tmp_path, content):
    path = fill(tmp_path, ["maml"], [0]) / "records" / "maml-seed0.json"
    path.write_text(content, encoding="latin-1")
    with pytest.raises(InputError, match=re.escape(str(path))):
        read_records(tmp_path)


def test_record_under_another_name_is_refused(tmp_path):
    path = fill(tmp_path, ["maml"], [0]) / "records" / "maml-seed0.json"
    with pytest.raises(InputError, match="it is the record of maml-seed0"):
        read_record(path.rename(path.with_name("maml-seed1.json")))


def test_folder_takes_more_methods_of_the_same_experiment(tmp_path):
    with open_folder(tmp_path / "out", EXPERIMENT):
        fill(tmp_path / "out", ["maml"])
    with open_folder(tmp_path / "out", EXPERIMENT):
        fill(tmp_path / "out", ["protonet"])
    assert len(read_records(tmp_path / "out")) == 4


@pytest.mark.parametrize("pinned", [True, False])
def test_folder_refuses_another_experiment(tmp_path, pinned):
    with open_folder(tmp_path, EXPERIMENT):
        fill(tmp_path, ["maml"], [0])
    if not pinned:
        (tmp_path / "experiment.json").unlink()
    before = contents(tmp_path)
    other = dataclasses.replace(EXPERIMENT, ways=20, tasksets="omniglot")
    with pytest.raises(InputError) as error, open_folder(tmp_path, other):
        pytest.fail("the folder was opened")
    assert "tasksets glyphs there, omniglot here" in str(error.value)
    assert "ways 5 there, 20 here" in str(error.value)
    assert "another --out" in str(error.value)
    assert contents(tmp_path) == before


def test_failure_before_anything_is_kept_leaves_no_pin(tmp_path):
    with pytest.raises(InputError, match="no such data"), open_folder(tmp_path / "out", EXPERIMENT):
        raise InputError("no such data")
    with open_folder(tmp_path / "out", dataclasses.replace(EXPERIMENT, ways=20)):
        pass


def test_failure_after_a_checkpoint_leaves_the_pin(tmp_path):
    with pytest.raises(KeyboardInterrupt), open_folder(tmp_path, EXPERIMENT):
        (tmp_path / "checkpoint.pt").touch()
        raise KeyboardInterrupt
    assert (tmp_path / "experiment.json").exists()


def test_damaged_pin_is_named(tmp_path):
    (tmp_path / "experiment.json").write_text('{"schema": 1, "experiment": {"ways": 5}}')
    with pytest.raises(InputError, match=r"experiment\.json"), open_folder(tmp_path, EXPERIMENT):
        pass


def test_output_that_is_no_folder_is_refused(tmp_path):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match="expected a folder to write into"), open_folder(out, EXPERIMENT):
            pass


def test_same_method_with_other_options_is_refused(tmp_path):
    fill(tmp_path, ["maml"], [0])
    run = Run(experiment=EXPERIMENT, method="maml", seed=1, options={"lr": 0.1})
    with pytest.raises(InputError, match=r"other options of maml \(lr 0\.01 there, 0\.1 here\)"):
        existing_record(tmp_path, run)


# summary


def test_summary_holds_the_statistics_of_the_records(tmp_path):
    records = read_records(fill(tmp_path))
    summary = summarize(records, "protonet")
    assert [row.method for row in summary.rows] == ["hyper-adapter", "protonet", "maml"]
    ours, baseline, maml = summary.rows
    tables = {m: np.stack([r.accuracies for r in records if r.run.method == m]) for m in LABELS}
    assert ours.difference == paired_difference(tables["hyper-adapter"], tables["protonet"])
    assert baseline.difference is None and baseline.p_corrected is None and baseline.seed_difference is None
    assert maml.p_corrected == pytest.approx(
        max(maml.difference.p_value * (1 if maml.difference.p_value > ours.difference.p_value else 2), 0)
    )
    assert ours.seed_difference.mean == pytest.approx(ours.difference.mean)
    assert ours.seeds == (0, 1)
    assert (ours.training_seconds, ours.training_episodes, ours.peak_memory_mb) == (8.5, 400, 101)


def test_seeds_are_paired_with_the_same_seeds(tmp_path):
    fill(tmp_path, ["maml"], [0, 1, 2])
    fill(tmp_path, ["protonet"], [1, 2, 3])
    row = next(row for row in summarize(read_records(tmp_path), "protonet").rows if row.method == "maml")
    by_name = {record.run.name: record.accuracies.mean() for record in read_records(tmp_path)}
    expected = np.mean([by_name[f"maml-seed{seed}"] - by_name[f"protonet-seed{seed}"] for seed in (1, 2)])
    assert row.seed_difference.mean == pytest.approx(expected)


def test_records_of_other_episodes_are_refused(tmp_path):
    edit(fill(tmp_path) / "records" / "maml-seed1.json", manifest={"hash": "0" * 16})
    with pytest.raises(InputError, match="tested on the same episodes, but the manifest of protonet-seed0|maml-seed1"):
        summarize(read_records(tmp_path), None)


def test_records_that_do_not_belong_together_are_refused(tmp_path):
    records = read_records(fill(tmp_path / "a"))
    others = read_records(fill(tmp_path / "b", experiment=dataclasses.replace(EXPERIMENT, ways=20)))
    with pytest.raises(InputError, match="two experiments"):
        summarize([*records, *others], None)
    other_options = dataclasses.replace(records[0], run=dataclasses.replace(records[0].run, seed=5, options={}))
    with pytest.raises(InputError, match="different options"):
        summarize([*records, other_options], None)
    untested = {key: value for key, value in records[0].measured.items() if key != "accuracies"}
    with pytest.raises(InputError, match="not tested"):
        summarize([dataclasses.replace(records[0], measured=untested)], None)
    with pytest.raises(InputError, match="baseline must be .* got anil: try hyper-adapter, maml, protonet"):
        summarize(records, "anil")
    with pytest.raises(InputError, match="got none"):
        summarize([], None)


# tables, plots, report


def test_tables_agree(tmp_path):
    summary = summarize(read_records(fill(tmp_path)), "protonet")
    ours = summary.rows[0]
    shown = f"{100 * ours.accuracy.mean:.2f} ± {100 * ours.accuracy.half_width:.2f}"
    markdown, latex = to_markdown(summary), to_latex(summary)
    assert shown in markdown
    assert shown.replace("±", r"$\pm$") in latex
    assert "HyperAdapter" in markdown and "HyperAdapter" in latex
    assert "−" in markdown and "$-$" in latex and "−" not in latex.partition(r"\begin{tabular}")[2]
    rows = list(csv.DictReader(to_csv(summary).splitlines()))
    assert [row["method"] for row in rows] == ["hyper-adapter", "protonet", "maml"]
    assert float(rows[0]["accuracy"]) == pytest.approx(100 * ours.accuracy.mean)
    assert float(rows[0]["difference"]) == pytest.approx(100 * ours.difference.mean)
    assert float(rows[0]["p"]) == ours.difference.p_value
    assert rows[1]["difference"] == rows[1]["p"] == ""
    assert "5-way 1-shot" in markdown and "fedcba987654" in markdown and "A processor" in markdown


@pytest.mark.parametrize("width", [80, 100, 140, 200])
def test_nothing_is_cut_off_on_the_screen(tmp_path, width):
    summary = summarize(read_records(fill(tmp_path)), "protonet")
    console = Console(width=width, record=True, file=io.StringIO())
    print_summary(summary, console)
    text = console.export_text()
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    for title in ("accuracy %", "difference", "over seeds", "adapt ms", "params"):
        assert title in text


def test_without_a_baseline_there_are_no_differences(tmp_path):
    summary = summarize(read_records(fill(tmp_path, ["maml"], [0])), None)
    markdown = to_markdown(summary)
    assert "difference" not in markdown and "over seeds |" not in markdown
    assert len(to_csv(summary).splitlines()) == 2


def test_published_figures_stand_apart(tmp_path):
    experiment = dataclasses.replace(EXPERIMENT, tasksets="mini-imagenet")
    summary = summarize(read_records(fill(tmp_path, experiment=experiment)), "protonet")
    assert "49.42 ± 0.78" in to_markdown(summary)
    assert any("Snell et al. 2017" in note for note in notes(summary))
    elsewhere = summarize(read_records(fill(tmp_path / "glyphs")), "protonet")
    assert "published" not in to_markdown(elsewhere).lower()


def test_figures_hold_every_method(tmp_path):
    records = read_records(fill(tmp_path))
    summary = summarize(records, "protonet")
    accuracy = accuracy_figure(summary, records).axes[0]
    assert [label.get_text() for label in accuracy.get_yticklabels()] == ["MAML", "ProtoNet", "HyperAdapter"]
    episodes, seconds = learning_curves_figure(summary, records).axes
    assert [text.get_text() for text in seconds.get_legend().get_texts()] == ["HyperAdapter", "ProtoNet", "MAML"]
    assert episodes.lines[0].get_xdata().tolist() == [100, 200, 300, 400]
    # Seed 0 was looked at after 2, 4, 6, 8 seconds, seed 1 a second later: both are known from 3 to 8.
    assert seconds.lines[0].get_xdata().tolist() == [3, 4, 5, 6, 7, 8]
    assert seconds.lines[0].get_ydata()[0] == pytest.approx((30 + 20) / 2)


def test_runs_without_validation_curves_can_be_drawn(tmp_path):
    edit(fill(tmp_path, ["maml"], [0]) / "records" / "maml-seed0.json", validation=[])
    records = read_records(tmp_path)
    assert render(learning_curves_figure(summarize(records, None), records), "png").startswith(b"\x89PNG")


def test_report_writes_everything_and_the_same_again(tmp_path):
    console = Console(width=140, record=True, file=io.StringIO())
    summary = write_report(fill(tmp_path), console)
    assert summary.baseline == "protonet"
    first = contents(tmp_path)
    write_report(tmp_path, console)
    names = {"results.md", "results.csv", "results.tex", "accuracy.png", "accuracy.pdf", "learning_curves.png"}
    assert names == {name for name in first if "/" not in name}
    assert contents(tmp_path) == first
    assert first["accuracy.pdf"].startswith(b"%PDF")


def test_report_needs_records(tmp_path):
    with pytest.raises(InputError, match="expected a folder with records"):
        write_report(tmp_path, Console(quiet=True))
