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
from l2l_hyper.data import SupportSet
from l2l_hyper.functional import Generated
from l2l_hyper.methods.maml import MAML, MAMLOptions
from l2l_hyper.report.style import WIDTH
from l2l_hyper.uses import DescribedNetwork

from .families import FAMILIES
from .study import Record, controls, lines, main, markdown, save, spread


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of the study.

    Attributes:
        family: "sinusoids", "mixture" of sinusoids, lines and parabolas, or the images of "glyphs" or "omniglot", five
            classes per task.
        shots: numbers of support points, per class in classification; training takes one of them at random in each
            iteration.
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

    family: Literal["sinusoids", "mixture", "glyphs", "omniglot"] = "sinusoids"
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


def network(settings: Settings) -> nn.Sequential:
    family, h = FAMILIES[settings.family], settings.hidden
    return nn.Sequential(
        nn.Linear(family.inputs, h), nn.ReLU(), nn.Linear(h, h), nn.ReLU(), nn.Linear(h, family.outputs)
    )


def fit(method: Method, settings: Settings, seed: int, lr: float, iterations: int) -> Method:
    """Meta-train a method to adapt to support points and, where it infers z, with given descriptions as well."""
    family, generator = FAMILIES[settings.family], torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(method.parameters(), lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
    most = max(settings.shots)
    for _ in range(iterations):
        tasks = family.draw("train", settings.meta_batch, 2 * most, generator)
        shots = settings.shots[int(torch.randint(len(settings.shots), (), generator=generator))]
        x, y = family.queries_of(tasks, most)
        loss = family.loss(method.predict(method.adapt(family.support(tasks, shots)), x), y).mean()
        if infers(method):
            loss = loss + family.loss(method(x, tasks.z), y).mean()
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
    family, most = FAMILIES[settings.family], max(settings.shots)
    tasks = family.draw("validation", 500, most + family.queries, torch.Generator().manual_seed(54321))
    x, y = family.queries_of(tasks, most)

    def trained(rates: Rates, iterations: int) -> tuple[float, Method]:
        method = fit(make(rates.inner), settings, seed, rates.outer, iterations)
        with torch.no_grad():
            adapted = [method.adapt(family.support(tasks, shots)) for shots in settings.shots]
            found = statistics.mean(family.measure(method.predict(a, x), y) for a in adapted)
        print(f"{type(method).__name__}, {rates}, {iterations} iterations: {found:.4f}", file=sys.stderr)
        return found if math.isfinite(found) else math.inf, method

    pairs = [Rates(*pair) for pair in itertools.product(settings.rates, inner)]
    for rates in sorted(pairs, key=lambda rates: trained(rates, settings.rate_iterations)[0]):
        found, method = trained(rates, settings.iterations)
        if math.isfinite(found):
            return method, rates
    raise InputError(f"no finite error on validation tasks at any of the rates {pairs}; try smaller ones")


def from_scratch(settings: Settings, support: SupportSet, x: Tensor) -> Tensor:
    """Outputs ``(T, Q, *)`` of T networks, each trained on its support points from the start that torch gives it."""
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
    family, most = FAMILIES[settings.family], max(settings.shots)
    tasks = family.draw("test", settings.test_tasks, most + family.queries, torch.Generator().manual_seed(12345))
    x, y = family.queries_of(tasks, most)
    makers: dict[str, tuple[Callable[[Any], Method], Sequence[float | None]]] = {
        "described": (
            lambda _: DescribedNetwork(
                network(settings), tasks.z.shape[1], infer=family.infer(tasks), lr=settings.test_lr
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
        given = {"given z": family.measure(described(x, tasks.z), y)}
        for name, z in controls(tasks.z, torch.Generator().manual_seed(seed)).items():
            given[name] = family.measure(described(x, z), y)
        errors: dict[str, list[float]] = {}
        for shots in settings.shots:
            support = family.support(tasks, shots)
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
                errors.setdefault(name, []).append(family.measure(predicted, y))
    rates = {name: chosen._asdict() for name, (_, chosen) in methods.items()}
    return {"given": given, "errors": errors, "rates": rates}


def report(records: Sequence[Record], out: Path) -> None:
    shots, family = records[0]["settings"]["shots"], FAMILIES[records[0]["settings"]["family"]]
    results = [record["result"] for record in records]
    digits, scale, unit = (3, "log", " points") if family.ways is None else (1, "linear", "-shot")
    rows = [[n, *[spread([r["given"][n] for r in results], digits)] * len(shots)] for n in results[0]["given"]]
    for name in results[0]["errors"]:
        rows.append([name, *(spread([r["errors"][name][k] for r in results], digits) for k in range(len(shots)))])
    table = markdown([family.measured, *(f"{k}{unit}" for k in shots)], rows)
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
    axes.set(xscale="log", yscale=scale, ylabel=family.measured)
    axes.set(xlabel="support points" if family.ways is None else "support samples per class")
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
