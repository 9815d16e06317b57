"""Tasksets from one tensor of samples: whole batches of episodes are drawn by index arithmetic."""

from __future__ import annotations

import copy
import hashlib
import math
import random
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError
from ..memory import require_memory
from ..settings import Count, Natural, Positive, checked_value
from .counter_random import below, counters, stream, subsets, words
from .episode import ACCURACY, Episodes, Loss, Metric, cross_entropy

__all__ = ["Scale", "TensorTaskset"]

Scale = float | tuple[Sequence[float], Sequence[Positive]]


class TensorTaskset:
    r"""Few-shot tasks from samples of any shape and dtype, held in one tensor.

    Episodes are addressed by index: episode ``i`` depends only on the seed, the name of the taskset, ways, shots,
    queries and ``i``. Sampling and iteration answer as learn2learn's ``Taskset`` does.

    Args:
        x: samples with shape :math:`(N, *)`, on any device, memory-mapped or not: images :math:`(N, C, H, W)`,
            waveforms, tokens, rows of a table.
        classes: the indices of each class's samples, or one label per sample with shape :math:`(N,)`.
        ways: classes per task, for :meth:`sample` and iteration and by default for :meth:`batch`.
        samples: samples per class, for :meth:`sample` and iteration.
        num_tasks: number of different tasks that :meth:`sample` and iteration give, or -1 for an unlimited number.
        rotations: ``"class"`` (or ``True``) turns each class of an episode by its own multiple of 90 degrees, as
            learn2learn's ``RandomClassRotation`` is documented to do; ``"task"`` turns the whole episode by one, which
            is what it does in learn2learn 0.2.0 (every image gets the rotation drawn for the last class). For square
            images only.
        scale: what a sample is multiplied by, or ``(mean, std)`` of each channel (the first dimension of a sample), in
            the units of ``x``; samples of an integer type become float32. By default 1/255 for uint8 images
            :math:`(N, C, H, W)`, while all other samples are given as they are, in their own dtype.
        seed: seed of the episodes when a call gives none.
        name: name of the split; tasksets of different names draw different episodes from the same seed.
        class_names: names of the classes, a part of :meth:`fingerprint`.
        loss: what training minimises on the episodes, see :class:`Episodes`.
        metric: what tables report of the episodes.

    Raises:
        InputError: if the samples cannot give such tasks.

    Example:
        >>> images = torch.randint(256, (200, 1, 28, 28), dtype=torch.uint8)
        >>> tasks = TensorTaskset(images, torch.arange(10).repeat_interleave(20), ways=5, samples=2)
        >>> tasks.batch(range(32), shots=1, queries=15).query.shape
        torch.Size([32, 75, 1, 28, 28])
        >>> x, y = tasks.sample()
        >>> x.shape, y.shape
        (torch.Size([10, 1, 28, 28]), torch.Size([10]))
        >>> labels, waveforms = torch.arange(10).repeat_interleave(20), torch.randn(200, 16000)
        >>> TensorTaskset(waveforms, labels, ways=5, samples=2).batch(range(32), shots=1, queries=15).query.shape
        torch.Size([32, 75, 16000])
    """

    def __init__(
        self,
        x: Tensor,
        classes: Sequence[Sequence[int] | NDArray[Any] | Tensor] | NDArray[Any] | Tensor,
        *,
        ways: int,
        samples: int,
        num_tasks: int = -1,
        rotations: bool | Literal["class", "task"] = False,
        scale: Scale | None = None,
        seed: int = 0,
        name: str = "",
        class_names: Sequence[str] | None = None,
        loss: Loss = cross_entropy,
        metric: Metric = ACCURACY,
    ) -> None:
        if not isinstance(x, Tensor) or x.ndim == 0:
            what = f"a tensor of shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise InputError(f"expected a tensor of samples with shape (N, *), got {what}; convert it with torch.stack")
        if rotations not in (False, True, "class", "task"):
            raise InputError(f'rotations must be False, True, "class" or "task", got {rotations!r}')
        samples, scale = checked_value(Count, samples, "samples"), checked_value(Scale | None, scale, "scale")
        name, seed = checked_value(str, name, "name"), checked_value(int, seed, "seed")
        if rotations and (x.ndim != 4 or x.shape[2] != x.shape[3]):
            raise InputError(
                f"rotations need square images (N, C, H, W), got samples of shape {tuple(x.shape[1:])}; "
                "use rotations=False"
            )
        if checked_value(int, num_tasks, "num_tasks") < -1 or num_tasks == 0:
            raise InputError(f"num_tasks must be positive, or -1 for an unlimited number, got {num_tasks}")
        members = _members(classes, len(x))
        if class_names is not None and len(class_names) != len(members):
            raise InputError(f"expected one name per class, {len(members)}, got {len(class_names)}")
        self.x = x
        self.ways = ways
        self.samples = samples
        self.num_tasks = num_tasks
        self.rotations: Literal[False, "class", "task"] = "class" if rotations is True else rotations
        self.scale = 1 / 255 if scale is None and x.dtype == torch.uint8 and x.ndim == 4 else scale
        self.seed = seed
        self.name = name
        self.class_names = None if class_names is None else list(class_names)
        self.loss = loss
        self.metric = metric
        self._members = np.concatenate(members)
        self._sizes = np.array([len(m) for m in members], np.int64)
        self._starts = np.cumsum(self._sizes) - self._sizes
        self.encoded: Tensor | None = None
        self._turned: Tensor | None = None
        self._next = 0
        self._check(ways, samples, 0)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self._sizes)

    @property
    def samples_per_class(self) -> int:
        """Number of samples in the smallest class."""
        return int(self._sizes.min())

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(self.x.shape[1:])

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Deprecated name of :attr:`sample_shape`."""
        warnings.warn("image_shape is deprecated; use sample_shape", DeprecationWarning, stacklevel=2)
        return self.sample_shape

    @property
    def images(self) -> Tensor:
        """Deprecated name of the attribute ``x``."""
        warnings.warn("images is deprecated; use x", DeprecationWarning, stacklevel=2)
        return self.x

    @property
    def device(self) -> torch.device:
        """Where the samples, and so the episodes, are."""
        return self.x.device

    def to(self, device: torch.device | str) -> TensorTaskset:
        """The same taskset with its samples on ``device``."""
        moved = copy.copy(self)
        moved.x, moved._turned = self.x.to(device), None
        moved.encoded = None if self.encoded is None else self.encoded.to(device)
        return moved

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
            shots: support samples per class.
            queries: query samples per class.
            ways: classes per episode, by default those of the taskset.
            seed: seed of the episodes, by default that of the taskset.

        Raises:
            InputError: for more ways than classes, or more shots and queries than samples per class.
        """
        ways = self.ways if ways is None else ways
        self._check(ways, shots, queries)
        self._require_memory(len(indices), ways, shots + queries, "episodes", "meta_batch", gathered=True)
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
            loss=self.loss,
            metric=self.metric,
            support_encoded=self._gather_encoded(picks[:, :, :shots]),
            query_encoded=self._gather_encoded(picks[:, :, shots:]),
        )

    def episode(
        self, index: int, *, shots: int, queries: int, ways: int | None = None, seed: int | None = None
    ) -> Episodes:
        """Episode ``index`` as a batch of one, see :meth:`batch`."""
        return self.batch([index], shots=shots, queries=queries, ways=ways, seed=seed)

    def classified(self, indices: Sequence[int] | NDArray[Any], *, seed: int | None = None) -> tuple[Tensor, Tensor]:
        """Single samples called ``indices``, shape ``(N, *)``, and the numbers of their classes, int64 ``(N,)``.

        Each class is drawn as often as any other. Where the taskset turns classes, class ``c`` of C classes turned by
        ``k`` times 90 degrees has the number ``c + k * C``.
        """
        self._require_memory(len(indices), 1, 1, "samples", "class_batch", gathered=True)
        classes, picks, turns = self._draw(counters(indices), 1, 1, 0, seed)
        labels = torch.from_numpy((classes + turns * self.num_classes)[:, 0])
        return self._gather(picks, turns)[:, 0], labels.to(self.device, non_blocking=True)

    def members(self, number: int) -> NDArray[np.int64]:
        """Indices in ``x`` of the samples of a class."""
        start = self._starts[number]
        return self._members[start : start + self._sizes[number]]

    def at(self, indices: Tensor) -> Tensor:
        """The samples at ``indices`` of ``x``, as episodes give them but not turned, ``(N, *)``."""
        return self._scaled(self.x, indices.to(self.device))

    def with_samples(self, x: Tensor) -> TensorTaskset:
        """The same taskset with other samples in the place of its own, such as features of them, given as they are.

        Args:
            x: for each sample, ``(N, *)``.

        Raises:
            InputError: for another number of samples, and where the taskset turns images.
        """
        if self.rotations or len(x) != len(self.x):
            raise InputError(
                f"expected {len(self.x)} samples in the place of those of a taskset that turns no images, got {len(x)} "
                f"and rotations={self.rotations!r}"
            )
        changed = copy.copy(self)
        changed.x, changed.scale = x, None
        return changed

    def with_encoded(self, encoded: Tensor) -> TensorTaskset:
        """The same taskset, whose episodes carry what a network makes of each sample.

        Args:
            encoded: for each sample of ``x``, ``(N, E)``.

        Raises:
            InputError: for another number of rows, and where the taskset turns images.
        """
        if self.rotations:
            raise InputError(
                f"expected a taskset that gives images as they are, got rotations={self.rotations!r}; "
                "leave out encode_once"
            )
        if len(encoded) != len(self.x):
            raise InputError(f"expected features of each of {len(self.x)} samples, got {len(encoded)} rows")
        carrying = copy.copy(self)
        carrying.encoded = encoded.to(self.device)
        return carrying

    def fingerprint(
        self, count: int, *, ways: int | None = None, shots: int, queries: int, seed: int | None = None
    ) -> str:
        """SHA-256 of the classes and of the sample numbers and rotations of the first ``count`` episodes."""
        ways = self.ways if ways is None else ways
        self._check(ways, shots, queries)
        self._require_memory(count, ways, shots + queries, "episodes", "test_episodes")
        classes, picks, turns = self._draw(counters(range(count)), ways, shots, queries, seed)
        digest = hashlib.sha256("\x1f".join(self.class_names or []).encode())
        for numbers in (self._sizes, self._members, classes, self._members[picks], turns):
            digest.update(np.ascontiguousarray(numbers).astype("<i8").tobytes())
        return digest.hexdigest()

    def sample(self) -> tuple[Tensor, Tensor]:
        """One random task ``(x, y)``, drawn with Python's global :mod:`random` as learn2learn does.

        The samples of a class are consecutive, classes stand in the order of the taskset and are labelled at random:
        what learn2learn's RemapLabels and ConsecutiveLabels give, in either order. ``x`` has shape
        ``(ways * samples, *)`` and ``y`` shape ``(ways * samples,)``.
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
        shape = "x".join(map(str, self.sample_shape))
        return (
            f"TensorTaskset({self.name!r}, {self.num_classes} classes, {len(self._members)} samples {shape}, "
            f"ways={self.ways}, samples={self.samples}, num_tasks={self.num_tasks}, rotations={self.rotations!r})"
        )

    def _task(self, index: int) -> tuple[Tensor, Tensor]:
        classes, picks, turns = self._draw(counters([index]), self.ways, self.samples, 0, None)
        labels = np.argsort(classes[0])  # position of each class, in the order of the taskset, among the drawn ones
        x = self._gather(picks[:, labels], turns[:, labels])[0]
        return x, torch.from_numpy(labels).to(self.device).repeat_interleave(self.samples)

    def _check(self, ways: int, shots: int, queries: int) -> None:
        checked_value(Count, ways, "ways")
        checked_value(Count, shots, "shots")
        checked_value(Natural, queries, "queries")
        if ways > self.num_classes:
            raise InputError(
                f"{self.name or 'the taskset'} has {self.num_classes} classes, got ways={ways}; ask for fewer ways"
            )
        if shots + queries > self.samples_per_class:
            raise InputError(
                f"{self.name or 'the taskset'} has {self.samples_per_class} samples per class, "
                f"got {shots + queries} (shots + queries); ask for fewer{self._smallest()}"
            )

    def _smallest(self) -> str:
        names = self.class_names
        return "" if names is None else f", or add some to {names[int(self._sizes.argmin())]}"

    def _require_memory(
        self, count: int, ways: int, each: int, what: str, option: str, *, gathered: bool = False
    ) -> None:
        """Raise ``InputError`` where so many draws do not fit into memory: their numbers and, if gathered, samples."""
        numbers = count * (ways * (64 * (each + 2) + 4 * int(self._sizes.max())) + 4 * self.num_classes)
        remedy = f"ask for fewer at once, as with a smaller {option}"
        require_memory(numbers, f"{count:,} {what}", remedy)
        if gathered:
            size = self.x[:1].nbytes if self.scale is None else max(4, self.x.itemsize) * math.prod(self.sample_shape)
            require_memory(2 * count * ways * each * size, f"{count:,} {what}", remedy, self.device)

    def _draw(
        self, numbers: NDArray[np.uint64], ways: int, shots: int, queries: int, seed: int | None
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Classes (T, ways), positions in ``_members`` (T, ways, shots + queries) and quarter turns (T, ways)."""
        seed = self.seed if seed is None else checked_value(int, seed, "seed")
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
        """Samples with shape (T, ways * samples, *) at positions (T, ways, samples)."""
        rows = picks + turns[:, :, None] * len(self._members) if self.rotations else self._members[picks]
        at = torch.from_numpy(rows.reshape(-1)).to(self.device, non_blocking=True)
        return self._scaled(self._turns() if self.rotations else self.x, at).view(len(picks), -1, *self.sample_shape)

    def _gather_encoded(self, picks: NDArray[np.int64]) -> Tensor | None:
        """What episodes carry of the samples at positions (T, ways, samples), (T, ways * samples, E)."""
        if self.encoded is None:
            return None
        at = torch.from_numpy(self._members[picks].reshape(-1)).to(self.device, non_blocking=True)
        return self.encoded.index_select(0, at).view(len(picks), -1, self.encoded.shape[1])

    def _scaled(self, source: Tensor, at: Tensor) -> Tensor:
        """Samples of a source as episodes give them, (N, *)."""
        if self.scale is None:
            return source.index_select(0, at)
        # Filled, not made by .float(): allocated ahead of the uint8 copy, its memory is used again by the next batch.
        dtype = source.dtype if source.is_floating_point() else torch.float32
        x = torch.empty((len(at), *self.sample_shape), dtype=dtype, device=self.device)
        x.copy_(source.index_select(0, at))
        if isinstance(self.scale, tuple):
            per_channel = (-1, *(1 for _ in self.sample_shape[1:]))
            mean, std = (torch.tensor(v, dtype=x.dtype, device=x.device).view(per_channel) for v in self.scale)
            return x.sub_(mean).div_(std)
        return x if self.scale == 1 else x.mul_(self.scale)

    def _turns(self) -> Tensor:
        """The images of the classes in each of the four rotations, so that a rotation is an index as well."""
        if self._turned is None:
            upright = self.x.index_select(0, torch.from_numpy(self._members).to(self.device))
            self._turned = torch.cat([torch.rot90(upright, k, (2, 3)) for k in range(4)])
        return self._turned


def _members(
    classes: Sequence[Sequence[int] | NDArray[Any] | Tensor] | NDArray[Any] | Tensor, count: int
) -> list[NDArray[np.int64]]:
    """The samples of each class as index arrays, checked against the number of samples."""
    if isinstance(classes, (np.ndarray, Tensor)):
        labels = np.asarray(classes.cpu() if isinstance(classes, Tensor) else classes)
        if labels.shape != (count,):
            raise InputError(f"expected one label for each of {count} samples, got labels of shape {labels.shape}")
        members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    else:
        members = [_indices(m) for m in classes]
    if not members or min(map(len, members)) == 0:
        raise InputError("expected at least one class and at least one sample per class; leave empty classes out")
    if min(m.min() for m in members) < 0 or max(m.max() for m in members) >= count:
        raise InputError(
            f"expected sample indices from 0 to {count - 1}, got others; check the classes against the samples"
        )
    return members


def _indices(member: Sequence[int] | NDArray[Any] | Tensor) -> NDArray[np.int64]:
    numbers = np.asarray(member.cpu() if isinstance(member, Tensor) else member)
    if numbers.ndim != 1 or (len(numbers) and numbers.dtype.kind not in "iu"):
        raise InputError(
            f"expected the sample indices of a class as a row of integers, got {numbers.dtype} of shape "
            f"{numbers.shape}; give one row per class, or one label per sample as a tensor"
        )
    return numbers.astype(np.int64)
