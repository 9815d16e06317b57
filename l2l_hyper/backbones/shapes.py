"""Which samples a backbone reads, and the message for those that it does not."""

from __future__ import annotations

from ..errors import InputError
from ..settings import Count

__all__ = ["SampleShape", "cannot_read", "convolved", "image"]


SampleShape = tuple[Count, ...]


def image(name: str, sample_shape: tuple[int, ...], *, least: int = 1) -> tuple[int, int, int]:
    """The shape ``(channels, height, width)``; raises :class:`InputError` unless it is that of a large enough image."""
    if len(sample_shape) != 3 or min(sample_shape[1:]) < least:
        size = f" of at least {least} x {least} pixels" if least > 1 else ""
        raise cannot_read(name, f"images (channels, height, width){size}", sample_shape)
    channels, height, width = sample_shape
    return channels, height, width


def cannot_read(name: str, reads: str, sample_shape: tuple[int, ...]) -> InputError:
    """The error for samples that a backbone cannot read, with one that can."""
    fits = "conv4" if len(sample_shape) == 3 else "mlp"
    hint = f"backbone {fits!r}" if fits != name else "fewer layers"
    return InputError(f"backbone {name!r} reads {reads}, got samples of shape {tuple(sample_shape)}; try {hint}")


def convolved(size: int, layers: int, stride: int, max_pool: bool) -> int:
    """Pixels that are left of a side after convolutions with padding 1 that pool, or else step, by ``stride``."""
    for _ in range(layers):
        size = size // stride if max_pool else (size - 1) // stride + 1
    return size
