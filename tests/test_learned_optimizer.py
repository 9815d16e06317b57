"""The learned rule against slow code, and its three ways of use: torch.optim, higher and learn2learn."""

from __future__ import annotations

import copy
import functools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import higher
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from uses import learned_optimizer as study

from l2l_hyper import InputError
from l2l_hyper._learn2learn import learn2learn
from l2l_hyper.uses.learned_optimizer import LearnedOptimizer, LearnedRule

both_rules = pytest.mark.parametrize("conditioned", [False, True], ids=["coordinate-wise", "conditioned"])


def make_rule(conditioned: bool) -> LearnedRule:
    torch.manual_seed(0)
    rule = LearnedRule(hidden_size=4, conditioned=conditioned, scale=0.5).double()
    with torch.no_grad():
        for p in rule.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return rule


def problem() -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x, y = torch.randn(5, 3).double(), torch.randn(5, 2).double()
    return net, lambda net: (net(x) - y).square().mean()


def slow_updates(rule: LearnedRule, gradients: list[Tensor]) -> list[Tensor]:
    """Updates of one coordinate, whose weights no hypernetwork changes."""
    m, updates = rule.recurrent, []
    h, c = [torch.zeros(4).double()] * 2, [torch.zeros(4).double()] * 2
    for g in gradients:
        read = [g.abs().log() / 10, g.sign()] if g.abs() >= math.exp(-10) else [-torch.ones(()), math.exp(10) * g]
        x = torch.stack([value.double() for value in read])
        for k, layer in enumerate((m.first, m.second)):
            i, f, o, new = (layer.weight @ torch.cat([x, h[k]]) + m.bias[k]).split(4)
            c[k] = f.sigmoid() * c[k] + i.sigmoid() * new.tanh()
            x = h[k] = o.sigmoid() * c[k].tanh()
        updates.append(0.5 * (x @ m.out + m.out_bias))
    return updates


def test_every_coordinate_has_the_same_rule() -> None:
    rule, states = make_rule(False), None
    gradients = torch.tensor([[3.0, -0.2, 1e-6, 0.0], [-1.0, 2.0, 1e-3, -1e-7], [0.5, 0.1, -1e-5, 1.0]]).double()
    slow = torch.stack([torch.stack(slow_updates(rule, list(column))) for column in gradients.T], 1)
    for gradient, expected in zip(gradients, slow, strict=True):
        (update, of_scalar), states = rule([gradient[:3].view(3, 1), gradient[3]], states)
        torch.testing.assert_close(torch.cat([update.flatten(), of_scalar[None]]), expected)


def test_untrained_hypernetwork_changes_nothing_and_a_trained_one_tells_layers_apart() -> None:
    torch.manual_seed(0)
    rule, plain = LearnedRule(conditioned=True), LearnedRule()
    plain.recurrent.load_state_dict(rule.recurrent.state_dict())
    gradient = torch.randn(6, 2)
    assert torch.equal(rule([gradient])[0][0], plain([gradient])[0][0])
    nn.init.normal_(rule.hyper.generator.linear.weight)
    tall, wide = rule([gradient, gradient.view(2, 6)])[0]
    assert not torch.allclose(tall.flatten(), wide.flatten())
    given = rule([gradient.view(2, 6)], description=rule.describe([gradient]))[0][0]
    torch.testing.assert_close(given.flatten(), tall.flatten())


def test_statistics_of_a_layer() -> None:
    said = 10 * LearnedRule(conditioned=True).describe([torch.full((4, 3, 2), -2.0), torch.zeros(5)])
    expected = [math.log(24), math.log(4), math.log(6), 0.0, math.log(2), math.log(2)]
    torch.testing.assert_close(said[0], torch.tensor(expected))
    assert said[1].isfinite().all()


@both_rules
def test_many_tasks_at_once(conditioned: bool) -> None:
    rule = make_rule(conditioned)
    steps = [[torch.randn(5, 3, 2).double(), torch.randn(5, 3).double(), torch.randn(5).double()] for _ in range(2)]
    updates, _ = rule(steps[1], rule(steps[0], batch_dims=1)[1], batch_dims=1)
    for b in range(5):
        first, second = ([g[b] for g in gradients] for gradients in steps)
        for update, alone in zip(updates, rule(second, rule(first)[1])[0], strict=True):
            torch.testing.assert_close(update[b], alone)


def steps_of_optimizer(
    net: nn.Module, loss: Callable[[nn.Module], Tensor], optimizer: LearnedOptimizer, n: int
) -> None:
    for _ in range(n):
        optimizer.zero_grad()
        loss(net).backward()
        optimizer.step()


@both_rules
def test_higher_takes_the_same_steps_and_differentiates_them(conditioned: bool) -> None:
    rule = make_rule(conditioned)
    net, loss = problem()
    optimizer = LearnedOptimizer(net.parameters(), rule)
    with higher.innerloop_ctx(net, optimizer) as (fast, differentiable):
        for _ in range(3):
            differentiable.step(loss(fast))
        ours = list(fast.parameters())
        gradients = torch.autograd.grad(loss(fast), list(rule.parameters()))

    weights, states = dict(net.named_parameters()), None
    for _ in range(3):
        value = loss(lambda x, w=weights: functional_call(net, w, (x,)))
        updates, states = rule(torch.autograd.grad(value, list(weights.values()), retain_graph=True), states)
        weights = {name: w + update for (name, w), update in zip(weights.items(), updates, strict=True)}
    value = loss(lambda x: functional_call(net, weights, (x,)))
    for p, w in zip(ours, weights.values(), strict=True):
        torch.testing.assert_close(p, w)
    for g, slow in zip(gradients, torch.autograd.grad(value, list(rule.parameters())), strict=True):
        torch.testing.assert_close(g, slow)
        assert slow.any()

    steps_of_optimizer(net, loss, optimizer, 3)
    for p, w in zip(net.parameters(), weights.values(), strict=True):
        torch.testing.assert_close(p, w)


@both_rules
def test_learn2learn_takes_the_same_steps(conditioned: bool) -> None:
    l2l, rule = learn2learn(), make_rule(conditioned)
    net, loss = problem()
    other, _ = problem()
    meta = l2l.optim.LearnableOptimizer(net, rule.transform)
    for _ in range(3):
        meta.zero_grad()
        loss(net).backward()
        meta.step()
    steps_of_optimizer(other, loss, LearnedOptimizer(other.parameters(), rule), 3)
    for ours, theirs in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert {id(p) for p in meta.parameters()} == {id(p) for p in rule.parameters()}
    rule.zero_grad()
    loss(net).backward()
    assert all(p.grad is not None and p.grad.any() for p in rule.parameters())


def test_goes_on_from_its_state_dict() -> None:
    rule = make_rule(True)
    (net, loss), (other, _) = problem(), problem()
    optimizer = LearnedOptimizer(net.parameters(), rule)
    steps_of_optimizer(net, loss, optimizer, 2)
    other.load_state_dict(net.state_dict())
    resumed = LearnedOptimizer(other.parameters(), rule)
    resumed.load_state_dict(optimizer.state_dict())
    steps_of_optimizer(net, loss, optimizer, 2)
    steps_of_optimizer(other, loss, resumed, 2)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))


def test_closure_and_frozen_parameters() -> None:
    net, loss = problem()
    net[0].requires_grad_(False)
    before = net[0].weight.clone()
    optimizer = LearnedOptimizer(net.parameters(), make_rule(False))

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(net)
        value.backward()
        return value

    expected, after = loss(net), net[2].weight.clone()
    assert torch.equal(optimizer.step(closure), expected)
    assert torch.equal(net[0].weight, before) and not torch.equal(net[2].weight, after)


def test_what_it_does_not_take() -> None:
    with pytest.raises(InputError, match="hidden_size >= 1 and scale > 0, got 0"):
        LearnedRule(hidden_size=0)
    with pytest.raises(InputError, match="scale > 0, got 20 and -1"):
        LearnedRule(scale=-1)


def test_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "RATES", [0.01, 1e6])
    monkeypatch.setattr(study, "OPTIMIZERS", {"SGD": torch.optim.SGD})
    small = functools.partial(study.Networks, hidden=(3,))
    monkeypatch.setattr(
        study, "PROBLEMS", {"quadratics": {"quadratics": (study.Quadratics, 1), "digits": (small, 0.5)}}
    )
    flags = ["--problem", "quadratics", "--horizon", "4", "--unroll", "2", "--tasks", "2", "--updates", "3"]
    study.main(
        study.Settings,
        study.run,
        study.report,
        [*flags, "--test-tasks", "2", "--out", str(tmp_path), "--seeds", "0", "1"],
    )
    result = json.loads((tmp_path / "seed1.json").read_text())["result"]
    assert result["problems"]["quadratics"]["SGD"]["lr"] == 0.01
    assert {name: len(of["curve"]) for name, of in result["problems"]["digits"].items()} == {
        "SGD": 2,
        "coordinate-wise": 2,
        "conditioned": 2,
    }
    assert set(result["controls"]) == {"another task's z", "mean z", "random z"}
    assert "| conditioned, mean z" in (tmp_path / "results.md").read_text() and (tmp_path / "curves.png").exists()


@pytest.mark.parametrize("objective", ["mean", "mean logarithm"])
def test_an_update_is_a_step_of_adam_on_the_objective(objective: Literal["mean", "mean logarithm"]) -> None:
    torch.manual_seed(0)
    settings = study.Settings(
        horizon=4, unroll=4, tasks=3, updates=1, seconds=1e9, objective=objective, lr=0.01, test_tasks=2
    )
    rule, device = LearnedRule(), torch.device("cpu")
    slow = copy.deepcopy(rule)
    study.train(study.Quadratics, settings, 0, rule, device)
    optimizer, problem = torch.optim.Adam(slow.parameters(), 0.01), study.Quadratics(3, 0, device)
    losses, _, _ = study.descend(problem, slow, problem.start(), None, 4)
    each = [loss[task] for loss in losses for task in range(3)]
    weights = [(1 / e.detach() if objective == "mean logarithm" else torch.ones(())) / 12 for e in each]
    gradients = torch.autograd.grad(each, list(slow.parameters()), weights)
    for p, gradient in zip(slow.parameters(), gradients, strict=True):
        p.grad = gradient
    nn.utils.clip_grad_norm_(slow.parameters(), 1.0)
    optimizer.step()
    for p, q in zip(rule.parameters(), slow.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_a_rule_trained_for_it_goes_down_quadratics() -> None:
    """Further than it went untrained, and than one step of steepest descent at a good rate."""
    torch.manual_seed(0)
    settings = study.Settings(problem="quadratics", horizon=5, unroll=5, tasks=16, updates=40, lr=0.03, test_tasks=16)
    rule, tested = LearnedRule(), study.Quadratics(16, study.TEST, torch.device("cpu"), features=2)
    untrained = study.evaluate(tested, rule, 5)["final"]
    draw = functools.partial(study.Quadratics, features=2)
    study.train(draw, settings, 0, rule, torch.device("cpu"))
    one_step = study.minimize(tested, functools.partial(torch.optim.SGD, lr=0.1), 1)["final"]
    assert study.evaluate(tested, rule, 5)["final"] < min(one_step, 0.7 * untrained)


def test_each_task_takes_its_own_steps() -> None:
    """The optimizers of torch on all tasks at once are those of each task alone."""
    problem = study.Quadratics(3, 0, torch.device("cpu"))
    final, alone = study.minimize(problem, torch.optim.Adam, 5)["final"], []
    w, y, theta = problem.w, problem.y, problem.theta
    for b in range(3):
        problem.w, problem.y, problem.theta = w[b : b + 1], y[b : b + 1], theta[b : b + 1]
        alone.append(study.minimize(problem, torch.optim.Adam, 5)["final"])
    assert final == pytest.approx(sum(alone) / 3, rel=1e-5)


def test_the_page_says_what_the_records_say(tmp_path: Path) -> None:
    root = Path(__file__).parents[1]
    folder = root / "benchmarks/results/learned_optimizer_quadratics"
    study.report([json.loads(path.read_text()) for path in sorted(folder.glob("seed*"))], tmp_path)
    page = (root / "docs/uses/learned_optimizer.md").read_text()
    rows = [row.split("|")[2:-1] for row in (tmp_path / "results.md").read_text().splitlines()[2:]]
    assert len(rows) == 10 and all(cell.strip() in page for row in rows for cell in row)
