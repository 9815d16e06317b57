"""Generated weights in the plane of their first two principal components, coloured by task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from ..errors import InputError
from .escape import for_plot
from .style import COLORS, LABEL_WIDTH, MARKERS, array, draw_legend, styled, with_legend

__all__ = ["weights_figure"]


@styled
def weights_figure(
    weights: ArrayLike | Mapping[str, ArrayLike], tasks: ArrayLike, *, task_names: Sequence[str] | None = None
) -> Figure:
    r"""Draw what was generated for several support sets of several tasks.

    The plane is that of the two largest singular values of :math:`W - \bar W`, with a row of W for each support set.
    Marks of a task lie together where what is generated depends on the task.

    Args:
        weights: D sets of weights with shape ``(D, numbers)``, or by name with shapes ``(D, ...)``, as the ``weights``
            that ``adapt`` returns for D support sets.
        tasks: which task each support set is drawn from, whole numbers from 0, with shape ``(D,)``.
        task_names: a name per task; "task 0" and so on if left out.

    Raises:
        InputError: when there are fewer than three sets of weights, shapes do not fit, or weights are not finite.

    >>> import torch, l2l_hyper
    >>> learner = l2l_hyper.HyperAdapter(torch.nn.Linear(4, 2))
    >>> tasks = torch.arange(3).repeat(5)  # five support sets of three tasks, which differ in their mean
    >>> support, labels = torch.randn(15, 8, 4) + 3.0 * tasks[:, None, None], torch.arange(2).repeat(15, 4)
    >>> figure = weights_figure(learner.adapt_tasks(support, labels).weights, tasks)
    """
    parts = [array(part) for part in (weights.values() if isinstance(weights, Mapping) else [weights])]
    of = array(tasks)
    if of.ndim != 1 or len(of) < 3 or any(part.shape[:1] != of.shape or part.ndim < 2 for part in parts):
        raise InputError(
            "expected weights (D, numbers) and tasks (D,) for three support sets or more, got shapes "
            f"{', '.join(str(part.shape) for part in parts)} and {of.shape}"
        )
    table = np.concatenate([part.reshape(len(of), -1) for part in parts], axis=1)
    if table.shape[1] < 2:
        raise InputError("expected two weights or more per support set, got one: there is no plane to draw")
    known = np.arange(int(of.max()) + 1 if task_names is None else len(task_names))
    if not np.isfinite(table).all() or not np.isin(of, known).all():
        raise InputError(
            f"expected finite weights, and tasks from 0 to {len(known) - 1}, got {sorted(set(of.tolist()))}"
        )
    left, sizes, _ = np.linalg.svd(table - table.mean(axis=0), full_matrices=False)
    places, shares = left[:, :2] * sizes[:2], 100 * sizes**2 / (np.square(sizes).sum() or 1)
    names = [f"task {k}" for k in known] if task_names is None else task_names
    labels = [for_plot(name, width=LABEL_WIDTH) for name in names]
    figure, (axes,) = with_legend(labels)
    for k, label in enumerate(labels):
        color, marker = COLORS[k % len(COLORS)], MARKERS[k // len(COLORS) % len(MARKERS)]
        axes.plot(*places[of == k].T, marker, color=color, markersize=4, alpha=0.8, label=label)
    for axis, nth, share in zip((axes.xaxis, axes.yaxis), ("first", "second"), shares, strict=False):
        axis.set_label_text(f"{nth} component: {share:.0f} % of variance")
    draw_legend(figure)
    return figure
