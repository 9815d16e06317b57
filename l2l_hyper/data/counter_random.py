"""Random numbers addressed by counters: number ``n`` of a stream is a hash of (key, n), in plain 64-bit arithmetic.

A number is known without drawing those before it, so an episode depends on its index alone, and neither the global
random state, the device nor the version of a library can change it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

__all__ = ["below", "counters", "stream", "subsets", "uniform", "words"]

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_S27, _S30, _S31, _S32 = (np.uint64(shift) for shift in (27, 30, 31, 32))


def stream(*address: object) -> NDArray[np.uint64]:
    """The key of the stream called ``address`` (strings and integers), with shape ``(1,)``.

    >>> int(stream("train", 0)[0]) == int(stream("train", 1)[0])
    False
    """
    digest = hashlib.sha256("\x1f".join(map(str, address)).encode()).digest()
    return np.frombuffer(digest[:8], "<u8").astype(np.uint64)


def counters(indices: Sequence[int] | NDArray[Any]) -> NDArray[np.uint64]:
    """Episode numbers as counters of a stream; ``InputError`` unless they are one or more non-negative integers."""
    numbers = np.asarray(indices)
    if numbers.ndim != 1 or not len(numbers) or numbers.dtype.kind not in "iu" or numbers.min() < 0:
        raise InputError(f"expected one or more non-negative episode numbers, got {indices!r}")
    return numbers.astype(np.uint64)


def words(keys: NDArray[np.uint64], counters: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """64 random bits per key and counter (splitmix64), broadcast against each other.

    Reference:
        Steele, Lea, Flood 2014, Fast Splittable Pseudorandom Number Generators, https://doi.org/10.1145/2660193.2660195
    """
    z = counters * _GAMMA
    z = z + keys
    z ^= z >> _S30
    z *= _MIX_1
    z ^= z >> _S27
    z *= _MIX_2
    z ^= z >> _S31
    return z


def below(bits: NDArray[np.uint64], bound: NDArray[np.uint64] | np.uint64) -> NDArray[np.int64]:
    """Integers in ``[0, bound)`` from random bits, for bounds under 2**32 (their bias is below bound / 2**32)."""
    return ((bits >> _S32) * bound >> _S32).astype(np.int64)


def uniform(bits: NDArray[np.uint64], low: float, high: float) -> NDArray[np.float64]:
    """Floats in ``[low, high)`` from random bits."""
    return low + (high - low) * ((bits >> np.uint64(11)).astype(np.float64) / 2.0**53)


def subsets(bits: NDArray[np.uint64], sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Draw without replacement: row ``r`` holds ``k`` different integers of ``[0, sizes[r])`` in random order.

    A partial Fisher-Yates shuffle of all rows at once: ``k`` steps whatever the number of rows.

    Args:
        bits: random bits with shape ``(rows, k)``.
        sizes: numbers to choose from, with shape ``(rows,)``, each at least ``k``.
    """
    rows, k = bits.shape
    step = np.arange(k, dtype=np.int64)[:, None]
    chosen = step + below(bits.T, (sizes - step).astype(np.uint64))
    # One column per row of the result: step j then reads and writes contiguous memory but for the chosen entries.
    pool = np.repeat(np.arange(sizes.max(initial=0), dtype=np.int32), rows).reshape(-1, rows)
    flat = pool.reshape(-1)
    chosen *= rows
    chosen += np.arange(rows, dtype=np.int64)
    result = np.empty((k, rows), np.int64)
    for j in range(k):
        result[j] = flat[chosen[j]]
        flat[chosen[j]] = pool[j]
    return result.T
