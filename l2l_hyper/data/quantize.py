"""Images of any dataset as 8-bit levels and a scale, where their values allow it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError
from .taskset import Scale

__all__ = ["NotVectorised", "materialise"]

_TOLERANCE = 1e-4  # how far a pixel may be from a level, in levels: what rounding in float32 does


class NotVectorised(Exception):
    """Why a taskset is left as it is."""


def materialise(dataset: Any, indices: list[int]) -> tuple[Tensor, Scale]:
    """The images called ``indices`` as uint8 levels with shape (N, C, H, W), and the scale that gives their values.

    Each is read twice: to find the values, and to see that the second reading gives the same image.

    Raises:
        NotVectorised: for images that change between the readings, of several shapes, or without such levels.
        InputError: for no images.
    """
    shape: tuple[int, ...] | None = None
    digests: list[int] = []
    values: list[NDArray[np.float32]] = []
    for index in indices:
        image = _image(dataset, index)
        shape = shape or image.shape
        if image.shape != shape:
            raise NotVectorised(f"images of several shapes, {shape} and {image.shape}, cannot be vectorised")
        digests.append(hash(image.tobytes()))
        values = values or [np.unique(pixels) for pixels in image]
        for channel, pixels in enumerate(image):
            known = values[channel]
            if not np.array_equal(known[np.searchsorted(known, pixels).clip(max=len(known) - 1)], pixels):
                values[channel] = np.union1d(known, pixels)
        if max(map(len, values)) > 256:
            raise NotVectorised("images of more than 256 different values cannot be vectorised")
    if shape is None:
        raise InputError("expected classes with images, got none; check labels_to_indices of the dataset")
    levels, scale = _levels(values)
    result = np.empty((len(indices), *shape), np.uint8)
    for position, index in enumerate(indices):
        image = _image(dataset, index)
        if hash(image.tobytes()) != digests[position]:
            raise NotVectorised("images that a random transform changes from reading to reading cannot be vectorised")
        for channel, pixels in enumerate(image):
            result[position, channel] = levels[channel][np.searchsorted(values[channel], pixels)]
    images = torch.from_numpy(result)
    return images.to(dataset[indices[0]][0].device), scale


def _image(dataset: Any, index: int) -> NDArray[np.float32]:
    image = dataset[index][0]
    if not isinstance(image, Tensor) or image.ndim != 3 or image.dtype not in (torch.uint8, torch.float32):
        what = f"{image.dtype} of shape {tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
        raise NotVectorised(f"samples that are not float32 or uint8 images of shape (C, H, W) but {what}")
    return image.detach().cpu().float().contiguous().numpy()


def _levels(values: list[NDArray[np.float32]]) -> tuple[list[NDArray[np.uint8]], Scale]:
    """The 8-bit level of each value, per channel: whole numbers, 255ths, or steps of the channel's own."""
    for step in (1.0, 1 / 255):
        found = [_fit(v, 0.0, step) for v in values]
        if all(v is not None for v in found):
            return [v for v in found if v is not None], step
    lows = [float(v[0]) for v in values]
    steps = [_step(v.astype(np.float64)) for v in values]
    found = [_fit(v, low, step) for v, low, step in zip(values, lows, steps, strict=True)]
    if any(v is None for v in found):
        raise NotVectorised("images whose values are not equally spaced cannot be vectorised")
    scale = [-low / step for low, step in zip(lows, steps, strict=True)], [1 / step for step in steps]
    return [v for v in found if v is not None], scale


def _fit(values: NDArray[np.float32], low: float, step: float) -> NDArray[np.uint8] | None:
    exact = (values.astype(np.float64) - low) / step
    levels = np.rint(exact)
    fits = (np.abs(levels - exact) <= _TOLERANCE).all() and levels.min() >= 0 and levels.max() <= 255
    return levels.astype(np.uint8) if fits else None


def _step(values: NDArray[np.float64]) -> float:
    """The distance of neighboring levels, if the values are levels: the smallest one, made exact by the largest."""
    if len(values) == 1:
        return 1.0
    spread = values[-1] - values[0]
    return float(spread / np.rint(spread / np.diff(values).min()))
