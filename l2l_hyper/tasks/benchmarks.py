"""Benchmark tasksets by name: learn2learn's five through its own loaders, and the embedded typeset glyphs."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from ..errors import InputError
from .cache import ImageSet, stored, user_cache
from .draws import stream, words
from .glyphs import glyph_images
from .loaders import LOADERS
from .taskset import TensorTaskset

__all__ = ["REGISTERED", "BenchmarkTasksets", "get_tasksets", "list_tasksets", "manifest"]

_DESCRIPTIONS = {
    "glyphs": "letters and digits of many scripts typeset in matplotlib's fonts: 28x28, 342 classes, 20 images each",
    "omniglot": "handwritten characters (Lake et al. 2015): 28x28, 1100/100/423 classes, 20 images each, rotated",
    "mini-imagenet": "ImageNet photographs (Vinyals et al. 2016): 84x84 RGB, 64/16/20 classes, 600 images each",
    "tiered-imagenet": "ImageNet photographs (Ren et al. 2018): 84x84 RGB, 351/97/160 classes, about 1300 images each",
    "fc100": "CIFAR-100 split by superclass (Oreshkin et al. 2018): 32x32 RGB, 60/20/20 classes, 600 images each",
    "cifarfs": "CIFAR-100 split at random (Bertinetto et al. 2019): 32x32 RGB, 64/16/20 classes, 600 images each",
}
_SPLITS = ("train", "validation", "test")
_OMNIGLOT_SPLIT = (1100, 100)  # training and validation classes; the other 423 are for testing
_AUGMENTED = ("mini-imagenet", "tiered-imagenet")
REGISTERED: dict[str, Callable[..., Any]] = {}  # makers of tasksets by name, see l2l_hyper.tasks.register


class BenchmarkTasksets(NamedTuple):
    """The three tasksets of a benchmark, which share no class."""

    train: TensorTaskset
    validation: TensorTaskset
    test: TensorTaskset


def list_tasksets() -> dict[str, str]:
    """The names that :func:`get_tasksets` takes, each with one line on what it is.

    >>> list(list_tasksets())
    ['glyphs', 'omniglot', 'mini-imagenet', 'tiered-imagenet', 'fc100', 'cifarfs']
    """
    return _DESCRIPTIONS | dict.fromkeys(REGISTERED, "added by l2l_hyper.tasks.register")


def get_tasksets(
    name: str,
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
) -> BenchmarkTasksets:
    """Tasksets of a benchmark, as ``learn2learn.vision.benchmarks.get_tasksets`` gives them but held in tensors.

    The images are read through learn2learn's own datasets once and cached under ``root`` (or the user's cache folder
    where that cannot be written). Nothing is downloaded. Unlike in learn2learn 0.2.0, the class split of Omniglot
    depends on ``split_seed`` alone and no class is in two of its splits (there, the three tasksets draw from all 1623).

    Args:
        name: one of :func:`list_tasksets`.
        train_ways: classes a training task.
        train_samples: images a class of a training task.
        test_ways: classes a validation or test task.
        test_samples: images a class of a validation or test task.
        num_tasks: number of different tasks, or -1 for no end of new ones.
        root: folder that holds the data in the form learn2learn's datasets read; ``glyphs`` needs none.
        device: where images and episodes are kept, by default the CPU.
        split_seed: seed of the class split (``omniglot`` and ``glyphs``) and of the episodes addressed by index.
        data_augmentation: for ``mini-imagenet`` and ``tiered-imagenet``: ``None`` or ``"normalize"``, as in learn2learn
            (mini-ImageNet's pixels go from 0 to 255 without it).
        rotations: see :class:`TensorTaskset`; by default ``"class"`` for ``omniglot`` and none elsewhere.

    Raises:
        InputError: for an unknown name, data that are missing or damaged, and tasks that they cannot give.
    """
    if name in REGISTERED:
        made = REGISTERED[name](
            train_ways=train_ways,
            train_samples=train_samples,
            test_ways=test_ways,
            test_samples=test_samples,
            num_tasks=num_tasks,
            root=root,
            device=device,
            split_seed=split_seed,
            data_augmentation=data_augmentation,
            rotations=rotations,
        )
        return BenchmarkTasksets(*made)
    if name not in _DESCRIPTIONS:
        raise InputError(f"expected tasksets called {', '.join(list_tasksets())}, got {name!r}; see l2l-hyper list")
    _check_augmentation(name, data_augmentation)
    if split_seed < 0:
        raise InputError(f"split_seed must be at least 0, got {split_seed}")
    if rotations is None:
        rotations = "class" if name == "omniglot" else False
    parts = [_on(device, image_set) for image_set in _image_sets(name, root)]
    splits = _split(name, parts[0], split_seed) if len(parts) == 1 else [range(len(part.classes)) for part in parts]
    return BenchmarkTasksets(
        *(
            TensorTaskset(
                part.images,
                [part.classes[c] for c in chosen],
                ways=train_ways if split == "train" else test_ways,
                samples=train_samples if split == "train" else test_samples,
                num_tasks=num_tasks,
                rotations=rotations,
                scale=1.0 if name == "mini-imagenet" and data_augmentation is None else 1 / 255,
                seed=split_seed,
                name=f"{name}/{split}",
                class_names=[part.names[c] for c in chosen],
            )
            for split, part, chosen in zip(_SPLITS, parts if len(parts) == 3 else parts * 3, splits, strict=True)
        )
    )


def manifest(
    tasksets: BenchmarkTasksets, *, name: str, ways: int, shots: int, queries: int, split_seed: int, episodes: int
) -> dict[str, Any]:
    """What the episodes of a comparison are, to lie beside its results.

    Returns:
        The arguments, per split the number and a hash of its classes and a fingerprint of its first ``episodes``
        episodes, and ``hash``, which is equal for two manifests only if all of that is.
    """
    content: dict[str, Any] = {
        "tasksets": name,
        "ways": ways,
        "shots": shots,
        "queries": queries,
        "split_seed": split_seed,
        "episodes": episodes,
        "splits": {
            split: {
                "classes": taskset.num_classes,
                "class_hash": _sha256(taskset.class_names),
                "fingerprint": taskset.fingerprint(episodes, ways=ways, shots=shots, queries=queries, seed=split_seed),
            }
            for split, taskset in zip(_SPLITS, tasksets, strict=True)
        },
    }
    return {**content, "hash": _sha256(content)}


def _sha256(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _check_augmentation(name: str, data_augmentation: str | None) -> None:
    if data_augmentation is None:
        return
    if name not in _AUGMENTED:
        raise InputError(f"{name} takes no data_augmentation, got {data_augmentation!r}; leave it out")
    if data_augmentation == "lee2019":
        raise InputError(
            "data_augmentation 'lee2019' crops and recolors every training image at random, which drawing by index "
            "cannot do; expected None or 'normalize' (learn2learn.vision.benchmarks.get_tasksets has 'lee2019')"
        )
    if data_augmentation != "normalize":
        raise InputError(f"data_augmentation must be None or 'normalize', got {data_augmentation!r}")


def _image_sets(name: str, root: str | os.PathLike[str]) -> list[ImageSet]:
    """The stored images of a benchmark, one set a split, or one of all classes."""
    if name == "glyphs":
        return [glyph_images()]
    loader = LOADERS[name]
    folder = Path(root).expanduser().absolute()
    if not folder.is_dir() or not os.access(folder, os.R_OK | os.X_OK):
        what = "a folder that cannot be read" if folder.is_dir() else "a file" if folder.exists() else "no such folder"
        raise InputError(
            f"expected {loader.expects} in the data root {folder}, got {what}; give the folder that has it"
        )
    elsewhere = user_cache() / hashlib.sha256(str(folder).encode()).hexdigest()[:12]
    return [
        stored(
            f"{name}-{part}",
            [folder / "l2l_hyper", elsewhere],
            signature=functools.partial(loader.signature, folder, part),
            build=functools.partial(loader.contents, folder, part),
        )
        for part in loader.parts
    ]


def _on(device: torch.device | str | None, image_set: ImageSet) -> ImageSet:
    if device is None:
        return image_set
    try:
        return ImageSet(image_set.images.to(device), image_set.names, image_set.classes)
    except (RuntimeError, AssertionError) as error:  # torch raises either for a device it does not have
        what = " ".join(str(error).split())
        raise InputError(
            f"expected a device that images can be put on, got {str(device)!r}: {what}; try 'cpu'"
        ) from error


def _split(name: str, image_set: ImageSet, split_seed: int) -> list[Sequence[int]]:
    """Classes of train, validation and test, in ascending order: a permutation by hash, cut in three."""
    count = len(image_set.classes)
    train, validation = _OMNIGLOT_SPLIT if name == "omniglot" else (round(0.64 * count), round(0.16 * count))
    order = np.argsort(words(stream("split", name, split_seed), np.arange(count, dtype=np.uint64)), kind="stable")
    return [sorted(part.tolist()) for part in np.split(order, [train, train + validation])]
