"""What is measured: settings of the tasks, algorithms, and the ways of running them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from l2l_hyper.backbones import BACKBONES

__all__ = ["ALGORITHMS", "CONTENDERS", "GROWTH", "SETTINGS", "Algorithm", "Setting"]


@dataclass(frozen=True)
class Setting:
    """Tasks and network; as in learn2learn's scripts there are as many queries as shots."""

    tasksets: str
    ways: int
    shots: int

    def model(self) -> nn.Module:
        """The network, with initial weights from the random state."""
        shape = (3, 84, 84) if self.tasksets == "mini-imagenet" else (1, 28, 28)
        return BACKBONES[self.backbone].build(self.ways, shape, {"channels": self.channels})

    @classmethod
    def of(cls, name: str) -> Setting:
        """The setting of a name such as ``omniglot 5-way 1-shot``."""
        tasksets, ways, shots = name.split()
        return cls(tasksets, int(ways.removesuffix("-way")), int(shots.removesuffix("-shot")))

    @property
    def backbone(self) -> str:
        """Name of the network."""
        return "cnn4" if self.tasksets == "mini-imagenet" else "omniglot-cnn"

    @property
    def channels(self) -> int:
        """Channels per layer."""
        return 8 if self.tasksets == "glyphs" else 64


@dataclass(frozen=True)
class Algorithm:
    """An algorithm as the scripts build it, and as a method of the engine with its options."""

    name: str
    method: str
    options: dict[str, Any] = field(default_factory=dict)


SETTINGS = (
    "omniglot 5-way 1-shot",
    "omniglot 20-way 5-shot",
    "mini-imagenet 5-way 5-shot",
    "glyphs 5-way 1-shot",  # a small network and no data: to see that the benchmark runs
)
GROWTH = {
    "ways": [f"omniglot {ways}-way 1-shot" for ways in (5, 10, 20, 40)],
    "shots": [f"omniglot 5-way {shots}-shot" for shots in (1, 2, 4, 8)],
}

ALGORITHMS = {
    algorithm.name: algorithm
    for algorithm in (
        Algorithm("MAML, 1 step", "maml", {"inner_lr": 0.4}),
        Algorithm("MAML, 5 steps", "maml", {"inner_lr": 0.4, "steps": 5}),
        Algorithm("ANIL, 5 steps", "anil"),
        Algorithm("ProtoNet", "protonet"),
        Algorithm("HyperAdapter, head", "hyper-adapter"),
        Algorithm("HyperAdapter, head + affine", "hyper-adapter", {"generate": "*"}),
        Algorithm("HyperAdapter, head + affine + low-rank", "hyper-adapter", {"generate": "*", "modulation": "both"}),
    )
}

# How each is run.  The first three are learn2learn's and higher's algorithms, the others this package's.
CONTENDERS = {
    "learn2learn": "learn2learn's script: its sampler, its algorithm, task by task (MAML, 1 step, by HyperAdapter)",
    "learn2learn, our sampler": "learn2learn's algorithm on our sampler",
    "higher": "higher's inner loop on our sampler",
    "script": "the script with the swapped line, on our sampler",
    "engine": "l2l_hyper's experiments as they are by default, all tasks of a batch at once",
    "engine, kernels": "the same with `l2l_hyper.kernels.enable()`",
    "engine, kernels, 2 processes": "the same under torchrun, one thread per process",
}
