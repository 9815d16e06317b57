"""Typeset glyphs: letters and digits of many scripts drawn from the fonts that matplotlib installs, distorted at random.

They are no handwriting and no benchmark of the literature: an embedded default that needs no download.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .cache import Contents, ImageSet, stored, user_cache
from .draws import below, stream, uniform, words

if TYPE_CHECKING:
    from matplotlib.path import Path as Outline

__all__ = ["draw_glyphs", "glyph_images"]

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
    import matplotlib

    return stored(
        "glyphs",
        [user_cache()],
        signature=lambda: f"recipe {_RECIPE}, matplotlib {matplotlib.__version__}",
        build=draw_glyphs,
    )


def draw_glyphs(seed: int = 0) -> Contents:
    """Draw the glyphs: 28x28, ink bright, 20 images a class, each in a random face, weight and distortion.

    The same seed and version of matplotlib give the same images.
    """
    outlines = _outlines()
    for face in _COMPARED:
        outlines = _distinct(outlines, face)
    rasterize = _rasterizer()

    def drawings(index: int, faces: list[Outline]) -> NDArray[np.uint8]:
        key = words(stream("glyphs", seed), np.array([index], np.uint64))
        bits = words(key, np.arange(_SAMPLES * 16, dtype=np.uint64)).reshape(_SAMPLES, 16)
        return np.stack([_draw(rasterize, faces, row) for row in bits])[:, None]

    return Contents(
        image_shape=(1, _SIZE, _SIZE),
        names=[f"U+{ord(letter):04X} {unicodedata.name(letter)}" for letter in outlines],
        counts=[_SAMPLES] * len(outlines),
        chunks=(drawings(index, list(faces.values())) for index, faces in enumerate(outlines.values())),
    )


def _outlines() -> dict[str, dict[str, Outline]]:
    """The centered outline of every letter and digit in every face that has it, its longer side 20 pixels."""
    import matplotlib
    from matplotlib.font_manager import FontProperties
    from matplotlib.ft2font import FT2Font
    from matplotlib.path import Path as Outline
    from matplotlib.textpath import TextPath

    folder = Path(matplotlib.get_data_path(), "fonts", "ttf")
    faces = {face: str(folder / f"{face}.ttf") for face in _FACES}
    covered = {face: set(FT2Font(file).get_charmap()) for face, file in faces.items()}

    def outline(letter: str, face: str) -> Outline:
        path = TextPath((0, 0), letter, size=100, prop=FontProperties(fname=faces[face]))
        box = path.get_extents()
        center = (box.p0 + box.p1) / 2
        return Outline((path.vertices - center) * (_HEIGHT / max(box.width, box.height)), path.codes)

    letters = [chr(code) for low, high in _SCRIPTS.values() for code in range(low, high + 1)]
    return {
        letter: {face: outline(letter, face) for face in _FACES if ord(letter) in covered[face]}
        for letter in letters
        # An accented letter decomposes into its base, and differs from it by a few pixels.
        if unicodedata.category(letter) in ("Lu", "Ll", "Lo", "Nd")
        and not unicodedata.decomposition(letter)
        and ord(letter) in covered[_COMPARED[0]]
    }


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


def _distinct(outlines: dict[str, dict[str, Outline]], face: str) -> dict[str, dict[str, Outline]]:
    """The glyphs without those that look, in ``face``, like an earlier one that stays."""
    from scipy.ndimage import gaussian_filter

    rasterize = _rasterizer()

    def unit(images: NDArray[np.float64]) -> NDArray[np.float64]:
        flat = images.reshape(len(images), -1)
        flat = flat - flat.mean(axis=1, keepdims=True)
        return flat / np.linalg.norm(flat, axis=1, keepdims=True)

    kept: dict[str, dict[str, Outline]] = {}
    seen = np.empty((len(outlines), _SIZE * _SIZE))
    count = 0
    for letter, faces in outlines.items():
        if face in faces:
            image = gaussian_filter(rasterize(faces[face], 0.6).astype(np.float64), 0.7)
            shifted = unit(np.stack([np.roll(image, shift, (0, 1)) for shift in _SHIFTS]))
            if (seen[:count] @ shifted.T).max(initial=0.0) > _ALIKE:
                continue
            seen[count] = unit(image[None])[0]
            count += 1
        kept[letter] = faces
    return kept


def _draw(
    rasterize: Callable[[Outline, float], NDArray[np.uint8]], faces: list[Outline], bits: NDArray[np.uint64]
) -> NDArray[np.uint8]:
    """One distorted image: a bend of the outline, then stretch, slant, rotation and shift, then a stroke along it."""
    from matplotlib.path import Path as Outline

    outline = faces[int(below(bits[:1], np.uint64(len(faces)))[0])]
    unit = uniform(bits[1:], -1.0, 1.0)
    wave = np.sin(outline.vertices[:, ::-1] * (0.25 + 0.1 * unit[0:2]) + np.pi * unit[2:4])
    bent = outline.vertices + _WARP * unit[4:6] * wave
    turn = _ROTATION * unit[6]
    slanted = np.array([[1.0, _SLANT * unit[7]], [0.0, 1.0]]) @ np.diag(0.925 + _STRETCH * unit[8:10])
    matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) @ slanted
    return rasterize(Outline(bent @ matrix.T + _SHIFT * unit[10:12], outline.codes), _WEIGHT * (unit[12] + 1) / 2)
