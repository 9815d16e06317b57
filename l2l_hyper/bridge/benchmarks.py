"""learn2learn's five image benchmarks, read through its own datasets."""

from __future__ import annotations

import functools
import os
from pathlib import Path

from ..data.cache import ImageSet, cache_folders, stored
from ..data.image_benchmark import ImageBenchmark
from ..errors import InputError
from .loaders import LOADERS, Loader

__all__ = ["CIFARFS", "FC100", "MINI_IMAGENET", "OMNIGLOT", "TIERED_IMAGENET", "read"]


def read(name: str, loader: Loader, root: Path) -> list[ImageSet]:
    """The stored images of a benchmark, one set per part of its loader.

    Raises:
        InputError: for data that are missing or damaged.
    """
    if not root.is_dir() or not os.access(root, os.R_OK | os.X_OK):
        what = "a folder that cannot be read" if root.is_dir() else "a file" if root.exists() else "no such folder"
        raise InputError(f"expected {loader.expects} in the data root {root}, got {what}; give the folder that has it")
    return [
        stored(
            f"{name}-{part}",
            cache_folders(root),
            signature=functools.partial(loader.signature, root, part),
            build=functools.partial(loader.contents, root, part),
        )
        for part in loader.parts
    ]


OMNIGLOT = ImageBenchmark(
    name="omniglot",
    summary="handwritten characters (Lake et al. 2015): 28x28, 1100/100/423 classes, 20 images each, rotated",
    read=functools.partial(read, "omniglot", LOADERS["omniglot"]),
    split=(1100, 100),
    rotations="class",
    inverted=True,
)
MINI_IMAGENET = ImageBenchmark(
    name="mini-imagenet",
    summary="ImageNet photographs (Vinyals et al. 2016): 84x84 RGB, 64/16/20 classes, 600 images each",
    read=functools.partial(read, "mini-imagenet", LOADERS["mini-imagenet"]),
    scales={None: 1.0, "normalize": 1 / 255},
)
TIERED_IMAGENET = ImageBenchmark(
    name="tiered-imagenet",
    summary="ImageNet photographs (Ren et al. 2018): 84x84 RGB, 351/97/160 classes, about 1300 images each",
    read=functools.partial(read, "tiered-imagenet", LOADERS["tiered-imagenet"]),
    scales={None: 1 / 255, "normalize": 1 / 255},
)
FC100 = ImageBenchmark(
    name="fc100",
    summary="CIFAR-100 split by superclass (Oreshkin et al. 2018): 32x32 RGB, 60/20/20 classes, 600 images each",
    read=functools.partial(read, "fc100", LOADERS["fc100"]),
)
CIFARFS = ImageBenchmark(
    name="cifarfs",
    summary="CIFAR-100 split at random (Bertinetto et al. 2019): 32x32 RGB, 64/16/20 classes, 600 images each",
    read=functools.partial(read, "cifarfs", LOADERS["cifarfs"]),
)
