"""The images of learn2learn's benchmarks, as its own dataset classes have them and never downloaded.

Those of its classes that unpickle are not used: their files are read by :func:`~l2l_hyper.bridge.pickles.read_arrays`.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._learn2learn import learn2learn
from ..data.cache import Contents
from ..errors import InputError
from .pickles import read_arrays

__all__ = ["LOADERS", "Loader", "omniglot_loader"]

_SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Loader:
    """How the images of one benchmark are found and read.

    Attributes:
        parts: what is stored in a file of its own: the splits, or ``("all",)`` where the split is made afterwards.
        expects: what must be in the root folder.
        dataset: learn2learn's dataset class, which can download it.
        needs: the files and folders of a part, which must exist.
        read: reads a part from the root folder.
    """

    parts: tuple[str, ...]
    expects: str
    dataset: str
    needs: Callable[[Path, str], list[Path]]
    read: Callable[[Path, str], Contents]

    def signature(self, root: Path, part: str) -> str | None:
        """A hash of the sizes and times of change of the files and of all folders, ``None`` if there are none.

        The time of a folder changes when a file in it is added or removed.
        """
        digest = hashlib.sha256()
        sources: list[Path] = []
        level = [path for path in self.needs(root, part) if path.exists()]
        while level:
            sources += level
            level = [folder for path in level if path.is_dir() for folder in _folders(path)]
        for path in sources:
            status = path.stat()
            size = 0 if path.is_dir() else status.st_size
            digest.update(f"{path.relative_to(root)}\x1f{size}\x1f{status.st_mtime_ns}\n".encode())
        return digest.hexdigest() if sources else None

    def contents(self, root: Path, part: str) -> Contents:
        """The images of a part.

        Raises:
            InputError: if they are missing or cannot be read.
        """
        with self._errors(root):
            for path in self.needs(root, part):
                if not path.exists():
                    raise FileNotFoundError(f"no {path}")
            contents = self.read(root, part)
        return Contents(contents.image_shape, contents.names, contents.counts, self._guarded(root, contents))

    def _guarded(self, root: Path, contents: Contents) -> Iterator[NDArray[np.uint8]]:
        with self._errors(root):
            yield from contents.chunks

    @contextlib.contextmanager
    def _errors(self, root: Path) -> Iterator[None]:
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # learn2learn's datasets print
                yield
        except (InputError, MemoryError):
            raise
        except Exception as error:  # unpickling or decoding a damaged file may raise any
            what = " ".join(f"{type(error).__name__}: {error}".split())
            raise InputError(
                f"expected {self.expects} in {root}, could not read it ({what}); "
                f"put an undamaged copy there, or delete what is there and let learn2learn download it: "
                f"learn2learn.vision.datasets.{self.dataset}('{root}', download=True)"
            ) from error


def _by_class(
    labels: Sequence[int] | NDArray[Any],
    names: Callable[[int], str],
    images: Callable[[NDArray[np.int64]], NDArray[Any]],
) -> Contents:
    """Contents from one label per image and a function from indices to uint8 images with channels last."""
    values = np.asarray(labels).astype(np.int64)
    if not len(values):
        raise ValueError("no images")
    members = [np.flatnonzero(values == label) for label in np.unique(values)]

    def channels_first(indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        block = images(indices)
        if block.ndim != 4 or block.dtype != np.uint8:
            raise ValueError(f"images are {block.dtype} of shape {block.shape[1:]}, not uint8 with channels last")
        return block.transpose(0, 3, 1, 2)

    return Contents(
        image_shape=channels_first(members[0][:1]).shape[1:],
        names=[names(int(values[m[0]])) for m in members],
        counts=[len(m) for m in members],
        chunks=(channels_first(m) for m in members),
    )


def _short(split: str) -> str:
    return "val" if split == "validation" else split


def _mini_imagenet_files(root: Path, split: str) -> list[Path]:
    return [root / f"mini-imagenet-cache-{split}.pkl"]


def _mini_imagenet(root: Path, split: str) -> Contents:
    (content,) = map(read_arrays, _mini_imagenet_files(root, split))
    pixels, names = content["image_data"], list(content["class_dict"])
    labels = np.full(len(pixels), -1)
    for label, name in enumerate(names):
        labels[content["class_dict"][name]] = label
    if labels.min() < 0:
        raise ValueError("some images are of no class")
    return _by_class(labels, lambda label: str(names[label]), lambda indices: pixels[indices])


def _tiered_imagenet_files(root: Path, split: str) -> list[Path]:
    return [root / "tiered-imagenet" / f"{_short(split)}_{kind}.pkl" for kind in ("images_png", "labels")]


def _tiered_imagenet(root: Path, split: str) -> Contents:
    from PIL import Image

    files, labels = map(read_arrays, _tiered_imagenet_files(root, split))

    def images(indices: NDArray[np.int64]) -> NDArray[Any]:
        return np.stack([np.asarray(Image.open(io.BytesIO(files[i]))) for i in indices])

    return _by_class(labels["label_specific"], str, images)


def _fc100_files(root: Path, split: str) -> list[Path]:
    return [root / f"FC100_{_short(split)}.pickle"]


def _fc100(root: Path, split: str) -> Contents:
    (content,) = map(read_arrays, _fc100_files(root, split))
    return _by_class(content["labels"], str, lambda indices: np.asarray(content["data"])[indices])


def _cifarfs_files(root: Path, split: str) -> list[Path]:
    """Those of the archive; without it, what learn2learn makes of it."""
    archive, processed = root / "cifarfs" / "cifar100", root / "cifarfs" / "processed"
    files = [archive / "data", archive / "splits" / "bertinetto" / f"{_short(split)}.txt"]
    if processed.is_dir() and not all(path.exists() for path in files):
        return [processed / _short(split)]
    return files


def _cifarfs(root: Path, split: str) -> Contents:
    """Not by learn2learn's ``CIFARFS``: it copies the archive, and a second process reads what the first has copied."""
    from torchvision.datasets.folder import IMG_EXTENSIONS, default_loader, make_dataset

    folder, *lists = _cifarfs_files(root, split)
    lines = [line.strip() for path in lists for line in path.read_text(encoding="utf-8").splitlines()]
    names = sorted(filter(None, lines)) or [path.name for path in _folders(folder)]
    samples = make_dataset(str(folder), {name: label for label, name in enumerate(names)}, IMG_EXTENSIONS)
    return _by_class(
        [label for _, label in samples],
        lambda label: names[label],
        lambda indices: np.stack([np.asarray(default_loader(samples[i][0])) for i in indices]),
    )


def omniglot_loader(characters: Mapping[str, int], drawings: int) -> Loader:
    """The loader of an Omniglot of so many characters per folder, with so many drawings per character."""
    return Loader(
        parts=("all",),
        expects=f"{' and '.join(f'omniglot-py/{part}' for part in characters)}, extracted "
        f"({' and '.join(map(str, characters.values()))} characters of {drawings} drawings)",
        dataset="FullOmniglot",
        needs=lambda root, _: [root / "omniglot-py" / part for part in characters],
        read=functools.partial(_omniglot, characters, drawings),
    )


def _omniglot(characters: Mapping[str, int], drawings: int, root: Path, _: str) -> Contents:
    from PIL.Image import Resampling
    from torchvision import datasets, transforms

    for part, expected in characters.items():
        _omniglot_complete(root / "omniglot-py" / part, expected, drawings)

    class Extracted(datasets.Omniglot):  # type: ignore[misc, name-defined, unused-ignore]
        def _check_integrity(self) -> bool:
            # torchvision would compare the zips with the official checksums, but only the extracted images are read;
            # they were counted above, and the zip may have been repacked or deleted since.
            return True

    full_omniglot = learn2learn().vision.datasets.full_omniglot
    original, full_omniglot.Omniglot = full_omniglot.Omniglot, Extracted
    try:
        loader = full_omniglot.FullOmniglot(
            str(root), transform=transforms.Resize(28, interpolation=Resampling.LANCZOS), download=False
        )
    finally:
        full_omniglot.Omniglot = original
    # The loader numbers classes and drawings as the file system lists them, which differs from machine to machine.
    classes: dict[str, list[tuple[str, int]]] = {}
    position = 0
    for part, dataset in zip(characters, loader.dataset.datasets, strict=True):
        for image_name, label in dataset._flat_character_images:
            classes.setdefault(f"{part}/{dataset._characters[label]}", []).append((image_name, position))
            position += 1

    def images_of(name: str) -> NDArray[np.uint8]:
        images = [np.asarray(loader[index][0]) for _, index in sorted(classes[name])]
        return 255 - np.stack(images)[:, None]

    names = sorted(classes)
    return Contents((1, 28, 28), names, [drawings] * len(names), map(images_of, names))


def _omniglot_complete(folder: Path, expected: int, drawings: int) -> None:
    characters = [character for alphabet in _folders(folder) for character in _folders(alphabet)]
    if len(characters) != expected:
        raise FileNotFoundError(f"{folder} has {len(characters)} characters, not {expected}: was it extracted in full?")
    for character in characters:
        found = sum(name.endswith(".png") for name in os.listdir(character))
        if found != drawings:
            raise FileNotFoundError(f"{character} has {found} drawings, not {drawings}")


def _folders(folder: Path) -> list[Path]:
    return sorted(Path(entry.path) for entry in os.scandir(folder) if entry.is_dir())


LOADERS = {
    "omniglot": omniglot_loader({"images_background": 964, "images_evaluation": 659}, drawings=20),
    "mini-imagenet": Loader(
        parts=_SPLITS,
        expects="mini-imagenet-cache-train.pkl, mini-imagenet-cache-validation.pkl and mini-imagenet-cache-test.pkl",
        dataset="MiniImagenet",
        needs=_mini_imagenet_files,
        read=_mini_imagenet,
    ),
    "tiered-imagenet": Loader(
        parts=_SPLITS,
        expects="tiered-imagenet/{train,val,test}_images_png.pkl and tiered-imagenet/{train,val,test}_labels.pkl",
        dataset="TieredImagenet",
        needs=_tiered_imagenet_files,
        read=_tiered_imagenet,
    ),
    "fc100": Loader(
        parts=_SPLITS,
        expects="FC100_train.pickle, FC100_val.pickle and FC100_test.pickle",
        dataset="FC100",
        needs=_fc100_files,
        read=_fc100,
    ),
    "cifarfs": Loader(
        parts=_SPLITS,
        expects="cifarfs/cifar100/data and cifarfs/cifar100/splits/bertinetto",
        dataset="CIFARFS",
        needs=_cifarfs_files,
        read=_cifarfs,
    ),
}
