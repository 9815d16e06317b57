"""Normalization against BatchNorm, under vmap and in second order; calls under other weights; copies of a tree."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap

from l2l_hyper import EpisodicBatchNorm, InputError, convert_norm
from l2l_hyper.functional import (
    Normalization,
    call,
    clone_tree,
    held_statistics,
    hold_statistics,
    install,
    normalized_by,
    replaced,
    slots,
    statistics_of,
    update_running,
)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).double()
    nn.init.normal_(model[1].weight)
    nn.init.normal_(model[1].bias)
    return model


@pytest.mark.parametrize("mode", ["support", "transductive", "running"])
def test_training_forward_and_gradient_are_batch_norms(mode: str) -> None:
    model, x = net(), torch.randn(7, 1, 6, 6, dtype=torch.double)
    converted = convert_norm(copy.deepcopy(model), mode)
    ours, theirs = converted(x), model(x)
    torch.testing.assert_close(ours, theirs)
    for a, b in zip(
        torch.autograd.grad(ours.square().sum(), list(converted.parameters())),
        torch.autograd.grad(theirs.square().sum(), list(model.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_running_mode_evaluates_as_batch_norm() -> None:
    model, x = net(), torch.randn(7, 1, 6, 6, dtype=torch.double)
    nn.init.normal_(model[1].running_mean)
    nn.init.uniform_(model[1].running_var, 1, 2)
    converted = convert_norm(copy.deepcopy(model), "running").eval()
    torch.testing.assert_close(converted(x), model.eval()(x))


@pytest.mark.parametrize("shape", [(7, 3), (7, 3, 5, 4)])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("mode", ["support", "transductive", "running"])
def test_normalization_is_the_same_without_a_graph(
    mode: Normalization, training: bool, affine: bool, shape: tuple[int, ...]
) -> None:
    layer = {2: nn.BatchNorm1d, 4: nn.BatchNorm2d}[len(shape)](3, affine=affine).double()
    layer.running_mean.normal_()
    layer.running_var.uniform_(1, 2)
    norm = convert_norm(layer, mode).train(training)
    for p in norm.parameters():
        nn.init.normal_(p)
    support, query = 2 * torch.randn(2, *shape, dtype=torch.double) + 3

    def run() -> tuple[torch.Tensor, torch.Tensor, dict[str, tuple[torch.Tensor, torch.Tensor]]]:
        with statistics_of(norm, None) as statistics:
            y = norm(support)
        with statistics_of(norm, statistics):
            return y, norm(query), statistics

    with torch.no_grad():
        found = run()
    torch.testing.assert_close(found, run())


def test_running_averages_pool_the_tasks() -> None:
    converted = convert_norm(net(), "running")
    x = torch.randn(3, 7, 1, 6, 6, dtype=torch.double)

    def run(x: torch.Tensor) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        with statistics_of(converted, None) as recorded:
            converted(x)
        return recorded

    update_running(converted, vmap(run)(x))
    features = converted[0](x.flatten(0, 1)).unflatten(0, (3, 7))
    torch.testing.assert_close(converted[1].running_mean, 0.1 * features.mean((0, 1, 3, 4)))
    variance = features.var((1, 3, 4)).mean(0) + features.mean((1, 3, 4)).var(0, correction=0)
    torch.testing.assert_close(converted[1].running_var, 0.9 + 0.1 * variance)
    before = converted[1].running_mean.clone()
    update_running(converted.eval(), {"1": (before[None] + 1, before[None] + 1)})  # in evaluation nothing moves
    assert torch.equal(converted[1].running_mean, before)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_running_averages_of_one_task_are_batch_norms(momentum: float | None) -> None:
    model = net()
    model[1].momentum = momentum
    converted = convert_norm(copy.deepcopy(model), "running")
    for x in torch.randn(3, 7, 1, 6, 6, dtype=torch.double):
        with statistics_of(converted, None) as recorded:
            converted(x)
        update_running(converted, {name: (mean[None], var[None]) for name, (mean, var) in recorded.items()})
        model(x)
    torch.testing.assert_close(converted.state_dict(), model.state_dict())


def test_second_order_under_vmap_agrees_with_a_loop() -> None:
    """MAML's meta-gradient; with nn.BatchNorm2d this very computation is wrong in the fourth digit."""
    model = convert_norm(net(), "transductive")
    weights = {n: p.detach() for n, p in model.named_parameters()}
    x, y = torch.randn(3, 6, 1, 6, 6, dtype=torch.double), torch.randint(3, (3, 6))

    def loss(w: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(functional_call(model, w, (x,)), y)

    def adapted_loss(w: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        g = grad(loss)(w, x, y)
        return loss({n: w[n] - 0.4 * g[n] for n in w}, x, y)

    batched = grad(lambda w: vmap(adapted_loss, in_dims=(None, 0, 0))(w, x, y).sum())(weights)
    looped = grad(lambda w: sum(adapted_loss(w, x[i], y[i]) for i in range(3)))(weights)
    for name in weights:
        torch.testing.assert_close(batched[name], looped[name], rtol=1e-9, atol=1e-12)


def test_support_statistics_make_queries_independent() -> None:
    model = convert_norm(net(), "support")
    support, query = torch.randn(5, 1, 6, 6, dtype=torch.double), torch.randn(9, 1, 6, 6, dtype=torch.double)
    with statistics_of(model, None) as statistics:
        model(support)
    with statistics_of(model, statistics):
        together, alone = model(query), torch.cat([model(query[i : i + 1]) for i in range(9)])
    torch.testing.assert_close(together, alone)
    assert not torch.allclose(model(query), together)  # outside, a layer computes its own statistics


def test_conversion_keeps_parameters_buffers_and_names() -> None:
    model = net()
    expected = {n: t.clone() for n, t in model.state_dict().items()}
    parameters = list(model.parameters())
    convert_norm(model, "support")
    assert isinstance(model[1], EpisodicBatchNorm)
    assert all(torch.equal(t, expected[n]) for n, t in model.state_dict().items())
    assert model.state_dict().keys() == expected.keys()
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert isinstance(convert_norm(nn.BatchNorm1d(3, affine=False), "running"), EpisodicBatchNorm)
    with pytest.raises(InputError, match="normalization must be one of support"):
        convert_norm(model, "batch")


class Twice(nn.Module):
    """Holds one layer under two names, and ties a weight between two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.again = nn.Sequential(self.layer)
        self.tied = nn.Linear(3, 3)
        self.tied.weight = self.layer.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.tied(self.again(x))


def test_call_replaces_tied_weights_in_a_copy() -> None:
    model, x = Twice(), torch.randn(4, 2, 3)
    before = dict(model.named_parameters())
    assert slots(model)["layer.weight"] == ["layer.weight", "tied.weight"]
    weights = {n: p.detach().expand(4, *p.shape) + torch.randn(4, *p.shape) for n, p in before.items()}
    batched = vmap(lambda w, x: call(model, slots(model), w, x))(weights, x)
    for i in range(4):
        w, b, tied_b = (weights[n][i] for n in ("layer.weight", "layer.bias", "tied.bias"))
        torch.testing.assert_close(batched[i], (x[i] @ w.T + b) @ w.T + tied_b)
    after = dict(model.named_parameters())
    assert all(after[n] is before[n] and after[n].requires_grad for n in before)


def test_nothing_is_written_on_a_module_while_it_runs_under_other_weights() -> None:
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    class Watching(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append((model[0].weight, self.weight))
            return super().forward(x)

    model, other = nn.Sequential(Watching(3, 2), nn.Tanh(), nn.Linear(2, 2)), torch.randn(2, 3)
    own = model[0].weight
    call(model, slots(model), {"0.weight": other}, torch.randn(4, 3))
    assert seen[0][0] is own and seen[0][1] is other
    under = replaced(model, slots(model), {"0.weight": other})
    assert under[0] is not model[0] and under[1] is model[1] and under[2] is model[2]


@pytest.mark.parametrize("name", ["1.weight", "0.weights", "layer.weight"])
def test_other_weights_for_a_name_that_a_module_lacks_are_refused(name: str) -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Tanh())
    with pytest.raises(InputError, match=f"names of parameters or buffers of Sequential, got '{name}'"):
        call(model, slots(model), {name: torch.zeros(2, 3)}, torch.randn(4, 3))


def test_given_statistics_normalize_a_pass_under_other_weights_too() -> None:
    model, x = convert_norm(net(), "running"), torch.randn(5, 1, 6, 6, dtype=torch.double)
    given, weights = {"1": tuple(torch.rand(2, 4, dtype=torch.double))}, {"1.weight": torch.ones(4).double()}
    with normalized_by(model, given):
        outputs = call(model, slots(model), weights, x)
    with torch.no_grad():
        model[1].weight.fill_(1)
        for average, value in zip((model[1].running_mean, model[1].running_var), given["1"], strict=True):
            average.copy_(value)
    torch.testing.assert_close(outputs, model.eval()(x))


def test_installed_weights_are_where_methods_and_attributes_find_them() -> None:
    model, x = Twice(), torch.randn(2, 3)
    copied, start = clone_tree(model, shared=lambda *_: False), dict(model.named_parameters())
    assert not {id(p) for p in copied.parameters()} & {id(p) for p in start.values()}
    assert copied.tied.weight is copied.layer.weight and copied.again[0] is copied.layer
    install(copied, slots(copied), {"layer.weight": 2 * start["layer.weight"]})
    torch.testing.assert_close(copied.tied.weight, 2 * start["layer.weight"])
    copied(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters())  # gradients pass through the new tensors
    assert all(p is start[name] for name, p in model.named_parameters())


def test_held_statistics_make_a_model_of_its_own() -> None:
    """They are in its state, move with it, and its queries meet them."""
    model, x = convert_norm(net(), "support"), torch.randn(5, 1, 6, 6, dtype=torch.double)
    with statistics_of(model, None) as statistics:
        outputs = model(x)
    hold_statistics(model, statistics)
    torch.testing.assert_close(torch.cat([model(one.unsqueeze(0)) for one in x]), outputs)
    torch.testing.assert_close(held_statistics(model), statistics)
    other = convert_norm(net(), "support")
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other(x[:1]), outputs[:1])
    assert held_statistics(model.float())["1"][0].dtype is torch.float32
