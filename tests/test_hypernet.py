"""Targets, encoders, generators, starts and their initialization."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call, vmap
from torch.nn import functional as F

from l2l_hyper import HyperNetwork, InputError
from l2l_hyper.hypernet import (
    STARTS,
    Chunked,
    ClassAttention,
    DeepSets,
    FeatureWise,
    Full,
    Given,
    LowRank,
    Mean,
    SetAttention,
    Sum,
    Support,
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


def test_class_attention_is_equivariant_to_classes_and_invariant_to_samples() -> None:
    encoder = ClassAttention(3, 6, width=16).double()
    nn.init.normal_(encoder.label_bias)
    rows, samples = torch.randn(2, 4, 3, dtype=torch.double), torch.randn(2, 9, 6, dtype=torch.double)
    targets = F.one_hot(torch.arange(9) % 4, 4).double().expand(2, -1, -1)
    predictions = torch.rand(2, 9, 4, dtype=torch.double)
    z = encoder(rows, samples, targets, predictions)
    classes, order = torch.randperm(4), torch.randperm(9)
    moved = encoder(
        rows[:, classes], samples[:, order], targets[:, order][..., classes], predictions[:, order][..., classes]
    )
    torch.testing.assert_close(moved, z[:, classes])
    assert not torch.allclose(z[:, 0], z[:, 1])


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


# Starts


def support_of(tasks: int = 3, ways: int = 4, shots: int = 3, features: int = 6) -> Support:
    h = torch.randn(tasks, ways * shots, features, dtype=torch.double, requires_grad=True)
    targets = F.one_hot(torch.arange(ways).repeat_interleave(shots), ways).double().expand(tasks, -1, -1)
    weights = {
        "weight": torch.randn(tasks, ways, features, dtype=torch.double, requires_grad=True),
        "bias": torch.randn(tasks, ways, dtype=torch.double, requires_grad=True),
    }
    outputs = h @ weights["weight"].transpose(1, 2) + weights["bias"].unsqueeze(1)
    return Support(h, targets, outputs, (outputs.softmax(-1) - targets) / outputs.shape[1], weights)


def start(name: str, features: int = 6) -> nn.Module:
    return STARTS[name](("weight", "bias"), features, 0.3).double()


def squared_distances(support: Support, query: torch.Tensor) -> torch.Tensor:
    """Prototypical Networks by loops."""
    outputs = torch.empty(len(query), query.shape[1], support.targets.shape[-1], dtype=query.dtype)
    for t in range(len(query)):
        for c in range(support.targets.shape[-1]):
            members = [support.features[t, n] for n in range(support.targets.shape[1]) if support.targets[t, n, c] == 1]
            prototype = sum(members) / len(members)
            outputs[t, :, c] = (query[t] - prototype).square().sum(-1)
    return outputs


def log_probabilities(weights: dict[str, torch.Tensor], query: torch.Tensor) -> torch.Tensor:
    return (query @ weights["weight"].transpose(1, 2) + weights["bias"].unsqueeze(1)).log_softmax(-1)


def test_prototype_start_is_a_prototypical_network_in_value_and_gradient() -> None:
    support, query = support_of(), torch.randn(3, 5, 6, dtype=torch.double)
    ours = log_probabilities(start("prototype")(support), query)
    theirs = (-squared_distances(support, query)).log_softmax(-1)
    torch.testing.assert_close(ours, theirs)
    weight = torch.randn_like(ours)
    (a,), (b,) = (torch.autograd.grad((x * weight).sum(), support.features) for x in (ours, theirs))
    torch.testing.assert_close(a, b)


def test_gaussian_start_with_isotropic_covariances_gives_back_the_prototype_start() -> None:
    support = support_of(shots=3)
    gaussian = start("gaussian")
    nn.init.constant_(gaussian.log_ratio, torch.inf)
    nn.init.constant_(gaussian.log_precision, torch.log(torch.tensor(4 / 3)).item())  # undoes K / (K + 1)
    ours, theirs = gaussian(support), start("prototype")(support)
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-6, atol=1e-6)


def test_gaussian_start_is_the_bayes_classifier() -> None:
    """Posterior predictive densities by scipy-free Gaussian algebra, one dimension after the other."""
    support, query = support_of(shots=2), torch.randn(3, 5, 6, dtype=torch.double)
    gaussian = start("gaussian")
    for p in gaussian.parameters():
        nn.init.normal_(p)
    within = (-gaussian.log_precision).exp()
    between = within * gaussian.log_ratio.exp()
    expected = torch.zeros(3, 5, 4, dtype=torch.double)
    means, _ = support.class_means()
    for c in range(4):
        posterior_variance = 1 / (1 / between + 2 / within)
        posterior_mean = posterior_variance * (gaussian.mean / between + 2 * means[:, c] / within)
        normal = torch.distributions.Normal(posterior_mean.unsqueeze(1), (posterior_variance + within).sqrt())
        expected[..., c] = 2 * normal.log_prob(query).sum(-1)
    torch.testing.assert_close(log_probabilities(gaussian(support), query), expected.log_softmax(-1))


@pytest.mark.parametrize("shots", [1, 4])
def test_ridge_start_solves_the_ridge_problem(shots: int) -> None:
    """Both forms (fewer and more samples than features) against least squares on an augmented system."""
    support = support_of(shots=shots)
    ridge = start("ridge")
    nn.init.constant_(ridge.log_penalty, 0.7)
    nn.init.constant_(ridge.log_scale, 0.4)
    weights = ridge(support)
    for t in range(3):
        h = torch.cat([support.features[t], torch.ones(len(support.features[t]), 1, dtype=torch.double)], 1)
        stacked = torch.cat([h, (0.5 * ridge.log_penalty).exp() * torch.eye(7, dtype=torch.double)])
        wanted = torch.cat([support.targets[t], torch.zeros(7, 4, dtype=torch.double)])
        solution = ridge.log_scale.exp() * torch.linalg.lstsq(stacked, wanted).solution
        torch.testing.assert_close(weights["weight"][t], solution[:-1].T)
        torch.testing.assert_close(weights["bias"][t], solution[-1])


def test_gradient_start_is_one_step_of_gradient_descent() -> None:
    support = support_of()
    weights = start("gradient")(support)
    for t in range(3):
        w, b = (support.weights[n][t].detach().requires_grad_() for n in ("weight", "bias"))
        labels = support.targets[t].argmax(-1)
        gw, gb = torch.autograd.grad(F.cross_entropy(support.features[t] @ w.T + b, labels), (w, b))
        torch.testing.assert_close(weights["weight"][t], w - 0.3 * gw)
        torch.testing.assert_close(weights["bias"][t], b - 0.3 * gb)


def test_base_start_leaves_the_weights() -> None:
    support = support_of()
    assert start("base")(support) == support.weights


@pytest.mark.parametrize("name", ["prototype", "gaussian"])
def test_class_starts_refuse_values(name: str) -> None:
    support = support_of()
    values = Support(
        support.features, support.targets, support.outputs, support.delta, support.weights, classification=False
    )
    with pytest.raises(InputError, match="try start='ridge'"):
        start(name)(values)


def test_more_features_do_not_make_an_untrained_gaussian_start_more_certain() -> None:
    def loss(features: int) -> torch.Tensor:
        """On queries that have nothing to do with the classes, where being certain is costly."""
        torch.manual_seed(0)
        samples, queries = torch.randn(2, 100, 5, features).relu()
        support = Support(samples, torch.eye(5).expand(100, 5, 5), *(torch.zeros(100, 5, 5),) * 2, {})
        weight, bias = STARTS["gaussian"](("weight", "bias"), features, 0.1).last_layer(support)
        logits = torch.baddbmm(bias.unsqueeze(-2), queries, weight.mT)
        return F.cross_entropy(logits.flatten(0, 1), torch.arange(5).repeat(100))

    assert loss(800) < loss(64)
