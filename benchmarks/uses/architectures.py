"""Does the accuracy with generated weights rank architectures?  And do generated weights start training well?

    python -m benchmarks.uses.architectures --task train --part 1 --parts 2 --out runs/architectures/train-1
    python -m benchmarks.uses.architectures --task train --part 2 --parts 2 --out runs/architectures/train-2
    python -m benchmarks.uses.architectures --task generate --out runs/architectures

The first two train the architectures that are ranked, in two parts; the third trains one graph hypernetwork on others
of the same space, generates weights for them, and reports the ranking once the records of the first two are there.
"""

from __future__ import annotations

import itertools
import json
import math
import random
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from scipy.stats import kendalltau, rankdata, spearmanr
from torch import Tensor, nn
from torch.nn import functional as F

from l2l_hyper import InputError
from l2l_hyper.functional import call, slots
from l2l_hyper.report.style import WIDTH
from l2l_hyper.uses.graph_hypernetwork import GraphHyperNetwork, NetworkGraph

from .images import Images, accuracy, autocast, cifar100, fit
from .search_space import Architecture, build, draw
from .study import controls, lines, main, markdown, save, spread


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is trained, and how.

    Attributes:
        task: "train" the architectures that are ranked, or "generate" their weights.
        part: which of them are trained, from 1.
        parts: how many parts there are.
        ranked: architectures of the space in the ranking.
        outside: deeper ones in the ranking, and as many wider ones.
        pool: other architectures, on which the hypernetwork is trained.
        steps: of the hypernetwork's training.
        meta_batch: architectures of a step.
        images: of each of these architectures in a step.
        generator_lr: Adam's rate for the hypernetwork.
        lr: Adam's rate for architectures.
        epochs: passes over the training images for each architecture.
        short: the same in the short training that competes.
        tuning: passes over the training images, of training from generated weights and from default ones.
        candidates: new architectures; the best on validation images by generated weights is trained.
        batch: images of a step of an architecture's training.
        classes: of CIFAR-100.
    """

    task: str = "generate"
    part: int = 1
    parts: int = 1
    ranked: int = 36
    outside: int = 4
    pool: int = 400
    steps: int = 4000
    meta_batch: int = 2
    images: int = 64
    generator_lr: float = 0.003
    lr: float = 0.005
    epochs: int = 10
    short: int = 1
    tuning: tuple[int, ...] = (1, 4)
    candidates: int = 100
    batch: int = 250
    classes: int = 20


SCORES = ("generated", "another operation's z", "mean z", "random z")


def ranked(settings: Settings) -> list[tuple[str, Architecture]]:
    """The architectures of the ranking, each with its group: the same for every seed."""
    rng = random.Random(0)
    inside = [("inside", draw(rng)) for _ in range(settings.ranked)]
    deeper = [("deeper", draw(rng, blocks=(6, 8))) for _ in range(settings.outside)]
    return inside + deeper + [("wider", draw(rng, channels=(40, 48))) for _ in range(settings.outside)]


# One task: real training.


def train(settings: Settings, images: Images) -> list[dict[str, Any]]:
    """Accuracy of the ranked architectures of one part after training and after short training."""
    rows = []
    for number, (group, architecture) in enumerate(ranked(settings)):
        if number % settings.parts == settings.part - 1:
            row: dict[str, Any] = {"number": number, "group": group}
            for name, epochs in (("short", settings.short), ("trained", settings.epochs)):
                model = build(architecture, settings.classes)
                row[name] = accuracy(fit(model, images, epochs=epochs, batch=settings.batch, lr=settings.lr), images)
            print(row, file=sys.stderr)
            rows.append(row)
    return rows


# The other task: generated weights.


class Prepared:
    """A network and its graph on a device, with what it answers under generated weights."""

    def __init__(self, architecture: Architecture, classes: int, device: torch.device) -> None:
        self.architecture = architecture
        self.model = build(architecture, classes)
        self.graph = NetworkGraph.of(self.model).to(device)
        self.model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.places = slots(self.model)

    def accuracy(self, weights: dict[str, Tensor], images: Images) -> float:
        """On test images; normalization layers use each batch, since running averages are not generated."""
        return accuracy(lambda x: call(self.model.train(), self.places, weights, x), images)


def fit_generator(settings: Settings, images: Images, rng: random.Random) -> GraphHyperNetwork:
    """A graph hypernetwork trained on architectures that are not ranked, a few in each step."""
    device, skipped = images.x.device, {architecture for _, architecture in ranked(settings)}
    drawn = [a for a in (draw(rng) for _ in range(settings.pool)) if a not in skipped]
    pool = [Prepared(a, settings.classes, device) for a in drawn]
    hyper = GraphHyperNetwork().to(device)
    optimizer = torch.optim.Adam(hyper.parameters(), settings.generator_lr, fused=device.type == "cuda")
    batches = images.batches(settings.images, math.ceil(settings.steps / (len(images.y) // settings.images)))
    for step, (x, y) in enumerate(itertools.islice(batches, settings.steps), 1):
        x = x.contiguous(memory_format=torch.channels_last)
        for network in rng.sample(pool, settings.meta_batch):
            weights = hyper(network.graph)
            with autocast(device):
                loss = F.cross_entropy(call(network.model.train(), network.places, weights, x), y)
            (loss / settings.meta_batch).backward()
        nn.utils.clip_grad_norm_(hyper.parameters(), 5.0)
        # The rate rises for a tenth of the training and falls by a cosine.
        done = (step - 1) / settings.steps
        optimizer.param_groups[0]["lr"] = settings.generator_lr * min(1, 10 * done) * (1 + math.cos(math.pi * done)) / 2
        optimizer.step()
        optimizer.zero_grad()
        if step % 200 == 0:
            print(f"step {step}, loss {loss.item():.3f}", file=sys.stderr)
    return hyper


def generate(settings: Settings, images: Images, seed: int, device: torch.device) -> dict[str, Any]:
    """Accuracy with generated weights, with those of the controls, and after training from generated weights."""
    rng, validation = random.Random(1 + seed), images.validation()
    hyper = fit_generator(settings, validation, rng)
    rows, tuned = [], []
    training: dict[str, Any] = {"batch": settings.batch, "lr": settings.lr}
    for number, (group, architecture) in enumerate(ranked(settings)):
        network = Prepared(architecture, settings.classes, device)
        row: dict[str, Any] = {"number": number, "group": group}
        with torch.no_grad():
            z = hyper.encoder(network.graph)
            embeddings = [z, *controls(z).values()]
            scores = [network.accuracy(hyper(network.graph, z=e), images) for e in embeddings]
        rows.append(
            {
                **row,
                "parameters": sum(p.numel() for p in network.model.parameters()),
                **dict(zip(SCORES, scores, strict=True)),
            }
        )
        if number in (0, 1, settings.ranked, settings.ranked + settings.outside):
            for start, epochs in itertools.product(("default", "generated"), settings.tuning):
                model = build(architecture, settings.classes).to(device)
                if start == "generated":
                    model.load_state_dict(hyper(network.graph), strict=False)  # which leaves the running averages
                row[f"{start}, {epochs}"] = accuracy(fit(model, images, epochs=epochs, **training), images)
            tuned.append(row)
    candidates = [Prepared(draw(rng), settings.classes, device) for _ in range(settings.candidates)]
    with torch.no_grad():
        best = max(candidates, key=lambda network: network.accuracy(hyper(network.graph), validation))
    chosen = fit(build(best.architecture, settings.classes), images, epochs=settings.epochs, **training)
    found = {"architecture": asdict(best.architecture), "trained": accuracy(chosen, images)}
    return {"rows": rows, "tuned": tuned, "chosen": found}


def run(settings: Settings, seed: int, device: torch.device) -> dict[str, Any]:
    """One of the tasks."""
    if settings.task not in ("train", "generate"):
        raise InputError(f"task must be 'train' or 'generate', got {settings.task!r}")
    images = cifar100(device, settings.classes)
    return {"rows": train(settings, images)} if settings.task == "train" else generate(settings, images, seed, device)


def agreement(test: Callable[..., Any], scores: Sequence[float], real: Sequence[float]) -> float:
    """A rank correlation; scores that are all the same rank nothing, and have 0."""
    return 0.0 if len(set(scores)) == 1 or len(set(real)) == 1 else float(test(scores, real).statistic)


def report(records: list[dict[str, Any]], out: Path) -> None:
    """Rank correlations with the accuracy after training, and the other findings; none for the task of training."""
    files = sorted(out.glob("train*/seed*.json"))
    if records[0]["settings"]["task"] == "train" or not files:
        return
    truth: dict[int, list[dict[str, Any]]] = {}
    for file in files:
        for row in json.loads(file.read_text(encoding="utf-8"))["result"]["rows"]:
            truth.setdefault(row["number"], []).append(row)
    trained, short = (
        {n: statistics.mean(r[key] for r in rs) for n, rs in truth.items()} for key in ("trained", "short")
    )
    seeds = [[row for row in record["result"]["rows"] if row["number"] in truth] for record in records]
    table = []
    figure = Figure(figsize=(WIDTH, 3))
    left, right = figure.subplots(1, 2, sharey=True)
    looks = lines(("inside", "deeper", "wider"))
    for group in ("inside", "deeper", "wider", "all"):
        of_seeds = [[row for row in rows if group in (row["group"], "all")] for rows in seeds]
        numbers = [row["number"] for row in of_seeds[0]]
        real = [100 * trained[n] for n in numbers]
        scores = {name: [[100 * row[name] for row in rows] for rows in of_seeds] for name in SCORES}
        parameters = [row["parameters"] for row in of_seeds[0]]
        means = {name: spread([statistics.mean(s) for s in of_name], 1) for name, of_name in scores.items()}
        scores |= {"parameter count": [parameters], "short training": [[short[n] for n in numbers]]}
        scores["generated, and parameter count"] = [rankdata(s) + rankdata(parameters) for s in scores["generated"]]
        scores["random order"] = [random.Random(s).sample(numbers, len(numbers)) for s in range(100)]
        for name, of_name in scores.items():
            ranks = (spread([agreement(test, s, real) for s in of_name], 2) for test in (kendalltau, spearmanr))
            table.append([group, str(len(numbers)), name, *ranks, means.get(name, "")])
        if group != "all":
            look = {**looks[group], "linestyle": "", "markersize": 4, "label": group}
            left.plot(scores["generated"][0], real, **look)
            right.plot(parameters, real, **look)
    left.set(xlabel="accuracy with generated weights, %", ylabel="accuracy after training, %")
    right.set(xlabel="parameters", xscale="log")
    save(figure, out / "ranking")
    ranking = markdown(["architectures", "", "score", "Kendall's tau", "Spearman's rho", "accuracy, %"], table)
    tuned = [record["result"]["tuned"] for record in records]
    starts = list(tuned[0][0])[2:]
    tuning = markdown(
        ["architecture", *(f"{start} epochs" for start in starts)],
        [
            [rows[0]["group"], *(spread([100 * row[start] for row in rows], 1) for start in starts)]
            for rows in zip(*tuned, strict=True)
        ],
    )
    chosen = spread([100 * record["result"]["chosen"]["trained"] for record in records], 1)
    inside = [100 * trained[row["number"]] for row in seeds[0] if row["group"] == "inside"]
    (out / "results.md").write_text(
        f"## Ranking\n\n{ranking}\n## Accuracy after training from default and generated weights, %\n\n{tuning}\n"
        f"## The chosen architecture\n\nIt has {chosen} % after training; the ranked ones inside the space have "
        f"{statistics.mean(inside):.1f} % on average, and the best of them {max(inside):.1f} %.\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main(Settings, run, report)
