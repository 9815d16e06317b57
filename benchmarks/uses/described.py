"""Weights from a description: the error of each way to adapt against the number of support points.

python -m benchmarks.uses.described --preset benchmarks/presets/uses/sinusoids.toml --out runs/sinusoids --seeds 0 1
"""

from __future__ import annotations

import itertools
import math
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from l2l_hyper import InputError
from l2l_hyper.data import SupportSet, functions
from l2l_hyper.data.episode import squared_error
from l2l_hyper.functional import Generated
from l2l_hyper.hypernet import DeepSets
from l2l_hyper.methods.maml import MAML, MAMLOptions
from l2l_hyper.report.style import WIDTH
from l2l_hyper.uses import DescribedNetwork

from .study import Record, controls, lines, main, markdown, save, spread


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of the study.

    Attributes:
        family: "sinusoids", or "mixture" of sinusoids, lines and parabolas.
        shots: numbers of support points; training takes one of them at random in each iteration.
        hidden: units of each of the two hidden layers.
        iterations: of meta-training, for each method.
        meta_batch: tasks per iteration.
        rates: learning rates of meta-training, which fall to zero by a cosine.  Each method has the best, together with
            its inner rate, on validation tasks after short meta-training.
        rate_iterations: of that short meta-training.
        maml_rates: inner learning rates of MAML.
        cavia_rates: inner learning rates of CAVIA.
        steps: inner steps of MAML and of CAVIA in training.
        context: entries of the description that CAVIA learns by itself.
        test_steps: steps on the description of a network that was trained with given ones.
        test_lr: learning rate of these steps.
        scratch_steps: steps of Adam, at 0.01, of a network that is trained on the support points alone.
        test_tasks: tasks that are tested, the same for all methods.
    """

    family: Literal["sinusoids", "mixture"] = "sinusoids"
    shots: tuple[int, ...] = (1, 2, 5, 10, 20)
    hidden: int = 40
    iterations: int = 3000
    meta_batch: int = 25
    rates: tuple[float, ...] = (0.002, 0.005, 0.01)
    rate_iterations: int = 1000
    maml_rates: tuple[float, ...] = (0.003, 0.01, 0.03)
    cavia_rates: tuple[float, ...] = (0.001, 0.003, 0.01)
    steps: int = 5
    context: int = 5
    test_steps: int = 50
    test_lr: float = 0.03
    scratch_steps: int = 200
    test_tasks: int = 300


Method = DescribedNetwork | MAML


class Rates(NamedTuple):
    """Learning rates of meta-training and of the inner loop, where there is one in training."""

    outer: float
    inner: float | None


class Tasks(NamedTuple):
    """Descriptions ``(T, Z)`` of mean 0 and variance 1, points ``(T, N, 1)`` and values ``(T, N, 1)``."""

    z: Tensor
    x: Tensor
    y: Tensor

    def support(self, shots: int) -> SupportSet:
        return SupportSet(self.x[:, :shots], self.y[:, :shots], None, squared_error)


def sinusoids(tasks: int, points: int, generator: torch.Generator) -> Tasks:
    """Described by amplitude and phase."""
    unit = torch.rand(tasks, 2, generator=generator)
    x = 10 * torch.rand(tasks, points, 1, generator=generator) - 5
    return Tasks(_standard(unit), x, functions.sinusoids(unit, x))


def mixture(tasks: int, points: int, generator: torch.Generator) -> Tasks:
    """A sinusoid, a line or a parabola, described by its kind as a one-hot vector and two parameters of the kind."""
    kind = torch.randint(3, (tasks,), generator=generator)
    unit = torch.rand(tasks, 2, generator=generator)
    x = 10 * torch.rand(tasks, points, 1, generator=generator) - 5
    one_hot = (nn.functional.one_hot(kind, 3) - 1 / 3) / (2**0.5 / 3)
    values = functions.mixed(torch.cat([unit, (kind.unsqueeze(1) + 0.5) / 3], 1), x)
    return Tasks(torch.cat([one_hot, _standard(unit)], -1), x, values)


def _standard(unit: Tensor) -> Tensor:
    """Uniform numbers from 0 to 1 with mean 0 and variance 1 instead."""
    return (unit - 0.5) * 12**0.5


FAMILIES: dict[str, Callable[[int, int, torch.Generator], Tasks]] = {"sinusoids": sinusoids, "mixture": mixture}


def network(settings: Settings) -> nn.Sequential:
    h = settings.hidden
    return nn.Sequential(nn.Linear(1, h), nn.ReLU(), nn.Linear(h, h), nn.ReLU(), nn.Linear(h, 1))


def fit(method: Method, settings: Settings, seed: int, lr: float, iterations: int) -> Method:
    """Meta-train a method to adapt to support points and, where it infers z, with given descriptions as well."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(method.parameters(), lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
    most = max(settings.shots)
    for _ in range(iterations):
        tasks = FAMILIES[settings.family](settings.meta_batch, 2 * most, generator)
        shots = settings.shots[int(torch.randint(len(settings.shots), (), generator=generator))]
        x, y = tasks.x[:, most:], tasks.y[:, most:]
        loss = squared_error(method.predict(method.adapt(tasks.support(shots)), x), y).mean()
        if infers(method):
            loss = loss + squared_error(method(x, tasks.z), y).mean()
        optimizer.zero_grad()
        loss.backward()
        if not nn.utils.clip_grad_norm_(method.parameters(), 10.0).isfinite():
            optimizer.zero_grad()  # the inner loop has diverged: no step
        optimizer.step()
        schedule.step()
    return method


def infers(method: Method) -> bool:
    return isinstance(method, DescribedNetwork) and method.infer is not None


def tuned(
    make: Callable[[Any], Method], inner: Sequence[float | None], settings: Settings, seed: int
) -> tuple[Method, Rates]:
    """A method trained at the rates that are best on 500 validation tasks, over all numbers of support points.

    Rates at which the long training ends with an inner loop that diverges on a validation task give way to the next.
    """
    most = max(settings.shots)
    tasks = FAMILIES[settings.family](500, most + 100, torch.Generator().manual_seed(54321))

    def trained(rates: Rates, iterations: int) -> tuple[float, Method]:
        method = fit(make(rates.inner), settings, seed, rates.outer, iterations)
        with torch.no_grad():
            adapted = [method.adapt(tasks.support(shots)) for shots in settings.shots]
            found = statistics.mean(error(method.predict(a, tasks.x[:, most:]), tasks.y[:, most:]) for a in adapted)
        print(f"{type(method).__name__}, {rates}, {iterations} iterations: {found:.4f}", file=sys.stderr)
        return found if math.isfinite(found) else math.inf, method

    pairs = [Rates(*pair) for pair in itertools.product(settings.rates, inner)]
    for rates in sorted(pairs, key=lambda rates: trained(rates, settings.rate_iterations)[0]):
        found, method = trained(rates, settings.iterations)
        if math.isfinite(found):
            return method, rates
    raise InputError(f"no finite error on validation tasks at any of the rates {pairs}; try smaller ones")


def error(outputs: Tensor, y: Tensor) -> float:
    return float(squared_error(outputs, y).mean())


def from_scratch(settings: Settings, support: SupportSet, x: Tensor) -> Tensor:
    """Outputs ``(T, Q, 1)`` of T networks, each trained on its support points from the start that torch gives it."""
    model = Generated(network(settings))
    starts = [dict(network(settings).named_parameters()) for _ in range(len(support))]
    weights = {name: torch.stack([s[name].detach() for s in starts]).requires_grad_() for name in model.target.shapes}
    optimizer = torch.optim.Adam(weights.values(), 0.01)
    for _ in range(settings.scratch_steps):
        optimizer.zero_grad()
        support.loss(model.each(weights, support.x), support.y).sum().backward()
        optimizer.step()
    return model.each(weights, x).detach()


def run(settings: Settings, seed: int, device: torch.device) -> dict[str, Any]:
    most = max(settings.shots)
    tasks = FAMILIES[settings.family](settings.test_tasks, most + 100, torch.Generator().manual_seed(12345))
    x, y = tasks.x[:, most:], tasks.y[:, most:]
    makers: dict[str, tuple[Callable[[Any], Method], Sequence[float | None]]] = {
        "described": (
            lambda _: DescribedNetwork(
                network(settings), tasks.z.shape[1], infer=DeepSets(2, tasks.z.shape[1]), lr=settings.test_lr
            ),
            [None],
        ),
        "CAVIA": (
            lambda lr: DescribedNetwork(network(settings), settings.context, steps=settings.steps, lr=lr),
            settings.cavia_rates,
        ),
        "MAML": (
            lambda lr: MAML(network(settings), MAMLOptions(inner_lr=lr, steps=settings.steps)),
            settings.maml_rates,
        ),
    }
    methods = {name: tuned(make, inner, settings, seed) for name, (make, inner) in makers.items()}
    (described, _), (cavia, _), (maml, _) = methods.values()
    assert isinstance(described, DescribedNetwork)
    with torch.no_grad():
        given = {"given z": error(described(x, tasks.z), y)}
        for name, z in controls(tasks.z, torch.Generator().manual_seed(seed)).items():
            given[name] = error(described(x, z), y)
        errors: dict[str, list[float]] = {}
        for shots in settings.shots:
            support = tasks.support(shots)
            described.steps = 0
            inferred = described.adapt(support)
            described.steps = settings.test_steps
            outputs = {
                "inferred z": described(x, inferred),
                "inferred z, then steps on it": described(x, described.adapt(support, inferred)),
                "steps on z from the mean": described(x, described.adapt(support, torch.zeros_like(tasks.z))),
                "CAVIA": cavia.predict(cavia.adapt(support), x),
                "MAML": maml.predict(maml.adapt(support), x),
            }
            with torch.enable_grad():
                outputs["from scratch"] = from_scratch(settings, support, x)
            for name, predicted in outputs.items():
                errors.setdefault(name, []).append(error(predicted, y))
    rates = {name: chosen._asdict() for name, (_, chosen) in methods.items()}
    return {"given": given, "errors": errors, "rates": rates}


def report(records: Sequence[Record], out: Path) -> None:
    shots = records[0]["settings"]["shots"]
    results = [record["result"] for record in records]
    rows = [[n, *[spread([r["given"][n] for r in results])] * len(shots)] for n in results[0]["given"]]
    for name in results[0]["errors"]:
        rows.append([name, *(spread([r["errors"][name][k] for r in results]) for k in range(len(shots)))])
    table = markdown(["mean squared error", *(f"{k} points" for k in shots)], rows)
    rates = "; ".join(
        f"{name}: {', '.join(_pair(result['rates'][name]) for result in results)}" for name in results[0]["rates"]
    )
    (out / "results.md").write_text(
        f"{table}\nSeeds: {len(records)}; mean ± standard deviation over them. Rates of meta-training "
        f"and of the inner loop chosen, by seed: {rates}.\n",
        encoding="utf-8",
    )
    figure, looks = Figure((WIDTH, 4)), lines(list(results[0]["errors"]))
    axes = figure.subplots()
    for name in results[0]["errors"]:
        axes.errorbar(shots, *_mean_std([r["errors"][name] for r in results]), **looks[name], capsize=3, label=name)
    for name, style in zip(results[0]["given"], ("-", "--", "-.", ":"), strict=True):
        mean, _ = _mean_std([[r["given"][name]] for r in results])
        axes.axhline(mean[0], color="black", linestyle=style, label=name)
    axes.set(xscale="log", yscale="log", xlabel="support points", ylabel="mean squared error of the queries")
    axes.set_xticks(shots, [str(k) for k in shots])
    axes.minorticks_off()
    save(figure, out / "error")


def _pair(rates: dict[str, float | None]) -> str:
    return " and ".join(f"{rate:g}" for rate in rates.values() if rate is not None)


def _mean_std(values: Sequence[Sequence[float]]) -> tuple[list[float], list[float]]:
    of_seeds = torch.tensor(values, dtype=torch.float64)
    return of_seeds.mean(0).tolist(), of_seeds.std(0, correction=min(1, len(of_seeds) - 1)).tolist()


if __name__ == "__main__":
    main(Settings, run, report)
