"""The normalization of a convolution's output folded into it: against the normalization itself."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch.func import vmap
from torch.nn import functional as F

from l2l_hyper import TaskNorm
from l2l_hyper.nn import norm, statistics_of, task_convolutions

TASKS = 3
Change = Any


def inputs(channels: int = 2) -> list[Tensor]:
    """Images, and what belongs to each task: kernel, its bias, weight and bias of the normalization."""
    torch.manual_seed(0)
    shapes = (4, channels, 7, 6), (5, channels, 3, 2), (5,), (5,), (5,)
    return [torch.randn(TASKS, *shape, dtype=torch.double).requires_grad_() for shape in shapes]


def normalized(given: list[Tensor], layer: TaskNorm, options: dict[str, Any], change: Change, alone: bool) -> Any:
    """Outputs and statistics; where statistics are of the support set, on twice the images after them."""

    def one(x: Tensor, kernel: Tensor, shift: Tensor, weight: Tensor, bias: Tensor) -> Any:
        outputs: list[Any] = []
        own = {"weight": weight, "bias": bias} if layer.weight is not None else {}
        for images, statistics in ((x, None), (2 * x + 1, outputs)):
            seen = {"": outputs[0][1]} if statistics else None
            with statistics_of(layer, seen) as recorded:
                y = change(F.conv2d(images, kernel, shift if options.get("bias") else None, **options["geometry"]))
                outputs.append((torch.func.functional_call(layer, own, (y,)), recorded.get("")))
        return outputs[0][0], outputs[1][0], *(outputs[0][1] or ())

    with task_convolutions():
        return one(*(t[0] for t in given)) if alone else vmap(one)(*given)


def derivatives(outputs: Any, of: list[Tensor]) -> list[Tensor]:
    """First and second."""
    loss = sum((y * torch.arange(y.numel()).view(y.shape).sin()).square().sum() for y in outputs)
    first = torch.autograd.grad(loss, of, create_graph=True, allow_unused=True)
    kept = [g for g in first if g is not None]
    return [*kept, *torch.autograd.grad(sum(g.sin().sum() for g in kept), of, allow_unused=True)]


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("mode", ["support", "transductive"])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(
    "options",
    [{"geometry": {}}, {"geometry": {"stride": 2, "padding": 1}, "bias": True}, {"geometry": {"padding": (0, 2)}}],
)
def test_folded_is_normalized(
    options: dict[str, Any], affine: bool, mode: norm.Normalization, alone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Value, gradient and second derivative, by the images too."""
    given, layer = inputs(), TaskNorm(5, mode).double()
    if not affine:
        layer.weight = layer.bias = None
    with patch.object(norm, "folded", side_effect=norm.folded) as folded:
        ours = normalized(given, layer, options, lambda y: y, alone)
    assert folded.call_count == 2
    monkeypatch.setattr(norm, "folds", lambda convolution: False)
    theirs = normalized(given, layer, options, lambda y: y, alone)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(derivatives(ours, given), derivatives(theirs, given))


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("change", [lambda y: y.add_(1), lambda y: y + 1, torch.relu_, lambda y: y[:, :, :2]])
def test_what_changed_since_is_not_folded(change: Change, alone: bool) -> None:
    with patch.object(norm, "folded", side_effect=norm.folded) as folded:
        normalized(inputs(), TaskNorm(5).double(), {"geometry": {}}, change, alone)
    assert not folded.called


def test_neither_wide_kernels_nor_shared_ones_are_folded() -> None:
    layer = TaskNorm(5).double()
    with patch.object(norm, "folded", side_effect=norm.folded) as folded:
        normalized(inputs(channels=6), layer, {"geometry": {}}, lambda y: y, alone=False)
        x, kernel, *_ = inputs()
        with task_convolutions():
            vmap(lambda x: layer(F.conv2d(x, kernel[0])))(x)
            y = F.conv2d(x[0], kernel[0])
        layer(y)  # outside, where nobody sees what is done to it
    assert not folded.called
