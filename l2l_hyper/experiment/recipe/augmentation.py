"""Random crops and mirror images of whole batches, addressed by counters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ...data.counter_random import below, counters, stream, words
from ...data.episode import Episodes
from ...errors import InputError

__all__ = ["augmented_episodes", "augmented_images", "crop_flip"]


def augmented_episodes(episodes: Episodes, indices: Sequence[int], seed: int) -> Episodes:
    """The episodes called ``indices`` with every support and query image cropped and mirrored by its own draw.

    What an image becomes depends on the seed, the number of its episode and its place there, and on nothing else.

    Raises:
        InputError: unless samples are images ``(C, H, W)``.
    """
    return replace(
        episodes,
        support=augmented_images(episodes.support, indices, "support", seed),
        query=augmented_images(episodes.query, indices, "query", seed),
    )


def augmented_images(images: Tensor, indices: Sequence[int], role: str, seed: int) -> Tensor:
    """Images ``(T, N, C, H, W)``, or ``(T, C, H, W)``, of T draws called ``indices``, cropped and mirrored.

    Args:
        images: on any device, where the result is as well.
        indices: one non-negative number for each of the T.
        role: images of different roles get different draws.
        seed: the same for the draws of a run.
    """
    if images.ndim not in (4, 5):
        shape = tuple(images.shape[2:])
        raise InputError(
            f"augmentation 'crop-flip' needs images (C, H, W), got samples of shape {shape}; use augmentation='none'"
        )
    flat = images.flatten(0, -4)
    each = len(flat) // len(images)
    keys = words(stream("augmentation", seed, role), counters(indices))
    bits = words(keys[:, None], np.arange(3 * each, dtype=np.uint64)).reshape(-1, 3)
    reach = np.array([padding(side) for side in images.shape[-2:]])
    shifts = below(bits[:, :2], (2 * reach + 1).astype(np.uint64)) - reach
    mirrored = below(bits[:, 2:], np.uint64(2))
    draw = torch.from_numpy(np.concatenate([shifts, mirrored], 1)).to(images.device, non_blocking=True)
    return crop_flip(flat, draw[:, 0], draw[:, 1], draw[:, 2] == 1).view_as(images)


def padding(side: int) -> int:
    """By how many pixels an image may be shifted along a side: 4 at 32."""
    return min(side // 8, side - 1)


def crop_flip(images: Tensor, down: Tensor, right: Tensor, mirrored: Tensor) -> Tensor:
    """Each image moved and then mirrored from left to right, its border reflected into what comes free.

    Args:
        images: ``(N, C, H, W)``.
        down: pixels by which the window moves down, ``(N,)``, less than H either way.
        right: the same to the right.
        mirrored: which are mirrored, ``(N,)``.
    """
    height, width = images.shape[-2:]
    rows, columns = _window(height, down), _window(width, right)
    columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    at = (rows[:, :, None] * width + columns[:, None, :]).view(len(images), 1, -1)
    return images.flatten(2).gather(2, at.expand(-1, images.shape[1], -1)).view_as(images)


def _window(side: int, shift: Tensor) -> Tensor:
    """Which of ``side`` pixels each pixel of a shifted window shows, ``(N, side)``."""
    at = (torch.arange(side, device=shift.device) + shift[:, None]).abs()
    return torch.minimum(at, 2 * (side - 1) - at)
