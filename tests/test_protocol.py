"""Every documented call of learn2learn's MAML and GBML, answered on the same inputs."""

from __future__ import annotations

import copy
import inspect
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers_methods import small_episodes, small_method
from torch import Tensor, nn
from torch.nn import functional as F

from l2l_hyper import HyperAdapter, HyperSGD, InputError
from l2l_hyper._learn2learn import learn2learn
from l2l_hyper.bridge import HyperTransform, Learner
from l2l_hyper.methods import METHODS

l2l = learn2learn()


class Network(nn.Module):
    """Convolution, BatchNorm, a buffer, a tied layer, and methods of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
        self.inner = nn.Linear(36, 36)
        self.again = nn.Linear(36, 36)
        self.again.weight = self.inner.weight
        self.register_buffer("shift", torch.tensor(0.3))
        self.head = nn.Linear(36, 3)
        self.tag = "network"

    def features(self, x: Tensor) -> Tensor:
        return self.again(torch.tanh(self.inner(self.stem(x)))) + self.shift

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def network() -> Network:
    torch.manual_seed(0)
    return Network().double()


def data() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    x, q = torch.randn(2, 6, 1, 5, 5, dtype=torch.double)
    return x, torch.arange(3).repeat(2), q, torch.arange(3).repeat(2)


def gradient_adapter(model: nn.Module, lr: float, *args: Any, **kwargs: Any) -> HyperAdapter:
    """The HyperAdapter that is MAML: one gradient step on every weight, nothing learned besides."""
    return HyperAdapter(model, lr, *args, base_learner="gradient", generate="*", residual=False, **kwargs)


SAME_AS_MAML = [HyperSGD, gradient_adapter]
Make = Callable[..., Any]


def adapted(learner: Any, steps: int = 1, **adapt: Any) -> Any:
    x, y, _, _ = data()
    for _ in range(steps):
        learner.adapt(F.cross_entropy(learner(x), y), **adapt)
    return learner


def assert_same(ours: Any, model: nn.Module, reference: Any, expected_model: nn.Module) -> None:
    """Outputs on the queries, and what their loss sends back to the user's own parameters."""
    _, _, q, qy = data()
    outputs, expected = ours(q), reference(q)
    torch.testing.assert_close(outputs, expected)
    F.cross_entropy(outputs, qy).backward()
    F.cross_entropy(expected, qy).backward()
    for (name, p), r in zip(model.named_parameters(), expected_model.parameters(), strict=True):
        assert (p.grad is None) == (r.grad is None), name
        if p.grad is not None:
            torch.testing.assert_close(p.grad, r.grad)


@pytest.mark.parametrize("make", SAME_AS_MAML)
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("where", ["init", "clone", "adapt"])
@pytest.mark.parametrize("first_order", [False, True])
def test_first_order_wherever_it_is_said(make: Make, first_order: bool, where: str, steps: int) -> None:
    at: dict[str, dict[str, bool]] = {"init": {}, "clone": {}, "adapt": {}}
    at[where] = {"first_order": first_order}
    models = network(), network()
    learners = []
    for build, model in zip((make, l2l.algorithms.MAML), models, strict=True):
        learners.append(adapted(build(model, 0.1, **at["init"]).clone(**at["clone"]), steps, **at["adapt"]))
    assert_same(learners[0], models[0], learners[1], models[1])


@pytest.mark.parametrize("make", [*SAME_AS_MAML, HyperAdapter])
def test_signatures_and_defaults_are_mamls(make: Make) -> None:
    ours = make(network(), 0.1)
    maml = l2l.algorithms.MAML(network(), 0.1)
    for name in ("clone", "adapt"):
        expected = inspect.signature(getattr(maml, name)).parameters
        got = inspect.signature(getattr(ours, name)).parameters
        assert list(got)[: len(expected)] == list(expected)
        assert all(got[key].default == p.default for key, p in expected.items() if p.default is not p.empty)
    expected = inspect.signature(type(maml).__init__).parameters
    got = inspect.signature(type(ours).__init__).parameters
    assert list(got)[: len(expected)] == list(expected)
    assert all(got[key].default == p.default for key, p in expected.items() if p.default is not p.empty)
    for attribute in ("lr", "first_order", "allow_unused", "allow_nograd"):
        assert getattr(ours, attribute) == getattr(maml, attribute)


@pytest.mark.parametrize("make", [*SAME_AS_MAML, HyperAdapter])
def test_attributes_pass_through_and_show_the_tasks_weights(make: Make) -> None:
    _, _, q, _ = data()
    hyper = make(network(), 0.1).double()
    learner = adapted(hyper.clone())
    assert hyper.tag == learner.tag == "network"
    torch.testing.assert_close(learner.head(learner.features(q)), learner(q))
    assert not torch.equal(hyper.head.weight, learner.head.weight)
    torch.testing.assert_close(learner.state_dict()["module.head.weight"], learner.head.weight.detach())
    with pytest.raises(AttributeError):
        _ = learner.no_such_thing


@pytest.mark.parametrize("make", SAME_AS_MAML)
def test_methods_use_mamls_weights(make: Make) -> None:
    _, _, q, _ = data()
    ours = adapted(make(network(), 0.1).clone())
    maml = adapted(l2l.algorithms.MAML(network(), 0.1).clone())
    torch.testing.assert_close(ours.features(q), maml.features(q))
    expected = dict(maml.module.named_parameters())
    assert all(torch.allclose(p, expected[name]) for name, p in ours.module.named_parameters())


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Linear(2, 2)
        self.head = nn.Linear(25, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1))


@pytest.mark.parametrize("make", SAME_AS_MAML)
@pytest.mark.parametrize("options", [{"allow_unused": True}, {"allow_nograd": True}])
def test_unused_parameters(make: Make, options: dict[str, bool]) -> None:
    torch.manual_seed(0)
    model = Unused().double()
    reference = copy.deepcopy(model)
    assert_same(
        adapted(make(model, 0.1, **options).clone()),
        model,
        adapted(l2l.algorithms.MAML(reference, 0.1, **options).clone()),
        reference,
    )
    with pytest.raises(InputError, match="allow_unused=True"):
        adapted(make(model, 0.1).clone())
    with pytest.raises(InputError, match="allow_unused=True"):
        adapted(make(model, 0.1, **options).clone(), allow_unused=False)


@pytest.mark.parametrize("make", SAME_AS_MAML)
@pytest.mark.parametrize("steps", [1, 2])
def test_frozen_parameters(make: Make, steps: int) -> None:
    model, reference = network(), network()
    for m in (model, reference):
        m.stem.requires_grad_(False)
    with pytest.raises(InputError, match="allow_nograd=True"):
        adapted(make(model, 0.1).clone())
    ours = adapted(make(model, 0.1, allow_nograd=True).clone(), steps)
    assert_same(ours, model, adapted(l2l.algorithms.MAML(reference, 0.1, allow_nograd=True).clone(), steps), reference)


@pytest.mark.parametrize("make", SAME_AS_MAML)
def test_nested_clones(make: Make) -> None:
    models = network(), network()
    outer, reference = make(models[0], 0.1), l2l.algorithms.MAML(models[1], 0.1)
    once, expected_once = adapted(outer.clone()), adapted(reference.clone())
    twice, expected_twice = adapted(once.clone()), adapted(expected_once.clone())
    _, _, q, _ = data()
    torch.testing.assert_close(once(q), expected_once(q))
    assert_same(twice, models[0], expected_twice, models[1])


@pytest.mark.parametrize("make", [*SAME_AS_MAML, HyperAdapter])
def test_copies_state_and_modes(make: Make) -> None:
    _, _, q, _ = data()
    hyper = make(network(), 0.1).double()
    other = make(network(), 0.1).double()
    with torch.no_grad():
        for p in other.parameters():
            p.add_(0.1)
    other.load_state_dict(hyper.state_dict())
    same = copy.deepcopy(hyper)
    expected = adapted(hyper.clone())(q)
    for learner in (other, same):
        torch.testing.assert_close(adapted(learner.clone())(q), expected)
    assert not any(a is b for a, b in zip(same.parameters(), hyper.parameters(), strict=True))
    assert hyper.train(False) is hyper and not hyper.clone().module.training
    assert adapted(hyper.float().double().clone())(q).dtype is torch.double
    assert hyper.to(torch.float32) is hyper and hyper.clone()(q.float()).dtype is torch.float32


def test_the_network_goes_by_the_names_that_it_has_under_maml() -> None:
    """So a state that MAML has trained is loaded by the learner in its place."""
    maml = l2l.algorithms.MAML(network(), 0.1)
    with torch.no_grad():
        for p in maml.parameters():
            p.add_(0.1)
    state = maml.state_dict()
    same = gradient_adapter(network(), 0.1)
    same.load_state_dict(state)
    assert same.state_dict().keys() == state.keys()
    torch.testing.assert_close(adapted(same.clone())(data()[2]), adapted(maml.clone())(data()[2]))
    for make, others in ((HyperSGD, "transforms."), (HyperAdapter, "method.")):
        learner = make(network(), 0.1)
        missing, unexpected = learner.load_state_dict(state, strict=False)
        assert not unexpected and all(name.startswith(others) for name in missing)
        assert all(name.startswith(("module.", others)) for name in learner.state_dict())


@pytest.mark.parametrize("name", [name for name in METHODS if name != "protonet-distilled"])
def test_a_learner_around_any_method_predicts_as_the_method(name: str) -> None:
    """From a loss, from the support set, and from the support set in mini-batches."""
    episodes = small_episodes().task(0)
    method = small_method(name)
    expected = method.predict(method.adapt(episodes.support_set), episodes.query)[0]
    x, y, q = episodes.support[0], episodes.support_labels[0], episodes.query[0]
    hyper = Learner(method)
    by_loss, by_support, in_parts = hyper.clone(), hyper.clone(), hyper.clone()
    by_loss.adapt(F.cross_entropy(by_loss(x), y))
    by_support.adapt(support=(x, y))
    for part in (slice(0, None, 2), slice(1, None, 2)):
        in_parts.adapt(support=(x[part], y[part]))
    for learner in (by_loss, by_support, in_parts):
        torch.testing.assert_close(learner(q), expected)


@pytest.mark.parametrize("make", [*SAME_AS_MAML, HyperAdapter])
def test_layers_that_are_reached_through_a_list_are_refused(make: Make) -> None:
    """As a list is not copied with the module, what passes is not the clone's."""

    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(25, 8), nn.Linear(8, 3)
            self.layers = [self.body, self.head]

        def forward(self, x: Tensor) -> Tensor:
            return self.layers[1](torch.tanh(self.layers[0](x.flatten(1))))

    with pytest.raises(InputError):
        adapted(make(Listed().double(), 0.1).clone())


@pytest.mark.parametrize("make", [*SAME_AS_MAML, HyperAdapter])
def test_the_origin_does_not_change(make: Make) -> None:
    hyper = make(network(), 0.1).double()
    before = {name: t.clone() for name, t in hyper.state_dict().items()}
    _, _, q, _ = data()
    learner = adapted(hyper.clone(), 2)
    learner(q)
    averages = ("running_mean", "running_var", "num_batches_tracked")  # of all tasks, as in learn2learn
    changed = [name for name, t in hyper.state_dict().items() if not torch.equal(t, before[name])]
    assert not [name for name in changed if not name.endswith(averages)]
    assert all(p.grad is None for p in hyper.parameters())


@pytest.mark.parametrize("lr", [0.1, 1.0])
def test_an_untrained_transform_leaves_gbml_as_it_is(lr: float) -> None:
    models = network(), network()
    ours = l2l.algorithms.GBML(models[0], transform=HyperTransform, lr=lr)
    plain = l2l.algorithms.GBML(models[1], transform=lambda param: None, lr=lr)
    assert_same(adapted(ours.clone(), 2), models[0], adapted(plain.clone(), 2), models[1])


def trained_transforms(module: nn.Module) -> None:
    torch.manual_seed(3)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.3 * torch.randn_like(p))


def test_hyper_sgd_is_gbml_with_the_transform() -> None:
    models = network(), network()
    ours = HyperSGD(models[0], 0.1)
    gbml = l2l.algorithms.GBML(models[1], transform=HyperTransform, lr=0.1)
    trained_transforms(ours.transforms)
    theirs = gbml.compute_update.transforms_modules
    for a, b in zip(ours.transforms.values(), theirs, strict=True):
        b.load_state_dict(a.state_dict())
    assert_same(adapted(ours.clone(), 2), models[0], adapted(gbml.clone(), 2), models[1])
    for a, b in zip(ours.transforms.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("adapt_transform", [False, True])
def test_every_parameter_of_gbml_gets_a_gradient(adapt_transform: bool) -> None:
    gbml = l2l.algorithms.GBML(network(), transform=HyperTransform, lr=0.1, adapt_transform=adapt_transform)
    trained_transforms(gbml.compute_update)
    _, _, q, qy = data()
    learner = adapted(gbml.clone(), 2)
    F.cross_entropy(learner(q), qy).backward()
    assert not [name for name, p in gbml.named_parameters() if p.grad is None or not p.grad.isfinite().all()]


def test_learn2learns_learnable_optimizer_takes_the_transform() -> None:
    torch.manual_seed(0)
    model = nn.Linear(5, 3).double()
    metaopt = l2l.optim.LearnableOptimizer(model, HyperTransform, lr=0.05)
    opt = torch.optim.Adam(metaopt.parameters(), 0.01)
    x = torch.randn(64, 5, dtype=torch.double)
    y = (x @ torch.randn(5, 3, dtype=torch.double)).argmax(-1)
    losses = []
    for _ in range(40):
        metaopt.zero_grad()
        opt.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        opt.step()
        metaopt.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert any(t.out.weight.any() for t in metaopt.transforms.modules() if hasattr(t, "out"))


@pytest.mark.parametrize("shape", [(), (4,), (4, 3), (4, 3, 2, 2)])
def test_transform_scales_rows_and_columns(shape: tuple[int, ...]) -> None:
    """Against a loop over the elements, value and gradient."""
    param = torch.zeros(shape, dtype=torch.double)
    transform = HyperTransform(param)
    trained_transforms(transform)
    torch.manual_seed(5)
    gradient = torch.randn(shape, dtype=torch.double, requires_grad=True)
    update = transform(gradient)
    power = gradient.square()
    factors = []
    for side, scale in enumerate(transform.scales):
        lines = power.reshape(1) if not shape else power.movedim(side, 0).reshape(shape[side], -1).mean(1)
        factors.append(scale(lines))
    for index in itertools.product(*map(range, shape)):
        factor = factors[0][index[0] if index else 0]
        if len(shape) > 1:
            factor = factor * factors[1][index[1]]
        torch.testing.assert_close(update[index], factor * gradient[index])
    assert torch.autograd.gradcheck(transform, gradient)
    with pytest.raises(InputError, match="expected a gradient of shape"):
        transform(torch.zeros(7))


def test_a_module_without_outputs_to_read() -> None:
    """A distribution with a parameter of its own, as learn2learn's maml_toy.py has it."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mu = nn.Parameter(torch.zeros(3))

        def forward(self) -> torch.distributions.Normal:
            return torch.distributions.Normal(self.mu, 1.0)

    torch.manual_seed(0)
    hyper = HyperSGD(Model(), lr=0.05)
    opt = torch.optim.Adam(hyper.parameters(), 0.02)
    losses = []
    for _ in range(60):
        opt.zero_grad()
        learner, target = hyper.clone(), 2 + 0.1 * torch.randn(3)
        learner.adapt((learner().mean - target).square().sum())
        loss = (learner().mean - target).square().sum()
        loss.backward()
        opt.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.2 * sum(losses[:5])
    with pytest.raises(InputError, match="HyperAdapter|nn.Linear"):
        HyperAdapter(Model())


def test_bad_input() -> None:
    x, y, _, _ = data()
    with pytest.raises(InputError, match="expected an nn.Module to adapt, got int"):
        HyperSGD(3, 0.1)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="parameters that require gradients"):
        HyperSGD(nn.ReLU(), 0.1)
    learner = HyperSGD(network(), 0.1).clone()
    with pytest.raises(InputError, match="finite scalar loss"):
        learner.adapt(F.cross_entropy(learner(x), y, reduction="none"))
    with pytest.raises(InputError, match="finite scalar loss, got .*nan"):
        learner.adapt(F.cross_entropy(learner(x), y) * torch.nan)
    with pytest.raises(InputError, match="depends on every parameter of this learner"):
        learner.adapt(torch.tensor(1.0, requires_grad=True))
    with pytest.raises(InputError, match="width must be at least 2"):
        HyperTransform(torch.zeros(3), width=1)
