"""Methods, backbones, tasksets and metrics of the user's own: by name in Python, by their place, by entry points."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from helpers_plugin import SOURCE
from torch import nn

import l2l_hyper
from l2l_hyper import InputError, cli, report
from l2l_hyper.experiment import read_records
from l2l_hyper.methods import OneByOne
from l2l_hyper.methods.contract import as_method

FAST = {"ways": 3, "queries": 4, "iterations": 4, "meta_batch": 2, "validation_episodes": 3, "test_episodes": 6}
FLAGS = [text for name, value in FAST.items() for text in (f"--{name.replace('_', '-')}", str(value))]
POINTS = {
    "methods": "nearest-mean = own_waves:NearestMean",
    "backbones": "waves-net = own_waves:waves_net",
    "tasksets": "waves = own_waves:waves",
    "metrics": "errors = own_waves:errors",
}


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The user's module, in a folder on the path of Python."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    (folder / "own_waves.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(folder)
    importlib.invalidate_caches()
    monkeypatch.delitem(sys.modules, "own_waves", raising=False)
    return importlib.import_module("own_waves")


def compare(out: Path, *arguments: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as exit:
        cli.main(["compare", "--out", str(out), *FLAGS, *arguments])
    shown = capsys.readouterr()
    assert not exit.value.code, shown.err
    return shown.out


def test_spelled_by_their_place_they_are_in_the_table(own, tmp_path, capsys):
    table = compare(
        tmp_path / "out",
        *("--methods", "protonet,own_waves:NearestMean", "--backbone", "own_waves:waves_net"),
        *("--tasksets", "own_waves:waves", "--backbone-option", "depth=2", "--channels", "4"),
        capsys=capsys,
    )
    assert "own_waves:NearestMean" in table and "ProtoNet" in table
    record, _ = read_records(tmp_path / "out")
    assert record.run.experiment.backbone == "own_waves:waves_net"
    assert record.result.parameters == {"meta": 167, "backbone": 167, "generated": 9}
    assert (tmp_path / "out" / "records" / "own_waves_NearestMean-seed0.json").exists()


def test_from_python_nothing_is_printed_and_nothing_kept(own, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    records = l2l_hyper.compare(
        own.waves(), ["protonet", own.NearestMean], backbone=own.waves_net, seeds=(0, 1), channels=4, **FAST
    )
    assert capfd.readouterr() == ("", "")
    assert sorted(tmp_path.rglob("*")) == before
    assert [record.run.name for record in records] == [
        f"{method}-seed{seed}" for seed in (0, 1) for method in ("protonet", "NearestMean")
    ]
    assert all(record.scores.shape == (6,) for record in records)
    assert records[0].run.experiment.tasksets == "Waves, Waves, Waves"
    rows = report.summarize(records, baseline="protonet").rows
    assert {row.method for row in rows} == {"protonet", "NearestMean"}


def test_the_same_call_goes_on_in_a_folder(own, tmp_path, capsys):
    arguments = {"backbone": own.waves_net, "out": tmp_path / "out", "progress": True, **FAST}
    first = l2l_hyper.compare(own.waves(), ["protonet"], **arguments)
    again = l2l_hyper.compare(own.waves(), ["protonet", own.NearestMean], **arguments)
    assert again[0] == first[0]
    shown = capsys.readouterr()
    assert shown.out == "" and "protonet seed 0: its record is there, skipped" in shown.err
    with pytest.raises(InputError, match="ways 3 there, 4 here"):
        l2l_hyper.compare(own.waves(), ["protonet"], **{**arguments, "ways": 4})


def test_training_gives_a_method_that_can_be_evaluated(own):
    method, result = l2l_hyper.train(own.NearestMean, own.waves(), backbone=own.waves_net, **FAST)
    assert isinstance(method, OneByOne) and not method.training
    scores = l2l_hyper.evaluate(method, own.waves(), ways=3, queries=4, test_episodes=6)
    assert scores.tolist() == pytest.approx(result.scores)
    assert l2l_hyper.evaluate(method, own.waves(), ways=7, shots=2, test_episodes=5).shape == (5,)
    untrained = own.NearestMean(own.waves_net(3, (32,)))
    assert l2l_hyper.evaluate(untrained, own.waves(), ways=3, test_episodes=5, metric="accuracy").shape == (5,)


def test_registered_in_python_they_have_names(own, tmp_path, capsys):
    l2l_hyper.register_method("own-nearest", own.NearestMean, label="Nearest mean")
    l2l_hyper.register_backbone("own-waves-net", own.waves_net)
    l2l_hyper.register_tasksets("own-waves", own.waves)
    l2l_hyper.register_metric("own-errors", own.errors, higher_is_better=False, percent=True)
    (record,) = l2l_hyper.compare(
        "own-waves", ["own-nearest"], backbone="own-waves-net", metric="own-errors", channels=4, **FAST
    )
    assert record.label == "Nearest mean"
    assert not record.result.metric.higher_is_better
    table = compare(
        tmp_path / "out",
        *("--methods", "own-nearest", "--backbone", "own-waves-net", "--tasksets", "own-waves"),
        capsys=capsys,
    )
    assert "Nearest mean" in table


def test_installed_with_entry_points_they_have_names(tmp_path, own):
    """In a process of its own, as a package that pip has installed is found."""
    folder = tmp_path / "scratch"
    info = folder / "own_waves-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own-waves\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("".join(f"[l2l_hyper.{group}]\n{line}\n" for group, line in POINTS.items()))
    names = ["--methods", "nearest-mean", "--backbone", "waves-net", "--tasksets", "waves", "--metric", "errors"]
    compared = ["compare", "--out", str(tmp_path / "out"), *FLAGS, *names]
    script = (
        f"import sys; sys.path.insert(0, {str(folder)!r}); sys.argv[0] = 'l2l-hyper'\n"
        "from l2l_hyper.cli import main\n"
        f"for arguments in ({compared}, ['list']):\n"
        "    try:\n        main(arguments)\n"
        "    except SystemExit as exit:\n        assert not exit.code\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    table, _, listed = done.stdout.partition("written to")
    assert "nearest-mean" in table
    stored = json.loads((tmp_path / "out" / "records" / "nearest-mean-seed0.json").read_text())
    assert stored["metric"] == {"name": "errors", "higher_is_better": True, "percent": False}
    assert all(text in listed for text in ("nearest-mean", "waves-net", "Waveforms, made up."))


# methods that break the contract


class Broken(nn.Module):
    """Adapts and predicts as each test makes it."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def adapt(self, support):
        return support

    def predict(self, adapted, query):
        return self.backbone(query[0])[None]


def broken(**methods) -> type[nn.Module]:
    return type("Broken", (Broken,), methods)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (type("Broken", (Broken,), {"adapt": None}), "Broken has no adapt()"),
        (broken(predict=lambda self, adapted, query: self.backbone(query[0])), "a tensor of shape (1, Q, ...)"),
        (broken(predict=lambda self, adapted, query: self.backbone(query[0])[None, :, :2]), "got (1, 12, 2)"),
        (broken(predict=lambda self, adapted, query: self.backbone(query[0])[None] / 0), "a finite loss"),
        (broken(predict=lambda self, adapted, query: self.backbone(query[0])[None].detach()), "a loss with a gradient"),
        (broken(penalty=lambda self, adapted: float("inf")), "a finite loss"),
    ],
)
def test_a_method_that_breaks_the_contract_is_refused_before_training(own, method, message):
    with pytest.raises(InputError) as error:
        l2l_hyper.train(method, own.waves(), backbone=own.waves_net, **FAST)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"wayz": 3}, "unknown setting: 'wayz'; did you mean ways"),
        ({"ways": 1}, "ways must be greater than or equal to 2, got 1"),
        ({"ways": 2.5}, "ways must be a valid integer, got 2.5"),
        ({"seeds": [-1]}, "seeds must be greater than or equal to 0, got -1"),
        ({"methods": []}, "methods must have at least 1 item"),
        ({"methods": ["protnet"]}, "unknown method: 'protnet'; did you mean protonet"),
        ({"options": {"maml": {"stepz": 2}}}, "unknown option of maml: 'stepz'; did you mean steps"),
        ({"tasksets": [1, 2]}, "expected three tasksets"),
        ({"backbone": lambda: None}, "a backbone is a function make(ways, sample_shape"),
        ({"device": "tpu9"}, "expected a device that is there, got 'tpu9'"),
    ],
)
def test_bad_calls_are_refused(own, change, message):
    arguments = {"tasksets": own.waves(), "methods": ["maml"], "backbone": own.waves_net, **FAST, **change}
    with pytest.raises(InputError) as error:
        l2l_hyper.compare(**arguments)
    assert message in str(error.value)


def test_the_command_line_finds_modules_of_the_present_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "module_of_the_present_folder.py").write_text("def tasks():\n    return []\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", ".")])
    with pytest.raises(SystemExit):
        cli.main(["compare", "--tasksets", "module_of_the_present_folder:tasks", "--out", str(tmp_path / "runs")])
    assert "three" in capsys.readouterr().err


def test_a_method_of_ones_own_says_whether_it_is_transductive(own):
    plain = own.NearestMean(own.waves_net(3, (32,)))
    assert not as_method(plain, "support").transductive
    plain.transductive = True
    assert as_method(plain, "support").transductive
