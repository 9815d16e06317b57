"""The training recipe: each option does what it says, draws the same again, and by default nothing at all."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from l2l_hyper import InputError
from l2l_hyper.backbones import BACKBONES
from l2l_hyper.data import Episodes, TensorTaskset
from l2l_hyper.experiment.recipe import Recipe
from l2l_hyper.experiment.recipe.augmentation import augmented_episodes, augmented_images, crop_flip
from l2l_hyper.experiment.recipe.classification import (
    WholeClassifier,
    attach_classifier,
    class_pass,
    with_rotation_classes,
)
from l2l_hyper.experiment.recipe.optimizer import (
    backbone_parameters,
    learning_rate_factor,
    make_optimizer,
    set_learning_rate,
)
from l2l_hyper.experiment.recipe.pretrained import read_pretrained
from l2l_hyper.functional import normalized_by
from l2l_hyper.methods import METHODS, Method


def images(count: int = 6, side: int = 16, channels: int = 3) -> Tensor:
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(0))


def tasks(**options: Any) -> TensorTaskset:
    x = (255 * images(40, 8)).to(torch.uint8)
    return TensorTaskset(x, torch.arange(8).repeat_interleave(5), ways=4, samples=4, **options)


def method(name: str = "protonet", normalization: str = "support", **options: Any) -> Method:
    torch.manual_seed(0)
    model = BACKBONES["conv4"].build(4, (3, 8, 8), {"channels": 8, "layers": 2})
    return METHODS[name].build(model, options, normalization)


# Learning rates


def test_the_default_schedule_is_the_cosine_that_training_had_bit_by_bit() -> None:
    for share in np.linspace(0, 1, 101):
        old = 0.003 * (1 + math.cos(math.pi * share)) / 2
        assert 0.003 * learning_rate_factor(Recipe(), share) == old


@pytest.mark.parametrize(
    ("schedule", "shares", "factors"),
    [
        ("cosine", [0.25, 0.625, 1.0], [1.0, 0.5, 0.0]),
        ("constant", [0.25, 0.625, 1.0], [1.0, 1.0, 1.0]),
        ("step", [0.25, 0.48, 0.52, 0.74, 0.76, 1.0], [1.0, 1.0, 0.1, 0.1, 0.01, 0.01]),
    ],
)
def test_warm_up_rises_linearly_and_the_schedule_fills_the_rest(
    schedule: Any, shares: list[float], factors: list[float]
) -> None:
    recipe = Recipe(warmup=0.25, schedule=schedule)
    assert [learning_rate_factor(recipe, share) for share in (0.0, 0.125)] == [0.0, 0.5]
    assert [learning_rate_factor(recipe, share) for share in shares] == pytest.approx(factors)


def test_the_backbone_has_its_own_learning_rate_and_vectors_have_no_weight_decay() -> None:
    model = BACKBONES["conv4"].build(4, (3, 8, 8), {"channels": 8, "layers": 2})
    built = METHODS["maml"].build(model, {}, "support")
    recipe = Recipe(optimizer="adamw", weight_decay=0.1, backbone_lr=0.25)
    optimizer = make_optimizer(recipe, 0.01, built, backbone_parameters(model))
    set_learning_rate(optimizer, 0.02)
    got = {id(p): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    named = dict(built.named_parameters())
    assert len(got) == len(named)
    for name, p in named.items():
        in_head = name.endswith(("classifier.weight", "classifier.bias"))
        assert got[id(p)] == (0.02 if in_head else 0.005, 0.1 if p.ndim > 1 else 0.0), name


def test_the_default_optimizer_is_adam_in_one_group() -> None:
    built = method("hyper-adapter")
    parameters = list(built.parameters())
    optimizer = make_optimizer(Recipe(), 0.01, built, parameters[:3])
    assert type(optimizer) is torch.optim.Adam and len(optimizer.param_groups) == 1
    assert all(a is b for a, b in zip(optimizer.param_groups[0]["params"], parameters, strict=True))


@pytest.mark.parametrize(("name", "kind"), [("adam", "Adam"), ("adamw", "AdamW"), ("sgd", "SGD")])
def test_each_optimizer_takes_the_step_of_torchs_own(name: Any, kind: str) -> None:
    start = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    pair = nn.ParameterList([start.clone()]), nn.ParameterList([start.clone()])
    options = {"momentum": 0.9, "nesterov": True} if name == "sgd" else {}
    mine = make_optimizer(Recipe(optimizer=name, weight_decay=0.01), 0.1, pair[0], [])
    theirs = getattr(torch.optim, kind)(pair[1].parameters(), lr=0.1, weight_decay=0.01, **options)
    for (p,), optimizer in zip(pair, (mine, theirs), strict=True):
        for _ in range(3):
            optimizer.zero_grad()
            p.square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(pair[0][0], pair[1][0])


def test_a_backbone_learning_rate_without_a_trained_backbone_is_refused() -> None:
    with pytest.raises(InputError, match="backbone_lr is 0.1"):
        make_optimizer(Recipe(backbone_lr=0.1), 0.01, nn.Linear(2, 2), [])


# Augmentation


def test_crops_and_mirror_images_equal_the_slow_way() -> None:
    x, pad = images(), 2
    down, right = torch.tensor([-2, -1, 0, 1, 2, 0]), torch.tensor([2, 0, -2, 1, -1, 0])
    mirrored = torch.tensor([True, False, True, False, True, False])
    got = crop_flip(x, down, right, mirrored)
    padded = F.pad(x, [pad] * 4, mode="reflect")
    for i, one in enumerate(padded):
        top, left = pad + int(down[i]), pad + int(right[i])
        crop = one[:, top : top + 16, left : left + 16]
        torch.testing.assert_close(got[i], crop.flip(-1) if mirrored[i] else crop, rtol=0, atol=0)


def test_an_image_is_augmented_by_its_episode_alone() -> None:
    episodes = tasks().batch(range(6), shots=2, queries=2)
    whole = augmented_episodes(episodes, range(6), seed=3)
    again = augmented_episodes(next(episodes.task(4).split(1)), [4], seed=3)
    assert torch.equal(whole.support[4:5], again.support) and torch.equal(whole.query[4:5], again.query)
    other = augmented_episodes(episodes, range(6), seed=4)
    assert not torch.equal(whole.query, other.query) and not torch.equal(whole.query, episodes.query)


def test_augmentation_reaches_every_shift_about_equally_often() -> None:
    position = torch.arange(32.0).expand(1, 32, 32)  # each pixel holds its column
    seen = augmented_images(position.expand(6000, 1, 32, 32), range(6000), "x", 0)
    left, right = seen[:, 0, 16, 15], seen[:, 0, 16, 16]
    mirrored = left > right
    assert abs(mirrored.float().mean() - 0.5) < 0.03
    counts = torch.bincount((torch.where(mirrored, right, left) - 11).long(), minlength=9)
    assert len(counts) == 9 and (counts - 6000 / 9).abs().max() < 150


def test_augmentation_refuses_what_is_no_image() -> None:
    x = torch.randn(2, 4, 7)
    episodes = Episodes(x, torch.zeros(2, 4, dtype=torch.long), x, torch.zeros(2, 4, dtype=torch.long), 4)
    with pytest.raises(InputError, match="needs images"):
        augmented_episodes(episodes, range(2), seed=0)


# Classification among all training classes


def test_single_samples_come_with_the_number_of_their_class() -> None:
    x = torch.arange(8.0).repeat_interleave(5)[:, None]  # a sample is its class
    taskset = TensorTaskset(x, torch.arange(8).repeat_interleave(5), ways=2, samples=2)
    samples, labels = taskset.classified(range(400), seed=1)
    assert torch.equal(samples[:, 0], labels.float()) and torch.bincount(labels).min() > 25
    part, of_part = taskset.classified(range(100, 110), seed=1)
    assert torch.equal(part, samples[100:110]) and torch.equal(of_part, labels[100:110])


def test_turned_images_are_further_classes() -> None:
    x = (255 * images(4, 8)).to(torch.uint8)
    taskset = with_rotation_classes(TensorTaskset(x, torch.arange(4), ways=2, samples=1))
    samples, labels = taskset.classified(range(64))
    assert labels.unique().tolist() == list(range(16))
    for sample, label in zip(samples, labels.tolist(), strict=True):
        torch.testing.assert_close(sample, torch.rot90(x[label % 4] / 255, label // 4, (1, 2)))
    assert attach_classifier(method(), taskset, "cosine").weight.shape == (16, 32)


def test_the_classifier_reads_cosines_or_a_linear_layer() -> None:
    torch.manual_seed(0)
    h = torch.randn(6, 5)
    cosine, linear = WholeClassifier(5, 3), WholeClassifier(5, 3, "linear")
    with torch.no_grad():
        cosine.centre.copy_(torch.randn(5))
    rows = F.cosine_similarity((h - cosine.centre)[:, None], cosine.weight[None], dim=-1)
    torch.testing.assert_close(cosine(h), 10 * rows)
    torch.testing.assert_close(linear(h), h @ linear.weight.T + linear.bias)


def test_the_class_loss_trains_the_backbone_and_is_a_part_of_the_method() -> None:
    built, taskset = method(), tasks()
    attach_classifier(built, taskset, "cosine")
    x, labels = taskset.classified(range(32))
    assert "whole_classifier.weight" in built.state_dict()
    loss, seen = class_pass(built, x, labels, 0.1)
    expected = F.cross_entropy(built.whole_classifier(seen.features[0]), labels, label_smoothing=0.1)  # type: ignore[operator]
    assert loss.item() == expected.item()
    parameters = list(built.network.module.parameters())  # type: ignore[union-attr]
    gradients = torch.autograd.grad(loss, parameters)
    assert all(g.abs().sum() > 0 for g, p in zip(gradients, parameters, strict=True) if p.ndim > 1)


def test_every_method_has_the_same_features_classified() -> None:
    losses = []
    for built in (method("protonet"), method("protonet", distance="cosine"), method("maml")):
        torch.manual_seed(3)
        attach_classifier(built, tasks(), "cosine")
        for name, p in built.network.named_parameters():  # type: ignore[union-attr]
            if name.endswith("centre"):
                nn.init.normal_(p)
        losses.append(class_pass(built, *tasks().classified(range(32)), 0.1)[0])
    assert losses[0] == losses[1] == losses[2]


def test_a_method_without_readable_features_is_refused() -> None:
    class Plain(Method):
        pass

    with pytest.raises(InputError, match="class_batch needs a method"):
        attach_classifier(Plain(), tasks(), "cosine")
    with pytest.raises(InputError, match="class_batch needs a training taskset"):
        attach_classifier(method(), object(), "cosine")


def test_episodes_are_normalized_by_the_class_batch_as_its_running_average_would() -> None:
    built, taskset = method(normalization="running"), tasks()
    attach_classifier(built, taskset, "cosine")
    norms = {n: m for n, m in built.network.module.named_modules() if hasattr(m, "running_mean")}  # type: ignore[union-attr]
    x, labels = taskset.classified(range(32))
    episodes = taskset.batch(range(2), shots=1, queries=2)
    _, seen = class_pass(built, x, labels, 0.0)
    with (
        torch.no_grad(),
        normalized_by(built.network.module, {n: (m[0], v[0]) for n, (m, v) in seen.statistics.items()}),
    ):
        trained = built.predict(built.adapt(episodes.support_set), episodes.query)
    for name, norm in norms.items():
        norm.running_mean.copy_(seen.statistics[name][0][0].detach())
        norm.running_var.copy_(seen.statistics[name][1][0].detach())
    built.eval()
    with torch.no_grad():
        tested = built.predict(built.adapt(episodes.support_set), episodes.query)
    torch.testing.assert_close(trained, tested)


# Pretrained weights


def checkpoint(path: Path, weights: dict[str, Tensor]) -> str:
    torch.save({"state": {"best": {"weights": weights}}}, path / "protonet-seed7.pt")
    return str(path / "protonet-seed{seed}.pt")


def test_any_method_starts_from_a_checkpoint_of_another(tmp_path: Path) -> None:
    first, taskset = method(), tasks()
    attach_classifier(first, taskset, "cosine")
    for p in first.parameters():
        nn.init.normal_(p)
    found = read_pretrained(checkpoint(tmp_path, first.state_dict()), seed=7)
    model = BACKBONES["conv4"].build(4, (3, 8, 8), {"channels": 8, "layers": 2})
    own = {name: value.clone() for name, value in model.classifier.state_dict().items()}  # type: ignore[union-attr]
    found.load_backbone(model)
    second = METHODS["maml"].build(model, {}, "support")
    attach_classifier(second, taskset, "cosine")
    found.load_heads(second)
    trained = first.state_dict()
    for name, value in second.state_dict().items():
        if name.startswith("network.module.classifier"):
            assert torch.equal(value, own[name.rpartition(".")[2]])
        else:
            assert torch.equal(value, trained[name]), name


def test_a_method_that_has_a_centre_takes_that_of_the_checkpoint(tmp_path: Path) -> None:
    first, second = method(distance="cosine"), method("hyper-adapter", base_learner="cosine")
    centre = first.network.head.centre  # type: ignore[union-attr]
    nn.init.normal_(centre)  # type: ignore[arg-type]
    found = read_pretrained(checkpoint(tmp_path, first.state_dict()), 7)
    found.load_heads(second)
    found.load_heads(method("r2d2"))
    assert torch.equal(second.network.head.centre, centre)  # type: ignore[union-attr, arg-type]


def test_a_state_dict_of_the_backbone_will_do(tmp_path: Path) -> None:
    build = BACKBONES["conv4"].build
    first, second = (build(ways, (3, 8, 8), {"channels": 8, "layers": 2}) for ways in (64, 5))
    torch.save(first.state_dict(), tmp_path / "backbone.pt")
    read_pretrained(str(tmp_path / "backbone.pt"), 0).load_backbone(second)
    for a, b in zip(first.features.parameters(), second.features.parameters(), strict=True):  # type: ignore[union-attr]
        assert torch.equal(a, b)


def test_weights_of_another_backbone_are_refused(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, method().state_dict())
    with pytest.raises(InputError, match="pretrain the same backbone"):
        read_pretrained(path, 7).load_backbone(BACKBONES["conv4"].build(4, (3, 8, 8), {"channels": 4, "layers": 2}))
    with pytest.raises(InputError, match="train them first"):
        read_pretrained(path, 8)
    torch.save({"state": {"best": None}}, tmp_path / "empty.pt")
    with pytest.raises(InputError, match="train it to its end"):
        read_pretrained(str(tmp_path / "empty.pt"), 0)
