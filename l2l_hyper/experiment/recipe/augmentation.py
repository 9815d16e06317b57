"""Random crops and mirror images of whole batches, addressed by counters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from ...data.counter_random import below, counters, stream, words
from ...data.episode import Episodes
from ...errors import InputError

__all__ = ["augmented_episodes", "augmented_images", "crop_flip", "require_crops_fit"]


def augmented_episodes(episodes: Episodes, indices: Sequence[int], seed: int, *, crop: int | None = None) -> Episodes:
    """The episodes called ``indices`` with every support and query image cropped and mirrored by its own draw.

    What an image becomes depends on the seed, the number of its episode and its place there, and on nothing else.

    Args:
        episodes: of images.
        indices: the number of each.
        seed: the same for the draws of a run.
        crop: see :func:`augmented_images`.

    Raises:
        InputError: unless samples are images ``(C, H, W)``.
    """
    return replace(
        episodes,
        support=augmented_images(episodes.support, indices, "support", seed, crop=crop),
        query=augmented_images(episodes.query, indices, "query", seed, crop=crop),
    )


def augmented_images(
    images: Tensor, indices: Sequence[int], role: str, seed: int, *, crop: int | None = None
) -> Tensor:
    """Images ``(T, N, C, H, W)``, or ``(T, C, H, W)``, of T draws called ``indices``, cropped and mirrored.

    Args:
        images: on any device, where the result is as well.
        indices: one non-negative number for each of the T.
        role: images of different roles get different draws.
        seed: the same for the draws of a run.
        crop: height and width of the result, at most those of the images, which they are if not given.
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
    sides = np.array(images.shape[-2:])
    size = (int(sides[0]), int(sides[1])) if crop is None else (crop, crop)
    reach = np.array([padding(side) for side in sides.tolist()])
    shifts = below(bits[:, :2], (sides - size + 2 * reach + 1).astype(np.uint64)) - reach
    mirrored = below(bits[:, 2:], np.uint64(2))
    draw = torch.from_numpy(np.concatenate([shifts, mirrored], 1)).to(images.device, non_blocking=True)
    return crop_flip(flat, draw[:, 0], draw[:, 1], draw[:, 2] == 1, size).view(*images.shape[:-2], *size)


def require_crops_fit(crop: int, build: Callable[[Episodes], nn.Module], episode: Episodes) -> None:
    """Refuse crops for a network that has another number of features for them than for whole images.

    Args:
        crop: height and width of the crops.
        build: makes the network for such episodes.
        episode: of whole images.

    Raises:
        InputError: for such a network, and for crops that are larger than the images.
    """
    shape = tuple(episode.support.shape[2:])
    if len(shape) != 3 or crop > min(shape[1:]):
        raise InputError(f"crop must be at most height and width of images (C, H, W), got {crop} and samples {shape}")
    cropped = replace(episode, support=episode.support[..., :crop, :crop], query=episode.query[..., :crop, :crop])
    sizes, of_crops = ([p.shape for p in build(images).parameters()] for images in (episode, cropped))
    if sizes != of_crops:
        raise InputError(
            f"crop={crop} needs a backbone with as many features for crops as for images of {shape[1]} x {shape[2]} "
            "pixels, such as one whose features are means over pixels (conv4 with pooled=true); got another"
        )


def padding(side: int) -> int:
    """By how many pixels an image may be shifted along a side: 4 at 32."""
    return min(side // 8, side - 1)


def crop_flip(
    images: Tensor, down: Tensor, right: Tensor, mirrored: Tensor, size: tuple[int, int] | None = None
) -> Tensor:
    """A window of each image, mirrored from left to right or not, the border reflected into what lies outside.

    Args:
        images: ``(N, C, H, W)``.
        down: pixel of the image at which the window begins, ``(N,)``; its pixels are less than H outside.
        right: the same from left to right.
        mirrored: which are mirrored, ``(N,)``.
        size: height and width of the window; those of the images if not given.
    """
    height, width = images.shape[-2:]
    shown = size or (height, width)
    rows, columns = _window(height, down, shown[0]), _window(width, right, shown[1])
    columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    at = (rows[:, :, None] * width + columns[:, None, :]).view(len(images), 1, -1)
    return images.flatten(2).gather(2, at.expand(-1, images.shape[1], -1)).view(*images.shape[:2], *shown)


def _window(side: int, shift: Tensor, size: int) -> Tensor:
    """Which of ``side`` pixels each pixel of a shifted window of ``size`` pixels shows, ``(N, size)``."""
    at = (torch.arange(size, device=shift.device) + shift[:, None]).abs()
    return torch.minimum(at, 2 * (side - 1) - at)
