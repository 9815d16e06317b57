"""Files of samples in folders, and image files as samples of one size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

__all__ = ["IMAGES", "class_files", "read_image", "sample_files", "sub_folders"]

IMAGES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_EIGHT_BIT = ("1", "CMYK", "L", "LA", "P", "PA", "RGB", "RGBA", "YCbCr")  # what Pillow converts without cutting off


def sub_folders(folder: Path) -> list[Path]:
    """The folders in a folder, by name; hidden ones are left out."""
    return [path for path in _visible(folder) if path.is_dir()]


def class_files(folder: Path, endings: Sequence[str] = IMAGES) -> dict[str, list[Path]]:
    """The files of each class of a folder that has one sub-folder per class.

    Raises:
        InputError: for no classes, files beside them that have one of the endings, and as :func:`sample_files`.
    """
    loose = next((path.name for path in _visible(folder) if path.suffix.lower() in endings), None)
    classes = sub_folders(folder)
    if loose or not classes:
        raise InputError(f"expected one sub-folder per class in {folder}, got {loose or 'none'}; sort the files")
    return {path.name: sample_files(path, endings) for path in classes}


def sample_files(folder: Path, endings: Sequence[str] = IMAGES) -> list[Path]:
    """The files of a folder by name; hidden ones are left out.

    Raises:
        InputError: for no files, a folder among them, and a file of another ending.
    """
    files = _visible(folder)
    for path in files:
        if path.suffix.lower() not in endings:
            raise InputError(f"expected files ({', '.join(endings)}), got {path}; move it elsewhere")
    if not files:
        raise InputError(f"expected files ({', '.join(endings)}) in {folder}, got none; add some, or remove the folder")
    return files


def read_image(path: Path, shape: tuple[int, ...], *, inverted: bool = False) -> NDArray[np.uint8]:
    """The largest middle part of an image that has the shape's proportions, resized to it (Lanczos).

    Args:
        path: of the file.
        shape: ``(1, H, W)`` for gray levels or ``(3, H, W)`` for RGB.
        inverted: whether dark becomes bright, as for ink on paper.

    Raises:
        InputError: for a file that is no image of one picture with 8 bits per channel, or is transparent somewhere.
    """
    from PIL import Image, ImageOps

    channels, *size = shape or (0,)
    if channels not in (1, 3) or len(size) != 2:
        raise InputError(f"expected samples of shape (1, H, W) or (3, H, W) to read image files as, got {shape}")
    try:
        with Image.open(path) as image:
            if image.mode not in _EIGHT_BIT or getattr(image, "n_frames", 1) > 1:
                what = f"{getattr(image, 'n_frames', 1)} pictures of Pillow's mode {image.mode}"
                raise InputError(f"expected one picture of 8 bits per channel in {path}, got {what}; convert it")
            if image.has_transparency_data and np.asarray(image.convert("RGBA"))[..., 3].min() < 255:
                raise InputError(f"expected an opaque image, {path} is transparent; put it on a background")
            upright = ImageOps.exif_transpose(image).convert("L" if channels == 1 else "RGB")
    except InputError:
        raise
    except Exception as error:  # decoding a damaged file may raise any
        what = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"expected an image, could not read {path} ({what}); replace or remove it") from error
    pixels = np.asarray(ImageOps.fit(upright, (size[1], size[0]), Image.Resampling.LANCZOS))
    levels = np.ascontiguousarray(np.atleast_3d(pixels).transpose(2, 0, 1))
    return 255 - levels if inverted else levels


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
