"""Images read once and kept: an uncompressed, memory-mapped, checksummed file with a small JSON file beside it."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..files import expanded, replacing
from ..locks import remove_leftovers

__all__ = ["Contents", "ImageSet", "cache_folders", "stored", "user_cache"]

_FORMAT = 2
_BLOCK = 1 << 16
_MINUTE = 60 * 10**9  # ns
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Contents:
    """Images to store, class after class.

    Attributes:
        image_shape: shape of an image, (C, H, W).
        names: name of each class.
        counts: number of images of each class.
        chunks: uint8 arrays of shape (n, C, H, W) which laid end to end are the images of the classes in turn.
    """

    image_shape: tuple[int, ...]
    names: Sequence[str]
    counts: Sequence[int]
    chunks: Iterable[NDArray[np.uint8]]


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Stored images: a uint8 tensor of shape (N, C, H, W), and the name and image indices of each class."""

    images: Tensor
    names: list[str]
    classes: list[NDArray[np.int64]]


class _Unusable(Exception):
    """Why a cache cannot be used."""


def user_cache() -> list[Path]:
    """The folder of this package under ``$XDG_CACHE_HOME`` or ``~/.cache``; none where there is no home folder."""
    folder = expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "l2l_hyper"
    return [folder] if folder.is_absolute() else []


def cache_folders(root: Path) -> list[Path]:
    """Where images that are read from ``root`` are kept: there, or else in the user's cache."""
    return [root / "l2l_hyper", *cache_of(root)]


def cache_of(folder: Path) -> list[Path]:
    """Where images that are read from ``folder`` are kept in the user's cache."""
    return [cache / hashlib.sha256(str(folder).encode()).hexdigest()[:12] for cache in user_cache()]


def signature_of(files: Sequence[Path], folder: Path, recipe: str) -> str | None:
    """A hash of the names, sizes and times of change of files in a folder; ``None`` where there are none."""
    digest = hashlib.sha256(f"{recipe}\n".encode())
    for path in files:
        status = path.stat()
        digest.update(f"{path.relative_to(folder)}\x1f{status.st_size}\x1f{status.st_mtime_ns}\n".encode())
    return digest.hexdigest() if files else None


def stored(
    name: str, folders: Sequence[Path], signature: Callable[[], str | None], build: Callable[[], Contents]
) -> ImageSet:
    """The images called ``name``: opened from the first of ``folders`` that has them, else built into one.

    Each file is written whole or not at all; the second of two processes that build at once replaces the file of the
    first with an equal one.

    Args:
        name: name of the files.
        folders: where to look and where to write; if none can be written, the images are kept in memory.
        signature: identifies what the images are built from, taken again after building; ``None`` when that is not
            there, and then a cache of anything is taken.
        build: gives the images.
    """
    current = signature()
    for folder in folders:
        remove_leftovers(folder)
        if not os.path.exists(folder / f"{name}-v{_FORMAT}.json"):  # no, too, for a folder that may not be read
            continue
        try:
            return _open(folder, name, current)
        except _Unusable as reason:
            _log.warning("image cache %s of %s %s; building it again", folder, name, reason)
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            try:
                _write(folder, name, signature, build)
            except BaseException:
                with suppress(OSError):
                    folder.rmdir()  # only if it is empty: data that cannot be read leave no folder behind
                raise
            return _open(folder, name, None)
        except OSError as error:
            _log.warning("cannot keep an image cache in %s: %s", folder, error)
    contents = build()
    return _image_set(np.concatenate(list(contents.chunks)), contents.names, contents.counts)


def _open(folder: Path, name: str, signature: str | None) -> ImageSet:
    try:
        header = json.loads((folder / f"{name}-v{_FORMAT}.json").read_text())
        data = folder / f"{name}-v{_FORMAT}.npy"
        images = np.load(data, mmap_mode="c", allow_pickle=False)
        if header.pop("checksum") != _digest(header) or images.dtype != np.uint8 or [*images.shape] != header["shape"]:
            raise _Unusable("is damaged (its header does not fit)")
        if _status(data) != header["status"] and _checksum(images) != header["images"]:
            raise _Unusable("is damaged (its checksum does not match)")
        if signature is not None and header["signature"] != signature:
            raise _Unusable("was made from data that changed since")
        return _image_set(images, header["names"], header["counts"])
    # numpy parses the header of a file as Python, so a damaged one raises that parser's errors.
    except (OSError, ValueError, EOFError, AttributeError, KeyError, TypeError, TokenError) as error:
        raise _Unusable(f"is damaged ({error})") from error


def _write(folder: Path, name: str, signature: Callable[[], str | None], build: Callable[[], Contents]) -> None:
    data, sidecar = (folder / f"{name}-v{_FORMAT}.{ending}" for ending in ("npy", "json"))
    with replacing(data) as file:
        partial = Path(file.name)
        _log.info("materialising %s into %s", name, data)
        contents = build()
        shape = (sum(contents.counts), *contents.image_shape)
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        for chunk in contents.chunks:
            file.write(np.ascontiguousarray(chunk, np.uint8).data)
        file.flush()
        # A minute before now, so that whatever is written to the file from here on shows in its time.
        os.utime(partial, ns=(partial.stat().st_atime_ns, partial.stat().st_mtime_ns - _MINUTE))
        images = np.load(partial, mmap_mode="r")
        header = {
            "signature": signature(),
            "names": list(contents.names),
            "counts": [int(count) for count in contents.counts],
            "shape": [*images.shape],
            "status": _status(partial),
            "images": _checksum(images),
        }
    with replacing(sidecar) as file:
        file.write(json.dumps({**header, "checksum": _digest(header)}).encode())


def _status(path: Path) -> list[int]:
    """Size and time of the last change: a file that still has both is not read again to check it."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _checksum(images: NDArray[np.uint8]) -> str:
    """SHA-256 of the sums of the 64-bit words in every 64 KiB block of the images.

    Changing a byte or moving a block changes the result. The sums run at the speed of memory (0.05 s per GB from the
    page cache; zlib.crc32 takes 0.5 s, SHA-256 more).
    """
    flat = images.reshape(-1)
    whole = flat.size // _BLOCK * _BLOCK
    sums = flat[:whole].view("<u8").reshape(-1, _BLOCK // 8).sum(axis=1, dtype=np.uint64)
    return hashlib.sha256(sums.tobytes() + flat[whole:].tobytes()).hexdigest()


def _digest(header: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()


def _image_set(images: NDArray[np.uint8], names: Sequence[str], counts: Sequence[int]) -> ImageSet:
    if len(names) != len(counts) or sum(counts) != len(images):
        raise ValueError("class index and images do not fit")
    classes = np.split(np.arange(len(images), dtype=np.int64), np.cumsum(counts)[:-1])
    return ImageSet(torch.from_numpy(images), list(names), classes)
