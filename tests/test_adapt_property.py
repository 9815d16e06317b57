"""``adapt(loss)`` gives the weights of ``adapt(support=...)`` or an error, over drawn losses, models and tasks."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from l2l_hyper import HyperAdapter, InputError

DRAWS = 160  # for each of 13 kinds of loss


@dataclass
class Task:
    """A drawn support set with the outputs of a learner, and what draws the rest of its loss."""

    outputs: Tensor
    y: Tensor
    ways: int
    draw: random.Random

    @property
    def one_hot(self) -> Tensor:
        return F.one_hot(self.y, self.ways).to(self.outputs)

    def numbers(self, count: int, low: float, high: float) -> Tensor:
        return torch.tensor([self.draw.uniform(low, high) for _ in range(count)]).to(self.outputs)

    def reduced(self, per_sample: Tensor) -> Tensor:
        return per_sample.mean() if self.draw.random() < 0.7 else per_sample.sum()


@dataclass
class Asked:
    """A loss, and the support set that it is about.

    Attributes:
        loss: what ``adapt`` is given.
        y: labels, shares or values.
        kept: which samples are in the loss; ``None`` for all.
    """

    loss: Tensor
    y: Tensor
    kept: Tensor | None = None


def cross_entropy(t: Task) -> Asked:
    return Asked(F.cross_entropy(t.outputs, t.y, reduction=t.draw.choice(["mean", "sum"])), t.y)


def nll(t: Task) -> Asked:
    return Asked(t.reduced(F.nll_loss(t.outputs.log_softmax(-1), t.y, reduction="none")), t.y)


def smoothed(t: Task) -> Asked:
    weight = t.numbers(t.ways, 0.3, 3) if t.draw.random() < 0.5 else None
    epsilon = t.draw.uniform(0.01, 0.3)
    return Asked(F.cross_entropy(t.outputs, t.y, weight=weight, label_smoothing=epsilon), t.y)


def class_weights(t: Task) -> Asked:
    reduction = t.draw.choice(["mean", "sum"])
    return Asked(F.cross_entropy(t.outputs, t.y, weight=t.numbers(t.ways, 0.3, 3), reduction=reduction), t.y)


def sample_weights(t: Task) -> Asked:
    losses = F.cross_entropy(t.outputs, t.y, reduction="none")
    return Asked(t.reduced(t.numbers(len(t.y), 0.3, 3) * losses), t.y)


def temperature(t: Task) -> Asked:
    factor = 10 ** t.draw.uniform(-1, 1)
    epsilon = t.draw.choice([0.0, t.draw.uniform(0.01, 0.3)])
    return Asked(F.cross_entropy(t.outputs * factor, t.y, label_smoothing=epsilon), t.y)


def mixup(t: Task) -> Asked:
    """With one sample mixed with its own class, as for two classes one confidence would be label smoothing."""
    share = t.draw.uniform(0.55, 1)
    order = list(range(1, len(t.y)))
    t.draw.shuffle(order)
    other = t.y[[0, *order]]
    mixed = share * t.one_hot + (1 - share) * F.one_hot(other, t.ways).to(t.outputs)
    if t.draw.random() < 0.5:
        return Asked(F.cross_entropy(t.outputs, mixed), mixed)
    return Asked(share * F.cross_entropy(t.outputs, t.y) + (1 - share) * F.cross_entropy(t.outputs, other), mixed)


def binary(t: Task) -> Asked:
    reduction = t.draw.choice(["mean", "sum"])
    return Asked(F.binary_cross_entropy_with_logits(t.outputs, t.one_hot, reduction=reduction), t.y)


def multi_margin(t: Task) -> Asked:
    return Asked(F.multi_margin_loss(t.outputs, t.y, reduction=t.draw.choice(["mean", "sum"])), t.y)


def ignored(t: Task) -> Asked:
    kept = some(t)
    epsilon = t.draw.choice([0.0, t.draw.uniform(0.01, 0.3)])
    loss = F.cross_entropy(t.outputs, t.y.where(kept, -100), label_smoothing=epsilon)
    return Asked(loss, t.y[kept], kept)


def masked(t: Task) -> Asked:
    kept = some(t)
    if t.draw.random() < 0.5:
        return Asked(F.cross_entropy(t.outputs[kept], t.y[kept]), t.y[kept], kept)
    losses = F.cross_entropy(t.outputs, t.y, reduction="none") * kept
    return Asked(losses.sum() / t.draw.choice([1, len(t.y), int(kept.sum())]), t.y[kept], kept)


def squared(t: Task) -> Asked:
    if t.draw.random() < 0.3:
        return Asked(F.mse_loss(t.outputs, t.one_hot), t.y)
    values = 3 * t.numbers(t.outputs.numel(), -1, 1).reshape(t.outputs.shape)
    each = (t.outputs - values).square()
    weights = t.numbers(len(values), 0.3, 3) if t.draw.random() < 0.3 else 1.0
    return Asked(t.reduced(weights * (each.mean(1) if t.draw.random() < 0.5 else each.sum(1))), values)


def huber(t: Task) -> Asked:
    """Whose quadratic part shows values, and which past it is refused."""
    values = t.numbers(t.outputs.numel(), -1, 1).reshape(t.outputs.shape)
    loss = t.draw.choice([functools.partial(F.huber_loss, delta=9.0), functools.partial(F.smooth_l1_loss, beta=9.0)])
    if t.draw.random() < 0.1:
        loss = functools.partial(F.huber_loss, delta=0.3)
    return Asked(loss(t.outputs, values, reduction=t.draw.choice(["mean", "sum"])), values)


def some(t: Task) -> Tensor:
    """Some of the samples, of each class at least the first one."""
    first = torch.stack([(t.y == k).long().argmax() for k in range(t.ways)])
    return (torch.tensor([t.draw.random() for _ in t.y]) < 0.6).index_fill(0, first, True)


CLASSES = [cross_entropy, nll, smoothed, class_weights, sample_weights, temperature, mixup, binary, multi_margin]
CLASSES += [ignored, masked]
VALUES = [squared, huber]


def perceptron(ways: int) -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, ways))


def convolution(ways: int) -> nn.Module:
    body = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(nn.Unflatten(1, (1, 5, 5)), *body, nn.Linear(36, ways))


def log_softmax(ways: int) -> nn.Module:
    return nn.Sequential(*perceptron(ways), nn.LogSoftmax(-1))


@functools.cache
def learner(
    build: Callable[[int], nn.Module], base_learner: str, ways: int, dtype: torch.dtype, normalization: Any
) -> HyperAdapter:
    """With everything learned away from where it begins."""
    torch.manual_seed(ways)
    hyper = HyperAdapter(
        build(ways), base_learner=base_learner, width=8, heads=2, blocks=1, normalization=normalization
    ).to(dtype)
    with torch.no_grad():
        for p in hyper.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return hyper


def drawn(kind: Callable[[Task], Asked], seed: int) -> bool:
    """Whether the loss of one drawn task gives what the support set gives; False for an error."""
    draw = random.Random(f"{kind.__name__} {seed}")
    torch.manual_seed(draw.randrange(2**31))
    of_values = kind in VALUES
    base_learner = "ridge" if of_values else draw.choice(["gaussian", "prototype", "ridge"])
    builds = [perceptron, convolution] if of_values or kind in (binary, multi_margin) else [
        perceptron, convolution, log_softmax
    ]  # fmt: skip
    build, dtype = draw.choice(builds), draw.choice([torch.float32, torch.float64])
    ways, normalization = draw.randint(2, 6), draw.choice(["running", "transductive", "support"])
    shots = [draw.randint(1, 4)] * ways if draw.random() < 0.5 else [draw.randint(1, 5) for _ in range(ways)]
    hyper = learner(build, base_learner, ways, dtype, normalization).train(draw.random() < 0.5)
    y = torch.arange(ways).repeat_interleave(torch.tensor(shots))[torch.randperm(sum(shots))]
    x, q = (torch.randn(n, 25 if build is convolution else 5, dtype=dtype) for n in (len(y), 7))
    of_tokens = kind in CLASSES and kind is not mixup and build is not convolution and len(y) % 2 == 0
    if of_tokens and ways > 2 and draw.random() < 0.5:  # pairs of tokens, whose labels do not look one-hot
        x = x.view(-1, 2, x.shape[-1])
    by_loss, by_support = hyper.clone(), hyper.clone()
    outputs = by_loss(x).flatten(0, -2)
    asked = kind(Task(outputs, y, ways, draw))
    try:
        by_loss.adapt(asked.loss * draw.choice([1, 1 / 16, 10 ** draw.uniform(-2, 2)]))
    except InputError:
        return False
    if x.dim() == 3:
        by_support.adapt(support=(x, (y if asked.kept is None else y.where(asked.kept, -100)).view(-1, 2)), ways=ways)
    else:
        samples = x if asked.kept is None else x[asked.kept]
        by_support.adapt(support=(samples, asked.y), ways=None if of_values else ways)
    found, expected = by_loss(q), by_support(q)
    if kind is mixup:  # soft labels leave what all classes of a sample share
        found, expected = found.log_softmax(-1), expected.log_softmax(-1)
    exact = dtype == torch.float64
    tolerance = (1e-6 if exact else 1e-4) if asked.y.dtype == torch.long else (1e-4 if exact else 2e-2)
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance, msg=lambda m: f"{kind} {seed}: {m}")
    return True


@pytest.mark.parametrize("kind", [*CLASSES, *VALUES])
def test_a_loss_gives_what_its_support_set_gives(kind: Callable[[Task], Asked]) -> None:
    answered = sum(drawn(kind, seed) for seed in range(DRAWS))
    assert answered >= 0.6 * DRAWS, f"{DRAWS - answered} of {DRAWS} draws were refused"
