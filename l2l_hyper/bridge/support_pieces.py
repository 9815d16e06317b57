"""What a learner reads of a support set: mini-batches of samples and their labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError

__all__ = ["Piece", "are_close", "are_shares", "check_every_class", "labels_of", "merged", "same_samples", "samples_of"]


@dataclass(frozen=True)
class Piece:
    """A support mini-batch: the arguments of the forward pass, targets and ways, and which rows of the logits count."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    y: Tensor
    ways: int | None
    rows: Tensor | None = None

    @property
    def every_row(self) -> Tensor:
        """``rows``, also where all count."""
        return torch.ones_like(self.y[..., :1], dtype=torch.bool).flatten() if self.rows is None else self.rows

    def converted(self, fn: Callable[[Tensor], Tensor]) -> Piece:
        """The same with every tensor changed."""
        args = tuple(fn(arg) if isinstance(arg, Tensor) else arg for arg in self.args)
        kwargs = {name: fn(arg) if isinstance(arg, Tensor) else arg for name, arg in self.kwargs.items()}
        return Piece(args, kwargs, fn(self.y), self.ways, None if self.rows is None else fn(self.rows))


def samples_of(support: Any) -> tuple[Tensor, Any]:
    """The two parts of ``support=``; samples that were made in inference mode as others, which a graph can hold."""
    if not isinstance(support, tuple | list) or len(support) != 2:
        raise InputError(f"expected support=(x, y), samples and their labels, got {type(support).__name__}")
    x, y = support
    if not isinstance(x, Tensor) or x.ndim == 0 or len(x) == 0:
        arrived = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise InputError(f"expected one or more support samples as a tensor (N, *), got {arrived}; try torch.stack")
    return x.clone() if x.is_inference() and not torch.is_inference_mode_enabled() else x, y


def labels_of(y: Any, samples: int, device: torch.device) -> tuple[Tensor, int | None]:
    """Labels ``(N,)``, or ``(N, L)`` of tokens, as int64, or values, in any form; and the columns of one-hot ones."""
    try:
        y = torch.as_tensor(y, device=device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"expected labels as a tensor, array or list of numbers, got {type(y).__name__} ({error})"
        ) from error
    if y.dim() == 0:
        raise InputError(f"expected one label per sample, got the number {y}")
    columns = y.shape[1] if y.dim() == 2 and y.shape[1] > 1 else None
    if columns and are_shares(y) and (y.amax(1) == 1).all():
        y = y.long().argmax(1)
    elif not y.is_floating_point():
        y, columns = (y.squeeze(-1) if y.shape == (samples, 1) else y).long(), None
    if len(y) != samples:
        raise InputError(
            f"support=(x, y) needs one label per sample, or of tokens (N, L), got {samples} samples and labels "
            f"{tuple(y.shape)}"
        )
    return y, columns


def are_close(y: Tensor, z: Tensor) -> bool:
    """Whether targets agree but for what recovery from a loss loses."""
    return bool(((y - z).abs() < 1e-3).all())


def are_shares(y: Tensor) -> bool:
    """Whether rows ``(N, C)`` are shares of classes, which add up to 1."""
    return bool((y >= 0).all()) and bool(((y.sum(1) - 1).abs() < 1e-3).all())


def same_samples(a: Piece, b: Piece) -> bool:
    """Whether two mini-batches have the same samples, whatever their labels."""
    if a.kwargs or b.kwargs or len(a.args) != len(b.args):
        return False
    pairs = list(zip(a.args, b.args, strict=True))
    return all(x is y or (isinstance(x, Tensor) and x.shape == y.shape and torch.equal(x, y)) for x, y in pairs)


def merged(pieces: Sequence[Piece]) -> Piece:
    """Mini-batches as one; raises ``InputError`` where samples differ in shape or a model takes several inputs."""
    if len(pieces) == 1:
        return pieces[0]
    if any(len(piece.args) != 1 or piece.kwargs for piece in pieces):
        raise InputError(
            "a further support mini-batch of a model of several inputs cannot be added to the first; pass the whole "
            "support set at once"
        )
    if any(piece.args[0].shape[1:] != pieces[0].args[0].shape[1:] for piece in pieces):
        raise InputError(
            "expected support mini-batches of samples of one shape, got "
            f"{', '.join(str(tuple(piece.args[0].shape[1:])) for piece in pieces)}; pad them alike"
        )
    x, y, rows = (torch.cat(parts) for parts in zip(*((p.args[0], p.y, p.every_row) for p in pieces), strict=True))
    return Piece((x,), {}, y, pieces[0].ways, None if rows.all() else rows)


def check_every_class(piece: Piece) -> None:
    """Raise ``InputError`` for a class without a sample."""
    if piece.ways is None:
        return
    counts = piece.y.sum(0) if piece.y.is_floating_point() else torch.bincount(piece.y, minlength=piece.ways)
    missing = (counts == 0).nonzero().flatten().tolist()
    if missing:
        raise InputError(
            f"every class needs a support sample, classes {missing} of {piece.ways} have none; build the model with as "
            "many outputs as the task has ways, or use adapt(support=(x, y), ways=...)"
        )
