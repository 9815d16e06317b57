"""What a loss is about, from its value and derivatives: the truth or a clear error, for whatever loss is drawn."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge
from torch.nn import functional as F

from l2l_hyper import InputError
from l2l_hyper.bridge.loss_recovery import Recovered, cross_entropy_scale, recover

DRAWS = 300  # per kind of loss


def recovered(logits: Tensor, loss: Tensor, labels: Any = None) -> Recovered:
    (delta,) = torch.autograd.grad(loss, logits, create_graph=True)
    return recover(logits, delta, loss, labels)


def outputs(n: int = 12, c: int = 4, *, size: float = 1.0, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (size * torch.randn(n, c, generator=generator, dtype=torch.float64)).to(dtype).requires_grad_()


def labels_of(n: int = 12, c: int = 4) -> Tensor:
    return torch.arange(n) % c


# Whatever is drawn: the truth or an error


@dataclass
class Draw:
    """A random setting: logits, labels, weights, and how the losses per sample become one."""

    seed: int

    def __post_init__(self) -> None:
        pick = random.Random(self.seed).choice
        self.pick, self.generator = pick, torch.Generator().manual_seed(self.seed)
        self.n, self.c = pick([1, 2, 3, 5, 10, 25]), pick([2, 2, 3, 5, 20])
        self.dtype = pick([torch.float32, torch.float32, torch.float32, torch.float64, torch.float64, torch.float16])
        self.size = pick([0, 0.01, 1, 1, 1, 3, 10, 200, 1e4])
        self.scale, self.mean = pick([1, 1, 10, 1 / 16, 0.37]), pick([True, True, False])
        self.temperature, self.smoothing = pick([1, 1, 1, 0.5, 10, 3.3]), pick([0, 0, 0.05, 0.1, 0.3])
        self.class_weights = pick([None, 0.2 + 3 * self.uniform(self.c)])
        self.y = (
            torch.randint(self.c, (self.n,), generator=self.generator) if pick([0, 1]) else labels_of(self.n, self.c)
        )
        self.keep = self.uniform(self.n) < pick([0.6, 1.1, 1.1])
        self.keep[0] = True
        self.divide_by_all = pick([True, False])

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self.generator, dtype=torch.float64)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    def logits(self) -> Tensor:
        o = self.size * self.normal(self.n, self.c)
        if self.pick([0, 0, 0, 1]):  # predictions that are right already, up to the last digit
            right = self.uniform(self.n) < 0.6
            o[right] *= 0.1
            o[right, self.y[right]] += self.pick([5, 16, 30, 110])
        if self.pick([0] * 9 + [1]):  # ties
            o = o.round()
        return o.to(self.dtype).requires_grad_()

    def one_hot(self) -> Tensor:
        return F.one_hot(self.y, self.c).double()

    def reduced(self, losses: Tensor) -> Tensor:
        """One loss of those per sample."""
        kept = losses * self.keep if self.divide_by_all else losses[self.keep]
        return (kept.mean() if self.mean else kept.sum()) * self.scale

    def weights(self) -> Tensor:
        """The factor of each sample in it, times the number of samples."""
        share = self.scale * (1 if not self.mean else 1 / (self.n if self.divide_by_all else int(self.keep.sum())))
        return self.n * share * self.keep


Drawn = tuple[Tensor, Tensor, str, Tensor, Tensor]  # logits, loss, and kind, targets and weights that are the truth


def cross_entropy(d: Draw) -> Drawn:
    o, w = d.logits(), d.class_weights
    reduction = "mean" if d.mean else "sum"
    y = d.y.masked_fill(~d.keep, -100)
    weight = None if w is None else w.to(d.dtype)
    loss = F.cross_entropy(o * d.temperature, y, weight=weight, reduction=reduction, label_smoothing=d.smoothing)
    factors = d.keep * (torch.ones(d.n) if w is None else w[d.y])
    return o, loss * d.scale, "classes", d.one_hot(), d.n * d.scale * factors / (factors.sum() if d.mean else 1)


def masked_cross_entropy(d: Draw) -> Drawn:
    o = d.logits()
    losses = torch.logsumexp(o * d.temperature, 1) - (o * d.temperature).gather(1, d.y[:, None])[:, 0]
    return o, d.reduced(losses), "classes", d.one_hot(), d.weights()


def nll(d: Draw) -> Drawn:
    o = d.logits()
    return o, d.reduced(F.nll_loss(o.log_softmax(1), d.y, reduction="none")), "classes", d.one_hot(), d.weights()


def soft_labels(d: Draw) -> Drawn:
    d.c = max(d.c, 3)  # with two classes, a mixture with one share is the same loss as label smoothing
    o, t = d.logits(), (2 * d.normal(d.n, d.c)).softmax(1)
    if d.pick([0, 1]):
        losses = F.cross_entropy(o * d.temperature, t.to(d.dtype), reduction="none")
    else:
        losses = F.kl_div((o * d.temperature).log_softmax(1), t.to(d.dtype), reduction="none").sum(1)
    return o, d.reduced(losses), "classes", t, d.weights()


def mixtures(d: Draw) -> Drawn:
    d.c = max(d.c, 3)
    o, share = d.logits(), float(d.uniform(1))
    other = d.y[torch.randperm(d.n, generator=d.generator)]
    first, second = (F.cross_entropy(o, y, reduction="none") for y in (d.y, other))
    t = share * d.one_hot() + (1 - share) * F.one_hot(other, d.c)
    return o, d.reduced(share * first + (1 - share) * second), "classes", t, d.weights()


def binary_cross_entropy(d: Draw) -> Drawn:
    o = d.logits()
    losses = F.binary_cross_entropy_with_logits(o, d.one_hot().to(d.dtype), reduction="none").mean(1)
    return o, d.reduced(losses), "classes", d.one_hot(), d.weights()


def margin(d: Draw) -> Drawn:
    d.dtype = torch.float32 if d.dtype == torch.float16 else d.dtype
    o = d.logits()
    return o, d.reduced(F.multi_margin_loss(o, d.y, reduction="none")), "classes", d.one_hot(), d.weights()


def squared_error(d: Draw) -> Drawn:
    d.c = d.pick([1, 1, 2, 5])
    d.y = torch.zeros_like(d.y)
    o, t = d.logits(), (d.pick([0.1, 1, 10]) * d.normal(d.n, d.c)).to(d.dtype)
    factors = d.pick([torch.ones(d.n).double(), 0.2 + d.uniform(d.n)])
    losses = F.mse_loss(o, t, reduction="none").mean(1) * factors.to(d.dtype)
    return o, d.reduced(losses), "values", t.double(), d.weights() * factors


def huber(d: Draw) -> Drawn:
    d.c = d.pick([1, 1, 2, 5])
    d.y = torch.zeros_like(d.y)
    o, t, edge = d.logits(), d.normal(d.n, d.c).to(d.dtype), d.pick([1.0, 20.0])
    loss, factor = d.pick([(F.huber_loss, 0.5), (F.smooth_l1_loss, 0.5 / edge)])
    name = "delta" if loss is F.huber_loss else "beta"
    losses = loss(o, t, reduction="none", **{name: edge}).mean(1)
    return o, d.reduced(losses), "values", t.double(), d.weights() * factor


def agrees(found: Recovered, logits: Tensor, kind: str, targets: Tensor, weights: Tensor) -> bool:
    rough = logits.dtype == torch.float16
    rtol = 0.1 if rough else 3e-3
    resolution = 4 * torch.finfo(logits.dtype).eps * float(logits.detach().abs().max()) if kind == "values" else 0.0
    weights, counts = weights.double(), weights > 0
    return (
        found.kind == kind
        and torch.equal(found.weights > 0, counts)
        and torch.allclose(found.targets[counts].double(), targets[counts], rtol=rtol, atol=rtol + resolution)
        and torch.allclose(found.weights.double(), weights, rtol=2 * rtol, atol=2 * rtol * float(weights.max()))
        and found.scale == pytest.approx(float(weights.mean()), rel=2 * rtol)
    )


@pytest.mark.parametrize(
    ("kind", "least"),
    [
        (cross_entropy, 0.4),
        (masked_cross_entropy, 0.4),
        (nll, 0.5),
        (soft_labels, 0.2),
        (mixtures, 0.4),
        (binary_cross_entropy, 0.4),
        (margin, 0.4),
        (squared_error, 0.9),
        (huber, 0.25),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_drawn_loss_is_recovered_or_refused(kind: Callable[[Draw], Drawn], least: float) -> None:
    answered = valid = 0
    for seed in range(DRAWS):
        logits, loss, *truth = kind(Draw(seed))
        if not torch.isfinite(loss):
            continue
        valid += 1
        try:
            found = recovered(logits, loss)
        except InputError as error:
            assert "adapt(support=(x, y))" in str(error)
            continue
        answered += 1
        assert agrees(found, logits, *truth), (seed, found, truth)
    assert answered > least * valid


def _focal(o: Tensor, y: Tensor) -> Tensor:
    log_p = o.log_softmax(1).gather(1, y[:, None])
    return -((1 - log_p.exp()) ** 2 * log_p).mean()


def _poly(o: Tensor, y: Tensor) -> Tensor:
    log_p = o.log_softmax(1).gather(1, y[:, None])
    return (1 - log_p.exp() - log_p).mean()


OTHER_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "focal": _focal,
    "poly": _poly,
    "minus cross-entropy": lambda o, y: -F.cross_entropy(o, y),
    "with another term": lambda o, y: F.cross_entropy(o, y) + 0.01,
    "with a term of the outputs": lambda o, y: F.cross_entropy(o, y) + 0.01 * o.square().mean(),
    "adjusted logits": lambda o, y: F.cross_entropy(o + torch.arange(o.shape[1]) / 4, y),
    "dropout": lambda o, y: F.cross_entropy(o * (torch.arange(o.numel()).reshape(o.shape) % 3 > 0), y),
    "squared margin": lambda o, y: F.multi_margin_loss(o, y, p=2),
    "another margin": lambda o, y: F.multi_margin_loss(o, y, margin=0.5),
    "Brier": lambda o, y: (o.softmax(1) - F.one_hot(y, o.shape[1])).square().sum(1).mean(),
    "several labels": lambda o, y: F.binary_cross_entropy_with_logits(o, (o > 0).to(o)),
    "absolute error": lambda o, y: F.l1_loss(o, F.one_hot(y, o.shape[1]).to(o)),
    "log-cosh": lambda o, y: (o - y[:, None]).cosh().log().mean(),
    "root of the mean": lambda o, y: (o - y[:, None]).square().mean().sqrt(),
    "weighted outputs": lambda o, y: ((o - y[:, None]).square() * (1.0 + torch.arange(o.shape[1]))).mean(),
    "two losses": lambda o, y: F.cross_entropy(o, y) + F.mse_loss(o, F.one_hot(y, o.shape[1]).to(o)),
    "supervised contrast": lambda o, y: ((o @ o.T).softmax(1) * (y[:, None] == y)).sum(1).log().neg().mean(),
    "linear": lambda o, y: o.gather(1, y[:, None]).mean(),
}


@pytest.mark.parametrize("name", OTHER_LOSSES)
def test_other_losses_are_refused(name: str) -> None:
    for seed in range(60):
        c, n = [2, 3, 5, 20][seed % 4], [4, 10, 25][seed % 3]
        o = outputs(n, c, size=[0.3, 1, 2][seed // 4 % 3], dtype=[torch.float32, torch.float64][seed % 2], seed=seed)
        loss = OTHER_LOSSES[name](o, labels_of(n, c)) * [1, 1 / 16, 10][seed // 3 % 3]
        with pytest.raises(InputError, match="labels="):
            recovered(o, loss)


def test_dropout_after_the_last_layer_is_named() -> None:
    o = outputs(12, 3, size=1, dtype=torch.float32, seed=0)
    with pytest.raises(InputError, match="not in the loss, as with dropout after the last layer.*labels="):
        recovered(o, OTHER_LOSSES["dropout"](o, labels_of(12, 3)))


# What the table of losses promises


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ways", [2, 5, 20])
@pytest.mark.parametrize(
    "loss",
    [
        lambda o, y, w: F.cross_entropy(o, y),
        lambda o, y, w: F.cross_entropy(o, y, reduction="sum"),
        lambda o, y, w: F.cross_entropy(o, y) * 10,
        lambda o, y, w: F.cross_entropy(o, y) / 16,
        lambda o, y, w: F.cross_entropy(o, y, label_smoothing=0.1),
        lambda o, y, w: F.cross_entropy(o, y, weight=w),
        lambda o, y, w: F.cross_entropy(o, y, weight=w, label_smoothing=0.1),
        lambda o, y, w: F.cross_entropy(o / 0.5, y),
        lambda o, y, w: F.cross_entropy(3.3 * o, y, weight=w) / 16,
        lambda o, y, w: F.cross_entropy(o, F.one_hot(y, o.shape[1]).to(o)),
        lambda o, y, w: -o.softmax(1).log().gather(1, y[:, None]).mean(),
        lambda o, y, w: F.binary_cross_entropy_with_logits(o, F.one_hot(y, o.shape[1]).to(o)),
        lambda o, y, w: F.binary_cross_entropy(o.sigmoid(), F.one_hot(y, o.shape[1]).to(o), reduction="sum"),
    ],
    ids=[
        *("mean", "sum", "x10", "/16", "smoothing", "class weights", "smoothing and class weights", "temperature"),
        *("multiplied and weighted", "one-hot", "written out", "binary", "binary sum"),
    ],
)
def test_ordinary_losses_show_their_labels(loss: Any, ways: int, dtype: torch.dtype) -> None:
    o, y = outputs(5 * ways, ways, dtype=dtype), labels_of(5 * ways, ways)
    found = recovered(o, loss(o, y, torch.linspace(0.5, 3, ways, dtype=dtype)))
    assert found.kind == "classes" and torch.equal(found.targets, F.one_hot(y, ways).to(dtype))


@pytest.mark.parametrize("part", ["ignore_index", "weights of zero", "rows"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_sample_that_is_not_in_the_loss_weighs_nothing(part: str, smoothing: float) -> None:
    o, y, out = outputs(), labels_of(), torch.tensor([1, 4, 11])
    kept = torch.ones(12).index_fill(0, out, 0.0)
    if part == "ignore_index":
        loss = F.cross_entropy(o, y.index_fill(0, out, -100), label_smoothing=smoothing)
    elif part == "rows":
        loss = F.cross_entropy(o[kept > 0], y[kept > 0], label_smoothing=smoothing)
    else:
        loss = (F.cross_entropy(o, y, reduction="none", label_smoothing=smoothing) * kept).sum() / 9
    found = recovered(o, loss)
    torch.testing.assert_close(found.weights, kept * 12 / 9)
    assert found.scale == pytest.approx(1)
    assert torch.equal(found.targets.argmax(1)[kept > 0], y[kept > 0])


@pytest.mark.parametrize("factor", [1, 0.5, 10, 1 / 16])
@pytest.mark.parametrize("width", [1, 3])
def test_squared_error_of_any_scale_shows_its_values(width: int, factor: float) -> None:
    o, values, weights = outputs(8, width), torch.randn(8, width), torch.rand(8) + 0.1
    for losses, scale in [
        (F.mse_loss(o, values), 1),
        (F.mse_loss(o, values, reduction="sum"), 8 * width),
        ((o - values).square().sum(1).mean(), width),
    ]:
        found = recovered(o, factor * losses)
        assert found.kind == "values" and found.scale == pytest.approx(factor * scale)
        torch.testing.assert_close(found.targets, values)
        torch.testing.assert_close(found.weights, torch.full((8,), float(factor * scale)))
    found = recovered(o, factor * (weights * (o - values).square().mean(1)).mean())
    torch.testing.assert_close(found.targets, values)
    torch.testing.assert_close(found.weights, factor * weights)


def test_huber_shows_its_values_where_it_is_quadratic() -> None:
    o, values = outputs(8, 3), torch.randn(8, 3)
    torch.testing.assert_close(recovered(o, F.huber_loss(o, values, delta=20.0)).targets, values)
    torch.testing.assert_close(recovered(o, F.smooth_l1_loss(o, values, beta=20.0)).targets, values)
    with pytest.raises(InputError, match="quadratic part of a Huber"):
        recovered(o, F.huber_loss(o, values, delta=0.5))


def test_mixtures_and_soft_labels_are_soft_targets() -> None:
    o, y = outputs(), labels_of()
    mixed = 0.7 * F.one_hot(y, 4) + 0.3 * F.one_hot(y.roll(1), 4)
    soft = torch.randn(12, 4).softmax(1)
    for targets, loss in [
        (mixed, (0.7 * F.cross_entropy(o, y) + 0.3 * F.cross_entropy(o, y.roll(1))) / 16),
        (soft, F.cross_entropy(o, soft) * 0.37),
        (soft, F.kl_div((o / 4).log_softmax(1), soft, reduction="batchmean") * 16),
    ]:
        found = recovered(o, loss)
        assert found.kind == "classes"
        torch.testing.assert_close(found.targets, targets, rtol=1e-4, atol=1e-4)


def test_a_margin_shows_labels_unless_a_sample_is_past_it() -> None:
    o, y = outputs(size=0.3), labels_of()
    found = recovered(o, F.multi_margin_loss(o, y) / 16)
    assert torch.equal(found.targets.argmax(1), y) and found.scale == pytest.approx(1 / 16)
    with torch.no_grad():
        o[3] = torch.tensor([0.0, 0.0, 0.0, 2.0])
    with pytest.raises(InputError, match="samples 3 are past the margin"):
        recovered(o, F.multi_margin_loss(o, y))


# Where floating-point numbers leave little to see


@pytest.mark.parametrize("gap", [5, 16, 30, 80])
@pytest.mark.parametrize("ways", [2, 5])
def test_labels_of_predictions_that_are_right_already(gap: float, ways: int) -> None:
    o, y = outputs(12, ways, size=0.5), labels_of(12, ways)
    with torch.no_grad():
        o += gap * F.one_hot(y, ways)
    found = recovered(o, F.cross_entropy(o, y))
    assert torch.equal(found.targets.argmax(1), y)
    torch.testing.assert_close(found.weights, torch.ones(12), rtol=1e-3, atol=1e-3)


def test_a_certain_prediction_without_derivative_is_not_taken_for_one_outside_the_loss() -> None:
    o, y = outputs(), labels_of()
    with torch.no_grad():
        o[2, 2] += 200
    with pytest.raises(InputError, match="cannot tell whether samples 2 are in the loss"):
        recovered(o, F.cross_entropy(o, y))
    with pytest.raises(InputError, match="cannot tell whether samples 2 are in the loss"):
        recovered(o, F.cross_entropy(o, y.index_fill(0, torch.tensor([2]), -100)))
    assert torch.equal(recovered(o, F.cross_entropy(o, y), labels=y).targets.argmax(1), y)


@pytest.mark.parametrize("size", [100.0, 1e4])
def test_huge_logits(size: float) -> None:
    o, y = outputs(size=size), labels_of()
    y[o.argmax(1) == y] = (y[o.argmax(1) == y] + 1) % 4  # a certain prediction that is wrong shows its label
    o.data[0], y[0] = torch.tensor([0.1, -0.2, 0.3, 0.0]), 1
    found = recovered(o, F.cross_entropy(o, y) / 16)
    assert torch.equal(found.targets.argmax(1), y) and found.scale == pytest.approx(1 / 16)


def test_logits_that_are_all_equal() -> None:
    y = labels_of()
    for kwargs in ({}, {"label_smoothing": 0.1}, {"weight": torch.tensor([0.5, 1.0, 2.0, 3.0])}):
        o = torch.zeros(12, 4, requires_grad=True)
        found = recovered(o, F.cross_entropy(o, y, **kwargs))
        assert torch.equal(found.targets.argmax(1), y) and found.scale == pytest.approx(1)


def test_one_sample() -> None:
    o = outputs(1, 5)
    found = recovered(o, F.cross_entropy(o, torch.tensor([3])) / 16)
    assert found.targets.argmax().item() == 3 and found.scale == pytest.approx(1 / 16)


def test_offsets_of_the_logits_do_not_matter() -> None:
    o, y = outputs(), labels_of()
    with torch.no_grad():
        o += 1000 * torch.randn(12, 1)
    assert torch.equal(recovered(o, F.cross_entropy(o, y, label_smoothing=0.1)).targets.argmax(1), y)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    y = labels_of()
    for in_float32 in (False, True):
        o = outputs(dtype=dtype)
        found = recovered(o, F.cross_entropy(o.float() if in_float32 else o, y))
        assert found.targets.dtype == dtype and torch.equal(found.targets.argmax(1), y)
        assert found.scale == pytest.approx(1, rel=0.05)


# Labels that are given


FOCAL = OTHER_LOSSES["focal"]


@pytest.mark.parametrize(
    "form",
    [
        lambda y: y,
        lambda y: y.int(),
        lambda y: y.to(torch.uint8),
        lambda y: y[:, None],
        lambda y: y.tolist(),
        lambda y: y.numpy(),
        lambda y: np.asarray(y, dtype=np.int32),
        lambda y: F.one_hot(y, 4),
        lambda y: F.one_hot(y, 4).float(),
        lambda y: F.one_hot(y, 4).double().numpy(),
        lambda y: [torch.tensor(label) for label in y.tolist()],
    ],
)
@pytest.mark.parametrize("loss", [F.cross_entropy, FOCAL], ids=["shown", "not shown"])
def test_labels_in_any_form(loss: Any, form: Any) -> None:
    o, y = outputs(), labels_of()
    found = recovered(o, loss(o, y), labels=form(y))
    assert found.kind == "classes" and torch.equal(found.targets, F.one_hot(y, 4).float())
    torch.testing.assert_close(found.weights, torch.ones(12))


def test_labels_given_keep_the_weights_that_the_loss_shows() -> None:
    o, y = outputs(), labels_of()
    weight = torch.tensor([0.5, 1.0, 2.0, 3.0])
    found = recovered(o, F.cross_entropy(o, y, weight=weight, label_smoothing=0.1), labels=y)
    torch.testing.assert_close(found.weights, weight[y] * 12 / weight[y].sum(), rtol=1e-4, atol=1e-4)


def test_scale_with_labels_given_follows_the_loss() -> None:
    o, y = outputs(), labels_of()
    whole, part = (recovered(o, FOCAL(o, y) * factor, labels=y).scale for factor in (1, 1 / 16))
    assert whole > 0 and part == pytest.approx(whole / 16)


def test_labels_given_to_leave_samples_out() -> None:
    o, y = outputs(), labels_of().index_fill(0, torch.tensor([3]), -100)
    assert recovered(o, FOCAL(o[y >= 0], y[y >= 0]), labels=y).weights.tolist() == [1, 1, 1, 0] + [1] * 8


def test_values_given_where_a_loss_does_not_show_them() -> None:
    o, values = outputs(8, 3), torch.randn(8, 3)
    found = recovered(o, F.l1_loss(o, values), labels=values)
    assert found.kind == "values" and torch.equal(found.targets, values)


def test_labels_that_are_not_those_of_the_loss_are_refused() -> None:
    o, y = outputs(), labels_of()
    with pytest.raises(InputError, match=r"other labels than those given, for samples \[5\]"):
        recovered(o, F.cross_entropy(o, y), labels=y.index_fill(0, torch.tensor([5]), 3))
    with pytest.raises(InputError, match="does not fall towards the labels given"):
        recovered(o, -FOCAL(o, y), labels=y)
    with pytest.raises(InputError, match="from 0 to 3 for 4 outputs, got 0 to 4"):
        recovered(o, FOCAL(o, y), labels=y.index_fill(0, torch.tensor([5]), 4))
    with pytest.raises(InputError, match=r"integer labels \(12,\)"):
        recovered(o, FOCAL(o, y), labels=y[:5])
    with pytest.raises(InputError, match="tensor, array or list, got str"):
        recovered(o, FOCAL(o, y), labels="cat")


# Scale


@pytest.mark.parametrize("ways", [2, 5])
@pytest.mark.parametrize("factor", [1, 1 / 16, 10])
def test_scale_is_that_of_the_mean(factor: float, ways: int) -> None:
    o, y = outputs(25, ways), labels_of(25, ways)
    some = y.index_fill(0, torch.tensor([0, 7]), -100)
    weight = torch.linspace(0.5, 2, ways)
    for loss, scale in [
        (F.cross_entropy(o, y), 1),
        (F.cross_entropy(o, y, reduction="sum"), 25),
        (F.cross_entropy(o, some), 1),
        (F.cross_entropy(o, y, weight=weight), 1),
    ]:
        (delta,) = torch.autograd.grad(factor * loss, o, create_graph=True)
        assert recover(o, delta, factor * loss).scale == pytest.approx(factor * scale, rel=1e-4)
        assert cross_entropy_scale(o.detach(), delta.detach()) == pytest.approx(factor * scale, rel=1e-4)


def test_scale_from_the_derivative_alone() -> None:
    o, y = outputs(), labels_of()

    def scale(loss: Tensor) -> float | None:
        return cross_entropy_scale(o.detach(), torch.autograd.grad(loss, o)[0])

    assert scale(F.cross_entropy(o, y, label_smoothing=0.1) / 16) == pytest.approx(1 / 16, rel=1e-4)
    assert scale(F.mse_loss(o, F.one_hot(y, 4).float())) is None
    assert scale(0 * o.sum()) is None
    with torch.no_grad():
        o[2, 2] += 200  # no derivative is left, and yet the sample is in the mean
    assert scale(F.cross_entropy(o, y)) == pytest.approx(1, rel=1e-4)


# What it asks of autograd


def test_the_derivative_may_be_by_an_edge_of_the_graph() -> None:
    o, y = outputs(), labels_of()
    inner = o * 1
    loss = F.cross_entropy(inner, y, label_smoothing=0.1)
    edge = GradientEdge(inner.grad_fn, 0)
    (delta,) = torch.autograd.grad(loss, edge, create_graph=True)
    with torch.no_grad():
        found = recover(inner.detach(), delta, loss.detach(), at=edge)
    assert torch.equal(found.targets.argmax(1), y)


def test_without_a_second_derivative_only_hard_labels_are_found() -> None:
    o, y = outputs(), labels_of()
    weight = torch.tensor([0.5, 1.0, 2.0, 3.0])
    for loss in (F.cross_entropy(o, y), F.cross_entropy(o, y, weight=weight) / 16):
        (delta,) = torch.autograd.grad(loss, o)
        assert torch.equal(recover(o, delta, loss).targets.argmax(1), y)
    loss = F.cross_entropy(o, y, label_smoothing=0.1)
    (delta,) = torch.autograd.grad(loss, o)
    with pytest.raises(InputError, match="create_graph=True"):
        recover(o, delta, loss)


def test_a_loss_of_zero_shows_nothing() -> None:
    o = outputs()
    with pytest.raises(InputError, match="derivative of the loss by the outputs is zero"):
        recovered(o, 0 * o.sum())
