"""The normalization of a convolution's output folded into it: against the normalization itself."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.nn import functional as F

from l2l_hyper import HyperAdapter, TaskNorm
from l2l_hyper.nn import fold, norm, statistics_of, task_convolutions

TASKS = 3
Change = Any


def inputs(channels: int = 2) -> list[Tensor]:
    """Images, and what belongs to each task: kernel, its bias, weight and bias of the normalization."""
    torch.manual_seed(0)
    shapes = (4, channels, 7, 6), (5, channels, 3, 2), (5,), (5,), (5,)
    return [torch.randn(TASKS, *shape, dtype=torch.double).requires_grad_() for shape in shapes]


def normalized(given: list[Tensor], layer: TaskNorm, options: dict[str, Any], change: Change, tasks: str) -> Any:
    """Outputs and statistics; where statistics are of the support set, on twice the images after them.

    ``tasks`` is "one", or what is said of the kernels and all else of several: "own" or "shared".
    """

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
        if tasks == "one":
            return one(*(t[0] for t in given))
        if tasks == "own":
            return vmap(one)(*given)
        return vmap(one, in_dims=(0, None, None, None, None))(given[0], *(t[0] for t in given[1:]))


def derivatives(outputs: Any, of: list[Tensor]) -> list[Tensor]:
    """First and second."""
    loss = sum((y * torch.arange(y.numel()).view(y.shape).sin()).square().sum() for y in outputs)
    first = torch.autograd.grad(loss, of, create_graph=True, allow_unused=True)
    kept = [g for g in first if g is not None]
    return [*kept, *torch.autograd.grad(sum(g.sin().sum() for g in kept), of, allow_unused=True)]


@pytest.mark.parametrize("tasks", ["one", "own", "shared"])
@pytest.mark.parametrize("mode", ["support", "transductive"])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(
    "options",
    [{"geometry": {}}, {"geometry": {"stride": 2, "padding": 1}, "bias": True}, {"geometry": {"padding": (0, 2)}}],
)
def test_folded_is_normalized(
    options: dict[str, Any], affine: bool, mode: norm.Normalization, tasks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Value, gradient and second derivative, by the images too."""
    given, layer = inputs(), TaskNorm(5, mode).double()
    if not affine:
        layer.weight = layer.bias = None
    with patch.object(norm, "folded", side_effect=norm.folded) as folded:
        ours = normalized(given, layer, options, lambda y: y, tasks)
    assert folded.call_count == 2
    monkeypatch.setattr(norm, "folds", lambda convolution: False)
    theirs = normalized(given, layer, options, lambda y: y, tasks)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(derivatives(ours, given), derivatives(theirs, given))


@pytest.mark.parametrize("tasks", ["one", "own", "shared"])
@pytest.mark.parametrize("change", [lambda y: y.add_(1), lambda y: y + 1, torch.relu_, lambda y: y[:, :, :2]])
def test_what_changed_since_is_not_folded(change: Change, tasks: str) -> None:
    with patch.object(norm, "folded", side_effect=norm.folded) as folded:
        normalized(inputs(), TaskNorm(5).double(), {"geometry": {}}, change, tasks)
    assert not folded.called


def test_neither_wide_kernels_nor_halves_nor_what_is_outside_fold() -> None:
    layer = TaskNorm(5).double()
    with patch.object(norm, "folded", side_effect=norm.folded) as folded:
        normalized(inputs(channels=6), layer, {"geometry": {}}, lambda y: y, "own")
        x, kernel, *_ = inputs()
        with task_convolutions():
            TaskNorm(5).bfloat16()(F.conv2d(x[0].bfloat16(), kernel[0].bfloat16()))
            y = F.conv2d(x[0], kernel[0])
        layer(y)  # outside, where nobody sees what is done to it
    assert not folded.called


@pytest.mark.parametrize("start", ["gaussian", "gradient"])
def test_shared_layers_fold_in_training_on_large_batches(start: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the gradient of every parameter; small batches and testing have nothing to gain."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 2))
    learner = HyperAdapter(network, start=start).double()
    x, y = torch.randn(3, 4, 1, 6, 6, dtype=torch.double), torch.tensor([0, 1, 0, 1]).expand(3, 4)

    def gradients() -> list[Tensor]:
        outputs = learner.predict_tasks(learner.adapt_tasks(x, y), x)
        return list(torch.autograd.grad(outputs.sin().sum(), list(learner.parameters()), allow_unused=True))

    with patch.object(norm, "folded", side_effect=norm.folded) as folded:
        theirs = gradients()
        assert not folded.called
        monkeypatch.setattr(fold, "_LARGE", x.numel())
        ours = gradients()
        assert folded.call_count == 2
        one = learner.adapt_tasks(x[:1], y[:1])
        with torch.no_grad():
            learner.predict_tasks(one, x[:1])
            learner.predict_tasks(learner.initial(3), x)
        assert folded.call_count == 2
    torch.testing.assert_close(ours, theirs)
