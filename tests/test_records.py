"""Records and the folder that holds them, files that are written whole, and where a record comes from."""

from __future__ import annotations

import dataclasses
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
from helpers_records import EXPERIMENT, PROVENANCE, records, result

import l2l_hyper
from l2l_hyper.errors import InputError
from l2l_hyper.experiment.config import Experiment, Run
from l2l_hyper.experiment.folder import open_folder
from l2l_hyper.experiment.provenance import collect, public_command
from l2l_hyper.experiment.records import (
    existing_record,
    make_record,
    read_record,
    read_records,
    write_record,
)
from l2l_hyper.files import create_once, read_json, replacing, to_json, write_atomically

POINT = {"iteration": 1, "seconds": 2.0, "score": 0.5, "loss": 1.0}
RESULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "results"


def fill(folder: Path, methods=("maml", "protonet"), seeds=(0, 1), experiment=EXPERIMENT) -> Path:
    for record in records(methods, seeds, experiment):
        write_record(folder, record)
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


def test_interrupted_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    write_atomically(path, "old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as file:
        file.write(b"half of the n")
        raise KeyboardInterrupt
    assert contents(tmp_path) == {"a.json": b"old"}


def test_kill_while_writing_leaves_a_whole_file(tmp_path):
    path = tmp_path / "a.json"
    script = (
        "import sys, pathlib, types\n"
        "package = sys.modules['l2l_hyper'] = types.ModuleType('l2l_hyper')\n"  # the real one would load torch
        "package.__path__ = [sys.argv[2]]\n"
        "from l2l_hyper.files import write_atomically\n"
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
    provenance = collect("l2l-hyper list", "cpu")
    assert provenance.commit is None or re.fullmatch("[0-9a-f]{40}", provenance.commit)
    assert provenance.environment["python"] == ".".join(map(str, sys.version_info[:3]))
    assert provenance.environment["gpu"] is None
    assert provenance.environment["cpu"]
    assert os.getcwd() not in json.dumps(dataclasses.asdict(provenance))


# records and their folder


def test_record_round_trip(tmp_path):
    run = Run(experiment=EXPERIMENT, method="maml", seed=3, options={"lr": 0.01, "steps": 5})
    made = make_record(run, "MAML", PROVENANCE, result(run))
    assert write_record(tmp_path, made) == made
    record = read_record(tmp_path / "records" / "maml-seed3.json")
    assert record == made
    assert record.scores.tolist() == made.result.scores
    assert record.result.manifest_hash == "fedcba9876543210"
    assert existing_record(tmp_path, run) == record
    assert existing_record(tmp_path, dataclasses.replace(run, seed=4)) is None


def test_a_method_spelled_by_its_place_has_a_file(tmp_path):
    run = Run(experiment=EXPERIMENT, method="maml", options={"lr": 0.01})
    made = make_record(dataclasses.replace(run, method="own.methods:Mean"), "Mean", PROVENANCE, result(run))
    assert write_record(tmp_path, made) == made
    assert [path.name for path in (tmp_path / "records").iterdir()] == ["own.methods_Mean-seed0.json"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"schema": 2}, "must have schema 1, got 2"),
        ({"scores": [0.5]}, "1 scores for 40 test episodes"),
        ({"scores": [0.5] * 39 + [1.5]}, "scores in percent are not all shares between 0 and 1"),
        ({"scores": [0.5] * 39 + [None]}, "scores.39: input should be a valid number"),
        ({"manifest": {}}, "the manifest's hash is not a string"),
        ({"adaptation_ms": "fast"}, "adaptation_ms: input should be a valid number"),
        ({"validation": [{"iteration": 1, "seconds": 2, "score": None, "loss": 1}]}, "validation.0.score"),
        ({"run": {"method": "maml"}}, "run.experiment: field required"),
        ({"run": {"experiment": {"ways": 1}, "method": "maml", "seed": 0, "options": {}}}, "ways must be greater than"),
        ({"run": {"experiment": {}, "method": "maml", "seed": "0", "options": {}}}, "run.seed: input should be"),
        ({"commit": 5}, "commit: input should be a valid string"),
        ({"iterations": 10**40}, "iterations: input should be less than or equal to 1000000000000000"),
        ({"los": []}, "los: unexpected keyword argument"),
        ({"losses": [0.1]}, "not every number of shots has as many scores and losses"),
        ({"training": [POINT, POINT]}, "the iterations of a curve do not ascend"),
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
    (tmp_path / "experiment.json").write_text('{"schema": 1, "experiment": {"ways": 1}}')
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


def test_an_option_that_came_later_stands_at_its_default(tmp_path):
    fill(tmp_path, ["maml"], [0])
    run = Run(experiment=EXPERIMENT, method="maml", options={"lr": 0.01, "first_order": False})
    assert existing_record(tmp_path, run, {"lr": 0.003, "first_order": False}) is not None
    with pytest.raises(InputError, match="first_order False there, True here"):
        existing_record(tmp_path, dataclasses.replace(run, options={"lr": 0.01, "first_order": True}), run.options)


# what earlier versions wrote


@pytest.mark.parametrize("path", sorted(RESULTS.rglob("records/*.json")), ids=lambda path: "-".join(path.parts[-3::2]))
def test_recorded_results_can_be_read(path):
    stored, record = json.loads(path.read_text()), read_record(path)
    assert record.scores.tolist() == stored.get("scores", stored.get("accuracies"))
    metric, looks = record.result.metric, [point.score for point in record.result.validation]
    assert (metric.name, metric.percent) == (("squared error", False) if record.regression else ("accuracy", True))
    if stored["command"].startswith("l2l-hyper evaluate"):
        assert not looks  # which are in the record of the training
    else:
        assert record.result.best_validation_score == (max(looks) if metric.higher_is_better else min(looks))
    assert not {"start", "change"} & record.run.options.keys()


def test_former_names_of_settings_and_options_are_read():
    old = {
        "experiment": {"tasksets": "glyphs", "hidden": 32},
        "method": "hyper-adapter",
        "seed": 2,
        "options": {"start": "base", "change": "low-rank", "lr": 0.1},
    }
    run = Run.from_dict(old)
    assert run.experiment == Experiment(channels=32)
    assert run.options == {"base_learner": "own", "modulation": "low-rank", "lr": 0.1}
    assert Run.from_dict(run.to_dict()) == run
    with pytest.raises(InputError, match="expected channels, or hidden as it was called before, got both"):
        Run.from_dict({**old, "experiment": {"hidden": 32, "channels": 32}})
