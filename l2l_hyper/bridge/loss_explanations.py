"""What a loss may be, each explanation with its formula: it is accepted if it gives all that is seen of the loss."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.graph import GradientEdge

from ..errors import InputError

__all__ = ["Array", "Found", "Kind", "Seen", "explained", "one_hot", "softmax", "uniform_factors", "weighted_factors"]

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Kind = Literal["classes", "values"]
Found = tuple[Kind, Array, Array]
"""Kind, targets (N, C), and factor per sample (N, 1) of its loss, which for values is summed over outputs."""

_TINY = 1e-300


class Seen:
    """What is seen of a loss at logits o ``(N, C)``: value, derivative δ and Hessian H, and how exact they are.

    Args:
        logits: shape ``(N, C)``, or with leading dimensions of one.
        delta: derivative of the loss, shape ``(N, C)``.
        loss: its value.
        at: what ``delta`` is the derivative by.
    """

    def __init__(self, logits: Tensor, delta: Tensor, loss: Tensor, at: Tensor | GradientEdge) -> None:
        if delta.ndim != 2 or logits.numel() != delta.numel():
            raise InputError(f"expected logits (N, C), got {tuple(delta.shape)}; use adapt(support=(x, y))")
        self.o, self.d, self.value = _exact(logits).reshape(delta.shape), _exact(delta), float(loss)
        self.n, self.c = self.d.shape
        self.live: Mask = (self.d != 0).any(1, keepdims=True)
        # Nothing is taken to be more exact than 1e-11, since torch adds 1e-12 to what it divides by.
        self.eps, self._eps_of_loss = (max(torch.finfo(t.dtype).eps, 1e-11) for t in (delta, loss))
        self.normal = 4 * torch.finfo(delta.dtype).tiny  # a derivative above it has all its digits
        self.floor = min(torch.finfo(delta.dtype).tiny, 1e-7)  # one below it may round to zero
        self._delta, self._at = delta, at

    def curvature(self, v: Array) -> Array | None:
        """H v, shape ``(N, C)``; None if the loss does not differentiate twice."""
        if not self._delta.requires_grad:
            return None
        along = torch.from_numpy(v).to(self._delta.dtype).to(self._delta.device)
        try:
            (hv,) = torch.autograd.grad(self._delta, self._at, along, retain_graph=True, allow_unused=True)
        except RuntimeError:  # how torch says that a loss has no second derivative, as multi_margin_loss
            return None
        return None if hv is None else _exact(hv).reshape(self.d.shape)

    def error(self, factor: float = 1.0) -> Array:
        """Relative error of softmax(factor · o), shape ``(N, 1)``; that of an exponential grows with its argument."""
        size = np.ptp(self.o, 1) if factor == 1 else factor * np.abs(self.o).max(1)
        return np.asarray(2 * self.eps + 2 * self._eps_of_loss * (1 + size[:, None]))

    def amounts_to(self, terms: Array, error: Array) -> bool:
        """Whether the loss is the sum of these terms."""
        return bool(abs(self.value - terms.sum()) <= error.sum() + self.floor)

    def hidden(self, absent: Mask, p: Array, s: float) -> Mask:
        """Samples without derivative that may be in the loss, as their prediction p is too certain to have one."""
        second = np.sort(p, 1)[:, -2:].min(1, keepdims=True)
        return np.asarray(absent & (min(s, 1.0) * second < 4 * self.floor))


def explained(seen: Seen) -> Found:
    """The loss that has this value, derivative and curvature; InputError with what is seen if none or several have."""
    if not seen.live.any():
        raise refusal("the derivative of the loss by the outputs is zero, so it shows no labels")
    for explanation in (_hard_cross_entropy, _cross_entropy, _elementwise, _multi_margin):
        found = explanation(seen)
        if found is not None:
            return found
    if np.abs(seen.d.sum(1)).max() <= 100 * seen.eps * np.abs(seen.d).max():
        reason = "its rows sum to zero, as those of a focal loss, of a margin, or of logits that were changed"
    else:
        reason = "its rows do not sum to zero, and it is not in proportion to an error"
    if seen.c > 2 and weighted_factors(seen)[1] is not None:
        reason = "it points to labels, but with another value or curvature: a focal loss, or one with another term"
    elif seen.curvature(np.ones_like(seen.d)) is None:
        reason += "; and it cannot be differentiated again (is create_graph=True missing?)"
    raise refusal(
        f"the derivative of the loss by the outputs is not that of a cross-entropy or a squared error: {reason}"
    )


def weighted_factors(seen: Seen) -> tuple[Array, Array | None]:
    """δ_n = s_n (p_n − e_y), where δ is s p but at the label: one-hot e_y, and s ``(N, 1)`` if δ is that."""
    p, d = softmax(seen.o), seen.d
    s = np.where(p > seen.normal, d / p, 0.0).max(1, keepdims=True)
    t = one_hot((s * p - d).argmax(1), seen.c)
    s = ((1 - t) * d).sum(1, keepdims=True) / np.maximum(((1 - t) * p).sum(1, keepdims=True), _TINY)
    fits = np.abs(d - s * (p - t)) <= seen.error() * s * (p + t) + seen.floor
    return t, s if fits.all() and ((s > 0) == seen.live).all() else None


def uniform_factors(seen: Seen) -> Array | None:
    """δ = s (p − t) with one s, where t has one value at the labels and a lower one elsewhere: s ``(N, 1)``."""
    p, d, live = softmax(seen.o), seen.d, seen.live
    row = d.min(1).argmin()
    x, z = (values[row][d[row] > d[row].min()] for values in (p, d))
    slope = (z[x.argmax()] - z[x.argmin()]) / np.ptp(x) if len(x) > 1 else 0.0
    for s in (slope, 1 / seen.n, 1.0):
        t = p - d / s
        label = one_hot(t.argmax(1), seen.c)
        high, low = ((t * at * live).sum() / (at * live).sum() for at in (label, 1 - label))
        if 0 < low < high and (live * np.abs(t - low - (high - low) * label) <= 8 * seen.error()).all():
            return np.asarray(s * live)
    return None


def _hard_cross_entropy(seen: Seen) -> Found | None:
    """L = −Σ s_n log p_ny, with δ_n = s_n (p_n − e_y): hard labels, which need no curvature."""
    t, s = weighted_factors(seen)
    error, live = seen.error(), seen.live
    if s is None or error.max() > (0.03 if seen.c == 2 else 0.25):  # of half precision, and logits that differ much
        return None
    p, cross = softmax(seen.o), -(t * _log_softmax(seen.o)).sum(1, keepdims=True)
    one = s[np.abs(seen.d).sum(1).argmax()]
    shown = live & (t == 0) & (seen.d > seen.normal)  # classes whose δ / p is s
    if (np.abs(seen.d - live * one * (p - t)) <= 4 * (error * one * (p + t) + seen.floor)).all():
        s = live * one
        margin = np.minimum(100 * error, 0.2)
        others = p[shown & (p < 1 - margin)]
        varied = len(others) > 1 and others.max() > (1 + margin.max()) * others.min()
        uncertain = (live & (1 - p.max(1, keepdims=True) > margin)).any()
        is_sure = varied or (len(others) and uncertain)  # else the logits may have been multiplied, and s divided
    else:  # of two classes, any rows that sum to zero fit
        is_sure = (~live | (shown.sum(1, keepdims=True) > 1)).all()
        is_sure &= (error * s * (1 + cross)).sum() < seen.value / 10
    if not is_sure or not seen.amounts_to(s * cross, error * s * (1 + cross)):
        return None
    _check_absent(seen, ~live, p, s)
    return "classes", t, s


def _cross_entropy(seen: Seen) -> Found | None:
    """L = −Σ a_nj log q_nj with q = softmax(c o): δ = c (A q − a) with A_n = Σ_j a_nj, and H e_k = c² A q_k (e_k − q).

    With k the largest logit, the curvature gives c and A, and then δ gives a ≥ 0, whatever labels and weights are.
    """
    top = one_hot(seen.o.argmax(1), seen.c)
    hv = seen.curvature(top)
    if hv is None or seen.c == 1:
        return None
    off = -np.where(top, 0.0, hv)
    live = off.sum(1, keepdims=True) > seen.normal
    if (off < 0).any() or not off.any():
        return None
    if (~live & ((off != 0) | (seen.d != 0))).any():
        reason = "or some of their outputs are not in the loss, as with dropout after the last layer"
        raise refusal(f"the predictions of samples {_listed(~live)} are too certain to show their labels, {reason}")
    for c, doubt in _factors(seen, off, top, live):
        q, log_q, error = softmax(c * seen.o), _log_softmax(c * seen.o), 4 * (seen.error(c) + doubt)
        shape = q.max(1, keepdims=True) * np.where(top, 0.0, q)  # of H e_k, beside c² A
        total = live * off.sum(1, keepdims=True) / np.maximum(c**2 * shape.sum(1, keepdims=True), _TINY)
        a = total * q - seen.d / c
        slack = error * total * (1 - log_q.min(1, keepdims=True))
        if (
            error.max() > 0.1
            or slack.sum() > seen.value / 10  # then the value of the loss confirms nothing
            or (np.abs(off - c**2 * total * shape) > error * off + seen.floor).any()
            or (a < -error * total).any()
        ):
            continue
        a = a.clip(0)
        cross = -a * log_q
        divergence = cross + a * np.log(np.maximum(a, _TINY) / np.maximum(total, _TINY))  # as in kl_div
        if seen.amounts_to(cross, slack) or seen.amounts_to(divergence, slack):
            found = _class_targets(seen, a, total, error)
            if found is None:
                raise refusal("weights, label smoothing and soft labels of the loss cannot be told apart")
            _check_absent(seen, ~live, q, total)
            return found
    return None


def _factors(seen: Seen, off: Array, top: Array, live: Mask) -> Iterator[tuple[float, float]]:
    """Numbers by which the logits may have been multiplied, and their relative errors: 1, and what H e_k shows."""
    yield 1.0, 0.0
    if seen.c > 2:  # log(off) is c o and a constant per sample, so c is a slope
        used = live & (off > seen.normal)
        count = np.maximum(used.sum(1, keepdims=True), 1)
        o, z = (np.where(used, x, 0.0) for x in (seen.o, np.log(np.maximum(off, _TINY))))
        o, z = (np.where(used, x - x.sum(1, keepdims=True) / count, 0.0) for x in (o, z))
        c = float((o * z).sum() / (o * o).sum())
        if 0 < c < math.inf and used.sum() > live.sum() + 1:
            yield c, float(2 * seen.error(c).max() / np.sqrt((o * o).sum()) / c)
        return
    # Where the prediction is right, −off / δ_k = c q_k = c / (1 + exp(−c gap)), which grows with c.
    d = (-seen.d * top).sum(1)
    row = d.argmax()
    if d[row] > 0:
        ratio, gap = float(off[row].sum() / d[row]), float(np.ptp(seen.o[row]))
        low, high = ratio, 2 * ratio
        for _ in range(60):
            c = (low + high) / 2
            low, high = (c, high) if c < ratio * (1 + math.exp(-c * gap)) else (low, c)
        yield low, float(4 * seen.error(low)[row, 0] / max(1 - ratio / low, _TINY))  # of 1 − q_k


def _class_targets(seen: Seen, a: Array, total: Array, error: Array) -> Found | None:
    """Labels from a_n = s_n e_y; smoothed, s w_y (1 − ε) e_y + s w ε / C with weights w per class; or soft, s t."""
    t = a / np.maximum(total, _TINY)
    hard = one_hot(t.argmax(1), seen.c)
    live = total[:, 0] > 0
    if (np.abs(t - hard)[live] <= 2 * error[live]).all():
        return "classes", hard, total
    b, noise = a[live], (error * total)[live]
    # Samples that are all alike show no class weights: then only a mean or a sum tells that there are none.
    alike = bool((np.abs(t[live] - t[live][0]) <= 2 * error[live]).all())
    is_exact = error.max() < 2e-3
    whole = is_exact and min(abs(total.sum() / size - 1) for size in (1, len(b), len(b) / seen.n)) <= 4 * error.max()
    # What smoothing gives each class: the least over samples, of which some are of another class.
    rest = np.full(seen.c, (b[0].sum() - b[0].max()) / (seen.c - 1)) if alike else b.min(0)
    label = one_hot((b / np.maximum(rest, _TINY)).argmax(1), seen.c)
    times = (label * b).sum() / max((label * rest).sum(), _TINY)
    smoothed = rest * (1 + (times - 1) * label)
    if (rest > 2 * noise.max()).all() and (np.abs(b - smoothed) <= 2 * noise * (1 + label * times)).all() and times > 1:
        epsilon = seen.c / (times - 1 + seen.c)
        if (alike and not whole) or (seen.c == 2 and (alike or epsilon > 0.301)):
            return None
        hard[live] = label
        s = np.zeros_like(total)
        s[live] = ((b - rest) * label).sum(1, keepdims=True) / (1 - epsilon)
        return "classes", hard, s
    one_weight = (np.abs(total[live] / total[live].mean() - 1) <= 4 * error.max()).all()
    return ("classes", t, total) if one_weight and (whole or not alike) and is_exact else None


def _elementwise(seen: Seen) -> Found | None:
    """L = Σ s_n (o − y)², with δ = 2 s (o − y) and H = 2 s; or L = −Σ s_n log σ(±o), δ = s (σ(o) − y), H = s σ (1 − σ).

    The curvature gives s, and then δ gives y.
    """
    signs = np.resize([1.0, -1.0], seen.d.shape)
    h, hv = seen.curvature(np.ones_like(seen.d)), seen.curvature(signs)
    if h is None or hv is None or not h.any() or (np.abs(hv - h * signs) > 8 * seen.eps * h).any():
        return None  # H is not diagonal and positive
    if ((h == 0) & (seen.d != 0)).any():
        raise refusal(
            "some outputs have a derivative but no curvature, as where an error is past the quadratic part of a Huber "
            "or smooth L1 loss, or a prediction is too certain; they show no target"
        )
    s, error = h.mean(1, keepdims=True) / 2, np.full((seen.n, 1), 8 * seen.eps)
    if (np.abs(h - 2 * s) <= error * s).all():
        y, terms = seen.o - seen.d / np.maximum(2 * s, _TINY), seen.d**2 / np.maximum(4 * s, _TINY)
        return ("values", y, s) if seen.amounts_to(terms, error * terms) else None
    p, error = 1 / (1 + np.exp(-seen.o)), 4 * seen.error()
    slope = p * (1 - p)
    s = np.take_along_axis(h / np.maximum(slope, _TINY), slope.argmax(1)[:, None], 1)
    t = one_hot((s * p - seen.d).argmax(1), seen.c)
    terms = s * (np.logaddexp(0, seen.o) - t * seen.o)
    fits = (np.abs(seen.d - s * (p - t)) <= error * s) & (np.abs(h - s * slope) <= error * s)
    if seen.c == 1 or not fits.all() or not seen.amounts_to(terms, error * (s + terms)):
        return None
    certain = slope.max(1) < 1e3 * seen.eps
    if certain.any():
        raise _too_certain(certain)
    return "classes", t, s * seen.c


def _multi_margin(seen: Seen) -> Found | None:
    """L = Σ u_n Σ_{j ≠ y} max(0, 1 − o_y + o_j): δ is u_n where that is positive, and minus their sum at the label."""
    t, u = one_hot(seen.d.argmin(1), seen.c), seen.d.max(1, keepdims=True)
    error = seen.eps * (4 + np.abs(seen.o).max(1, keepdims=True))
    on, margin = seen.d > 0, (1 - (t * seen.o).sum(1, keepdims=True) + seen.o) * (1 - t)
    fits = np.abs(seen.d - u * (on - t * on.sum(1, keepdims=True))) <= 4 * seen.c * seen.eps * u
    agrees = ((margin > 0) == on) | (np.abs(margin) <= error) | ~seen.live
    if error.max() > 0.1 or not (fits & agrees).all() or not seen.amounts_to(u * on * margin, error * u * on):
        return None
    first, second = np.sort(seen.o, 1)[:, :-3:-1].T
    past = ~seen.live[:, 0] & (first - second >= 1 - error[:, 0])
    if past.any():
        raise refusal(f"samples {_listed(past)} are past the margin, so the loss does not show whether it counts them")
    return "classes", t, seen.c * u


def refusal(reason: str) -> InputError:
    return InputError(f"{reason}; use adapt(support=(x, y)), or tell the labels: adapt(loss, labels=y)")


def _too_certain(samples: Mask) -> InputError:
    return refusal(f"the predictions of samples {_listed(samples)} are too certain to show their labels")


def _check_absent(seen: Seen, absent: Mask, p: Array, s: Array) -> None:
    hidden = seen.hidden(absent, p, float(s[s > 0].min()))
    if hidden.any():
        raise refusal(
            f"cannot tell whether samples {_listed(hidden)} are in the loss: they have no derivative, and their "
            "predictions are certain to the last digit"
        )


def _listed(samples: Mask) -> str:
    which = samples.ravel().nonzero()[0].tolist()
    return ", ".join(map(str, which[:10])) + (f" and {len(which) - 10} more" if len(which) > 10 else "")


def one_hot(labels: NDArray[np.int64], classes: int) -> Array:
    return np.eye(classes)[labels]


def softmax(o: Array) -> Array:
    return np.exp(_log_softmax(o))


def _log_softmax(o: Array) -> Array:
    shifted = o - o.max(1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(1, keepdims=True)))


def _exact(tensor: Tensor) -> Array:
    return np.asarray(tensor.detach().cpu().double().numpy(force=True))
