"""Continual learning on scikit-learn's handwritten digits (1,797 real images of 8 × 8 pixels): accuracy and forgetting.

    python -m benchmarks.uses.continual --preset benchmarks/presets/uses/continual.toml --out runs/continual --seeds 0 1

The protocols are those of von Oswald et al. 2020 at the scale of these images: split digits are five tasks of two
digits each, permuted digits are tasks of all ten, each with an order of the pixels of its own.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F

from l2l_hyper.hypernet import Chunked
from l2l_hyper.report.style import WIDTH
from l2l_hyper.uses import ContinualNetwork

from .study import Record, controls, lines, main, markdown, save, spread


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of the study.

    Attributes:
        permutations: tasks of permuted digits; the first has the pixels as they are.
        hidden: units of each of the two hidden layers of the classifier.
        features: entries of the embedding of a task.
        chunk: weights that the generator makes at once.
        width: units of the hidden layer of the generator.
        iterations: per task.
        batch: images per iteration.
        lr: learning rate of Adam, which begins anew with each task.
        strengths: weights of the penalty.  Each protocol has the best on validation images: a quarter of every
            task's training images, in a training without them.
    """

    permutations: int = 10
    hidden: int = 64
    features: int = 32
    chunk: int = 256
    width: int = 32
    iterations: int = 500
    batch: int = 64
    lr: float = 1e-3
    strengths: tuple[float, ...] = (0.01,)


class Task(NamedTuple):
    """Images ``(N, 64)`` and classes of the task, and the number that its first class has among those of all tasks."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    first: int

    def validation(self) -> Task:
        """Another task, of the training images alone."""
        x, y = self.train
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0)).to(x.device)
        held, rest = order[: len(x) // 4], order[len(x) // 4 :]
        return Task((x[rest], y[rest]), (x[held], y[held]), self.first)


def digits() -> list[Tensor]:
    """Images ``(N, 64)`` from 0 to 1 for training and test, a quarter of each digit, and their digits."""
    x, y = load_digits(return_X_y=True)
    parts = train_test_split(x / 16, y, test_size=0.25, stratify=y, random_state=0)
    return [torch.as_tensor(part, dtype=torch.float32 if part.ndim == 2 else torch.int64) for part in parts]


def split_digits(settings: Settings, seed: int) -> list[Task]:
    x, x_test, y, y_test = digits()

    def of(x: Tensor, y: Tensor, first: int) -> tuple[Tensor, Tensor]:
        chosen = (y == first) | (y == first + 1)
        return x[chosen], y[chosen] - first

    return [Task(of(x, y, first), of(x_test, y_test, first), first) for first in range(0, 10, 2)]


def permuted_digits(settings: Settings, seed: int) -> list[Task]:
    x, x_test, y, y_test = digits()
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.arange(64), *(torch.randperm(64, generator=generator) for _ in range(settings.permutations - 1))]
    return [Task((x[:, order], y), (x_test[:, order], y_test), 0) for order in orders]


PROTOCOLS = {"split digits": split_digits, "permuted digits": permuted_digits}


def learn(
    tasks: Sequence[Task], strength: float, settings: Settings
) -> tuple[ContinualNetwork, list[dict[str, list[float]]]]:
    """A network that has learned one task after the other, and its accuracies after each."""
    classes, h = int(tasks[0].train[1].max()) + 1, settings.hidden
    network = ContinualNetwork(
        nn.Sequential(nn.Linear(64, h), nn.ReLU(), nn.Linear(h, h), nn.ReLU(), nn.Linear(h, classes)),
        len(tasks),
        features=settings.features,
        generator=functools.partial(Chunked, chunk=settings.chunk, width=settings.width),
        strength=strength,
    ).to(tasks[0].train[0].device)
    after = []
    for t, task in enumerate(tasks):
        network.begin(t)
        optimizer = torch.optim.Adam(network.parameters(), settings.lr)
        x, y = task.train
        for _ in range(settings.iterations):
            chosen = torch.randint(len(x), (settings.batch,), device=x.device)
            loss = F.cross_entropy(network(x[chosen], t), y[chosen]) + network.penalty()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        after.append(accuracies(network, tasks[: t + 1]))
    return network, after


@torch.no_grad()
def accuracies(network: ContinualNetwork, tasks: Sequence[Task]) -> dict[str, list[float]]:
    """Of each task learned so far: with the task known, with it inferred, and how often it is inferred rightly.

    Where the task is inferred, the class must be right among those of all tasks.
    """
    known, inferred, right = [], [], []
    for t, task in enumerate(tasks):
        x, y = task.test
        outputs, guess = network.of_all_tasks(x), network.infer(x)
        first = torch.tensor([other.first for other in tasks], device=x.device)
        label = outputs[guess, torch.arange(len(x), device=x.device)].argmax(-1) + first[guess]
        known.append(float((outputs[t].argmax(-1) == y).float().mean()))
        inferred.append(float((label == y + task.first).float().mean()))
        right.append(float((guess == t).float().mean()))
    return {"task known": known, "task inferred": inferred, "tasks inferred rightly": right}


@torch.no_grad()
def under_controls(network: ContinualNetwork, tasks: Sequence[Task], seed: int) -> dict[str, float]:
    """Mean accuracy over the tasks with other embeddings than theirs."""
    result = {}
    for name, z in controls(torch.stack(list(network.embeddings)), torch.Generator().manual_seed(seed)).items():
        outputs = [network.network(network.hyper(e), task.test[0]) for e, task in zip(z, tasks, strict=True)]
        right = [(o.argmax(-1) == task.test[1]).float().mean() for o, task in zip(outputs, tasks, strict=True)]
        result[name] = float(torch.stack(right).mean())
    return result


def run(settings: Settings, seed: int, device: torch.device) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for protocol, make in PROTOCOLS.items():
        tasks = [
            Task(*(tuple(t.to(device) for t in part) for part in task[:2]), task.first)  # type: ignore[misc, arg-type]
            for task in make(settings, seed)
        ]
        held_out = [task.validation() for task in tasks]
        scores = {
            strength: final_and_forgetting(learn(held_out, strength, settings)[1], "task known")[0]
            for strength in settings.strengths
        }
        for name, strength in (("regularised", max(scores, key=scores.__getitem__)), ("not regularised", 0.0)):
            network, after = learn(tasks, strength, settings)
            result[f"{protocol}, {name}"] = {
                "strength": strength,
                "after each task": after,
                "controls": under_controls(network, tasks, seed),
                "generated": network.network.target.numel,
                "stored": sum(p.numel() for p in network.parameters()),
            }
    return result


def final_and_forgetting(after: list[dict[str, list[float]]], which: str) -> tuple[float, float]:
    """Mean accuracy of all tasks at the end, and by how much that of each, but the last, fell since it was learned."""
    at_end = after[-1][which]
    fell = [after[t][which][t] - at_end[t] for t in range(len(after) - 1)]
    return sum(at_end) / len(at_end), sum(fell) / len(fell)


def report(records: Sequence[Record], out: Path) -> None:
    percent = functools.partial(spread, digits=1)
    rows, names = [], list(records[0]["result"])
    for name in names:
        results = [record["result"][name] for record in records]
        cells = [name]
        for which in ("task known", "task inferred"):
            pairs = [final_and_forgetting(r["after each task"], which) for r in results]
            cells += [percent([100 * value for value in column]) for column in zip(*pairs, strict=True)]
        cells += [percent([100 * r["controls"][control] for r in results]) for control in results[0]["controls"]]
        rows.append(cells)
    headers = ["%", "known", "forgotten", "inferred", "forgotten", *records[0]["result"][names[0]]["controls"]]
    sizes = "; ".join(
        f"{name}: {one['generated']} weights from {one['stored']} parameters, strengths of the penalty "
        + ", ".join(str(record["result"][name]["strength"]) for record in records)
        for name, one in records[0]["result"].items()
        if not name.endswith("not regularised")
    )
    text = f"{markdown(headers, rows)}\nSeeds: {len(records)}; mean ± standard deviation over them. {sizes}.\n"
    (out / "results.md").write_text(text, encoding="utf-8")
    figure, looks = Figure((WIDTH, 3)), lines(("task known", "task inferred"))
    for axes, protocol in zip(figure.subplots(1, 2, sharey=True), PROTOCOLS, strict=True):
        for name, style in (("regularised", "-"), ("not regularised", "--")):
            for which, look in looks.items():
                steps = [r["result"][f"{protocol}, {name}"]["after each task"] for r in records]
                curves = [[sum(step[which]) / len(step[which]) for step in of_seed] for of_seed in steps]
                mean = 100 * torch.tensor(curves).mean(0)
                look = {**look, "linestyle": style, "markersize": 4, "label": f"{which}, {name}"}
                axes.plot(range(1, len(mean) + 1), mean, **look)
        axes.set(title=protocol, xlabel="tasks learned", ylim=(0, 101))
    figure.axes[0].set_ylabel("mean accuracy on them, %")
    save(figure, out / "accuracy")


if __name__ == "__main__":
    main(Settings, run, report)
