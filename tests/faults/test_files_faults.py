"""Kills, full disks, flipped bits and two commands at once: nothing is lost, nothing is left, nothing is silent."""

from __future__ import annotations

import json
import logging
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from helpers_training import Killed, kill_at, train

from l2l_hyper import InputError
from l2l_hyper.experiment import checkpoint as module
from l2l_hyper.experiment.checkpoint import (
    Checkpoint,
    Damaged,
    checkpoint_path,
    load_checkpoint,
    read_checkpoint,
    save_checkpoint,
)
from l2l_hyper.experiment.config import Experiment, Run
from l2l_hyper.experiment.encoder import read_encoder
from l2l_hyper.experiment.parts import Parts
from l2l_hyper.experiment.plan import Plan
from l2l_hyper.experiment.recipe.pretrained import read_pretrained
from l2l_hyper.experiment.training import _Training

EXPERIMENT = Experiment(
    ways=3, queries=2, iterations=4, meta_batch=2, validate_every=2, validation_episodes=2, test_episodes=2, channels=2
)
RUN = Run(experiment=EXPERIMENT, method="protonet")


def campaign(folder: Path, *options: str, **counts: int) -> None:
    """Fails where anything was wrong after a fault of any kind."""
    script = Path(__file__).with_name("campaign_files.py")
    told = subprocess.run(
        [sys.executable, script, folder, json.dumps(counts), *options], capture_output=True, text=True, check=False
    )
    assert told.returncode == 0, told.stderr
    found = json.loads(told.stdout)
    print({kind: f"{results.count([])} of {len(results)} as they should be" for kind, results in found.items()})
    assert {kind: [wrong for wrong in results if wrong] for kind, results in found.items()} == dict.fromkeys(found, [])


def test_faults_while_files_are_written(tmp_path: Path) -> None:
    campaign(tmp_path, "--without-report", kills=6, pairs=1, holders=1, pins=1, disks=1, flips=1)


@pytest.mark.campaign
def test_many_faults_while_files_are_written(tmp_path: Path) -> None:
    campaign(tmp_path, kills=150, pairs=20, holders=5, pins=5, disks=7, flips=120)


# What is in a checkpoint


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run's checkpoint."""
    folder = tmp_path_factory.mktemp("kept")
    train(RUN, folder)
    return checkpoint_path(folder, RUN)


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the middle of that run."""
    folder = tmp_path_factory.mktemp("begun")
    with pytest.raises(Killed):
        train(RUN, folder, progress=kill_at(3))
    return checkpoint_path(folder, RUN)


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> _Training:
    """The same run in another folder."""
    parts = Parts(Plan(experiment=EXPERIMENT, methods=(RUN.method,)))
    (run,) = parts.plan.runs(parts.options)
    return _Training(run, parts, tmp_path_factory.mktemp("training"))


def test_every_flipped_bit_is_noticed(kept: Path) -> None:
    content, draw = kept.read_bytes(), random.Random(0)
    header = 8 + int.from_bytes(content[:8], "little")
    places = [*range(0, header, 29), *(draw.randrange(len(content)) for _ in range(120))]
    for place in places:
        flipped = bytearray(content)
        flipped[place] ^= 1 << draw.randrange(8)
        with pytest.raises(Damaged, match="is damaged"):
            read_checkpoint(bytes(flipped), kept)
    for length in range(0, len(content), len(content) // 20):
        with pytest.raises(Damaged, match="is damaged"):
            read_checkpoint(content[:length], kept)


def changed(part: str, change: Callable[[dict[str, Any]], object]) -> Callable[[Checkpoint], Checkpoint]:
    def make(saved: Checkpoint) -> Checkpoint:
        change(saved.tensors[part])
        return saved

    return make


WITH_RIGHT_CHECKSUM = {
    "a missing tensor": changed("method", dict.popitem),
    "a missing selected tensor": changed("selected", dict.popitem),
    "another tensor": changed("optimizer", lambda part: part.update({"99.exp_avg": torch.zeros(1)})),
    "another part": lambda saved: replace(saved, tensors={**saved.tensors, "more": {"x": torch.zeros(1)}}),
    "no part": lambda saved: replace(saved, tensors={"selected": saved.tensors["selected"]}),
    "another shape": changed("optimizer", lambda part: part.update({"0.exp_avg": torch.zeros(7)})),
    "another type": changed("method", lambda part: part.update({n: v.double() for n, v in part.items()})),
    "a random state": changed("random", lambda part: part.update(cpu=torch.zeros(3, dtype=torch.uint8))),
    "too many iterations": lambda saved: replace(saved, state=replace(saved.state, iteration=10**9)),
    "fewer iterations": lambda saved: replace(saved, state=replace(saved.state, iteration=1)),
    "negative": lambda saved: replace(saved, state=replace(saved.state, seconds=-1.0)),
    "not a number": lambda saved: replace(saved, state=replace(saved.state, seconds=float("nan"))),
    "text": lambda saved: replace(saved, state=replace(saved.state, iteration="4")),
    "no curve": lambda saved: replace(saved, state=replace(saved.state, validation=[])),
    "nothing selected": lambda saved: replace(saved, state=replace(saved.state, best=None)),
}


@pytest.mark.parametrize("name", WITH_RIGHT_CHECKSUM)
def test_content_that_cannot_be_is_as_no_checkpoint(
    begun: Path, training: _Training, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    require_noticed(begun, WITH_RIGHT_CHECKSUM[name], training, caplog)


def test_a_finished_training_keeps_the_selected_weights_alone(
    kept: Path, begun: Path, training: _Training, caplog: pytest.LogCaptureFixture
) -> None:
    assert load_checkpoint(kept).tensors.keys() == {"selected", "random"}
    assert load_checkpoint(begun).tensors.keys() == {"selected", "random", "method", "optimizer"}
    for name in ("a missing selected tensor", "no part"):
        require_noticed(kept, WITH_RIGHT_CHECKSUM[name], training, caplog)


def require_noticed(
    path: Path,
    change: Callable[[Checkpoint], Checkpoint],
    training: _Training,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A checkpoint is gone on from as it is, and is as none once it is changed."""
    assert training.checkpoint is not None
    caplog.clear()
    save_checkpoint(training.checkpoint, load_checkpoint(path))
    assert training._saved() is not None
    save_checkpoint(training.checkpoint, change(load_checkpoint(path)))
    with caplog.at_level(logging.WARNING, "l2l_hyper"):
        assert training._saved() is None
    assert caplog.messages[0].startswith("protonet-seed0: ")
    assert caplog.messages[0].endswith("; it is trained from the beginning")


@pytest.mark.parametrize("about", ["[]", "{}", "null", "", "[" * 5000, '{"state": {}}'])
def test_metadata_of_another_form_is_damaged(
    kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, about: str
) -> None:
    monkeypatch.setattr(module.json, "dumps", lambda value: about)
    save_checkpoint(tmp_path / "changed.safetensors", load_checkpoint(kept))
    with pytest.raises(Damaged):
        load_checkpoint(tmp_path / "changed.safetensors")


def test_a_checkpoint_of_a_later_version_is_left_alone(
    kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, saved = checkpoint_path(tmp_path, RUN), load_checkpoint(kept)
    with monkeypatch.context() as patch:
        patch.setattr(module, "_SCHEMA", "2")
        save_checkpoint(path, saved)
    with pytest.raises(InputError, match="must have schema 1, got 2: use the version that wrote it"):
        train(RUN, tmp_path)


def test_others_read_the_weights_and_what_they_belong_to(kept: Path) -> None:
    with safetensors.safe_open(kept, framework="pt") as file:
        about = json.loads(file.metadata()["about"])
    assert about["run"] == RUN.to_dict() | {"options": about["run"]["options"]}
    assert about["sample_shape"] == [1, 28, 28] and about["outputs"] == 3
    weights = {n: v for n, v in safetensors.torch.load_file(kept).items() if n.startswith("selected.")}
    for name, value in load_checkpoint(kept).tensors["selected"].items():
        assert torch.equal(weights[f"selected.{name}"], value)


# Files that the user names


class Harm:
    """Does harm where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("harm"),)


def saved_by_torch(value: Any) -> Callable[[Path, bytes], object]:
    return lambda path, content: torch.save(value, path)


def flipped_zip(path: Path, content: bytes) -> None:
    torch.save({"conv.weight": torch.zeros(1000)}, path)
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1  # among the zeros
    path.write_bytes(damaged)


FOREIGN: dict[str, tuple[str, Callable[[Path, bytes], object]]] = {
    "empty": (".safetensors", lambda path, content: path.touch()),
    "text": (".safetensors", lambda path, content: path.write_text("weights")),
    "half": (".safetensors", lambda path, content: path.write_bytes(content[: len(content) // 2])),
    "of others": (".safetensors", lambda path, content: safetensors.torch.save_file({"a": torch.zeros(1)}, path)),
    "a folder": (".safetensors", lambda path, content: path.mkdir()),
    "not there": (".safetensors", lambda path, content: None),
    "a renamed checkpoint": (".pt", lambda path, content: path.write_bytes(content)),
    "a list": (".pt", saved_by_torch([1])),
    "a number": (".pt", saved_by_torch(1.0)),
    "no weights": (".pt", saved_by_torch({"state": [1]})),
    "other weights": (".pt", saved_by_torch({"a": torch.zeros(1), "b": "text"})),
    "code": (".pt", saved_by_torch({"a": Harm()})),
    "a flipped bit": (".pt", flipped_zip),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_files_that_are_no_weights_are_refused(
    kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    suffix, make = FOREIGN[name]
    path = tmp_path / f"weights{suffix}"
    make(path, kept.read_bytes())
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.Linear(2, 2))
    with pytest.raises(InputError):
        read_pretrained(str(path), 0).load_backbone(model)
    with pytest.raises(InputError):
        read_encoder(str(path), 0, (1, 28, 28))
    assert not (tmp_path / "harm").exists()


def test_weights_of_an_unfinished_training_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        train(RUN, tmp_path, progress=kill_at(3))
    with pytest.raises(InputError, match="got one of iteration 2 of 4; train it to its end"):
        read_encoder(str(checkpoint_path(tmp_path, RUN)), 0, (1, 28, 28))
