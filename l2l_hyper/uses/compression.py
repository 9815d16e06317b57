"""Static hypernetwork: the weights of one network from small embeddings by one shared generator (Ha, Dai & Le 2016)."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from ..errors import InputError
from ..functional import call, full_precision, install, slots
from ..hypernet import Chunked, Given, HyperNetwork, Target

__all__ = ["Compressed"]


class Compressed(nn.Module):
    r"""A network that stores a generator of its weights and an embedding of every piece of them, not the weights.

    The generated weights lie in one vector, cut in chunks of C numbers, and chunk i is

    .. math:: w_i = s_i \odot (A z_i + a)

    with an embedding :math:`z_i` of E numbers per chunk and A, a shared by all of them; one is added to gains of
    normalization layers.  The fixed scale :math:`s_i` is that of :func:`~l2l_hyper.hypernet.hyperfan_std`, and is not
    stored.  With N chunks, N·E + C·(E + 1) numbers stand for N·C.  See Ha, Dai & Le 2016, "HyperNetworks",
    https://arxiv.org/abs/1609.09106, whose generator is linear in z as well.

    Args:
        model: any module.  It is copied, and its generated weights are not used.
        patterns: which parameters are generated, as for :meth:`Target.of`; all of two and more dimensions if left out.
            The others, such as those of normalization layers, are stored as they are.
        chunk: numbers of a chunk, C; best a multiple of the pixels of most kernels.
        chunk_features: size of the embedding, E.

    Shape: that of ``model``.

    Raises:
        InputError: if a pattern matches no parameter, or a size is below one.

    Example:
        >>> network = nn.Sequential(nn.Linear(64, 256), nn.LayerNorm(256), nn.ReLU(), nn.Linear(256, 64))
        >>> small = Compressed(network, chunk=64, chunk_features=4)
        >>> sum(p.numel() for p in network.parameters()), small.stored_parameters
        (33600, 3200)
        >>> import torch
        >>> x = torch.randn(8, 64)
        >>> torch.equal(small(x), small.expand()(x))
        True
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        patterns: Iterable[str] | None = None,
        chunk: int = 72,
        chunk_features: int = 16,
    ) -> None:
        super().__init__()
        if chunk_features < 1:
            raise InputError(f"chunk_features must be at least 1, got {chunk_features}")
        if patterns is None:
            patterns = [name for name, p in model.named_parameters() if p.dim() > 1]
            if not patterns:
                raise InputError("expected a model with parameters of two or more dimensions, got none; give patterns")
        shapes = Target.of(model, patterns).shapes
        # Kernels of the same pixels lie together, so that every chunk of so many times as many begins with a whole one.
        target = Target({n: shapes[n] for n in sorted(shapes, key=lambda n: -shapes[n][2:].numel())})
        # Embeddings start as small as weights are: Adam, whose steps have one size, then moves both as fast.
        generator = Chunked(0, target, chunk=chunk, chunk_features=chunk_features, width=None, input_variance=0.005)
        generator.register_buffer("std", generator.std, persistent=False)
        self.hyper = HyperNetwork(Given(0), generator)
        self._places = slots(model)
        self.model = copy.deepcopy(model)
        install(self.model, self._places, dict.fromkeys(target.shapes))

    @property
    def stored_parameters(self) -> int:
        """How many numbers are trained and stored: the generator, the embeddings and what is not generated."""
        return sum(p.numel() for p in self.parameters())

    def weights(self) -> dict[str, Tensor]:
        """The generated weights by name."""
        nothing = next(self.hyper.parameters()).new_empty(0)  # the chunks have their embeddings in the generator
        with full_precision(nothing.device):
            return self.hyper(nothing)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The model's answer under the generated weights."""
        return call(self.model, self._places, self.weights(), *args, **kwargs)

    def expand(self) -> nn.Module:
        """A plain module of the model's class, with the generated weights as its parameters."""
        plain = copy.deepcopy(self.model)
        install(plain, self._places, {name: nn.Parameter(w.detach().clone()) for name, w in self.weights().items()})
        return plain
