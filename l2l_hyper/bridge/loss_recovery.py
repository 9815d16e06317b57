"""What a loss is about, recovered from its value and derivatives: ``adapt(loss)`` never shows the labels."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from ..errors import InputError
from .loss_explanations import Array, Kind, Seen, explained, one_hot, softmax, uniform_factors, weighted_factors

__all__ = ["Recovered", "cross_entropy_scale", "recover"]


@dataclass(frozen=True, eq=False)
class Recovered:
    """Targets of N samples, and what each of them weighs in the loss.

    Attributes:
        kind: "classes" for cross-entropy and its kin, "values" for squared error.
        targets: one-hot or soft class targets, or values, shape ``(N, C)``; those of a sample of weight 0 mean nothing.
        weights: weight per sample, shape ``(N,)``: 1 in the mean over all N samples (for values: and all C outputs),
            N (or N·C) in their sum, 0 for a sample that is not in the loss.
        scale: mean of ``weights``: 1 for a mean, also one over a part of the samples or by class weights; 1/16 for
            ``loss / 16``.
    """

    kind: Kind
    targets: Tensor
    weights: Tensor
    scale: float


@torch.no_grad()
def recover(
    logits: Tensor, delta: Tensor, loss: Tensor, labels: Any = None, *, at: Tensor | GradientEdge | None = None
) -> Recovered:
    r"""Targets, weights and scale of a loss from its value, its derivative and its curvature by the logits.

    Value and derivative alone tell neither a squared error of any scale from a weighted one, nor soft labels from
    weighted samples; products with the Hessian do.  An explanation is accepted only if it gives all that is seen to
    working precision, see :mod:`l2l_hyper.bridge.loss_explanations`:

    - cross-entropy of any scale, with class or sample weights, ``ignore_index``, label smoothing, of logits times any
      positive number; with soft labels or mixtures where all samples weigh the same (also as ``kl_div``);
    - squared error of any scale and any weight per sample (also Huber's and smooth L1's in their quadratic part);
    - binary cross-entropy with one-hot targets, and ``multi_margin_loss``.

    Label smoothing of two classes is the same loss as soft labels of one confidence: it is read as smoothing up to 0.3.

    Args:
        logits: outputs of the last layer, shape ``(N, C)``.
        delta: ``torch.autograd.grad(loss, logits, create_graph=True)``, shape ``(N, C)``.
        loss: the loss, a scalar.
        labels: the labels where the caller knows them: integers ``(N,)`` or ``(N, 1)``, -100 for a sample to leave out;
            one-hot or soft labels or values ``(N, C)``; a tensor, array or list.  Those of tokens have one dimension
            more, and each token is a sample.  They are checked against the loss
            where it shows its own.  Where it does not show weights, every sample weighs 1, and the scale is that of the
            cross-entropy or squared error whose derivative is nearest.
        at: what ``delta`` is the derivative by, where that is an edge of the graph instead of ``logits``.

    Raises:
        InputError: if no explanation fits, or several do; if a prediction is too certain to show its label; if
            ``labels`` are not those of the loss.

    Example:
        >>> logits = torch.randn(4, 3, requires_grad=True)
        >>> labels = torch.tensor([2, 0, -100, 1])
        >>> loss = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.1) / 16
        >>> (delta,) = torch.autograd.grad(loss, logits, create_graph=True)
        >>> recovered = recover(logits, delta, loss)
        >>> recovered.targets.argmax(-1)[recovered.weights > 0].tolist(), round(16 * recovered.scale, 4)
        ([2, 0, 1], 1.0)
    """
    seen = Seen(logits, delta, loss, logits if at is None else at)
    with np.errstate(all="ignore"):
        return _recovered(seen, delta) if labels is None else _checked(seen, delta, labels)


@torch.no_grad()
def cross_entropy_scale(logits: Tensor, delta: Tensor) -> float | None:
    r"""Scale of a cross-entropy from its derivative alone, :math:`\sum_n s_n` of :math:`\delta_n = s_n (p_n - t_n)`.

    Labels may be one-hot with any weights, or smoothed with one weight.  A sample without derivative counts as the
    others do if its prediction is too certain to have one.

    Args:
        logits: shape ``(N, C)``.
        delta: derivative of the loss by them, shape ``(N, C)``.

    Returns:
        1 for the mean, N for the sum, as :attr:`Recovered.scale`; ``None`` for any other loss.
    """
    seen = Seen(logits, delta, delta.new_zeros(()), logits)
    with np.errstate(all="ignore"):
        t, s = weighted_factors(seen)
        if s is not None and seen.c == 2:  # any rows that sum to zero fit, so the factor has to be one per class
            per_class = [s[(label[:, None] > 0) & (s > 0)] for label in t.T]
            same = all(np.ptp(f) <= 8 * seen.error().max() * f.max() for f in per_class if len(f))
            s = s if same else None
        if s is None:
            s = uniform_factors(seen)
        if s is None or not s.any():
            return None
        used = s[s > 0]
        return float(s.sum() + used.mean() * seen.hidden(s == 0, softmax(seen.o), used.min()).sum())


def _recovered(seen: Seen, like: Tensor) -> Recovered:
    kind, targets, s = explained(seen)
    weights = s[:, 0] * seen.n * (1 if kind == "classes" else seen.c)
    return Recovered(kind, _tensor(targets, like), _tensor(weights, like), float(weights.mean()))


def _checked(seen: Seen, like: Tensor, labels: Any) -> Recovered:
    """The labels given, with the weights that the loss shows, unless it shows other labels."""
    y = _array(labels)
    kind, t, known = _read(y, seen.n, seen.c)
    targets, counts = _tensor(t, like), _tensor(known, like)
    try:
        found = _recovered(seen, like)
    except InputError:  # which is why the labels are given
        g = (softmax(seen.o) - t if kind == "classes" else (seen.o - t) * 2 / seen.c) * seen.live
        scale = float((seen.d * g).sum() / (g * g).sum()) * seen.n
        if not 0 < scale < math.inf:
            raise InputError("the loss does not fall towards the labels given; give those of the loss") from None
        return Recovered(kind, targets, counts, scale)
    if found.kind == "values" and y.dtype.kind == "f":
        kind = "values"
    bound = 1e-3 + torch.as_tensor(4 * seen.error()).to(like) * (1 + targets.abs())
    other = ((found.targets - targets).abs() > bound).any(1) & (counts * found.weights > 0)
    shown = kind == "values" or bool(((found.targets == 0) | (found.targets == 1)).all())
    if found.kind == kind and shown and other.any():
        samples = other.nonzero().flatten().tolist()
        raise InputError(f"the loss has other labels than those given, for samples {samples}; give those of the loss")
    return replace(found, kind=kind, targets=targets, weights=found.weights * counts)


def _read(y: Any, n: int, c: int) -> tuple[Kind, Array, Array]:
    """Kind and targets ``(N, C)`` from labels in any form, and 1 for the samples that have one."""
    if y.size == n:  # also those of tokens (N, L), each of which is a row of the logits
        y = y.reshape(n) if c > 1 else y.reshape(n, 1)
    elif y.ndim > 2 and y.size == n * c:
        y = y.reshape(n, c)
    if y.shape == (n,) and y.dtype.kind in "iub":
        y = y.astype(np.int64)
        known = y != -100
        y = np.where(known, y, 0)
        if y.min() < 0 or y.max() >= c:
            raise InputError(f"expected labels from 0 to {c - 1} for {c} outputs, got {y.min()} to {y.max()}")
        return "classes", one_hot(y, c), known.astype(float)
    if y.shape != (n, c):
        raise InputError(f"expected integer labels ({n},) or values ({n}, {c}), got {y.dtype} of shape {y.shape}")
    y = y.astype(float)
    shares = c > 1 and (y >= 0).all() and (np.abs(y.sum(1) - 1) < 1e-3).all()
    return "classes" if shares else "values", y, np.ones(n)


def _array(labels: Any) -> Any:
    try:
        y = torch.as_tensor(labels).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"expected labels as a tensor, array or list, got {type(labels).__name__}: {error}") from None
    return (y.float() if y.is_floating_point() else y).numpy()


def _tensor(array: Array, like: Tensor) -> Tensor:
    return torch.from_numpy(array).to(like.dtype).to(like.device)
