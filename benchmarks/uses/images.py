"""CIFAR-100's classes on a device, and classifiers trained on them, for studies of compression and architectures."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from l2l_hyper.bridge.benchmarks import CIFARFS
from l2l_hyper.data.counter_random import stream, words

__all__ = ["Images", "accuracy", "autocast", "cifar100", "fit"]

TRAINING_IMAGES = 500  # of the 600 of each class


@dataclass(frozen=True, eq=False)
class Images:
    """Training and test images (N, 3, 32, 32) in uint8, with their labels (N,)."""

    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: int

    def validation(self) -> Images:
        """The training images alone, with a tenth of each class in the place of the test images."""
        x, y = self.x.unflatten(0, (self.classes, -1)), self.y.unflatten(0, (self.classes, -1))
        kept = x.shape[1] * 9 // 10
        return Images(
            x[:, :kept].flatten(0, 1),
            y[:, :kept].flatten(),
            x[:, kept:].flatten(0, 1),
            y[:, kept:].flatten(),
            self.classes,
        )

    def batches(self, size: int, epochs: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Random batches of training images, each image moved by up to four pixels and mirrored by chance."""
        for _ in range(epochs):
            for chosen in torch.randperm(len(self.y), device=self.y.device).split(size):
                if len(chosen) == size:
                    yield scaled(_moved(self.x[chosen])), self.y[chosen]


def cifar100(device: torch.device, classes: int = 100) -> Images:
    """The images of CIFAR-FS, which are all of CIFAR-100, from the data root that ``L2L_HYPER_DATA`` names (~/data).

    500 images of each class are for training and 100 for test, chosen by a hash: not the division of CIFAR-100, which
    CIFAR-FS does not keep.  Fewer classes are chosen by a hash as well.
    """
    root = Path(os.environ.get("L2L_HYPER_DATA", "~/data")).expanduser().absolute()
    named = [(n, part.images, m) for part in CIFARFS.read(root) for n, m in zip(part.names, part.classes, strict=True)]
    named.sort(key=lambda item: item[0])
    order = np.argsort(words(stream("cifar100", "classes"), np.arange(len(named), dtype=np.uint64)), kind="stable")
    train, test = [], []
    for name, images, members in (named[i] for i in sorted(order[:classes])):
        numbers = words(stream("cifar100", "images", name), np.arange(len(members), dtype=np.uint64))
        shuffled = images[torch.from_numpy(members[np.argsort(numbers, kind="stable")])]
        train.append(shuffled[:TRAINING_IMAGES])
        test.append(shuffled[TRAINING_IMAGES:])
    parts = [(torch.cat(p), torch.arange(len(p)).repeat_interleave(len(p[0]))) for p in (train, test)]
    (x, y), (test_x, test_y) = [(x.to(device), y.to(device)) for x, y in parts]
    return Images(x, y, test_x, test_y, len(train))


def scaled(x: Tensor) -> Tensor:
    """Pixels of about zero mean and unit variance."""
    return x.float().div_(64).sub_(2)


def _moved(x: Tensor) -> Tensor:
    count, channels, height, width = x.shape
    padded = F.pad(x, (4, 4, 4, 4))
    down, right = torch.randint(9, (2, count, 1), device=x.device)
    rows = down + torch.arange(height, device=x.device)
    columns = right + torch.arange(width, device=x.device)
    mirrored = torch.rand(count, 1, device=x.device) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)
    image = torch.arange(count, device=x.device).view(-1, 1, 1, 1)
    channel = torch.arange(channels, device=x.device).view(1, -1, 1, 1)
    return padded[image, channel, rows[:, None, :, None], columns[:, None, None, :]]


def autocast(device: torch.device) -> AbstractContextManager[Any]:
    """bfloat16 on a GPU, float32 elsewhere."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def fit(model: nn.Module, images: Images, *, epochs: int, batch: int, lr: float) -> nn.Module:
    """Train by Adam, whose rate rises for a tenth of the steps, then falls to zero by a cosine; then evaluate."""
    device = images.x.device
    model.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = torch.optim.Adam(model.parameters(), lr, fused=device.type == "cuda")
    steps = epochs * (len(images.y) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, lr, total_steps=steps, pct_start=0.1, cycle_momentum=False
    )
    for x, y in images.batches(batch, epochs):
        with autocast(device):
            loss = F.cross_entropy(model(x.contiguous(memory_format=torch.channels_last)), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


@torch.no_grad()
def accuracy(predict: Callable[[Tensor], Tensor], images: Images, *, batch: int = 1000) -> float:
    """Share of the test images whose class has the largest output, in shuffled batches that a seed fixes."""
    order = torch.randperm(len(images.test_y), generator=torch.Generator().manual_seed(0)).to(images.y.device)
    right = torch.zeros((), device=images.y.device)
    for chosen in order.split(batch):
        with autocast(images.y.device):
            outputs = predict(scaled(images.test_x[chosen]).contiguous(memory_format=torch.channels_last))
        right += (outputs.argmax(1) == images.test_y[chosen]).sum()
    return right.item() / len(order)
