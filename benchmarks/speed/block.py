"""The kernel of a block of convolution, normalization, ReLU and max-pooling, beside the layers one after the other.

    python benchmarks/speed/block.py --out benchmarks/results/speed-block

A pass of a Conv4 with its derivatives, as training makes it, and one without, as tests do.  Kernels are off, on without
this one, and on.  The three take turns, and each number is the median of the turns; memory is what a pass in training
keeps for its derivatives.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch
from tabulate import tabulate
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F

from l2l_hyper import kernels
from l2l_hyper.backbones.conv4 import conv4
from l2l_hyper.experiment.provenance import collect
from l2l_hyper.files import write_atomically
from l2l_hyper.functional import convert_norm
from l2l_hyper.kernels import block

SIZES = [(84, 64), (84, 32), (84, 16), (84, 8), (32, 64), (32, 32), (32, 8)]  # pixels of a side, channels
IMAGES = 178  # 128 that are classified, and an episode of five ways, five shots and five queries
WAYS = {"off": (False, False), "on, without the block": (True, False), "on": (True, True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results" / "speed-block")
    parser.add_argument("--turns", type=int, default=5)
    args = parser.parse_args()
    kernels.keep_memory()
    rows = [[f"{side}×{side}", channels, *measured(side, channels, args.turns)] for side, channels in SIZES]
    where = collect("", "cpu")
    headers = ["images", "channels", *(f"{what}, {way}" for what in ("training, ms", "test, ms", "MB") for way in WAYS)]
    about = (
        f"# The block kernel\n\n`python benchmarks/speed/block.py --turns {args.turns}`, commit {where.commit[:10]}; "
        f"{where.environment['cpu']}, {torch.get_num_threads()} threads, torch {torch.__version__}. "
        f"A pass of {IMAGES} images through a Conv4, medians of {args.turns} turns.\n\n"
    )
    args.out.mkdir(parents=True, exist_ok=True)
    write_atomically(args.out / "block.md", about + tabulate(rows, headers, "pipe", floatfmt=".0f") + "\n")
    print((args.out / "block.md").read_text())


def measured(side: int, channels: int, turns: int) -> list[float]:
    """Milliseconds of a pass in training each way, and of one in a test, and MB that the first keeps."""
    torch.manual_seed(0)
    network = convert_norm(conv4(64, (3, side, side), channels=channels), "running").to(
        memory_format=torch.channels_last
    )
    x = torch.randn(IMAGES, 3, side, side).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(64, (IMAGES,))
    times: dict[tuple[bool, str], list[float]] = {}
    kept: dict[str, float] = {}
    large = block._LARGE
    for _ in range(turns + 1):
        for way, (on, with_block) in WAYS.items():
            block._LARGE = large if with_block else 1 << 62
            with kernels.enable(on):
                kept[way] = megabytes(network.train(), x)
                for training in (True, False):
                    times.setdefault((training, way), []).append(seconds(network.train(training), x, labels))
    block._LARGE = large
    medians = [1000 * statistics.median(times[training, way][1:]) for training in (True, False) for way in WAYS]
    return [*medians, *kept.values()]


def seconds(network: nn.Module, x: torch.Tensor, labels: torch.Tensor) -> float:
    begin = time.perf_counter()
    with torch.set_grad_enabled(network.training):
        loss = F.cross_entropy(network(x), labels)
    if network.training:
        loss.backward()
    return time.perf_counter() - begin


def megabytes(network: nn.Module, x: torch.Tensor) -> float:
    kept: list[torch.Tensor] = []
    with saved_tensors_hooks(lambda t: kept.append(t.detach()), lambda _: None):  # detached, or it would keep the graph
        network(x)
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}.values()) / 2**20


if __name__ == "__main__":
    main()
