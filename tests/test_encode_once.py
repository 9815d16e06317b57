"""A frozen encoder that reads each training sample once gives what it gives when it reads them in each episode."""

from __future__ import annotations

import itertools
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_methods import larger, small_network
from helpers_training import LITTLE, train
from torch import nn

import l2l_hyper
from l2l_hyper import InputError
from l2l_hyper.data import Episodes, TensorTaskset
from l2l_hyper.experiment import training
from l2l_hyper.experiment.checkpoint import checkpoint_path
from l2l_hyper.experiment.config import Run
from l2l_hyper.experiment.recipe.encoding import encoded
from l2l_hyper.functional import convert_norm
from l2l_hyper.methods import METHODS, Method
from l2l_hyper.methods.second_network import SecondNetwork

CPU = torch.device("cpu")
ROWS: dict[str, dict[str, Any]] = {
    "protonet-distilled": {"distance": "cosine"},
    "hyper-adapter": {"generator": "linear", "teacher": 0.7, "scale": 1.0},
}
INNER = {"hyper-adapter, inner layers": {**ROWS["hyper-adapter"], "encoder_layers": "0"}}


def images(classes: int = 6, each: int = 12, **options: Any) -> TensorTaskset:
    x = torch.rand(classes * each, 1, 8, 8, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    return TensorTaskset(x, torch.arange(classes).repeat_interleave(each).flip(0), ways=4, samples=4, **options)


def built(name: str) -> Method:
    torch.manual_seed(0)
    encoder = larger().requires_grad_(False)
    method = METHODS[name.partition(",")[0]]
    return method.build(small_network().double(), {**ROWS, **INNER}[name], "running", encoder).double()


def test_episodes_carry_what_the_network_makes_of_their_samples() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(32, 2).double()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(x.flatten(1)[:, :32])

    taskset = images(scale=3.0)
    network = SecondNetwork(Half().requires_grad_(False))
    episodes = taskset.with_encoded(encoded(taskset, network, CPU)).batch(range(3), shots=2, queries=3)
    plain = taskset.batch(range(3), shots=2, queries=3)
    assert torch.equal(episodes.support, plain.support) and plain.support_encoded is None
    for x, carried in ((plain.support, episodes.support_encoded), (plain.query, episodes.query_encoded)):
        torch.testing.assert_close(carried, x.flatten(2)[:, :, :32])
    assert episodes.support_set.encoded is episodes.support_encoded
    one, (first, second) = episodes.task(1), episodes.split(2)
    for part, rows in ((one, slice(1, 2)), (first, slice(0, 2)), (second, slice(2, 3))):
        assert torch.equal(part.query_encoded, episodes.query_encoded[rows])


@pytest.mark.parametrize("name", sorted({**ROWS, **INNER}))
def test_loss_and_gradient_are_those_of_an_encoder_that_reads_each_episode(name: str) -> None:
    method, taskset = built(name), images()
    read: list[int] = []
    method.reader.register_forward_hook(lambda *call: read.append(1))  # type: ignore[union-attr]
    found = []
    for tasks in (taskset, taskset.with_encoded(encoded(taskset, method.reader, CPU))):
        before = len(read)
        episodes: Episodes = tasks.batch(range(3), shots=2, queries=3)
        method.zero_grad()
        adapted = method.adapt(episodes.support_set)
        loss = method.loss(adapted, method.predict(adapted, episodes.query), episodes)
        loss.sum().backward()
        found.append((loss, {n: p.grad.clone() for n, p in method.named_parameters() if p.grad is not None}))
        assert (len(read) > before) == (tasks is taskset)
    torch.testing.assert_close(found[0], found[1])
    assert len(found[0][1]) > 5


@pytest.mark.parametrize("name", sorted(ROWS))
def test_without_augmentation_training_is_the_same(tmp_path: Path, name: str) -> None:
    first = Run(experiment=LITTLE, method="protonet")
    train(first, tmp_path / "first")
    encoder = str(checkpoint_path(tmp_path / "first", first))
    losses = {}
    for once in (False, True):
        for augmentation in ("none", "crop-flip"):
            experiment = replace(LITTLE, encode_once=once, augmentation=augmentation)
            run = Run(experiment=experiment, method=name, options={**ROWS[name], "encoder": encoder})
            record = train(run, tmp_path / f"{once}-{augmentation}")
            losses[once, augmentation] = [point["loss"] for point in record["training"]]
    assert losses[True, "none"] == pytest.approx(losses[False, "none"], rel=1e-5)
    assert losses[True, "crop-flip"] != pytest.approx(losses[False, "crop-flip"], rel=1e-5)


def test_what_cannot_be_read_once_is_refused() -> None:
    network = SecondNetwork(convert_norm(larger(), "support").requires_grad_(False))
    with pytest.raises(InputError, match="layer 'module.1' does not normalize by running averages"):
        encoded(images(), network, CPU)
    with pytest.raises(InputError, match="a TensorTaskset, got object; use subclasses=0 and encode_once=false"):
        encoded(object(), network, CPU)
    with pytest.raises(InputError, match="gives images as they are, got rotations='class'"):
        images(rotations="class").with_encoded(torch.zeros(72, 2))
    with pytest.raises(InputError, match="expected features of each of 72 samples, got 5 rows"):
        images().with_encoded(torch.zeros(5, 2))


def test_an_encoder_that_learns_is_no_reader() -> None:
    method = METHODS["hyper-adapter"].build(small_network(), {"generator": "linear"}, "support", larger())
    assert method.reader is None and METHODS["protonet"].build(small_network(), {}, "support").reader is None


def test_features_of_all_samples_are_those_of_each() -> None:
    taskset, method = images(each=100), built("hyper-adapter")
    features = encoded(taskset, method.reader, CPU)  # type: ignore[arg-type]
    assert len(features) == 600
    torch.testing.assert_close(features[590:], method.reader(taskset.x[590:][None]).features[0])  # type: ignore[misc]


def test_rows_and_seeds_share_what_the_same_encoder_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    earlier = Run(experiment=LITTLE, method="protonet", seed=5)
    train(earlier, tmp_path / "earlier")
    read: list[torch.Tensor] = []
    monkeypatch.setattr(training, "encoded", lambda *arguments: read.append(encoded(*arguments)) or read[-1])
    settings = {**asdict(LITTLE), "tasksets": "glyphs", "seeds": [0, 1], "encode_once": True}
    options = {
        "protonet-distilled": {**ROWS["protonet-distilled"], "encoder": "protonet"},
        "hyper-adapter": {**ROWS["hyper-adapter"], "encoder": "protonet"},
        "hyper-adapter@layers": {**ROWS["hyper-adapter"], "encoder": "protonet", "encoder_layers": "features.0"},
        "hyper-adapter@other": {**ROWS["hyper-adapter"], "encoder": "protonet-distilled"},
        "hyper-adapter@earlier": {
            **ROWS["hyper-adapter"],
            "encoder": str(checkpoint_path(tmp_path / "earlier", earlier)),
        },
    }
    l2l_hyper.compare(methods=["protonet", *options], options=options, out=tmp_path / "rows", **settings)
    assert len(read) == 2 * 3 + 1, "for each seed an encoder, the same with an inner layer, and another; an earlier one"
    assert not any(a.shape == b.shape and a.equal(b) for a, b in itertools.combinations(read, 2))
