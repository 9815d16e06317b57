"""The fast kernels against their slow references: value, first and second derivative, in float64; and the switch."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.nn import functional as F

from l2l_hyper import kernels
from l2l_hyper.backbones.conv4 import conv4
from l2l_hyper.data.episode import Episodes
from l2l_hyper.functional import Normalization, convert_norm, statistics_of
from l2l_hyper.kernels import block, plain
from l2l_hyper.methods import METHODS

TASKS = 5


def inputs(channels: int = 3, size: int = 8, kernel: tuple[int, int] = (3, 2)) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    shapes = (TASKS, 2, channels, size, size + 1), (TASKS, 4, channels, *kernel), (TASKS, 4)
    x, w, b = (torch.randn(shape, dtype=torch.double).requires_grad_() for shape in shapes)
    return x, w, b


def batched(x: Tensor, w: Tensor, b: Tensor | None, **options: Any) -> Tensor:
    with kernels.task_convolutions():
        return vmap(lambda *args: F.conv2d(*args, **options))(x, w, *(() if b is None else (b,)))


def loop(x: Tensor, w: Tensor, b: Tensor | None, **options: Any) -> Tensor:
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
def test_convolutions_of_tasks_are_a_loop(options: dict[str, Any], bias: bool, size: int) -> None:
    x, w, b = inputs(size=size)
    given = (x, w, b) if bias else (x, w, None)
    of = [x, w, b] if bias else [x, w]
    ours, theirs = batched(*given, **options), loop(*given, **options)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(derivatives(ours, of), derivatives(theirs, of))


def test_the_third_derivative_of_convolutions_too() -> None:
    x, w, b = (v.detach()[:1, :1].requires_grad_() for v in inputs(channels=1, size=3, kernel=(2, 2)))
    b = b.detach()[:, :1].requires_grad_()

    def slope(x: Tensor, w: Tensor) -> Tensor:
        return torch.autograd.grad(batched(x, w, b).sin().sum(), w, create_graph=True)[0]

    assert torch.autograd.gradgradcheck(slope, (x, w))


def test_convolutions_under_torch_funcs_grad() -> None:
    """Around ``vmap`` and within it."""
    x, w, b = (v.detach() for v in inputs())
    expected = torch.func.grad(lambda w: loop(x, w, b, padding=1).sin().sum())(w)
    around = torch.func.grad(lambda w: batched(x, w, b, padding=1).sin().sum())(w)
    with kernels.task_convolutions():
        within = vmap(torch.func.grad(lambda w, x, b: F.conv2d(x, w, b, padding=1).sin().sum()))(w, x, b)
    torch.testing.assert_close(around, expected)
    torch.testing.assert_close(within, expected)


@pytest.mark.parametrize("shared", ["x", "w", "w and b", "everything"])
def test_what_tasks_share(shared: str) -> None:
    x, w, b = inputs()
    dims = {"x": (None, 0, 0), "w": (0, None, 0), "w and b": (0, None, None), "everything": (None, None, None)}[shared]
    one = [v if dim == 0 else v[0] for v, dim in zip((x, w, b), dims, strict=True)]
    extra = torch.zeros(TASKS, dtype=torch.double)  # something that is mapped over in any case
    with kernels.task_convolutions():
        ours = vmap(lambda *args: F.conv2d(*args[:3], padding=1) + args[3], in_dims=(*dims, 0))(*one, extra)
    theirs = loop(*(v if dim == 0 else v[0].expand_as(v) for v, dim in zip((x, w, b), dims, strict=True)), padding=1)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(derivatives(ours, [x, w, b]), derivatives(theirs, [x, w, b]))


@pytest.mark.parametrize("options", [{"dilation": 2}, {"groups": 2}, {"padding": "same"}])
def test_other_convolutions_are_left_alone(options: dict[str, Any]) -> None:
    x, w, b = inputs(channels=2, kernel=(3, 3))
    w = w[:, :, :1] if "groups" in options else w
    torch.testing.assert_close(batched(x, w, b, **options), loop(x, w, b, **options))


def test_without_vmap_convolutions_are_torchs() -> None:
    x, w, b = (v[0] for v in inputs())
    with kernels.task_convolutions():
        ours = F.conv2d(x, w, b, padding=1)
    theirs = F.conv2d(x, w, b, padding=1)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(derivatives(ours, [x, w, b]), derivatives(theirs, [x, w, b]))


@pytest.mark.parametrize("own", [True, False])
def test_autocast_reaches_convolutions_of_tasks(own: bool) -> None:
    x, w, b = (v.detach().float() for v in inputs())
    dims = (0, 0, 0) if own else (0, None, None)
    given = (x, w, b) if own else (x, w[0], b[0])
    with torch.autocast("cpu", dtype=torch.bfloat16), kernels.task_convolutions():
        y = vmap(F.conv2d, in_dims=dims)(*given)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), vmap(F.conv2d, in_dims=dims)(*given), rtol=0.05, atol=0.1)


@pytest.fixture
def block_of_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """The block goes by its kernel however few images there are, two at a time."""
    monkeypatch.setattr(block, "_LARGE", 0)
    monkeypatch.setattr(block, "_AT_ONCE", 2 * 4 * 9 * 11)


def one_block(*, bias: bool, affine: bool, stride: int = 1) -> nn.Module:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4, affine=affine)
    if affine:
        norm.weight.data = torch.tensor([1.5, -0.7, 0.0, -2.0])
        norm.bias.data = torch.tensor([0.3, 0.2, -0.5, 0.1])
    layers = conv4(2, (3, 9, 11), channels=4, layers=1).features[0]  # type: ignore[index,union-attr]
    layers.conv = nn.Conv2d(3, 4, 3, stride, padding=1, bias=bias)  # type: ignore[union-attr]
    layers.normalize = norm  # type: ignore[union-attr]
    return convert_norm(layers.double(), "running")  # type: ignore[union-attr, arg-type]


@pytest.mark.usefixtures("block_of_few")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("by_images", [True, False])
def test_a_block_is_its_four_layers(by_images: bool, affine: bool, bias: bool, training: bool) -> None:
    """Value, gradient and second derivative, those of the recorded mean and variance included."""
    layers = one_block(bias=bias, affine=affine).train(training)
    layers.normalize.running_var.mul_(3)  # type: ignore[operator, union-attr]
    x = (2 * torch.randn(5, 3, 9, 11, dtype=torch.double) + 1).requires_grad_(by_images)
    of = [*([x] if by_images else []), *layers.parameters()]

    def passed() -> tuple[list[Tensor], list[Tensor]]:
        with statistics_of(layers, None) as recorded:
            y = layers(x)
        made = [y, *(t for pair in recorded.values() for t in pair)]
        loss = sum((t * torch.linspace(1, 2, t.numel()).double().view_as(t)).sin().sum() for t in made)
        return made, [*torch.autograd.grad(loss, of, retain_graph=True), *derivatives(sum(t.sum() for t in made), of)]  # type: ignore[arg-type, union-attr, list-item]

    expected = passed()
    with kernels.enable():
        assert layers.normalize.in_block([*layers], x) is not None  # type: ignore[operator, union-attr, misc]
        found = passed()
    assert len(found[0]) == (3 if training else 1)
    torch.testing.assert_close(found, expected)


@pytest.mark.usefixtures("block_of_few")
@pytest.mark.parametrize("mode", ["support", "running"])
def test_a_block_of_many_tasks(mode: Normalization) -> None:
    layers = convert_norm(one_block(bias=True, affine=True), mode)
    x, query = torch.randn(2, TASKS, 5, 3, 9, 11, dtype=torch.double)

    def passed() -> tuple[Tensor, ...]:
        def task(x: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
            with statistics_of(layers, None) as recorded:
                own = layers(x)
            with statistics_of(layers, recorded):
                return own, layers(query)

        own, of_query = vmap(task)(x, query)
        return own, of_query, *torch.autograd.grad((own * of_query).sum(), [*layers.parameters()])

    expected = passed()
    with kernels.enable():
        torch.testing.assert_close(passed(), expected)


@pytest.mark.usefixtures("block_of_few")
def test_what_is_no_such_block_goes_layer_by_layer() -> None:
    layers, x = one_block(bias=True, affine=True), torch.randn(5, 3, 9, 11, dtype=torch.double)

    def by_kernel(x: Tensor = x) -> bool:
        return block.fits(x, [*layers], layers.normalize.weight, layers.normalize.bias)  # type: ignore[union-attr, arg-type, misc]

    assert by_kernel() and not by_kernel(x.float()) and not by_kernel(x[0])
    with torch.autocast("cpu"):
        assert not by_kernel()
    for register in (layers.relu.register_forward_hook, layers.conv.register_full_backward_hook):  # type: ignore[union-attr]
        hook = register(lambda *_: None)  # type: ignore[operator]
        assert not by_kernel()
        hook.remove()
        assert by_kernel()
    layers.max_pool = nn.AvgPool2d(2)
    assert not by_kernel()


@pytest.mark.parametrize("shape", [(7, 3), (7, 3, 5, 4)])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("given", [True, False])
def test_normalization_of_one_task_without_a_graph(given: bool, affine: bool, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x, (weight, bias, mean, var) = 2 * torch.randn(shape).double() + 3, torch.rand(4, 3).double() + 0.5
    arguments = (x, *((weight, bias) if affine else (None, None)), (mean, var) if given else None, 1e-5)
    expected = plain.normalize(*arguments)
    with torch.no_grad(), kernels.enable():
        found = kernels.normalize(*arguments)
    torch.testing.assert_close(found[0] if given else found, expected[0] if given else expected)


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("affine", ["own", "shared", "none"])
@pytest.mark.parametrize("given", [True, False])
def test_normalization_of_large_tasks(
    given: bool, affine: str, channels_last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Value, gradient, a gradient that has a derivative, and the second; for tasks under vmap and for one alone."""
    torch.manual_seed(0)
    x = 2 * torch.randn(3, 7, 4, 50, 48, dtype=torch.double) + 3  # large: 67,200 numbers per task
    x = x.movedim(2, -1).contiguous().movedim(-1, 2) if channels_last else x
    own = 0 if affine == "own" else None
    weight, bias, *statistics = torch.rand(4, 3, 4, dtype=torch.double) + 0.5
    if affine != "own":
        weight, bias = (weight[0], bias[0]) if affine == "shared" else (None, None)
    statistics = statistics if given else [None, None]
    of = [t.requires_grad_() for t in (x, weight, bias, *statistics) if t is not None]

    def run(on: bool) -> list[Tensor]:
        def one(x: Any, weight: Any, bias: Any, *statistics: Any) -> Any:
            return kernels.normalize(x, weight, bias, statistics if given else None, 1e-5)

        affine_of_first = (weight, bias) if own is None else (weight[0], bias[0])
        with kernels.enable(on):
            batch = vmap(one, in_dims=(0, own, own, *((0, 0) if given else (None, None))))(x, weight, bias, *statistics)
            alone = one(x[0], *affine_of_first, *(s if s is None else s[0] for s in statistics))
        outputs = [*batch, *alone]
        loss = sum((o * torch.arange(o.numel()).view(o.shape).sin()).square().sum() for o in outputs)
        gradients = torch.autograd.grad(loss, of, retain_graph=True)
        differentiable = torch.autograd.grad(loss, of, create_graph=True)
        second = torch.autograd.grad(sum(g.sin().sum() for g in differentiable), of)
        return [*outputs, *gradients, *differentiable, *second]

    torch.testing.assert_close(run(True), run(False))


@pytest.mark.parametrize("normalization", ["support", "transductive", "running"])
@pytest.mark.parametrize(
    ("method", "options"),
    [("maml", {"steps": 2}), ("anil", {}), ("protonet", {}), ("hyper-adapter", {"generate": "*"})],
)
def test_methods_give_the_same(method: str, options: dict[str, Any], normalization: str) -> None:
    """Loss, gradient of every parameter, and predictions without a graph."""

    def run(on: bool) -> list[Tensor]:
        torch.manual_seed(0)
        body = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
        model = nn.Sequential(body, nn.Linear(36, 3)).double()
        built = METHODS[method].build(model, options, normalization).double()
        x, y = torch.randn(2, 2, 6, 1, 8, 8, dtype=torch.double), torch.arange(3).repeat(2).sort()[0].expand(2, -1)
        episodes = Episodes(x[0], y, x[1], y, 3)
        with kernels.enable(on):
            adapted = built.adapt(episodes.support_set)
            loss = built.loss(adapted, built.predict(adapted, episodes.query), episodes)
            learned = [p for p in built.parameters() if p.requires_grad]
            gradients = torch.autograd.grad(loss.sum(), learned, materialize_grads=True, allow_unused=True)
            with torch.no_grad():
                one = episodes.task(0)
                predicted = built.eval().predict(built.adapt(one.support_set), one.query)
        return [loss, predicted, *gradients]

    torch.testing.assert_close(run(True), run(False))


def test_the_switch() -> None:
    assert not kernels.enabled()
    with kernels.enable():
        assert kernels.enabled()
        with kernels.enable(False):
            assert not kernels.enabled()
        assert kernels.enabled()
    assert not kernels.enabled()


def test_the_environment_switches_them_on() -> None:
    program = "from l2l_hyper import kernels; kernels.keep_memory(); print(kernels.enabled())"
    environment = {**os.environ, "L2L_HYPER_KERNELS": "1"}
    found = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "True"


def test_the_command_line_keeps_memory() -> None:
    program = (
        "import os\nfrom l2l_hyper.__main__ import main\n"
        "try:\n    main()\nfinally:\n    print(os.environ['THP_MEM_ALLOC_ENABLE'])"
    )
    found = subprocess.run([sys.executable, "-c", program, "--version"], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[-1] == "1"
