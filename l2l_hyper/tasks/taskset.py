"""Tasksets backed by one tensor of images: whole batches of episodes are drawn by index arithmetic."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError
from .draws import below, counters, stream, subsets, words
from .episode import Episodes

__all__ = ["Scale", "TensorTaskset"]

Scale = float | tuple[Sequence[float], Sequence[float]]


class TensorTaskset:
    r"""Few-shot tasks from images held in one tensor.

    Episodes are addressed by index: episode ``i`` depends only on the seed, the name of the taskset, ways, shots,
    queries and ``i``. Sampling and iteration answer as learn2learn's ``Taskset`` does.

    Args:
        images: uint8 images with shape :math:`(N, C, H, W)`, on any device, memory-mapped or not.
        classes: the indices of each class's images, or one label an image with shape :math:`(N,)`.
        ways: classes a task, for :meth:`sample` and iteration and by default for :meth:`batch`.
        samples: images a class, for :meth:`sample` and iteration.
        num_tasks: number of different tasks that :meth:`sample` and iteration see, or -1 for no end of new ones.
        rotations: ``"class"`` (or ``True``) turns each class of an episode by its own multiple of 90 degrees, as
            learn2learn's ``RandomClassRotation`` is documented to do; ``"task"`` turns the whole episode by one, which
            is what it does in learn2learn 0.2.0 (every image gets the rotation drawn for the last class).
        scale: what a pixel is multiplied by, or ``(mean, std)`` of every channel, in the units of ``images``.
        seed: seed of the episodes when a call gives none.
        name: name of the split; tasksets of different names draw different episodes from the same seed.
        class_names: names of the classes, a part of :meth:`fingerprint`.

    Raises:
        InputError: if the images cannot give such tasks.

    Example:
        >>> images = torch.randint(256, (200, 1, 28, 28), dtype=torch.uint8)
        >>> tasks = TensorTaskset(images, torch.arange(10).repeat_interleave(20), ways=5, samples=2)
        >>> tasks.batch(range(32), shots=1, queries=15).query.shape
        torch.Size([32, 75, 1, 28, 28])
        >>> x, y = tasks.sample()
        >>> x.shape, y.shape
        (torch.Size([10, 1, 28, 28]), torch.Size([10]))
    """

    def __init__(
        self,
        images: Tensor,
        classes: Sequence[Sequence[int] | NDArray[Any] | Tensor] | NDArray[Any] | Tensor,
        *,
        ways: int,
        samples: int,
        num_tasks: int = -1,
        rotations: bool | Literal["class", "task"] = False,
        scale: Scale = 1 / 255,
        seed: int = 0,
        name: str = "",
        class_names: Sequence[str] | None = None,
    ) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise InputError(
                f"expected uint8 images of shape (N, C, H, W), got {images.dtype} of shape {tuple(images.shape)}; "
                "convert them with .to(torch.uint8)"
            )
        if rotations not in (False, True, "class", "task"):
            raise InputError(f'rotations must be False, True, "class" or "task", got {rotations!r}')
        if rotations and images.shape[2] != images.shape[3]:
            raise InputError(f"rotations need square images, got {tuple(images.shape[2:])}; use rotations=False")
        if num_tasks < -1 or num_tasks == 0:
            raise InputError(f"num_tasks must be positive, or -1 for no end of tasks, got {num_tasks}")
        members = _members(classes, len(images))
        if class_names is not None and len(class_names) != len(members):
            raise InputError(f"expected one name a class, {len(members)}, got {len(class_names)}")
        self.images = images
        self.ways = ways
        self.samples = samples
        self.num_tasks = num_tasks
        self.rotations: Literal[False, "class", "task"] = "class" if rotations is True else rotations
        self.scale = scale
        self.seed = seed
        self.name = name
        self.class_names = None if class_names is None else list(class_names)
        self._members = np.concatenate(members)
        self._sizes = np.array([len(m) for m in members], np.int64)
        self._starts = np.cumsum(self._sizes) - self._sizes
        self._turned: Tensor | None = None
        self._next = 0
        self._check(ways, samples, 0)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self._sizes)

    @property
    def samples_per_class(self) -> int:
        """Number of images in the smallest class."""
        return int(self._sizes.min())

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape of one image, (C, H, W)."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    @property
    def device(self) -> torch.device:
        """Where the images, and so the episodes, are."""
        return self.images.device

    def to(self, device: torch.device | str) -> TensorTaskset:
        """The same taskset with its images on ``device``."""
        return TensorTaskset(
            self.images.to(device),
            np.split(self._members, self._starts[1:]),
            ways=self.ways,
            samples=self.samples,
            num_tasks=self.num_tasks,
            rotations=self.rotations,
            scale=self.scale,
            seed=self.seed,
            name=self.name,
            class_names=self.class_names,
        )

    def batch(
        self,
        indices: Sequence[int] | NDArray[Any],
        *,
        shots: int,
        queries: int,
        ways: int | None = None,
        seed: int | None = None,
    ) -> Episodes:
        """The episodes called ``indices``: the same ones whatever else is in the batch.

        Args:
            indices: non-negative episode numbers; any sequence of integers, a ``range`` among them.
            shots: support images a class.
            queries: query images a class.
            ways: classes an episode, by default those of the taskset.
            seed: seed of the episodes, by default that of the taskset.

        Raises:
            InputError: for more ways than classes, or more shots and queries than images a class.
        """
        ways = self.ways if ways is None else ways
        _, picks, turns = self._draw(counters(indices), ways, shots, queries, seed)
        support_labels, query_labels = (
            torch.arange(ways, device=self.device).repeat_interleave(each).repeat(len(picks), 1)
            for each in (shots, queries)
        )
        return Episodes(
            support=self._gather(picks[:, :, :shots], turns),
            support_labels=support_labels,
            query=self._gather(picks[:, :, shots:], turns),
            query_labels=query_labels,
            ways=ways,
        )

    def episode(
        self, index: int, *, shots: int, queries: int, ways: int | None = None, seed: int | None = None
    ) -> Episodes:
        """Episode ``index`` as a batch of one, see :meth:`batch`."""
        return self.batch([index], shots=shots, queries=queries, ways=ways, seed=seed)

    def fingerprint(
        self, count: int, *, ways: int | None = None, shots: int, queries: int, seed: int | None = None
    ) -> str:
        """SHA-256 of the classes and of the image numbers and rotations of the first ``count`` episodes."""
        ways = self.ways if ways is None else ways
        classes, picks, turns = self._draw(counters(range(count)), ways, shots, queries, seed)
        digest = hashlib.sha256("\x1f".join(self.class_names or []).encode())
        for numbers in (self._sizes, self._members, classes, self._members[picks], turns):
            digest.update(np.ascontiguousarray(numbers).astype("<i8").tobytes())
        return digest.hexdigest()

    def sample(self) -> tuple[Tensor, Tensor]:
        """One random task ``(x, y)``, drawn with Python's global :mod:`random` as learn2learn does.

        The samples of a class are consecutive, classes stand in the order of the taskset and are labelled at random:
        what learn2learn's RemapLabels and ConsecutiveLabels give, in either order. ``x`` has shape
        ``(ways * samples, C, H, W)`` and ``y`` shape ``(ways * samples,)``.
        """
        return self[random.randrange(len(self))]

    def __len__(self) -> int:
        return 1 if self.num_tasks == -1 else self.num_tasks

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if self.num_tasks == -1:
            return self._task(random.getrandbits(63))
        return self._task(range(self.num_tasks)[index])

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self._next = 0
        return self

    def __next__(self) -> tuple[Tensor, Tensor]:
        if self.num_tasks == -1:
            return self[0]
        if self._next == self.num_tasks:
            raise StopIteration
        self._next += 1
        return self[self._next - 1]

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.image_shape))
        return (
            f"TensorTaskset({self.name!r}, {self.num_classes} classes, {len(self._members)} images {shape}, "
            f"ways={self.ways}, samples={self.samples}, num_tasks={self.num_tasks}, rotations={self.rotations!r})"
        )

    def _task(self, index: int) -> tuple[Tensor, Tensor]:
        classes, picks, turns = self._draw(counters([index]), self.ways, self.samples, 0, None)
        labels = np.argsort(classes[0])  # position of each class, in the order of the taskset, among the drawn ones
        x = self._gather(picks[:, labels], turns[:, labels])[0]
        return x, torch.from_numpy(labels).to(self.device).repeat_interleave(self.samples)

    def _check(self, ways: int, shots: int, queries: int) -> None:
        if ways < 1 or shots < 1 or queries < 0:
            raise InputError(
                f"expected positive ways and samples a class, got ways={ways}, shots={shots}, queries={queries}"
            )
        if ways > self.num_classes:
            raise InputError(
                f"{self.name or 'the taskset'} has {self.num_classes} classes, got ways={ways}; ask for fewer ways"
            )
        if shots + queries > self.samples_per_class:
            raise InputError(
                f"{self.name or 'the taskset'} has {self.samples_per_class} images a class, "
                f"got {shots + queries} samples a class (shots + queries); ask for fewer"
            )

    def _draw(
        self, numbers: NDArray[np.uint64], ways: int, shots: int, queries: int, seed: int | None
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Classes (T, ways), positions in ``_members`` (T, ways, shots + queries) and quarter turns (T, ways)."""
        self._check(ways, shots, queries)
        seed = self.seed if seed is None else seed
        episodes = words(stream("episode", seed, self.name, ways, shots, queries), numbers)
        each = shots + queries
        bits = words(episodes[:, None], np.arange(ways * (each + 2), dtype=np.uint64))
        classes = subsets(bits[:, :ways], np.full(len(bits), self.num_classes))
        turns = below(bits[:, ways : 2 * ways], np.uint64(4 if self.rotations else 1))
        if self.rotations == "task":
            turns[:] = turns[:, :1]
        picks = subsets(bits[:, 2 * ways :].reshape(-1, each), self._sizes[classes].reshape(-1))
        return classes, picks.reshape(-1, ways, each) + self._starts[classes][:, :, None], turns

    def _gather(self, picks: NDArray[np.int64], turns: NDArray[np.int64]) -> Tensor:
        """Float images with shape (T, ways * samples, C, H, W) at positions (T, ways, samples)."""
        rows = picks + turns[:, :, None] * len(self._members) if self.rotations else self._members[picks]
        source = self._turns() if self.rotations else self.images
        at = torch.from_numpy(rows.reshape(-1)).to(self.device)
        # Filled, not made by .float(): allocated ahead of the uint8 copy, its memory is used again by the next batch.
        x = torch.empty((rows.size, *self.image_shape), device=self.device)
        x.copy_(source.index_select(0, at))
        x = x.view(len(picks), -1, *self.image_shape)
        if isinstance(self.scale, tuple):
            mean, std = (torch.tensor(v, dtype=x.dtype, device=x.device).view(-1, 1, 1) for v in self.scale)
            return x.sub_(mean).div_(std)
        return x if self.scale == 1 else x.mul_(self.scale)

    def _turns(self) -> Tensor:
        """The images of the classes in each of the four rotations: turning ahead makes turning a matter of indexing."""
        if self._turned is None:
            upright = self.images.index_select(0, torch.from_numpy(self._members).to(self.device))
            self._turned = torch.cat([torch.rot90(upright, k, (2, 3)) for k in range(4)])
        return self._turned


def _members(
    classes: Sequence[Sequence[int] | NDArray[Any] | Tensor] | NDArray[Any] | Tensor, count: int
) -> list[NDArray[np.int64]]:
    """The images of each class as index arrays, checked against the number of images."""
    if isinstance(classes, (np.ndarray, Tensor)):
        labels = np.asarray(classes.cpu() if isinstance(classes, Tensor) else classes)
        if labels.shape != (count,):
            raise InputError(f"expected one label for each of {count} images, got labels of shape {labels.shape}")
        members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    else:
        members = [np.asarray(m.cpu() if isinstance(m, Tensor) else m, np.int64) for m in classes]
    if not members or min(map(len, members)) == 0:
        raise InputError("expected at least one class and at least one image a class; leave empty classes out")
    if min(m.min() for m in members) < 0 or max(m.max() for m in members) >= count:
        raise InputError(
            f"expected image indices from 0 to {count - 1}, got others; check the classes against the images"
        )
    return members
