"""What a loss is about, recovered from its value and derivatives: ``adapt(loss)`` never shows the labels."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge
from torch.nn import functional as F

from ..errors import InputError

__all__ = ["Recovered", "cross_entropy_scale", "recover"]

_WAY_OUT = "; use adapt(support=(x, y)), or tell the labels: adapt(loss, labels=y)"

Kind = Literal["classes", "values"]


@dataclass(frozen=True, eq=False)
class Recovered:
    """Targets of N samples, and what each of them weighs in the loss.

    Attributes:
        kind: "classes" for cross-entropy and its kin, "values" for squared error.
        targets: one-hot or soft class targets, or values, shape ``(N, C)``; those of a sample that weighs 0 mean nothing.
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
    weighted samples; two products with the Hessian do.  An explanation is accepted only if it gives all that is seen to
    working precision:

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
            one-hot or soft labels or values ``(N, C)``; a tensor, array or list.  They are checked against the loss
            where it shows its own.  Where it does not show weights, every sample weighs 1.
        at: what ``delta`` is the derivative by, where that is not ``logits`` itself but an edge of the graph.

    Raises:
        InputError: if no explanation fits, or several do; if a prediction is too certain to show its label; if the loss
            holds a term that does not depend on the outputs; if ``labels`` are not those of the loss.

    Example:
        >>> logits = torch.randn(4, 3, requires_grad=True)
        >>> loss = F.cross_entropy(logits, torch.tensor([2, 0, -100, 1]), label_smoothing=0.1) / 16
        >>> (delta,) = torch.autograd.grad(loss, logits, create_graph=True)
        >>> recovered = recover(logits, delta, loss)
        >>> recovered.targets.argmax(-1)[recovered.weights > 0].tolist(), round(16 * recovered.scale, 4)
        ([2, 0, 1], 1.0)
    """
    seen = _Seen(logits, delta, loss, logits if at is None else at)
    found = _recognised(seen) if labels is None else _checked(seen, labels)
    return replace(found, targets=found.targets.to(delta), weights=found.weights.to(delta))


@torch.no_grad()
def cross_entropy_scale(logits: Tensor, delta: Tensor) -> float | None:
    r"""Scale of a cross-entropy from its derivative alone, :math:`\sum_n s_n` of :math:`\delta_n = s_n (p_n - t_n)`.

    Labels may be one-hot with any weights, or smoothed with one weight; a sample that is predicted too certainly to show
    a derivative counts as the others do.

    Args:
        logits: shape ``(N, C)``.
        delta: derivative of the loss by them, shape ``(N, C)``.

    Returns:
        1 for the mean, N for the sum, as :attr:`Recovered.scale`; ``None`` for any other loss.
    """
    seen = _Seen(logits, delta, delta.new_zeros(()), logits)
    s = _hard(seen)[1]
    if s is None or (seen.c == 2 and not _same(s[s > 0], seen.error().amax())):
        s = _smoothed(seen)
    if s is None:
        return None
    hidden = seen.hidden(s == 0, seen.o.softmax(1), float(s[s > 0].min()))
    return float(s.sum() + s[s > 0].mean() * hidden.sum())


class _Seen:
    """What is seen of a loss, in float64, and how precise it is."""

    def __init__(self, logits: Tensor, delta: Tensor, loss: Tensor, at: Tensor | GradientEdge) -> None:
        if delta.ndim != 2 or logits.numel() != delta.numel():
            raise InputError(f"expected logits (N, C), got {tuple(delta.shape)}; use adapt(support=(x, y))")
        self.o, self.d, self.value = _exact(logits).reshape(delta.shape), _exact(delta), float(loss)
        self.n, self.c = delta.shape
        self.eps, self.eps_of_loss = torch.finfo(delta.dtype).eps, torch.finfo(loss.dtype).eps
        self.floor = min(torch.finfo(delta.dtype).tiny, 1e-7)  # below it a derivative may round to zero
        self._delta, self._at = delta, at

    def curvature(self, v: Tensor) -> Tensor | None:
        """The Hessian of the loss times v, shape ``(N, C)``; None if the loss does not differentiate twice."""
        if not self._delta.requires_grad:
            return None
        given = {"grad_outputs": v.to(self._delta), "retain_graph": True, "allow_unused": True}
        try:
            (hv,) = torch.autograd.grad(self._delta, self._at, **given)  # type: ignore[arg-type]
        except RuntimeError:  # how torch says that a loss has no second derivative, as multi_margin_loss
            return None
        return None if hv is None else _exact(hv)

    def error(self, factor: float = 1.0) -> Tensor:
        """Relative error of softmax(factor · o), shape ``(N, 1)``; that of an exponential grows with its argument."""
        size = self.o.amax(1) - self.o.amin(1) if factor == 1 else factor * self.o.abs().amax(1)
        return 2 * self.eps + 2 * self.eps_of_loss * (1 + size.unsqueeze(1))

    def amounts_to(self, terms: Tensor, error: Tensor) -> bool:
        """Whether the loss is the sum of these terms."""
        return abs(self.value - float(terms.sum())) <= float(error.sum()) + self.floor

    def hidden(self, absent: Tensor, p: Tensor, s: float) -> Tensor:
        """Which samples without a derivative may be in the loss, as their predictions are too certain to have one."""
        second = p.topk(min(2, self.c)).values[:, -1:]
        return absent & (min(s, 1.0) * second < 4 * self.floor)

    def check_absent(self, absent: Tensor, p: Tensor, s: float) -> None:
        samples = self.hidden(absent, p, s).flatten().nonzero().flatten().tolist()
        if samples:
            raise InputError(
                f"cannot tell whether samples {samples} are in the loss: they have no derivative, and their predictions "
                "are certain to the last digit" + _WAY_OUT
            )

    def classes(self, targets: Tensor, s: Tensor) -> Recovered:
        """Class targets, from the factor ``(N, 1)`` of each sample's cross-entropy."""
        return Recovered("classes", targets, self.n * s.squeeze(1), float(s.sum()))

    def elementwise(self, kind: Kind, targets: Tensor, s: Tensor) -> Recovered:
        """Targets, from the factor ``(N, 1)`` of each sample's loss summed over outputs."""
        return Recovered(kind, targets, self.n * self.c * s.squeeze(1), self.c * float(s.sum()))


def _exact(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float64)


def _one_hot(labels: Tensor, classes: int) -> Tensor:
    return F.one_hot(labels, classes).double()


def _same(values: Tensor, error: Tensor) -> bool:
    return bool((values - values.mean()).abs().le(4 * error * values.mean().abs()).all())


def _is_natural(s: Tensor, error: Tensor) -> bool:
    """Whether factors are those of a mean or a sum, not of a loss times some number."""
    live = int((s > 0).sum())
    return min(abs(float(s.sum()) / whole - 1) for whole in (1, live, live / len(s))) <= 4 * float(error.amax())


def _recognised(seen: _Seen) -> Recovered:
    if not seen.d.any():
        raise InputError("the derivative of the loss by the outputs is zero, so it shows no labels" + _WAY_OUT)
    for explain in (_plain_cross_entropy, _cross_entropy, _elementwise, _multi_margin):
        found = explain(seen)
        if found is not None:
            return found
    if bool((seen.d.sum(1).abs() <= 10 * seen.eps * seen.d.abs().sum(1)).all()):
        reason = "its rows sum to zero, as those of a focal loss, of a margin, or of logits that were changed"
    else:
        reason = "its rows do not sum to zero, and it is not in proportion to an error"
    if seen.curvature(torch.ones_like(seen.d)) is None:
        reason += "; and it cannot be differentiated again (is create_graph=True missing?)"
    raise InputError(
        f"the derivative of the loss by the outputs is not that of a cross-entropy or a squared error: {reason}{_WAY_OUT}"
    )


def _hard(seen: _Seen) -> tuple[Tensor, Tensor | None]:
    r"""δ_n = s_n (p_n − e_y): the label is where δ is not s p. One-hot e_y, and s ``(N, 1)`` if that is all of δ."""
    p, d = seen.o.softmax(1), seen.d
    s = torch.where(p > 1e3 * seen.floor, d / p, 0.0).amax(1, keepdim=True)
    t = _one_hot((s * p - d).argmax(1), seen.c)
    s = ((1 - t) * d).sum(1, keepdim=True) / ((1 - t) * p).sum(1, keepdim=True).clamp_min(1e-300)
    fits = (d - s * (p - t)).abs() <= seen.error() * s * (p + t) + seen.floor
    return t, s if fits.all() and ((s > 0) == seen.d.any(1, keepdim=True)).all() else None


def _plain_cross_entropy(seen: _Seen) -> Recovered | None:
    r"""L = −Σ s_n log p_ny, with δ_n = s_n (p_n − e_y): hard labels, which need no curvature."""
    t, s = _hard(seen)
    p, live, error = seen.o.softmax(1), seen.d.any(1, keepdim=True), seen.error()
    if s is None or error.amax() > (0.1 if seen.c == 2 else 0.25):  # of half precision, and logits that differ much
        return None
    one = s[seen.d.abs().sum(1).argmax()]
    shown = live & (t == 0) & (seen.d > 1e3 * seen.floor)  # classes whose δ / p is s
    cross = -(t * seen.o.log_softmax(1)).sum(1, keepdim=True)
    if ((seen.d - live * one * (p - t)).abs() <= 4 * (error * one * (p + t) + seen.floor)).all():
        s = live * one
        other = p[shown & (p < 1 - 100 * error)]
        varied = len(other) > 1 and bool(other.amax() > (1 + 100 * error.amax()) * other.amin())
        uncertain = bool((live & (1 - p.amax(1, keepdim=True) > 100 * error)).any())
        is_sure = varied or (len(other) > 0 and uncertain)  # else the logits may have been multiplied, and s divided
    else:  # of two classes, any rows that sum to zero fit
        is_sure = bool((~live | (shown.sum(1, keepdim=True) > 1)).all())
        is_sure &= bool((error * s * (1 + cross)).sum() < seen.value / 10)
    if not is_sure or not seen.amounts_to(s * cross, error * s * (1 + cross)):
        return None
    seen.check_absent(~live, p, float(s[live].min()))
    return seen.classes(t, s)


def _cross_entropy(seen: _Seen) -> Recovered | None:
    r"""L = −Σ a_nj log q_nj with q = softmax(c o): δ = c (A q − a) with A_n = Σ_j a_nj, and H e_k = c² A q_k (e_k − q).

    With k the largest logit, the curvature gives c and A, and then δ gives a ≥ 0, whatever labels and weights are.
    """
    top = _one_hot(seen.o.argmax(1), seen.c).bool()
    hv = seen.curvature(top)
    if hv is None or seen.c == 1:
        return None
    off = -hv.masked_fill(top, 0.0)
    if (off < 0).any() or not off.any():
        return None
    live = off.sum(1, keepdim=True) > 1e3 * seen.floor
    if (~live & ((off != 0) | (seen.d != 0))).any():
        samples = (~live).flatten().nonzero().flatten().tolist()
        raise InputError(f"the predictions of samples {samples} are too certain to show their labels{_WAY_OUT}")
    for c, doubt in _factors(seen, off, top, live):
        q, log_q, error = (c * seen.o).softmax(1), (c * seen.o).log_softmax(1), 4 * (seen.error(c) + doubt)
        per_total = q.amax(1, keepdim=True) * q.masked_fill(top, 0.0)  # of H e_k, beside c² A
        total = live * off.sum(1, keepdim=True) / (c**2 * per_total.sum(1, keepdim=True)).clamp_min(1e-300)
        a = total * q - seen.d / c
        fits = (off - c**2 * total * per_total).abs() <= error * off + seen.floor
        if not fits.all() or (a < -error * total).any():
            continue
        a = a.clamp_min(0)
        cross = -(a * log_q).sum(1)
        divergence = cross + torch.xlogy(a, a / total.clamp_min(1e-300)).sum(1)
        slack = error * total * (1 - log_q.amin(1, keepdim=True))
        found = _class_targets(seen, a, total, error, live)
        if error.amax() > 0.1 or slack.sum() > seen.value / 10:  # then the value of the loss confirms nothing
            continue
        if seen.amounts_to(cross, slack) or seen.amounts_to(divergence, slack):
            if found is None:
                raise InputError(f"weights, smoothing and soft labels of the loss cannot be told apart{_WAY_OUT}")
            seen.check_absent(~live, q, float(total[live].min()))
            return found
    return None


def _factors(seen: _Seen, off: Tensor, top: Tensor, live: Tensor) -> Iterator[tuple[float, float]]:
    """Numbers by which the logits may have been multiplied, 1 and what the curvature shows, and their relative errors."""
    yield 1.0, 0.0
    if seen.c > 2:  # log(off) is c o and a constant per sample, so c is a slope
        used = live & (off > 1e3 * seen.floor)
        pairs = [torch.where(used, x, 0.0) for x in (seen.o, off.log())]
        count = used.sum(1, keepdim=True).clamp_min(1)
        o, log_off = (torch.where(used, x - x.sum(1, keepdim=True) / count, 0.0) for x in pairs)
        factor = float((o * log_off).sum() / o.square().sum())
        if 0 < factor < math.inf and used.sum() > live.sum() + 1:
            yield factor, 2 * float(seen.error(factor).amax() / o.square().sum().sqrt()) / factor
        return
    # Where the prediction is right, −off / δ_k = c q_k = c / (1 + exp(−c gap)), which grows with c.
    d = torch.where(top, -seen.d, 0.0).sum(1)
    row = int(d.argmax())
    if d[row] > 0:
        ratio, gap = float(off[row].sum() / d[row]), float(seen.o[row].amax() - seen.o[row].amin())
        low, high = ratio, 2 * ratio
        for _ in range(60):
            c = (low + high) / 2
            low, high = (c, high) if c < ratio * (1 + math.exp(-c * gap)) else (low, c)
        yield low, 0.0


def _class_targets(seen: _Seen, a: Tensor, total: Tensor, error: Tensor, live: Tensor) -> Recovered | None:
    r"""Labels from a_n = s_n e_y; or smoothed, a_n = s w_y (1 − ε) e_y + s w ε / C; or soft, a_n = s t_n."""
    t = a / total.clamp_min(1e-300)
    hard = _one_hot(t.argmax(1), seen.c)
    if (live * (t - hard).abs() <= 2 * error).all():
        return seen.classes(hard, total)
    rows, noise = live.squeeze(1), (error * total)[live.squeeze(1)]
    b = a[rows]
    alike = bool(((t[rows] - t[rows][0]).abs() <= 2 * error[rows]).all())
    natural = _is_natural(total, error)
    one_weight = _same(total[rows], error.amax())
    # What every class is given as another one's share: the least over samples, of which some are of another class.
    rest = b.amin(0) if not alike else (b[0].sum() - b[0].amax()) / (seen.c - 1) * torch.ones(seen.c).to(b)
    y = (b / rest.clamp_min(1e-300)).argmax(1)
    label = _one_hot(y, seen.c)
    times = float((label * b).sum() / (label * rest).sum().clamp_min(1e-300))
    smoothed = rest + (times - 1) * label * rest
    if (rest > 2 * noise.amax()).all() and times > 1 and ((b - smoothed).abs() <= 2 * noise * (1 + label * times)).all():
        epsilon = seen.c / (times - 1 + seen.c)
        if (natural or not alike) if seen.c > 2 else (epsilon <= 0.301 and not alike):
            s = torch.zeros_like(total)
            s[rows] = ((b - rest) * label).sum(1, keepdim=True) / (1 - epsilon)
            return seen.classes(hard.index_copy(0, rows.nonzero().squeeze(1), label), s)
        return None
    return seen.classes(t, total) if one_weight and (natural or not alike) and error.amax() < 0.01 else None


def _elementwise(seen: _Seen) -> Recovered | None:
    r"""L = Σ s_n (o − y)² with δ = 2 s (o − y), H = 2 s; or L = −Σ s_n log σ(±o) with δ = s (σ(o) − y), H = s σ (1 − σ).

    The curvature gives s, and then δ gives y.
    """
    signs = 1.0 - 2 * (torch.arange(seen.d.numel()) % 2).reshape(seen.d.shape)
    h, hv = seen.curvature(torch.ones_like(seen.d)), seen.curvature(signs)
    if h is None or hv is None or not h.any() or ((hv - h * signs).abs() > 8 * seen.eps * h).any():
        return None
    if ((h == 0) & (seen.d != 0)).any():
        raise InputError(
            "some outputs have a derivative but no curvature, as where an error is past the quadratic part of a Huber or "
            f"smooth L1 loss, or a prediction is too certain; they show no target{_WAY_OUT}"
        )
    error, s = 8 * seen.eps, h.mean(1, keepdim=True) / 2
    terms = seen.d.square() / (2 * h).clamp_min(1e-300)
    if ((h - 2 * s).abs() <= error * s).all():
        y = seen.o - seen.d / (2 * s).clamp_min(1e-300)
        return seen.elementwise("values", y, s) if seen.amounts_to(terms, error * terms) else None
    p, error = seen.o.sigmoid(), 4 * seen.error()
    slope = p * (1 - p)
    s = h.gather(1, slope.argmax(1, keepdim=True)) / slope.amax(1, keepdim=True)
    hard = _one_hot((s * p - seen.d).argmax(1), seen.c)
    terms = s * F.binary_cross_entropy_with_logits(seen.o, hard, reduction="none")
    fits = ((seen.d - s * (p - hard)).abs() <= error * s) & ((h - s * slope).abs() <= error * s)
    if seen.c == 1 or not fits.all() or not seen.amounts_to(terms, error * (s + terms)):
        return None
    certain = (slope.amax(1) < 1e3 * seen.eps).nonzero().flatten().tolist()
    if certain:
        raise InputError(f"the predictions of samples {certain} are too certain to show their labels{_WAY_OUT}")
    return seen.elementwise("classes", hard, s)


def _multi_margin(seen: _Seen) -> Recovered | None:
    r"""L = Σ u_n Σ_{j ≠ y} max(0, 1 − o_y + o_j): δ is u_n where that is not zero, and minus their sum at the label."""
    label = _one_hot(seen.d.argmin(1), seen.c)
    u = seen.d.amax(1, keepdim=True)
    live = u > 0
    margin = (1 - (label * seen.o).sum(1, keepdim=True) + seen.o) * (1 - label)
    on = (seen.d > 0) * 1.0
    model = u * (on - label * on.sum(1, keepdim=True))
    error = seen.eps * (4 + seen.o.abs().amax(1, keepdim=True))
    agrees = ((margin > 0) == (on > 0)) | (margin.abs() <= error)
    if not (live.any() and error.amax() < 0.1 and ((seen.d - model).abs() <= 4 * seen.c * seen.eps * u).all() and (agrees | ~live).all()):
        return None
    if not seen.amounts_to(u * on * margin, error * u * on):
        return None
    first, second = seen.o.topk(2).values.unbind(1)
    kept = (~live.squeeze(1) & (first - second >= 1 - error.squeeze(1))).nonzero().flatten().tolist()
    if kept:
        raise InputError(f"samples {kept} are past the margin, so the loss does not show whether they are in it{_WAY_OUT}")
    return seen.classes(label, seen.c * u)


def _smoothed(seen: _Seen) -> Tensor | None:
    r"""δ = s (p − t) with one s, where t has one value at the labels and a lower one elsewhere: s ``(N, 1)``."""
    p, d = seen.o.softmax(1), seen.d
    live = d.any(1, keepdim=True)
    row = d.amin(1).argmin()
    x, z = (values[row][d[row] > d[row].amin()] for values in (p, d))
    slope = float((z[x.argmax()] - z[x.argmin()]) / (x.amax() - x.amin())) if len(x) > 1 else 0.0
    for s in (slope, 1 / seen.n, 1.0):
        t = p - d / max(s, 1e-300)
        label = _one_hot(t.argmax(1), seen.c)
        high, low = (((t * at * live).sum() / (at * live).sum()) for at in (label, 1 - label))
        if 0 < low < high and (live * (t - low - (high - low) * label).abs() <= 8 * seen.error()).all():
            return s * live
    return None


def _checked(seen: _Seen, labels: Any) -> Recovered:
    """The labels given, with the weights that the loss shows, unless it shows other labels."""
    kind, t, known = _read(labels, seen.n, seen.c)
    try:
        found = _recognised(seen)
    except InputError:  # which is why the labels are given
        g = (seen.o.softmax(1) - t if kind == "classes" else (seen.o - t) * 2 / seen.c) * seen.d.any(1, keepdim=True)
        scale = float((seen.d * g).sum() / g.square().sum()) * seen.n
        if not 0 < scale < math.inf:
            raise InputError("the loss does not fall towards the labels given; give those it was computed with") from None
        return Recovered(kind, t, known.double(), scale)
    if found.kind == "values" and not _are_integers(labels):
        kind = "values"
    counts = known & (found.weights > 0)
    same = (found.targets - t).abs() <= 1e-3 + 4 * seen.error() * (1 + t.abs())
    hard = bool(((found.targets == 0) | (found.targets == 1)).all())
    if found.kind == kind and (hard or kind == "values") and not same[counts].all():
        rows = (counts & ~same.all(1)).nonzero().flatten().tolist()
        raise InputError(f"the loss was computed with other labels than those given, for samples {rows}; give those")
    return replace(found, kind=kind, targets=t, weights=found.weights * known)


def _read(labels: Any, n: int, c: int) -> tuple[Kind, Tensor, Tensor]:
    """Kind and targets ``(N, C)`` from labels in any form, and which samples have one."""
    try:
        y = torch.as_tensor(labels).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"expected labels as a tensor, array or list, got {type(labels).__name__}: {error}") from None
    y = y.reshape(n) if y.shape == (n, 1) and c > 1 else y.reshape(n, 1) if y.shape == (n,) and c == 1 else y
    if y.shape == (n,) and not y.is_floating_point():
        known = y != -100
        y = y.long().where(known, 0)
        if y.min() < 0 or y.max() >= c:
            raise InputError(f"expected labels from 0 to {c - 1} for {c} outputs, got {int(y.min())} to {int(y.max())}")
        return "classes", _one_hot(y, c), known
    if y.shape != (n, c):
        raise InputError(
            f"expected integer labels ({n},) or values ({n}, {c}) for {n} samples, got {y.dtype} of {tuple(y.shape)}"
        )
    y = y.double()
    is_class = c > 1 and bool((y >= 0).all()) and bool(((y.sum(1) - 1).abs() < 1e-3).all())
    return "classes" if is_class else "values", y, torch.ones(n, dtype=torch.bool)


def _are_integers(labels: Any) -> bool:
    return not torch.as_tensor(labels).is_floating_point()
