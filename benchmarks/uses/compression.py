"""Accuracy against stored size: generated weights, narrower networks, magnitude pruning and 8-bit weights.

    python -m benchmarks.uses.compression --preset benchmarks/presets/uses/compression-conv4.toml --out runs/compression

Every method is trained in the same way, and is given the same numbers of 32-bit numbers to store.  Normalization layers
and biases are stored as they are by all; the running averages of normalization layers are counted with no method.
"""

from __future__ import annotations

import copy
import math
import sys
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import count, pairwise, takewhile
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.utils import prune

from l2l_hyper import InputError
from l2l_hyper.backbones import BACKBONES
from l2l_hyper.backbones.network import Network, PixelMean
from l2l_hyper.report.style import WIDTH
from l2l_hyper.uses.compression import Compressed

from .images import Images, accuracy, cifar100, fit
from .study import controls, lines, main, markdown, save, spread

Point = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is compressed, and how it is trained.

    Attributes:
        network: "residual", whose three stages have a quarter, a half and all of the channels, or "conv4".
        channels: of the network that is pruned.
        blocks: residual blocks of each of the three stages.
        budgets: numbers stored, in units of 32 bits.
        ratios: weights of a generated network to numbers stored.
        chunk: numbers that the generator makes at once.
        rates: of Adam.  Each method has the best on validation images at each budget, in short training.
        rate_epochs: of that short training.
        epochs: passes over the training images.
        tuning_epochs: further passes after pruning, at a fifth of the rate of the network that is pruned.
        batch: images of a step.
        classes: of CIFAR-100.
    """

    network: str = "residual"
    channels: int = 128
    blocks: int = 2
    budgets: tuple[int, ...] = (40_000, 80_000, 160_000)
    ratios: tuple[float, ...] = (2.0, 4.0)
    chunk: int = 72
    rates: tuple[float, ...] = (0.002, 0.005, 0.0125)
    rate_epochs: int = 2
    epochs: int = 10
    tuning_epochs: int = 4
    batch: int = 300
    classes: int = 100


class Block(nn.Module):
    """Two convolutions beside a shortcut: Zagoruyko & Komodakis 2016, https://arxiv.org/abs/1605.07146."""

    def __init__(self, read: int, made: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.BatchNorm2d(read), nn.ReLU())
        self.convolutions = nn.Sequential(
            nn.Conv2d(read, made, 3, stride, 1, bias=False),
            nn.BatchNorm2d(made),
            nn.ReLU(),
            nn.Conv2d(made, made, 3, 1, 1, bias=False),
        )
        self.shortcut = nn.Identity() if read == made else nn.Conv2d(read, made, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.convolutions(h) + self.shortcut(x if isinstance(self.shortcut, nn.Identity) else h)


def network(settings: Settings, channels: int) -> nn.Module:
    """The network with so many channels in its last layer."""
    if settings.network == "conv4":
        return BACKBONES["conv4"].build(settings.classes, (3, 32, 32), {"channels": channels})
    if settings.network != "residual":
        raise InputError(f"network must be 'residual' or 'conv4', got {settings.network!r}")
    widths = [channels // shrink for shrink in (4, 2, 1) for _ in range(settings.blocks)]
    layers: OrderedDict[str, nn.Module] = OrderedDict(stem=nn.Conv2d(3, widths[0], 3, padding=1, bias=False))
    for i, (read, made) in enumerate(pairwise([widths[0], *widths])):
        layers[f"block{i}"] = Block(read, made, 1 if read == made else 2)
    layers.update(norm=nn.BatchNorm2d(widths[-1]), relu=nn.ReLU(), mean=PixelMean())
    return Network(nn.Sequential(layers), widths[-1], settings.classes)


def narrower(settings: Settings, budget: int) -> nn.Module:
    """The widest network of the budget."""
    return largest(partial(network, settings), budget, 4)


def compressed(settings: Settings, budget: int, ratio: float) -> nn.Module:
    """A network of several times the budget, stored in the budget."""
    whole = narrower(settings, int(ratio * budget))
    make = partial(Compressed, whole, chunk=settings.chunk)
    return largest(lambda n: make(chunk_features=n), budget, 1)


def largest(make: Callable[[int], nn.Module], budget: int, first: int) -> nn.Module:
    """The last of ``make(first), make(first + 1), ...`` that stores no more numbers than the budget."""
    fitting = list(takewhile(lambda n: numbers(make(n)) <= budget, count(first)))
    if not fitting:
        raise InputError(f"no network stores at most {budget} numbers, the smallest has {numbers(make(first))}")
    return make(fitting[-1])


def numbers(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def of_controls(model: Compressed, images: Images) -> dict[str, float]:
    """Accuracy with the embeddings of other chunks, their mean and random ones."""
    chunks, found = model.hyper.generator.chunks, {}
    own = chunks.detach().clone()
    for name, z in controls(own).items():
        chunks.data.copy_(z)
        found[name.replace("task", "chunk")] = accuracy(model, images)
    chunks.data.copy_(own)
    return found


def in_8_bits(model: nn.Module) -> tuple[nn.Module, int]:
    """A copy with all matrices and kernels rounded to 8 bits, and the bits it stores.

    One 32-bit scale belongs to each output channel, or to each column of a matrix of fewer columns than rows.
    """
    rounded, bits = copy.deepcopy(model), 0
    for p in rounded.parameters():
        if p.dim() > 1:
            matrix = p.detach().flatten(1)
            scale = matrix.abs().amax(int(p.dim() > 2 or len(p) <= matrix.shape[1]), keepdim=True).div(127)
            p.data = (matrix / scale.clamp_min(1e-12)).round().mul(scale).view_as(p)
            bits += 8 * p.numel() + 32 * scale.numel()
        else:
            bits += 32 * p.numel()
    return rounded, bits


def pruned(model: nn.Module, budget: int, tune: Callable[[nn.Module], nn.Module]) -> tuple[nn.Module, int]:
    """A copy that keeps the largest weights of all kernels, trained further, and the bits it stores.

    What says which are kept costs one bit per weight, or the bits of one position per kept weight if those are fewer.
    """
    model = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
    layers = [(m, "weight") for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    total = sum(m.weight.numel() for m, _ in layers)
    position, left = math.ceil(math.log2(total)), 32 * (budget - numbers(model) + total)
    kept = min(total, max((left - total) // 32, left // (32 + position)))
    prune.global_unstructured(layers, prune.L1Unstructured, amount=total - kept)
    tune(model)
    for layer, name in layers:
        prune.remove(layer, name)
    return model, 32 * (numbers(model) - total + kept) + min(total, kept * position)


def run(settings: Settings, seed: int, device: torch.device) -> dict[str, Any]:
    """Stored bytes and accuracy of every method at every budget."""
    images = cifar100(device, settings.classes)
    validation = images.validation()
    points: list[Point] = []
    exchanged: list[Point] = []
    rates: dict[str, float] = {}

    def add(method: str, model: nn.Module, bits: int, budget: int) -> None:
        points.append({"method": method, "budget": budget, "bytes": bits / 8, "accuracy": accuracy(model, images)})
        print(f"{method} {bits / 8e3:.1f} kB {points[-1]['accuracy']:.4f}", file=sys.stderr)

    def train(method: str, make: Callable[[int], nn.Module], budget: int) -> nn.Module:
        started = make(budget)
        options = {"epochs": settings.rate_epochs, "batch": settings.batch}
        tried = {lr: fit(copy.deepcopy(started), validation, lr=lr, **options) for lr in settings.rates}
        rate = max(tried, key=lambda lr: accuracy(tried[lr], validation))
        rates[f"{method}, {budget:,}"] = rate
        model = fit(started, images, epochs=settings.epochs, batch=settings.batch, lr=rate)
        add(method, model, 32 * numbers(model), budget)
        add(f"{method}, 8 bits", *in_8_bits(model), budget)
        if isinstance(model, Compressed):
            for name, found in of_controls(model, images).items():
                exchanged.append({"method": f"{method}, {name}", "budget": budget, "accuracy": found})
        return model

    whole = train("narrower", partial(narrower, settings), numbers(network(settings, settings.channels)))
    lr = rates[f"narrower, {numbers(whole):,}"] / 5
    tuning: dict[str, Any] = {"epochs": settings.tuning_epochs, "batch": settings.batch, "lr": lr}
    for budget in settings.budgets:
        train("narrower", partial(narrower, settings), budget)
        for ratio in settings.ratios:
            train(f"generated, {ratio:g} to 1", partial(compressed, settings, ratio=ratio), budget)
        add("pruned", *pruned(whole, budget, partial(fit, images=images, **tuning)), budget)
    return {"points": points, "controls": exchanged, "parameters": numbers(whole), "rates": rates}


def report(records: list[dict[str, Any]], out: Path) -> None:
    """Accuracy by method and budget, and as a curve over stored bytes."""
    points: dict[tuple[str, int], list[Point]] = {}
    for record in records:
        for point in record["result"]["points"]:
            points.setdefault((point["method"], point["budget"]), []).append(point)
    methods = list(dict.fromkeys(method for method, _ in points))
    rows, figure, looks = [], Figure(figsize=(WIDTH, 3.8)), lines(methods)
    axes = figure.add_subplot(xscale="log", xlabel="stored kB", ylabel="test accuracy, %")
    for method in methods:
        budgets = sorted(budget for m, budget in points if m == method)
        mine = [points[method, budget] for budget in budgets]
        kilobytes = [sum(p["bytes"] for p in group) / len(group) / 1e3 for group in mine]
        percent = [[100 * p["accuracy"] for p in group] for group in mine]
        rows += [
            [method, f"{budget:,}", f"{size:.1f}", spread(values, 2)]
            for budget, size, values in zip(budgets, kilobytes, percent, strict=True)
        ]
        means = [sum(values) / len(values) for values in percent]
        error = [[m - min(v) for m, v in zip(means, percent, strict=True)],
                 [max(v) - m for m, v in zip(means, percent, strict=True)]]  # fmt: skip
        axes.errorbar(kilobytes, means, error, **looks[method], capsize=3, label=method)
    exchanged: dict[tuple[str, int], list[float]] = {}
    for record in records:
        for point in record["result"]["controls"]:
            exchanged.setdefault((point["method"], point["budget"]), []).append(100 * point["accuracy"])
    rows += [[method, f"{budget:,}", "", spread(values, 2)] for (method, budget), values in exchanged.items()]
    save(figure, out / "accuracy")
    table = markdown(["method", "32-bit numbers at most", "kB", "accuracy, %"], rows)
    whole = records[0]["result"]["parameters"]
    rates = "; ".join(
        f"{name}: {', '.join(str(record['result']['rates'][name]) for record in records)}"
        for name in records[0]["result"]["rates"]
    )
    text = f"The whole network has {whole:,} parameters. Rates chosen, by seed: {rates}.\n\n{table}"
    (out / "results.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Settings, run, report)
