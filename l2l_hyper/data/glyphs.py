"""Typeset glyphs: letters and digits of many scripts from the fonts that matplotlib installs, distorted at random.

They are neither handwriting nor a benchmark of the literature, but a default that needs no download.
"""

from __future__ import annotations

import functools
import itertools
import unicodedata
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .cache import Contents, ImageSet, stored, user_cache
from .counter_random import below, stream, uniform, words
from .image_benchmark import ImageBenchmark

if TYPE_CHECKING:
    from matplotlib.path import Path as Outline

__all__ = ["GLYPHS", "draw_glyphs", "glyph_images"]

_RECIPE = 1  # part of the cached file's signature: raise it when the images change
_SIZE = 28
_SAMPLES = 20
# Upright faces only: an italic of one letter can be the regular of another (Cyrillic te and Latin m).
_FACES = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "STIXGeneral",
    "STIXGeneralBol",
)
# The faces whose images are compared for look-alikes; the first has every glyph.
_COMPARED = ("DejaVuSans", "DejaVuSerif")
# Code points, since what counts as a letter grows with Python's version. Of two look-alikes the earlier one stays.
_SCRIPTS = {
    "digits": (0x30, 0x39),
    "Latin": (0x41, 0x24F),
    "Greek": (0x391, 0x3C9),
    "Cyrillic": (0x402, 0x4FF),
    "Armenian": (0x531, 0x586),
    "Georgian": (0x10A0, 0x10F0),
    "Hebrew": (0x5D0, 0x5EA),
    "Arabic": (0x621, 0x64A),
    "Arabic digits": (0x660, 0x669),
    "Lao": (0xE81, 0xED9),
    "N'Ko": (0x7C0, 0x7EA),
    "Tifinagh": (0x2D30, 0x2D65),
    "Coptic": (0x3E2, 0x3EF),
    "Old Italic": (0x10300, 0x1031E),
    "Canadian syllabics": (0x1401, 0x1676),
}
_HEIGHT = 20.0  # pixels of a glyph's longer side, before it is distorted
# Glyphs are look-alikes if their images correlate more than this, at the best of the shifts by up to two pixels.
_ALIKE = 0.82
_SHIFTS = [(y, x) for y in range(-2, 3) for x in range(-2, 3)]
# How far images are distorted: raw-pixel nearest neighbors then get about 60 % of 5-way 1-shot queries right.
_SLANT = 0.25
_ROTATION = 0.25
_STRETCH = 0.15
_SHIFT = 2.0
_WEIGHT = 1.5
_WARP = 1.0


def glyph_images() -> ImageSet:
    """The typeset glyphs, drawn when first asked for and kept in the user's cache folder."""
    return stored(
        "glyphs",
        user_cache(),
        signature=lambda: f"recipe {_RECIPE}, matplotlib {metadata.version('matplotlib')}",
        build=draw_glyphs,
    )


GLYPHS = ImageBenchmark(
    name="glyphs",
    summary="letters and digits of many scripts typeset in matplotlib's fonts: 28x28, 342 classes, 20 images each",
    read=lambda root: [glyph_images()],
    inverted=True,
)


def draw_glyphs(seed: int = 0) -> Contents:
    """Draw the glyphs: 28x28, ink bright, 20 images per class, each in a random face, weight and distortion.

    The same seed and version of matplotlib give the same images.
    """
    outline = _outliner()
    letters = [letter for letter in _letters() if outline(letter, _COMPARED[0])]
    for face in _COMPARED:
        letters = _distinct(letters, functools.partial(outline, face=face))
    rasterize = _rasterizer()

    def drawings(index: int, letter: str) -> NDArray[np.uint8]:
        faces = [found for face in _FACES if (found := outline(letter, face=face))]
        key = words(stream("glyphs", seed), np.array([index], np.uint64))
        bits = words(key, np.arange(_SAMPLES * 16, dtype=np.uint64)).reshape(_SAMPLES, 16)
        return np.stack([_draw(rasterize, faces, row) for row in bits])[:, None]

    return Contents(
        image_shape=(1, _SIZE, _SIZE),
        names=[f"U+{ord(letter):04X} {unicodedata.name(letter)}" for letter in letters],
        counts=[_SAMPLES] * len(letters),
        chunks=itertools.starmap(drawings, enumerate(letters)),
    )


def _letters() -> list[str]:
    """The letters and digits of the scripts; accented ones are left out, being a few pixels away from their base."""
    every = (chr(code) for low, high in _SCRIPTS.values() for code in range(low, high + 1))
    return [
        c for c in every if unicodedata.category(c) in ("Lu", "Ll", "Lo", "Nd") and not unicodedata.decomposition(c)
    ]


def _outliner() -> Callable[..., Outline | None]:
    """A function from a letter and a face to its centered outline, 20 pixels long, or ``None`` if the face lacks it."""
    import matplotlib
    from matplotlib.font_manager import FontProperties
    from matplotlib.ft2font import FT2Font
    from matplotlib.path import Path as Outline
    from matplotlib.textpath import TextPath

    folder = Path(matplotlib.get_data_path(), "fonts", "ttf")
    files = {face: str(folder / f"{face}.ttf") for face in _FACES}
    covered = {face: set(FT2Font(file).get_charmap()) for face, file in files.items()}

    @functools.cache
    def outline(letter: str, face: str) -> Outline | None:
        if ord(letter) not in covered[face]:
            return None
        path = TextPath((0, 0), letter, size=100, prop=FontProperties(fname=files[face]))
        points = np.concatenate(path.to_polygons())  # on the outline, where its vertices are control points of curves
        low, high = points.min(axis=0), points.max(axis=0)
        return Outline((path.vertices - (low + high) / 2) * (_HEIGHT / (high - low).max()), path.codes)

    return outline


def _rasterizer() -> Callable[[Outline, float], NDArray[np.uint8]]:
    """A function from an outline around the origin and the width of a stroke along it to a 28x28 image."""
    from matplotlib.backends.backend_agg import RendererAgg
    from matplotlib.transforms import Affine2D

    renderer = RendererAgg(_SIZE, _SIZE, 72)
    context = renderer.new_gc()
    context.set_snap(False)
    middle = Affine2D().translate(_SIZE / 2, _SIZE / 2)

    def rasterize(outline: Outline, weight: float) -> NDArray[np.uint8]:
        renderer.clear()
        context.set_linewidth(weight)
        renderer.draw_path(context, outline, middle, (0.0, 0.0, 0.0))
        return np.asarray(renderer.buffer_rgba())[:, :, 3].copy()  # the alpha channel: how much ink a pixel has

    return rasterize


def _distinct(letters: list[str], outline: Callable[[str], Outline | None]) -> list[str]:
    """The letters without those that look like an earlier one that stays."""
    from scipy.ndimage import gaussian_filter

    rasterize = _rasterizer()

    def unit(images: NDArray[np.float64]) -> NDArray[np.float64]:
        flat = images.reshape(len(images), -1)
        flat = flat - flat.mean(axis=1, keepdims=True)
        return flat / np.linalg.norm(flat, axis=1, keepdims=True)

    kept = []
    seen = np.empty((len(letters), _SIZE * _SIZE))
    count = 0
    for letter in letters:
        if shape := outline(letter):
            image = gaussian_filter(rasterize(shape, 0.6).astype(np.float64), 0.7)
            shifted = unit(np.stack([np.roll(image, shift, (0, 1)) for shift in _SHIFTS]))
            if (seen[:count] @ shifted.T).max(initial=0.0) > _ALIKE:
                continue
            seen[count] = unit(image[None])[0]
            count += 1
        kept.append(letter)
    return kept


def _draw(
    rasterize: Callable[[Outline, float], NDArray[np.uint8]], faces: list[Outline], bits: NDArray[np.uint64]
) -> NDArray[np.uint8]:
    """One distorted image: a bend of the outline, then stretch, slant, rotation and shift, then a stroke along it."""
    from matplotlib.path import Path as Outline

    outline = faces[int(below(bits[:1], np.uint64(len(faces)))[0])]
    unit = uniform(bits[1:], -1.0, 1.0)
    vertices = np.asarray(outline.vertices, np.float64)
    wave = np.sin(vertices[:, ::-1] * (0.25 + 0.1 * unit[0:2]) + np.pi * unit[2:4])
    bent = vertices + _WARP * unit[4:6] * wave
    turn = _ROTATION * unit[6]
    slanted = np.array([[1.0, _SLANT * unit[7]], [0.0, 1.0]]) @ np.diag(0.925 + _STRETCH * unit[8:10])
    matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) @ slanted
    return rasterize(Outline(bent @ matrix.T + _SHIFT * unit[10:12], outline.codes), _WEIGHT * (unit[12] + 1) / 2)
