"""Graph hypernetwork: weights for any network from its graph of layers (Zhang et al. 2019, Knyazev et al. 2021)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx, nn

from ..errors import InputError
from ..functional import full_precision
from ..hypernet import Target, hyperfan_std
from ..hypernet.init import unit_linear_

__all__ = ["GraphHyperNetwork", "NetworkGraph"]

# An operation is of the first kind whose name is part of its own, such as "conv" of Conv2d.
_KINDS = (
    *("placeholder", "output", "conv", "linear", "embedding", "norm", "relu", "gelu", "silu", "sigmoid", "tanh"),
    *("softmax", "add", "mul", "cat", "max", "avg", "mean", "flatten", "dropout"),
)
_NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)


@dataclass(frozen=True, eq=False)
class NetworkGraph:
    """The operations of a network and the paths between them, from a trace by ``torch.fx``.

    Attributes:
        kinds: kind of each of the N operations, with shape ``(N,)``.
        sizes: binary logarithms of output and input channels, kernel, stride and groups, with shape ``(N, 5)``.
        paths: one over the length of the shortest path to operation i from operation j, with shape ``(N, N)``; zero
            where there is none.
        target: names and shapes of the parameters.
        nodes: the operation that each parameter belongs to.
        vectors: of each parameter, whether it is a gain (1) or a shift (0); ``None`` for kernels and matrices.
    """

    kinds: Tensor
    sizes: Tensor
    paths: Tensor
    target: Target
    nodes: dict[str, int]
    vectors: dict[str, int | None]

    @classmethod
    def of(cls, model: nn.Module) -> NetworkGraph:
        """The graph of a module.

        Raises:
            InputError: for a module that ``torch.fx`` cannot trace, or whose parameters are not all weights or biases
                of layers; the message names them.
        """
        try:
            operations = list(fx.symbolic_trace(model).graph.nodes)
        except Exception as error:  # the trace runs the user's code, which may raise anything
            what = " ".join(f"{type(error).__name__}: {error}".split())
            raise InputError(
                f"expected a module that torch.fx can trace, got {type(model).__name__} ({what}); "
                "try one whose forward does not depend on the values of its inputs"
            ) from error
        index = {node: i for i, node in enumerate(operations)}
        kinds = torch.empty(len(operations), dtype=torch.long)
        sizes, edges = torch.zeros(len(operations), 5), torch.zeros(len(operations), len(operations))
        owners: dict[int, tuple[int, int | None]] = {}
        for node, i in index.items():
            layer = model.get_submodule(str(node.target)) if node.op == "call_module" else None
            name = node.op if node.op in ("placeholder", "output") else getattr(node.target, "__name__", node.target)
            name = str(name if layer is None else type(layer).__name__).lower()
            kinds[i] = next((k for k, kind in enumerate(_KINDS) if kind in name), len(_KINDS))
            edges[i, [index[read] for read in node.all_input_nodes]] = 1
            if layer is not None:
                sizes[i] = _sizes(layer)
                for slot, p in layer._parameters.items():
                    if p is not None and slot in ("weight", "bias"):
                        vector = isinstance(layer, _NORMS) or p.dim() < 2
                        owners.setdefault(id(p), (i, int(slot == "weight") if vector else None))
        named = dict(model.named_parameters())
        strange = [name for name, p in named.items() if id(p) not in owners]
        if strange:
            raise InputError(
                f"expected parameters that are the weight or the bias of a layer in the graph, got "
                f"{', '.join(strange)}; try layers such as nn.Linear or nn.Conv1d in their place"
            )
        return cls(
            kinds,
            sizes,
            _paths(edges),
            Target.of(model),
            {name: owners[id(p)][0] for name, p in named.items()},
            {name: owners[id(p)][1] for name, p in named.items()},
        )

    def to(self, device: torch.device | str) -> NetworkGraph:
        """The graph on a device."""
        tensors = {"kinds": self.kinds, "sizes": self.sizes, "paths": self.paths}
        return replace(self, **{name: tensor.to(device) for name, tensor in tensors.items()})  # type: ignore[arg-type]


def _sizes(layer: nn.Module) -> Tensor:
    weight = getattr(layer, "weight", None)
    channels = [1, 1] if weight is None else [*weight.shape, 1][:2]
    others = [getattr(layer, name, None) for name in ("kernel_size", "stride", "groups")]
    return torch.tensor([*channels, *((v[0] if isinstance(v, tuple) else v) or 1 for v in others)]).log2()


def _paths(edges: Tensor) -> Tensor:
    paths, ends = torch.zeros_like(edges), torch.eye(len(edges))
    for length in range(1, len(edges)):
        ends = ((ends @ edges) * (paths == 0)).sign()
        if not ends.any():
            break
        paths += ends / length
    return paths


class GraphEncoder(nn.Module):
    r"""An embedding of every operation: a gated graph network over the paths, in both directions.

    .. math::
        m_i = \sum_j p_{ij} F(h_j) + \sum_j p_{ji} B(h_j), \qquad h_i \leftarrow \operatorname{GRU}(m_i, h_i)
    """

    def __init__(self, features: int, rounds: int) -> None:
        super().__init__()
        self.rounds = rounds
        self.kind = nn.Embedding(len(_KINDS) + 1, features)
        self.size = nn.Linear(5, features)
        self.messages = nn.ModuleList(
            nn.Sequential(nn.Linear(features, features), nn.ReLU(), nn.Linear(features, features)) for _ in range(2)
        )
        self.cell = nn.GRUCell(features, features)
        self.norm = nn.LayerNorm(features)

    def forward(self, graph: NetworkGraph) -> Tensor:
        """Embeddings of shape ``(N, features)``."""
        h = self.kind(graph.kinds) + self.size(graph.sizes.to(self.size.weight.dtype))
        paths = graph.paths.to(h.dtype)
        for _ in range(self.rounds):
            h = self.cell(paths @ self.messages[0](h) + paths.T @ self.messages[1](h), h)
        return self.norm(h)


class TileDecoder(nn.Module):
    """Parameters of any shape from embeddings: tiles that are repeated and cut, and scaled by the fan-in."""

    def __init__(self, features: int, width: int, tile: int, kernel: int) -> None:
        super().__init__()
        self.tile = tile
        self.kernel = kernel
        self.hidden = unit_linear_(nn.Linear(features, width))
        self.position = nn.Parameter(torch.randn(kernel, kernel, width))
        self.kernels = unit_linear_(nn.Linear(width, tile * tile), 1.0)  # a ReLU halves 1 + 1
        self.vectors = unit_linear_(nn.Linear(features, 2 * tile))

    def forward(self, z: Tensor, graph: NetworkGraph) -> dict[str, Tensor]:
        """Parameters of shapes ``(*, *shape)`` from embeddings ``(*, N, features)``."""
        names = [name for name, vector in graph.vectors.items() if vector is None]
        if names:
            rows = z[..., [graph.nodes[name] for name in names], :]
            hidden = torch.relu(self.hidden(rows)[..., None, None, :] + self.position)
            tiles = self.kernels(hidden).unflatten(-1, (self.tile, self.tile)).movedim((-2, -1), (-4, -3))
        shift, gain = self.vectors(z).unflatten(-1, (2, self.tile)).unbind(-2)
        vectors = 0.2 * torch.tanh(shift), 2 * torch.sigmoid(gain / 2)
        weights = {}
        for name, shape in graph.target.shapes.items():
            vector = graph.vectors[name]
            if vector is None:
                weights[name] = self._kernel(tiles[..., names.index(name), :, :, :, :], shape)
                continue
            row = vectors[vector][..., graph.nodes[name], :]
            weights[name] = _repeated(row, -1, math.prod(shape)).unflatten(-1, shape)
        return weights

    def _kernel(self, tile: Tensor, shape: torch.Size) -> Tensor:
        size = (*(1,) * (4 - len(shape)), *shape[2:])  # of a matrix 1 x 1, of a kernel over time 1 x k
        if len(shape) > 4 or max(size) > self.kernel:
            raise InputError(
                f"expected kernels of at most two dimensions and {self.kernel} pixels, got a weight of {tuple(shape)}; "
                "try a larger kernel="
            )
        for dim, pixels in zip((-2, -1), size, strict=True):
            tile = tile.narrow(dim, (self.kernel - pixels) // 2, pixels)
        tile = _repeated(_repeated(tile, -4, shape[0]), -3, shape[1])
        std = hyperfan_std(Target({"weight": (1, *shape[1:])}))[0].item()
        return (tile * std).reshape(*tile.shape[:-4], *shape)


def _repeated(tile: Tensor, dim: int, size: int) -> Tensor:
    """The tile, one after the other along a dimension, as many as are needed, and cut."""
    times = math.ceil(size / tile.shape[dim])
    if times > 1:
        tile = torch.cat([tile] * times, dim)
    return tile.narrow(dim, 0, size)


class GraphHyperNetwork(nn.Module):
    r"""Weights for any network from its graph, all of them by one forward pass.

    A gated graph network reads the operations and the paths between them, both ways, and gives each an embedding
    :math:`z_i`.  The kernel of operation i at position k is the tile :math:`A \operatorname{relu}(B z_i + p_k)`,
    repeated and cut to the channels and scaled by :math:`\sqrt{2 / \text{fan-in}}`; gains are
    :math:`2 \sigma(\cdot / 2)` and shifts :math:`0.2 \tanh(\cdot)` of a linear map.  Layers over images, over time,
    matrices, embeddings and normalization layers are generated alike.

    See Zhang, Ren & Urtasun 2019, "Graph HyperNetworks for Neural Architecture Search",
    https://arxiv.org/abs/1810.05749, and Knyazev et al. 2021, "Parameter Prediction for Unseen Deep Architectures"
    (GHN-2), https://arxiv.org/abs/2110.13100.  GHN-2 walks through the operations one by one; here all of them are
    updated at once, for a number of rounds, with all paths weighted by one over their length.

    Running averages are not generated: call networks in training mode, where normalization layers use the batch.

    Args:
        features: size of the embeddings.
        rounds: updates of the gated graph network.
        width: of the hidden layer of the decoder.
        tile: channels of a tile.
        kernel: largest size of a kernel.

    Example:
        >>> from l2l_hyper.functional import call, slots
        >>> hyper = GraphHyperNetwork()
        >>> image = nn.Sequential(nn.Conv2d(3, 40, 3), nn.BatchNorm2d(40), nn.ReLU(), nn.Flatten(), nn.Linear(1440, 5))
        >>> sound = nn.Sequential(nn.Conv1d(8, 16, 5), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5))
        >>> call(image, slots(image), hyper(NetworkGraph.of(image)), torch.randn(7, 3, 8, 8)).shape
        torch.Size([7, 5])
        >>> sound.load_state_dict(hyper(NetworkGraph.of(sound)))  # as an initialization
        <All keys matched successfully>
    """

    def __init__(
        self, *, features: int = 32, rounds: int = 4, width: int = 128, tile: int = 32, kernel: int = 5
    ) -> None:
        super().__init__()
        for name, value in {"features": features, "width": width, "tile": tile, "kernel": kernel}.items():
            if value < 1:
                raise InputError(f"{name} must be at least 1, got {value}")
        self.encoder = GraphEncoder(features, rounds)
        self.decoder = TileDecoder(features, width, tile, kernel)

    def forward(self, graph: NetworkGraph, z: Tensor | None = None) -> dict[str, Tensor]:
        """Weights by name for the network of a graph.

        Args:
            graph: of the network.
            z: embeddings ``(*, N, features)`` in the place of those that the encoder gives; then the weights have
                shapes ``(*, *shape)``.

        Raises:
            InputError: for a kernel that is larger than the decoder's, or embeddings of another graph.
        """
        with full_precision(graph.sizes.device):
            z = self.encoder(graph) if z is None else z
            if z.shape[-2] != len(graph.kinds):
                raise InputError(f"expected embeddings of {len(graph.kinds)} operations, got {tuple(z.shape)}")
            return self.decoder(z, graph)
