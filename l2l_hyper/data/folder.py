"""Own images as tasksets: a folder with one sub-folder of images per class."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Le
from torch import Tensor

from ..errors import InputError
from ..files import expanded
from ..settings import checked_arguments
from .cache import Contents, ImageSet, cache_of, signature_of, stored
from .episode import Episodes
from .image_benchmark import SPLITS, hashed_split, on_device
from .image_file import class_files, read_image, sub_folders
from .taskset import TensorTaskset

__all__ = ["FOLDER", "ImageFolder", "named_folder"]

_RECIPE = 1  # part of the cached file's signature: raise it when the images change
_TRAIN, _VALIDATION = 0.64, 0.16  # of the classes


def named_folder(kind: str, path: str) -> Path:
    """The folder of ``KIND:PATH``; raises ``InputError`` where there is none."""
    folder = expanded(path).absolute()
    if not path or not folder.is_dir():
        raise InputError(
            f"expected a folder in {kind}:PATH, got {path or 'no PATH'!r}; try {kind}:. for the present one"
        )
    return folder


@dataclass(frozen=True)
class ImageFolder:
    """Makes the tasksets ``folder:PATH``.

    Reads ``PATH/CLASS/IMAGE``, of whose classes 64 percent are for training, 16 percent for validation and the rest for
    the test, by ``split_seed``; or ``PATH/train/CLASS/IMAGE``, ``PATH/validation/...`` and ``PATH/test/...``, which say
    what is for what.  With ``PATH/test`` alone, trained networks can be tested.

    Attributes:
        path: the folder.
        summary: one line for ``l2l-hyper list``.
    """

    path: str = ""
    summary: str = "folder:PATH, your own images, PATH/CLASS/IMAGE; options image_size, color and inverted"

    @checked_arguments
    def __call__(
        self,
        train_ways: int = 5,
        train_samples: int = 10,
        test_ways: int = 5,
        test_samples: int = 10,
        num_tasks: int = -1,
        device: torch.device | str | None = None,
        *,
        split_seed: Annotated[int, Ge(0)] = 0,
        rotations: bool | Literal["class", "task"] | None = None,
        image_size: Annotated[int, Ge(1), Le(4096)] = 84,
        color: Literal["rgb", "gray"] = "rgb",
        inverted: bool = False,
    ) -> tuple[TensorTaskset | _NoClasses, ...]:
        """The train, validation and test tasksets, see :func:`l2l_hyper.data.get_tasksets`.

        Args:
            image_size: height and width of a sample; the largest square in the middle of an image is resized to it.
            color: whether samples have three channels or one.
            inverted: whether dark becomes bright, as for ink on paper.

        Raises:
            InputError: for a folder of another form, an image that cannot be read, fewer classes than a task has, and
                fewer images in a class than a task needs.
        """
        folder = named_folder("folder", self.path)
        shape = (3 if color == "rgb" else 1, image_size, image_size)
        every = stored(
            f"folder-{image_size}-{color}{'-inverted' * inverted}",
            cache_of(folder),
            signature=lambda: signature_of([*itertools.chain(*_files(folder).values())], folder, f"recipe {_RECIPE}"),
            build=lambda: _contents(folder, shape, inverted),
        )
        parts = _splits(on_device(device, every), split_seed)
        ways = {"train": train_ways, "validation": test_ways, "test": test_ways}
        if any(len(part.names) < ways[split] for split, part in parts.items()):
            counts = ", ".join(f"{len(part.names)} for {split}" for split, part in parts.items())
            raise InputError(
                f"{folder} has {len(every.names)} classes, {counts}, got tasks of {train_ways} classes for train and "
                f"{test_ways} for the others; ask for fewer ways, add classes, or say what is for what by folders "
                f"{', '.join(SPLITS)}, or test alone to test a trained network"
            )
        return tuple(
            TensorTaskset(
                parts[split].images,
                parts[split].classes,
                ways=ways[split],
                samples=train_samples if split == "train" else test_samples,
                num_tasks=num_tasks,
                rotations=rotations or False,
                seed=split_seed,
                name=f"folder/{split}",
                class_names=parts[split].names,
            )
            if split in parts
            else _NoClasses(folder)
            for split in SPLITS
        )

    def scale(self, **options: Any) -> float:
        """What 8-bit levels are multiplied by."""
        return 1 / 255

    def sample(self, path: Path, shape: tuple[int, ...], *, inverted: bool = False, **shaped: Any) -> Tensor:
        """An image file as a sample of the tasksets; raises ``InputError`` for one that cannot be read."""
        return torch.from_numpy(read_image(path, shape, inverted=inverted)).float() * self.scale()


FOLDER = ImageFolder()


class _NoClasses:
    """The train and the validation taskset of a folder that has test classes alone."""

    num_classes = 0
    class_names = ()

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fingerprint(self, count: int, **task: Any) -> str:
        """That of no episodes."""
        return ""

    def batch(self, indices: Any, **task: Any) -> Episodes:
        """Raises ``InputError``."""
        raise InputError(
            f"expected folders train and validation beside {self.folder / 'test'} to train with, got none; add them, "
            "or test a trained network with `l2l-hyper evaluate`"
        )


def _files(folder: Path) -> dict[str, list[Path]]:
    """The images of each ``CLASS``, or of each ``SPLIT/CLASS`` where there are folders of the splits."""
    names = [path.name for path in sub_folders(folder)]
    if not set(names) & set(SPLITS):
        return class_files(folder)
    if names != ["test"] and names != sorted(SPLITS):
        raise InputError(
            f"expected folders train, validation and test in {folder}, or test alone, or one folder per class, got "
            f"{', '.join(names)}; rename or move them"
        )
    of_split = {split: class_files(folder / split) for split in SPLITS if split in names}
    for one, other in itertools.combinations(of_split, 2):
        for name in of_split[one].keys() & of_split[other].keys():
            raise InputError(f"expected splits without a common class in {folder}, got {name} in {one} and {other}")
    return {f"{split}/{name}": files for split, classes in of_split.items() for name, files in classes.items()}


def _contents(folder: Path, shape: tuple[int, ...], inverted: bool) -> Contents:
    files = _files(folder)
    return Contents(
        image_shape=shape,
        names=list(files),
        counts=[len(paths) for paths in files.values()],
        chunks=(read_image(path, shape, inverted=inverted)[None] for path in itertools.chain(*files.values())),
    )


def _splits(every: ImageSet, seed: int) -> dict[str, ImageSet]:
    """The classes of each split."""
    count = len(every.names)
    if "/" in every.names[0]:
        of_split = [name.partition("/")[0] for name in every.names]
        members = {split: [c for c in range(count) if of_split[c] == split] for split in SPLITS if split in of_split}
    else:
        train, validation = round(_TRAIN * count), round(_VALIDATION * count)
        members = dict(zip(SPLITS, hashed_split(count, train, validation, "folder", seed), strict=True))
    names = [name.rpartition("/")[2] for name in every.names]
    return {
        split: ImageSet(every.images, [names[c] for c in chosen], [every.classes[c] for c in chosen])
        for split, chosen in members.items()
    }
