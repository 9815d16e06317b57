"""Training loops as a user of learn2learn writes them: clone, adapt, one task after the other."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cases import Algorithm, Setting
from torch import Tensor, nn
from torch.nn import functional as F

import l2l_hyper
from l2l_hyper._learn2learn import learn2learn
from l2l_hyper.data import get_tasksets

__all__ = ["ScriptLoop", "our_tasksets", "their_tasksets"]


class ScriptLoop:
    """Meta-training in the manner of learn2learn's examples.

    Args:
        setting: tasks and network.
        algorithm: what adapts.
        sample: draws one task, images and labels, with ``2 * shots`` images per class.
        swapped: whether the line that builds the algorithm builds ours.
    """

    def __init__(
        self, setting: Setting, algorithm: Algorithm, sample: Callable[[], tuple[Tensor, Tensor]], *, swapped: bool
    ) -> None:
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002 - learn2learn draws initial weights from it
        self.setting, self.sample = setting, sample
        model = setting.model()
        self.steps = algorithm.options.get("steps", 5 if algorithm.method == "anil" else 1)
        lr = algorithm.options.get("inner_lr", 0.4)
        self.features: nn.Module = nn.Identity()
        if swapped:
            self.learner: nn.Module | None = l2l_hyper.HyperAdapter(model, **algorithm.options)
        elif algorithm.method in ("maml", "hyper-adapter"):  # which the swapped line stood in for
            self.learner = learn2learn().algorithms.MAML(model, lr=lr)
        elif algorithm.method == "anil":
            self.features = model.features
            self.learner = learn2learn().algorithms.MAML(model.classifier, lr=lr)
        else:
            self.features, self.learner = model.features, None
        self.parameters = [*self.features.parameters(), *([] if self.learner is None else self.learner.parameters())]
        self.optimizer = torch.optim.Adam(self.parameters, lr=1e-3)
        every_second = torch.arange(2 * setting.ways * setting.shots) % 2 == 0
        self.support, self.query = every_second, ~every_second

    def iteration(self, meta_batch: int) -> None:
        """One step of the optimizer."""
        self.optimizer.zero_grad()
        for _ in range(meta_batch):
            x, y = self.sample()
            self.loss(x, y).backward()
        for p in self.parameters:
            p.grad.data.mul_(1.0 / meta_batch)
        self.optimizer.step()

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Query loss of one task."""
        h = self.features(x)
        return F.cross_entropy(self.adapted(h[self.support], y[self.support])(h[self.query]), y[self.query])

    def adapt(self, x: Tensor, y: Tensor) -> None:
        """Adapt to one support set, as a new task is met."""
        self.adapted(self.features(x), y)

    def adapted(self, h: Tensor, y: Tensor) -> Callable[[Tensor], Tensor]:
        """What adaptation to a support set makes."""
        if self.learner is None:
            return learn2learn().nn.PrototypicalClassifier(h, y)
        learner = self.learner.clone()
        for _ in range(self.steps):
            learner.adapt(F.cross_entropy(learner(h), y))
        return learner


def their_tasksets(setting: Setting, samples: int, root: Path) -> Any:
    """learn2learn's own tasksets, with ``samples`` images per class."""
    if setting.tasksets == "glyphs":  # which only we have
        return our_tasksets(setting, samples, root)
    with _omniglot_as_it_lies(root):
        return learn2learn().vision.benchmarks.get_tasksets(
            setting.tasksets, setting.ways, samples, setting.ways, samples, num_tasks=20000, root=str(root)
        )


def our_tasksets(setting: Setting, samples: int, root: Path) -> Any:
    """The same through this package."""
    return get_tasksets(setting.tasksets, setting.ways, samples, setting.ways, samples, root=root)


@contextlib.contextmanager
def _omniglot_as_it_lies(root: Path) -> Iterator[None]:
    """torchvision downloads Omniglot again if the bytes of its archives differ, even where the images do not."""
    from torchvision.datasets import Omniglot

    archives = {part: root / "omniglot-py" / f"{part}.zip" for part in Omniglot.zips_md5}
    before = Omniglot.zips_md5
    if all(archive.exists() for archive in archives.values()):
        Omniglot.zips_md5 = {part: hashlib.md5(a.read_bytes()).hexdigest() for part, a in archives.items()}
    try:
        yield
    finally:
        Omniglot.zips_md5 = before
