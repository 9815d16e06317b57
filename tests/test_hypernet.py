"""Targets, encoders, generators and their initialization."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call, vmap

from l2l_hyper import HyperNetwork, InputError
from l2l_hyper.hypernet import (
    Chunked,
    DeepSets,
    FeatureWise,
    Full,
    Given,
    LowRank,
    Mean,
    Perceptron,
    SetAttention,
    Sum,
    Target,
)


def mlp(width: int = 8, depth: int = 2) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(*layers)


@pytest.fixture
def convolutional() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 5))


# Target


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_flatten_and_unflatten_are_inverses(convolutional: nn.Module, batch: tuple[int, ...]) -> None:
    target = Target.of(convolutional)
    vector = torch.randn(*batch, target.numel)
    weights = target.unflatten(vector)
    assert {n: w.shape for n, w in weights.items()} == {
        n: (*batch, *p.shape) for n, p in convolutional.named_parameters()
    }
    assert torch.equal(target.flatten(weights), vector)


def test_target_patterns(convolutional: nn.Module) -> None:
    assert list(Target.of(convolutional, ["3.*", "0.bias"]).shapes) == ["0.bias", "3.weight", "3.bias"]
    with pytest.raises(InputError, match=r"'head\.\*' matches no parameter; try one of 0\.weight"):
        Target.of(convolutional, ["head.*"])
    with pytest.raises(InputError, match=r"expected a vector of shape"):
        Target.of(convolutional, ["3.*"]).unflatten(torch.zeros(3))
    with pytest.raises(InputError, match="expected shape"):
        Target({"w": (2,)}).flatten({"w": torch.zeros(3)})
    with pytest.raises(InputError, match="expected weights"):
        Target({"w": (2,)}).flatten({"v": torch.zeros(2)})


# Encoders


@pytest.mark.parametrize("encoder", [Mean(6, 4), DeepSets(6, 4), SetAttention(6, 4)], ids=lambda e: type(e).__name__)
def test_set_encoders_ignore_the_order_of_samples(encoder: nn.Module) -> None:
    encoder.double()
    x = torch.randn(3, 7, 6, dtype=torch.double)
    z = encoder(x)
    assert z.shape == (3, 4)
    torch.testing.assert_close(encoder(x[:, torch.randperm(7)]), z)
    torch.testing.assert_close(torch.stack([encoder(one) for one in x]), z)
    assert not torch.allclose(encoder(x + torch.randn_like(x)), z)


def test_given_checks_its_description() -> None:
    with pytest.raises(InputError, match=r"expected a description of shape \(\*, 4\), got \(2, 3\)"):
        Given(4)(torch.zeros(2, 3))


# Generators


def generators(target: Target) -> list[nn.Module]:
    return [
        Full(5, target),
        Chunked(5, target, chunk=7),
        LowRank(5, target, rank=2),
        FeatureWise(5, target),
        Sum(FeatureWise(5, target), LowRank(5, target, rank=2)),
    ]


def test_generators_give_every_weight_its_shape_and_every_parameter_a_gradient(convolutional: nn.Module) -> None:
    target = Target.of(convolutional)
    base = {n: p.detach().expand(2, 3, *p.shape) + 1 for n, p in convolutional.named_parameters()}
    for generator in generators(target):
        weights = generator(torch.randn(2, 3, 5), base)
        assert {n: w.shape for n, w in weights.items()} == {n: (2, 3, *s) for n, s in target.shapes.items()}
        sum(w.square().sum() + w.sum() for w in weights.values()).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in generator.parameters())


def test_zero_initialized_generators_change_nothing(convolutional: nn.Module) -> None:
    target = Target.of(convolutional)
    start = {n: p.detach().expand(3, *p.shape) for n, p in convolutional.named_parameters()}
    for make in (Full, Chunked, LowRank):
        hyper = HyperNetwork(Given(5), make(5, target, init="zero"))
        weights = hyper(torch.randn(3, 5), start=start)
        assert all(torch.equal(weights[n], start[n]) for n in start)
    changed = FeatureWise(5, target)(torch.randn(3, 5), start)
    assert all(not change.any() for change in changed.values())
    with pytest.raises(InputError, match="needs base weights"):
        FeatureWise(5, target)(torch.randn(3, 5))


@pytest.mark.parametrize("make", [Full, Chunked, LowRank], ids=lambda m: m.__name__)
def test_hyperfan_in_preserves_the_variance_of_activations(make: type) -> None:
    """Ten generated ReLU layers keep the mean square of their activations; unscaled weights make it explode."""
    torch.manual_seed(0)
    net = mlp(width=64, depth=10)
    x, z = torch.randn(32, 64), torch.randn(24, 16)
    # E[x²] is 1 here, and so it is after a ReLU layer with a generated bias.
    hyper = HyperNetwork(Given(16), make(16, Target.of(net)))

    def mean_square(weights: dict[str, torch.Tensor]) -> float:
        out = vmap(lambda w: functional_call(net, w, (x,)))(weights)
        return out.square().mean().item()

    values = [mean_square(HyperNetwork(Given(16), make(16, Target.of(net)))(z)) for _ in range(4)]
    assert 0.25 < torch.tensor(values).log().mean().exp() < 4
    unscaled = {n: w / w.std() for n, w in hyper(z).items()}
    assert mean_square(unscaled) > 1e6


def test_hyperfan_out_scales_by_the_fan_out() -> None:
    torch.manual_seed(0)
    target = Target({"weight": (128, 16), "bias": (128,)})
    weights = Full(32, target, init="hyperfan-out")(torch.randn(64, 32))
    assert weights["weight"].var().item() == pytest.approx(2 / 128, rel=0.1)
    assert not weights["bias"].any()
    weights = Full(32, target, init="hyperfan-in")(torch.randn(64, 32))
    assert weights["weight"].var().item() == pytest.approx(1 / 16, rel=0.1)
    assert weights["bias"].var().item() == pytest.approx(1, rel=0.3)


def test_generators_reject_what_they_cannot_do() -> None:
    target = Target({"weight": (2, 3)})
    for bad in (
        lambda: Full(4, target, init="ones"),
        lambda: LowRank(4, target, rank=0),
        lambda: Chunked(4, target, chunk=0),
    ):
        with pytest.raises(InputError, match="must be"):
            bad()


@pytest.mark.parametrize("make", [Full, Chunked, LowRank], ids=lambda m: m.__name__)
@pytest.mark.parametrize("init", ["hyperfan-in", "hyperfan-out"])
def test_generated_normalization_begins_near_the_identity(make: type, init: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 64), nn.LayerNorm(64), nn.GroupNorm(4, 64))
    weights = make(16, Target.of(net), init=init)(torch.randn(24, 16))
    for layer in "12":
        assert weights[f"{layer}.weight"].mean().item() == pytest.approx(1, abs=0.05)
        for vector in (weights[f"{layer}.weight"], weights[f"{layer}.bias"]):
            assert 0.05 < vector.std().item() < 0.2


def test_vectors_whose_matrix_is_not_generated_vary_as_well() -> None:
    weights = Full(8, Target({"0.bias": (5,), "scale": ()}))(torch.randn(3, 8))
    assert weights["0.bias"].std(0).all() and weights["scale"].std() > 0


def test_perceptron_keeps_the_mean_square_and_checks_its_description() -> None:
    torch.manual_seed(0)
    assert 0.5 < Perceptron(4, 256)(torch.randn(99, 4)).square().mean() < 2
    zero = torch.zeros(4, requires_grad=True)
    assert torch.autograd.grad(Perceptron(4, 8)(zero).sum(), zero)[0].all()
    with pytest.raises(InputError, match=r"expected a description of shape \(\*, 4\), got \(2, 3\)"):
        Perceptron(4, 8)(torch.zeros(2, 3))
