"""Benchmarks of images: three tasksets of the images of one, which share no class."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..files import expanded
from .cache import ImageSet
from .counter_random import stream, words
from .image_file import read_image
from .taskset import TensorTaskset

__all__ = ["SPLITS", "ImageBenchmark", "hashed_split", "on_device"]

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, kw_only=True)
class ImageBenchmark:
    """Makes the tasksets of one benchmark, see :func:`l2l_hyper.data.get_tasksets`.

    Attributes:
        name: name of the benchmark, which decides which classes and episodes a seed gives.
        summary: one line for ``l2l-hyper list``.
        read: data root to the stored images: one set per split, or one of all classes.
        split: number of training and of validation classes, where one set holds all classes; 64 and 16 percent of
            them if left out.
        rotations: of the tasksets where the call names none, see :class:`TensorTaskset`.
        scales: scale of the pixels by the value of ``data_augmentation``.
        inverted: whether images were ink on paper, which is dark in a file and bright in a sample.
    """

    name: str
    summary: str
    read: Callable[[Path], list[ImageSet]]
    split: tuple[int, int] | None = None
    rotations: Literal["class"] | None = None
    scales: Mapping[str | None, float] = field(default_factory=lambda: {None: 1 / 255})
    inverted: bool = False

    def __call__(
        self,
        train_ways: int = 5,
        train_samples: int = 10,
        test_ways: int = 5,
        test_samples: int = 10,
        num_tasks: int = -1,
        root: str | os.PathLike[str] = "~/data",
        device: torch.device | str | None = None,
        *,
        split_seed: int = 0,
        data_augmentation: str | None = None,
        rotations: bool | Literal["class", "task"] | None = None,
    ) -> tuple[TensorTaskset, ...]:
        """The train, validation and test tasksets."""
        scale = self.scale(data_augmentation)
        if split_seed < 0:
            raise InputError(f"split_seed must be at least 0, got {split_seed}")
        if rotations is None:
            rotations = self.rotations or False
        parts = [on_device(device, image_set) for image_set in self.read(expanded(os.fspath(root)).absolute())]
        splits: list[Sequence[int]] = [range(len(part.classes)) for part in parts]
        if len(parts) == 1:
            count = len(parts[0].classes)
            train, validation = self.split or (round(0.64 * count), round(0.16 * count))
            parts, splits = parts * 3, [*hashed_split(count, train, validation, self.name, split_seed)]
        return tuple(
            TensorTaskset(
                part.images,
                [part.classes[c] for c in chosen],
                ways=train_ways if split == "train" else test_ways,
                samples=train_samples if split == "train" else test_samples,
                num_tasks=num_tasks,
                rotations=rotations,
                scale=scale,
                seed=split_seed,
                name=f"{self.name}/{split}",
                class_names=[part.names[c] for c in chosen],
            )
            for split, part, chosen in zip(SPLITS, parts, splits, strict=True)
        )

    def sample(self, path: Path, shape: tuple[int, ...], data_augmentation: str | None = None) -> Tensor:
        """An image file as a sample of the tasksets; raises ``InputError`` for one that cannot be read."""
        levels = read_image(path, shape, inverted=self.inverted)
        return torch.from_numpy(levels).float() * self.scale(data_augmentation)

    def scale(self, data_augmentation: str | None = None) -> float:
        """What 8-bit levels of pixels are multiplied by."""
        if data_augmentation in self.scales:
            return self.scales[data_augmentation]
        if len(self.scales) == 1:
            raise InputError(f"{self.name} takes no data_augmentation, got {data_augmentation!r}; leave it out")
        if data_augmentation == "lee2019":
            raise InputError(
                "data_augmentation 'lee2019' crops and recolors every training image at random, which drawing by index "
                "cannot do; expected None or 'normalize' (learn2learn.vision.benchmarks.get_tasksets has 'lee2019')"
            )
        raise InputError(f"data_augmentation must be None or 'normalize', got {data_augmentation!r}")


def hashed_split(count: int, train: int, validation: int, name: str, seed: int) -> list[list[int]]:
    """Numbers below ``count`` of train, validation and test, each in order: a permutation by hash, cut in three."""
    numbers = words(stream("split", name, seed), np.arange(count, dtype=np.uint64))
    order = np.argsort(numbers, kind="stable")
    return [sorted(part.tolist()) for part in np.split(order, [train, train + validation])]


def on_device(device: torch.device | str | None, image_set: ImageSet) -> ImageSet:
    """The images on a device; raises ``InputError`` for one that is not there."""
    if device is None:
        return image_set
    try:
        return ImageSet(image_set.images.to(device), image_set.names, image_set.classes)
    except (RuntimeError, AssertionError) as error:  # torch raises either for a device it does not have
        what = " ".join(str(error).split())
        raise InputError(
            f"expected a device that images can be put on, got {str(device)!r}: {what}; try 'cpu'"
        ) from error
