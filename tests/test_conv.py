"""Convolutions with weights of each task's own: against a loop over the tasks, in value and in two derivatives."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.func import vmap
from torch.nn import functional as F

from l2l_hyper.nn import task_convolutions

TASKS = 5


def inputs(channels: int = 3, size: int = 8, kernel: tuple[int, int] = (3, 2)) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    shapes = (TASKS, 2, channels, size, size + 1), (TASKS, 4, channels, *kernel), (TASKS, 4)
    x, w, b = (torch.randn(shape, dtype=torch.double).requires_grad_() for shape in shapes)
    return x, w, b


def batched(x: Tensor, w: Tensor, b: Tensor | None, **options: object) -> Tensor:
    with task_convolutions():
        return vmap(lambda *args: F.conv2d(*args, **options))(x, w, *(() if b is None else (b,)))


def loop(x: Tensor, w: Tensor, b: Tensor | None, **options: object) -> Tensor:
    return torch.stack([F.conv2d(x[t], w[t], None if b is None else b[t], **options) for t in range(TASKS)])


def derivatives(y: Tensor, of: list[Tensor]) -> list[Tensor]:
    """First derivatives of a function of y, and those of a function of them."""
    torch.manual_seed(1)
    first = torch.autograd.grad((y.sin() * torch.randn(y.shape).double()).sum(), of, create_graph=True)
    second = torch.autograd.grad(sum((g.sin() * torch.randn(g.shape).double()).sum() for g in first), of)
    return [*first, *second]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "options", [{}, {"stride": 2, "padding": 1}, {"stride": (1, 3), "padding": (2, 0)}, {"padding": 1}]
)
@pytest.mark.parametrize("size", [7, 8])
def test_equal_to_a_loop(options: dict, bias: bool, size: int) -> None:
    x, w, b = inputs(size=size)
    given = (x, w, b) if bias else (x, w, None)
    of = [x, w, b] if bias else [x, w]
    ours, theirs = batched(*given, **options), loop(*given, **options)
    torch.testing.assert_close(ours, theirs)
    for a, e in zip(derivatives(ours, of), derivatives(theirs, of), strict=True):
        torch.testing.assert_close(a, e)


def test_the_third_derivative_too() -> None:
    x, w, b = (v.detach()[:1, :1].requires_grad_() for v in inputs(channels=1, size=3, kernel=(2, 2)))
    b = b.detach()[:, :1].requires_grad_()

    def slope(x: Tensor, w: Tensor) -> Tensor:
        with task_convolutions():
            y = vmap(F.conv2d)(x, w, b)
        return torch.autograd.grad(y.sin().sum(), w, create_graph=True)[0]

    assert torch.autograd.gradgradcheck(slope, (x, w))


def test_under_torch_funcs_grad() -> None:
    x, w, b = (v.detach() for v in inputs())

    def loss(w: Tensor) -> Tensor:
        return batched(x, w, b, padding=1).sin().sum()

    expected = torch.func.grad(lambda w: loop(x, w, b, padding=1).sin().sum())(w)
    torch.testing.assert_close(torch.func.grad(loss)(w), expected)


@pytest.mark.parametrize("shared", ["x", "w", "w and b", "everything"])
def test_what_tasks_share(shared: str) -> None:
    x, w, b = inputs()
    dims = {"x": (None, 0, 0), "w": (0, None, 0), "w and b": (0, None, None), "everything": (None, None, None)}[shared]
    one = [v if dim == 0 else v[0] for v, dim in zip((x, w, b), dims, strict=True)]
    extra = torch.zeros(TASKS, dtype=torch.double)  # something that is mapped over in any case
    with task_convolutions():
        ours = vmap(lambda *args: F.conv2d(*args[:3], padding=1) + args[3], in_dims=(*dims, 0))(*one, extra)
    theirs = loop(*(v if dim == 0 else v[0].expand_as(v) for v, dim in zip((x, w, b), dims, strict=True)), padding=1)
    torch.testing.assert_close(ours, theirs)
    for a, e in zip(derivatives(ours, [x, w, b]), derivatives(theirs, [x, w, b]), strict=True):
        torch.testing.assert_close(a, e)


@pytest.mark.parametrize("options", [{"dilation": 2}, {"groups": 2}, {"padding": "same"}])
def test_others_are_left_alone(options: dict) -> None:
    x, w, b = inputs(channels=2, kernel=(3, 3))
    w = w[:, :, :1] if "groups" in options else w
    torch.testing.assert_close(batched(x, w, b, **options), loop(x, w, b, **options))


def test_without_vmap_nothing_changes() -> None:
    x, w, b = (v[0] for v in inputs())
    with task_convolutions():
        ours = F.conv2d(x, w, b, padding=1)
    torch.testing.assert_close(ours, F.conv2d(x, w, b, padding=1))
    for a, e in zip(
        torch.autograd.grad(ours.sin().sum(), (x, w, b)),
        torch.autograd.grad(F.conv2d(x, w, b, padding=1).sin().sum(), (x, w, b)),
        strict=True,
    ):
        torch.testing.assert_close(a, e)
