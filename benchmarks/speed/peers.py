"""How many weights per second hypernetwork libraries generate, for the same target network and size of generator."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from l2l_hyper.hypernet import Full, Given, HyperNetwork, Target

__all__ = ["PEERS", "PRODUCT", "generate"]

DESCRIPTION = 32  # numbers
PRODUCT = "the matrix product alone"


def target(width: int) -> nn.Module:
    """The network whose weights are generated."""
    return nn.Sequential(nn.Linear(28 * 28, width), nn.ReLU(), nn.Linear(width, 10))


def _ours(net: nn.Module) -> Callable[[Tensor], Any]:
    return HyperNetwork(Given(DESCRIPTION), Full(DESCRIPTION, Target.of(net)))


def _hyperlight(net: nn.Module) -> Callable[[Tensor], Any]:
    import hyperlight

    shapes = {name: p.shape for name, p in net.named_parameters()}
    hyper = hyperlight.HyperNet(
        input_shapes={"z": (DESCRIPTION,)}, output_shapes=shapes, hidden_sizes=[], encoding=None
    )
    return lambda z: [hyper(z=one) for one in z]  # it takes one description


def _hypnettorch(net: nn.Module) -> Callable[[Tensor], Any]:
    from hypnettorch.hnets.mlp_hnet import HMLP

    shapes = [list(p.shape) for p in net.parameters()]
    hyper = HMLP(shapes, uncond_in_size=DESCRIPTION, cond_in_size=0, layers=(), num_cond_embs=0, verbose=False)
    return lambda z: hyper(uncond_input=z, ret_format="sequential")


def _hyper_nn(net: nn.Module) -> Callable[[Tensor], Any]:
    from hypernn.torch import TorchDynamicHyperNetwork

    # Its weights are chunks, one embedding each, that the description scales.
    hyper = TorchDynamicHyperNetwork(DESCRIPTION, net, embedding_dim=DESCRIPTION, num_embeddings=64)
    return lambda z: [hyper.generate_params(x=one[None]) for one in z]  # it takes one description


def _product(net: nn.Module) -> Callable[[Tensor], Any]:
    return nn.Linear(DESCRIPTION, sum(p.numel() for p in net.parameters()))


PEERS = {
    "l2l_hyper": ("l2l_hyper", _ours),
    "hyperlight": ("hyperlight", _hyperlight),
    "hypnettorch": ("hypnettorch", _hypnettorch),
    "hyper-nn": ("hypernn", _hyper_nn),
    PRODUCT: ("torch", _product),
}


def generate(peer: str, width: int, descriptions: int) -> dict[str, Any]:
    """Seconds of many calls, and the numbers that one writes; nothing where the library is not installed."""
    package, make = PEERS[peer]
    if importlib.util.find_spec(package) is None:
        return {"seconds": [], "weights": 0}
    net = target(width)
    with contextlib.redirect_stdout(io.StringIO()):
        write = make(net)
    z = torch.randn(descriptions, DESCRIPTION)
    seconds = []
    with torch.no_grad():
        for _ in range(25):
            begin = time.perf_counter()
            write(z)
            seconds.append(time.perf_counter() - begin)
    return {"seconds": seconds[5:], "weights": descriptions * sum(p.numel() for p in net.parameters())}
