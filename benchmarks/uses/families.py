"""Families of tasks whose descriptions are known: functions of one variable, and characters of five classes."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from l2l_hyper.data import SupportSet, functions, get_tasksets
from l2l_hyper.data.episode import Loss, cross_entropy, squared_error
from l2l_hyper.hypernet import DeepSets

__all__ = ["FAMILIES", "Family", "Tasks"]


class Tasks(NamedTuple):
    """Descriptions ``(T, Z)`` of mean 0 and variance 1, samples ``(T, N, D)`` and targets ``(T, N, *)``."""

    z: Tensor
    x: Tensor
    y: Tensor


def wrong(outputs: Tensor, y: Tensor) -> float:
    """Share of outputs whose class is another, in percent."""
    return 100 * float((outputs.argmax(-1) != y).float().mean())


def deviation(outputs: Tensor, y: Tensor) -> float:
    return float(squared_error(outputs, y).mean())


@dataclass(frozen=True, kw_only=True)
class Family:
    """Tasks of one kind.

    Attributes:
        draw: the split, the number of tasks, points of each (of each class) and a generator to tasks.
        queries: points of a test task (of each class) that are not of its support set.
        infer: makes what infers a description from a support set.
        inputs: entries of a sample.
        outputs: entries of what is predicted of it.
        ways: classes of a task; ``None`` in regression.
        loss: what methods minimize.
        measure: what is reported, less being better.
        measured: its name.
    """

    draw: Callable[[str, int, int, torch.Generator], Tasks]
    queries: int = 100
    infer: Callable[[Tasks], nn.Module] = lambda tasks: DeepSets(1 + 1, tasks.z.shape[1])
    inputs: int = 1
    outputs: int = 1
    ways: int | None = None
    loss: Loss = squared_error
    measure: Callable[[Tensor, Tensor], float] = deviation
    measured: str = "mean squared error"

    def support(self, tasks: Tasks, shots: int) -> SupportSet:
        """The first points, so many of each class."""
        n = shots * (self.ways or 1)
        return SupportSet(tasks.x[:, :n], tasks.y[:, :n], self.ways, self.loss)

    def queries_of(self, tasks: Tasks, most: int) -> tuple[Tensor, Tensor]:
        """The points that are not in the largest support set."""
        n = most * (self.ways or 1)
        return tasks.x[:, n:], tasks.y[:, n:]


def sinusoids(split: str, tasks: int, points: int, generator: torch.Generator) -> Tasks:
    """Described by amplitude and phase."""
    unit = torch.rand(tasks, 2, generator=generator)
    x = 10 * torch.rand(tasks, points, 1, generator=generator) - 5
    return Tasks(_standard(unit), x, functions.sinusoids(unit, x))


def mixture(split: str, tasks: int, points: int, generator: torch.Generator) -> Tasks:
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


WAYS, DRAWINGS, COMPONENTS = 5, 10, 16


def drawings(name: str, split: str, tasks: int, points: int, generator: torch.Generator) -> Tasks:
    """Five classes, described by an embedding of each; the points have one drawing per class in turn.

    The embedding of a class is the mean of ten of its drawings, none of which is ever a sample, in whitened principal
    components of the training classes.
    """
    embeddings, images = characters(name)[split]
    classes = torch.rand(tasks, len(images), generator=generator).argsort(1)[:, :WAYS]
    chosen = torch.rand(tasks, WAYS, images.shape[1], generator=generator).argsort(2)[..., :points]
    x = images[classes.unsqueeze(2), chosen].transpose(1, 2).flatten(1, 2)
    return Tasks(embeddings[classes].flatten(1), x, torch.arange(WAYS).repeat(tasks, points))


@functools.cache
def characters(name: str) -> dict[str, tuple[Tensor, Tensor]]:
    """Embeddings ``(C, Z)`` and the other drawings ``(C, N, 196)``, of 14 x 14 pixels, of all classes of each split."""
    root = os.environ.get("L2L_HYPER_DATA", "~/data")
    described: dict[str, Tensor] = {}
    drawn: dict[str, Tensor] = {}
    for split, taskset in zip(
        ("train", "validation", "test"), get_tasksets(name, root=root, rotations=False), strict=True
    ):
        every = taskset.episode(0, shots=DRAWINGS, queries=DRAWINGS, ways=taskset.num_classes)
        small = [nn.functional.avg_pool2d(x[0], 2).view(-1, DRAWINGS, 14 * 14) for x in (every.support, every.query)]
        described[split], drawn[split] = small[0].mean(1), small[1]
    middle = described["train"].mean(0)
    _, sizes, axes = torch.linalg.svd(described["train"] - middle, full_matrices=False)
    whiten = axes[:COMPONENTS].T / sizes[:COMPONENTS] * len(drawn["train"]) ** 0.5
    return {split: ((described[split] - middle) @ whiten, drawn[split]) for split in drawn}


class OfClasses(nn.Module):
    """Deep Sets of each class by itself: images with one-hot classes ``(T, N, 196 + ways)`` to ``(T, ways * Z)``."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.phi = nn.Sequential(nn.Linear(14 * 14, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.rho = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, COMPONENTS))

    def forward(self, samples: Tensor) -> Tensor:
        x, classes = samples.split([14 * 14, WAYS], -1)
        return self.rho(classes.mT @ self.phi(x) / classes.sum(-2).unsqueeze(-1)).flatten(1)


def _images(name: str) -> Family:
    return Family(
        draw=functools.partial(drawings, name),
        queries=DRAWINGS // 2,
        infer=lambda tasks: OfClasses(),
        inputs=14 * 14,
        outputs=WAYS,
        ways=WAYS,
        loss=cross_entropy,
        measure=wrong,
        measured="error, %",
    )


FAMILIES = {
    "sinusoids": Family(draw=sinusoids),
    "mixture": Family(draw=mixture),
    "glyphs": _images("glyphs"),
    "omniglot": _images("omniglot"),
}
