"""Learned optimizers beside tuned ones: the loss they end at, on what they were trained for and on what is unlike it.

    python -m benchmarks.uses.learned_optimizer --preset benchmarks/presets/uses/learned_optimizer_digits.toml \
        --out runs/digits --seeds 0 1 2
"""

from __future__ import annotations

import copy
import functools
import itertools
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_breast_cancer, load_digits
from torch import Tensor, nn
from torch.func import stack_module_state, vmap
from torch.nn import functional as F

from l2l_hyper.functional import call, slots
from l2l_hyper.report.style import WIDTH
from l2l_hyper.uses import LearnedRule

from .study import Record, controls, lines, main, markdown, save, spread

Params = dict[str, Tensor]
States = list[Tensor] | None

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD": torch.optim.SGD,
    "momentum": functools.partial(torch.optim.SGD, momentum=0.9),
    "NAG": functools.partial(torch.optim.SGD, momentum=0.9, nesterov=True),
    "RMSprop": torch.optim.RMSprop,
    "Adam": torch.optim.Adam,
}
RATES = [10 ** (k / 3) for k in range(-8, 6)]  # 0.002 to 46
RULES = {"coordinate-wise": False, "conditioned": True}
VALIDATION, TUNING, TEST = 10**9, 2 * 10**9, 3 * 10**9  # seeds of tasks; training counts from a smaller one


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of the study.

    Attributes:
        problem: what the rules are trained on.
        horizon: steps from a start to the end.
        unroll: steps that are differentiated through.
        tasks: that are trained on at the same time.
        updates: of a rule in meta-training.
        seconds: after which meta-training of a rule ends even if it has fewer updates.
        objective: of meta-training, the mean of the losses of all steps and tasks, or of their logarithms.
        lr: largest learning rate of meta-training, by Adam; it falls to zero by a cosine.
        test_tasks: for validation, for tuning and for the test each.
    """

    problem: Literal["quadratics", "digits"] = "digits"
    horizon: int = 100
    unroll: int = 20
    tasks: int = 16
    updates: int = 4000
    seconds: float = 90.0
    objective: Literal["mean", "mean logarithm"] = "mean"
    lr: float = 3e-3
    test_tasks: int = 64


class Problem(Protocol):
    """Functions to minimize, one per task, with parameters ``{name: (T, *shape)}`` and losses ``(T,)``."""

    def start(self) -> Params: ...
    def loss(self, params: Params) -> Tensor: ...
    def final(self, params: Params) -> Tensor: ...


class Quadratics:
    """||Wθ - y||² with normal entries, as in the paper, or with columns of W that differ in size by up to ``ratio``."""

    def __init__(self, tasks: int, seed: int, device: torch.device, *, features: int = 10, ratio: float = 1.0) -> None:
        generator = torch.Generator().manual_seed(seed)
        sizes = torch.logspace(0, -math.log10(ratio), features)
        self.w = (torch.randn(tasks, features, features, generator=generator) * sizes).to(device)
        self.y = torch.randn(tasks, features, generator=generator).to(device)
        self.theta = torch.randn(tasks, features, generator=generator).to(device)

    def start(self) -> Params:
        return {"theta": self.theta.clone()}

    def loss(self, params: Params) -> Tensor:
        return ((self.w @ params["theta"].unsqueeze(-1)).squeeze(-1) - self.y).square().sum(-1)

    final = loss


@functools.cache
def images(name: str, part: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Every second sample of a data set, scaled; no rule is trained on those of part 1."""
    x, y = (load_digits if name == "digits" else load_breast_cancer)(return_X_y=True)
    x = torch.tensor(x, dtype=torch.float32)
    x = x / 16 if name == "digits" else (x - x.mean(0)) / x.std(0)
    return x[part::2].to(device), torch.tensor(y)[part::2].to(device)


class Networks:
    """The training loss of small networks on batches of 128 samples, each network from a start of its own."""

    def __init__(
        self,
        tasks: int,
        seed: int,
        device: torch.device,
        *,
        data: str = "digits",
        part: int = 1,
        activation: type[nn.Module] = nn.Sigmoid,
        hidden: tuple[int, ...] = (10,),
    ) -> None:
        self.x, self.y = images(data, part, device)
        sizes = [self.x.shape[1], *hidden, int(self.y.max()) + 1]

        def network() -> nn.Module:
            layers = [[nn.Linear(a, b), activation()] for a, b in itertools.pairwise(sizes)]
            return nn.Sequential(*itertools.chain(*layers))[:-1]

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            started, _ = stack_module_state([network() for _ in range(tasks)])
        self.started = {name: p.detach().to(device) for name, p in started.items()}
        self.model, self.seed = network().to(device), seed
        self.places = slots(self.model)

    def start(self) -> Params:
        self.batches = torch.Generator(self.x.device).manual_seed(self.seed)
        return {name: p.clone() for name, p in self.started.items()}

    def _losses(self, params: Params, x: Tensor, y: Tensor) -> Tensor:
        outputs = vmap(lambda params, x: call(self.model, self.places, params, x))(params, x)
        return F.cross_entropy(outputs.transpose(1, 2), y, reduction="none").mean(1)

    def loss(self, params: Params) -> Tensor:
        tasks = len(next(iter(params.values())))
        batch = torch.randint(len(self.x), (tasks, 128), generator=self.batches, device=self.x.device)
        return self._losses(params, self.x[batch], self.y[batch])

    def final(self, params: Params) -> Tensor:
        tasks = len(next(iter(params.values())))
        return self._losses(params, self.x.expand(tasks, -1, -1), self.y.expand(tasks, -1))


Draw = Callable[[int, int, torch.device], Problem]

# Problems and steps, the one to train on first.
PROBLEMS: dict[str, dict[str, tuple[Draw, float]]] = {
    "quadratics": {
        "quadratics": (Quadratics, 1),
        "3 times the steps": (Quadratics, 3),
        "50 dimensions": (functools.partial(Quadratics, features=50), 1),
        "ill-conditioned": (functools.partial(Quadratics, ratio=10), 1),
    },
    "digits": {
        "digits": (Networks, 1),
        "3 times the steps": (Networks, 3),
        "ReLU": (functools.partial(Networks, activation=nn.ReLU), 1),
        "3 hidden layers": (functools.partial(Networks, hidden=(10, 10, 10)), 1),
        "breast cancer": (functools.partial(Networks, data="breast cancer"), 1),
        "quadratics": (Quadratics, 1),
    },
}


def descend(
    problem: Problem, rule: LearnedRule, params: Params, states: States, steps: int, control: str | None = None
) -> tuple[list[Tensor], Params, States]:
    """Steps of a rule, with the graph from the losses to the rule where gradients are enabled."""
    meta_training, losses = torch.is_grad_enabled(), []
    for _ in range(steps):
        with torch.enable_grad():
            losses.append(problem.loss({name: p.requires_grad_() for name, p in params.items()}))
            gradients = torch.autograd.grad(losses[-1].sum(), list(params.values()), retain_graph=meta_training)
        z = None
        if control is not None:
            z = rule.describe(gradients, batch_dims=1)
            z = controls(z.flatten(0, 1))[control].view_as(z)  # each layer of each task has its own
        updates, states = rule(gradients, states, z, batch_dims=1)
        params = {name: p + update for (name, p), update in zip(params.items(), updates, strict=True)}
    return losses, params, states


@torch.no_grad()
def evaluate(problem: Problem, rule: LearnedRule, steps: int, control: str | None = None) -> Record:
    """The mean loss over the tasks, at each step and at the end."""
    losses, params, _ = descend(problem, rule, problem.start(), None, steps, control)
    return {"curve": torch.stack(losses).mean(1).tolist(), "final": problem.final(params).mean().item()}


def train(draw: Draw, settings: Settings, seed: int, rule: LearnedRule, device: torch.device) -> Record:
    """Meta-train by truncated backpropagation, and keep the rule that ends lowest on validation tasks."""
    optimizer = torch.optim.Adam(rule.parameters())
    validation = draw(settings.test_tasks, VALIDATION + seed, device)
    best, kept, curve = math.inf, rule.state_dict(), []
    begin = time.perf_counter()
    for update in itertools.count():
        progress = max(update / settings.updates, (time.perf_counter() - begin) / settings.seconds)
        if progress >= (len(curve) + 1) / 20:
            curve.append([update, evaluate(validation, rule, settings.horizon)["final"]])
            if curve[-1][1] < best:
                best, kept = curve[-1][1], copy.deepcopy(rule.state_dict())
        if progress >= 1:
            break
        if update % (settings.horizon // settings.unroll) == 0:
            problem = draw(settings.tasks, seed * settings.updates + update, device)
            params, states = problem.start(), None
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * (1 + math.cos(math.pi * progress)) / 2
        losses, params, states = descend(problem, rule, params, states, settings.unroll)
        optimizer.zero_grad()
        objective = torch.stack(losses)
        (objective.log() if settings.objective == "mean logarithm" else objective).mean().backward()
        nn.utils.clip_grad_norm_(rule.parameters(), 1.0)
        optimizer.step()
        params, states = {name: p.detach() for name, p in params.items()}, [state.detach() for state in states]
    rule.load_state_dict(kept)
    return {"updates": update, "seconds": time.perf_counter() - begin, "validation": curve}


def minimize(problem: Problem, make: Callable[[Iterable[Tensor]], torch.optim.Optimizer], steps: int) -> Record:
    """What :func:`evaluate` is for a rule, for an optimizer of torch, which acts on every coordinate by itself."""
    params = {name: p.requires_grad_() for name, p in problem.start().items()}
    optimizer, curve = make(params.values()), []
    for _ in range(steps):
        loss = problem.loss(params)
        curve.append(loss.detach().mean())
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
    with torch.no_grad():
        final = problem.final(params).mean().item()
    return {"curve": torch.stack(curve).tolist(), "final": final if math.isfinite(final) else math.inf}


def compare(
    draw: Draw, steps: int, rules: dict[str, LearnedRule], settings: Settings, seed: int, device: torch.device
) -> Record:
    """All optimizers, each at the learning rate that is best for this problem on other tasks of it, and the rules."""
    tuning, tested = (draw(settings.test_tasks, at + seed, device) for at in (TUNING, TEST))
    results: Record = {}
    for name, make in OPTIMIZERS.items():
        finals: dict[float, float] = {}
        for lr in RATES:
            finals[lr] = minimize(tuning, functools.partial(make, lr=lr), steps)["final"]
            best = min(finals, key=finals.__getitem__)
            if sum(rate > best for rate in finals) == 3:  # three larger rates are worse
                break
        results[name] = {"lr": best, **minimize(tested, functools.partial(make, lr=best), steps)}
    return results | {name: evaluate(tested, rule, steps) for name, rule in rules.items()}


def run(settings: Settings, seed: int, device: torch.device) -> Record:
    """Meta-train both rules and compare them on every problem."""
    draw, _ = next(iter(PROBLEMS[settings.problem].values()))
    if settings.problem == "digits":
        train_draw: Draw = functools.partial(Networks, part=0)
    else:
        train_draw = draw
    rules = {name: LearnedRule(conditioned=conditioned).to(device) for name, conditioned in RULES.items()}
    training = {name: train(train_draw, settings, seed, rule, device) for name, rule in rules.items()}
    results = {
        name: compare(draw, int(times * settings.horizon), rules, settings, seed, device)
        for name, (draw, times) in PROBLEMS[settings.problem].items()
    }
    tested = draw(settings.test_tasks, TEST + seed, device)
    of_controls = {
        name: evaluate(tested, rules["conditioned"], settings.horizon, name)["final"]
        for name in controls(torch.zeros(2, 1))
    }
    return {"training": training, "problems": results, "controls": of_controls}


def report(records: list[Record], out: Path) -> None:
    """A table of the final losses with the controls, and the curves on each problem."""
    results = [record["result"] for record in records]
    problems = list(results[0]["problems"])
    methods = [*OPTIMIZERS, *RULES]

    def final(values: list[float | None]) -> str:
        return "diverged" if None in values else spread(values, 4)

    rows = [
        [method, *(final([seed["problems"][name][method]["final"] for seed in results]) for name in problems)]
        for method in methods
    ]
    for control in results[0]["controls"]:
        value = final([seed["controls"][control] for seed in results])
        rows.append([f"conditioned, {control}", value, *[""] * (len(problems) - 1)])
    (out / "results.md").write_text(markdown(["loss at the end", *problems], rows), encoding="utf-8")

    figure, looks = Figure(figsize=(1.4 * WIDTH, 5)), lines(methods)
    columns = 2 if len(problems) == 4 else 3
    for axes, name in zip(figure.subplots(2, columns).flat, problems, strict=False):
        for method in methods:
            curves = np.array(
                [seed["problems"][name][method]["curve"] for seed in results], float
            )  # nan where diverged
            look = {**looks[method], "marker": "", "linestyle": "-" if method in RULES else "--", "label": method}
            axes.plot(curves.mean(0), **look)
        axes.set_yscale("log")
        axes.set_title(name)
        axes.set_xlabel("step")
        axes.set_ylabel("mean loss of the tasks")
    for axes in figure.axes[len(problems) :]:
        axes.remove()
    save(figure, out / "curves")


if __name__ == "__main__":
    main(Settings, run, report)
