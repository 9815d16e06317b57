"""Which episodes a comparison is made of, as hashes that are recorded beside its results."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch

from ..errors import InputError
from ..files import plain
from .episode import Episodes
from .registry import BenchmarkTasksets, Taskset

__all__ = ["manifest"]

_HASHED = 8  # episodes whose tensors are hashed for a taskset without a fingerprint method


def manifest(
    tasksets: BenchmarkTasksets, *, name: str, ways: int, shots: int, queries: int, split_seed: int, episodes: int
) -> dict[str, Any]:
    """What the episodes of a comparison are, to be recorded beside its results.

    Returns:
        The arguments, per split the number and a hash of its classes (of tasksets that know them) and a fingerprint of
        its first ``episodes`` episodes, and ``hash``, which is equal for two manifests only if all of that is. The
        fingerprint of a taskset without such a method is a hash of the tensors of its first episodes, at most 8.
    """
    task = {"ways": ways, "shots": shots, "queries": queries, "seed": split_seed}
    content: dict[str, Any] = {
        "tasksets": name,
        "ways": ways,
        "shots": shots,
        "queries": queries,
        "split_seed": split_seed,
        "episodes": episodes,
        "splits": {
            split: {
                "classes": getattr(taskset, "num_classes", None),
                "class_hash": _sha256(getattr(taskset, "class_names", None)),
                "fingerprint": _fingerprint(taskset, episodes, **task),
            }
            for split, taskset in zip(tasksets._fields, tasksets, strict=True)
        },
    }
    return {**content, "hash": _sha256(content)}


def _fingerprint(taskset: Taskset, count: int, **task: int) -> str:
    if hasattr(taskset, "fingerprint"):
        return str(taskset.fingerprint(count, **task))
    episodes = taskset.batch(range(min(count, _HASHED)), **task)
    if not isinstance(episodes, Episodes):
        raise InputError(
            f"expected batch() of {type(taskset).__name__} to give Episodes, got {type(episodes).__name__}; "
            "see l2l_hyper.data.Episodes"
        )
    digest = hashlib.sha256()
    for tensor in (episodes.support, episodes.support_labels, episodes.query, episodes.query_labels):
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}\x1f".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _sha256(content: object) -> str:
    return hashlib.sha256(json.dumps(plain(content), sort_keys=True).encode()).hexdigest()
