"""A picture of one episode of images: the support set, the queries, and what is predicted for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike, NDArray

from ..errors import InputError
from .escape import for_plot
from .style import WIDTH, array, styled

__all__ = ["episode_figure"]

_SHOTS, _QUERIES, _COLUMNS = 5, 40, 8  # support images per class and queries at most; cells across the page
_IMAGE, _LINE = 0.92, 0.17  # size of an image and height of a line of text, in cells
_RIGHT, _WRONG, _UNKNOWN = "#0072B2", "#D55E00", "#666666"


@styled
def episode_figure(
    support: ArrayLike,
    support_labels: ArrayLike,
    query: ArrayLike,
    probabilities: ArrayLike,
    *,
    query_labels: ArrayLike | None = None,
    class_names: Sequence[str] | None = None,
    title: str = "",
) -> Figure:
    """Draw the support set, and every query above its most probable class.

    All images are scaled by the smallest and the largest value of the episode, so normalized ones may be given as
    they are.  Five support images per class and forty queries are drawn at most; the figure says of how many.

    Args:
        support: images with shape ``(N, channels, height, width)``, ``(N, height, width, channels)`` or
            ``(N, height, width)``, with 1 or 3 channels.
        support_labels: their classes with shape ``(N,)``, counted from 0.
        query: images like those of the support set, with shape ``(M, ...)``.
        probabilities: of every class for every query, with shape ``(M, ways)``: the softmax of the outputs.
        query_labels: their true classes with shape ``(M,)``, if known: what is wrong is marked.
        class_names: a name per class; "class 0" and so on if left out.
        title: of the figure.

    Raises:
        InputError: when shapes do not fit, labels are out of range, or the samples are no images.

    >>> import torch
    >>> support, query = torch.rand(4, 1, 28, 28), torch.rand(3, 1, 28, 28)
    >>> figure = episode_figure(support, [0, 0, 1, 1], query, torch.rand(3, 2).softmax(1), class_names=["cat", "dog"])
    >>> figure.savefig("episode.png")  # doctest: +SKIP
    """
    shown, asked, shares = _images(support, "support"), _images(query, "query"), array(probabilities)
    if shares.ndim != 2 or len(shares) != len(asked) or not shares.size:
        raise InputError(f"expected probabilities of shape ({len(asked)}, ways), a row per query, got {shares.shape}")
    ways = shares.shape[1]
    labels = _labels(support_labels, len(shown), ways, "support")
    truth = None if query_labels is None else _labels(query_labels, len(asked), ways, "query")
    if class_names is not None and len(class_names) != ways:
        raise InputError(f"expected {ways} class names, one per column of the probabilities, got {len(class_names)}")
    names = class_names or [f"class {i}" for i in range(ways)]
    values = np.concatenate([shown.ravel(), asked.ravel()])
    low, high = values.min(), values.max()
    predicted = shares.argmax(axis=1)
    drawn = [np.flatnonzero(labels == k)[:_SHOTS] for k in range(ways)]
    blocks = 2 if max(map(len, drawn)) <= 2 else 1  # classes side by side
    said = [[for_plot(names[k], width=12), f"{100 * row[k]:.0f} %"] for k, row in zip(predicted, shares, strict=True)]
    wrong = predicted != (predicted if truth is None else truth)
    for i, k in enumerate([] if truth is None else truth):
        if wrong[i]:
            said[i].append(f"is {for_plot(names[k], width=10)}")
    texts = ["\n".join(lines) for lines in said[:_QUERIES]]

    # One unit is a cell; y grows downwards.
    cell = _IMAGE + 0.12 + 0.135 * max(1 + text.count("\n") for text in texts)
    of_support = _LINE * (2 + 2 * bool(title))
    of_queries = of_support + -(-ways // blocks) + 3 * _LINE
    height = of_queries + -(-len(texts) // _COLUMNS) * cell
    figure = Figure(figsize=(WIDTH, WIDTH / _COLUMNS * height))
    figure.set_layout_engine("none")
    axes = figure.add_axes((0, 0, 1, 1), frameon=False, xticks=[], yticks=[])

    def draw(image: NDArray[np.float64], x: float, y: float, **frame: Any) -> None:
        scaled = (image - low) / (high - low or 1)
        axes.imshow(scaled, cmap="gray", vmin=0, vmax=1, extent=(x, x + _IMAGE, y + _IMAGE, y), interpolation="nearest")
        axes.plot([x, x, x + _IMAGE, x + _IMAGE, x], [y, y + _IMAGE, y + _IMAGE, y, y], **frame)

    def write(box: tuple[float, float, float, float], x: float, text: str, **style: Any) -> None:
        """Text within a box of left, top, width and height: letters that are wider than most are cut off there."""
        within = Rectangle(box[:2], *box[2:], transform=axes.transData)
        y = box[1] + box[3] / 2 if style.get("va") == "center" else box[1]
        drawn = axes.text(x, y, text, clip_on=True, **{"va": "top", "fontsize": 8, **style})
        drawn.set_clip_path(within)

    def write_line(y: float, text: str, **style: Any) -> None:
        write((0, y, _COLUMNS, 2 * _LINE), 0.04, text, **style)

    write_line(0.04, for_plot(title), weight="bold")
    write_line(of_support - 1.6 * _LINE, f"support set{_part(sum(map(len, drawn)), len(labels))}")
    for k, members in enumerate(drawn):
        x, y = _COLUMNS / blocks * (k % blocks), of_support + k // blocks
        write((x, y, 1.9, _IMAGE), x + 1.85, for_plot(names[k], width=20), ha="right", va="center", fontsize=7)
        for nth, image in enumerate(shown[members]):
            draw(image, x + 1.95 + nth, y, color=_UNKNOWN, linewidth=0.5)
    right = "" if truth is None else f"; {int((~wrong).sum())} of {len(truth)} right, the others have a thick frame"
    write_line(of_queries - 1.9 * _LINE, f"queries{_part(len(texts), len(asked))}{right}")
    for i, text in enumerate(texts):
        x, y = i % _COLUMNS + (1 - _IMAGE) / 2, of_queries + i // _COLUMNS * cell
        color = _UNKNOWN if truth is None else _WRONG if wrong[i] else _RIGHT
        draw(asked[i], x, y, color=color, linewidth=2 if wrong[i] else 0.5)
        write((x, y + _IMAGE + 0.05, _IMAGE, cell), x, text, color=color, fontsize=6, linespacing=1.1)
    axes.set(xlim=(0, _COLUMNS), ylim=(height, 0), aspect="equal")
    return figure


def _part(drawn: int, of: int) -> str:
    return "" if drawn == of else f": {drawn} of {of} are drawn"


def _images(samples: ArrayLike, of: str) -> NDArray[np.float64]:
    """Images as ``(N, height, width)`` or ``(N, height, width, 3)``."""
    images = array(samples)
    shape = images.shape
    if images.ndim == 4 and images.shape[1] in (1, 3):
        images = np.moveaxis(images, 1, 3)
    if images.ndim == 4 and images.shape[3] == 1:
        images = images[..., 0]
    if not images.size or images.ndim != 3 and images.shape[3:] != (3,):
        raise InputError(f"expected {of} images (N, channels, height, width) with 1 or 3 channels, got shape {shape}")
    if not np.isfinite(images).all():
        raise InputError(
            f"expected {of} images of finite values, got some that are not: look at how they are normalized"
        )
    return images


def _labels(values: ArrayLike, samples: int, ways: int, of: str) -> NDArray[np.int64]:
    labels = array(values)
    if labels.shape != (samples,) or not np.isin(labels, np.arange(ways)).all():
        raise InputError(
            f"expected {samples} {of} labels from 0 to {ways - 1}, one per image, got {labels.tolist()!r:.80}"
        )
    return labels.astype(np.int64)
