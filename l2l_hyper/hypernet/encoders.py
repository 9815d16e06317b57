"""Encoders: a description, or a set of samples, to an embedding."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import InputError
from .init import unit_linear_

__all__ = ["Attention", "DeepSets", "Given", "Mean", "Perceptron", "SetAttention", "feed_forward"]


class Given(nn.Module):
    """A description z that is given, passed on as it is.

    Shape: ``(*, Z)`` to ``(*, Z)``.

    Raises:
        InputError: if the last dimension is not Z.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.out_features = features

    def forward(self, z: Tensor) -> Tensor:
        """Check the description and return it."""
        if z.shape[-1:] != (self.out_features,):
            raise InputError(f"expected a description of shape (*, {self.out_features}), got {tuple(z.shape)}")
        return z


class Perceptron(nn.Module):
    """A description z through one hidden layer, of the width of the embedding: weights then are no linear map of z.

    Shape: ``(*, Z)`` to ``(*, E)``; descriptions of mean square 1 give embeddings of mean square 1 at the start.

    Raises:
        InputError: if the last dimension is not Z.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.given = Given(in_features)
        # Half of the variance comes from the bias: a ReLU of zero would pass no gradient to the description z = 0.
        self.hidden = unit_linear_(nn.Linear(in_features, out_features), 2.0)
        nn.init.normal_(self.hidden.bias, std=0.5**0.5)
        self.linear = unit_linear_(nn.Linear(out_features, out_features), 0.5)  # a ReLU halves the mean square
        self.out_features = out_features

    def forward(self, z: Tensor) -> Tensor:
        """Encode a description."""
        return self.linear(torch.relu(self.hidden(self.given(z))))


class Mean(nn.Module):
    """Mean over a set of a linear map of each sample.

    Shape: ``(*, N, D)`` to ``(*, E)``; the order of the N samples does not matter.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features)
        self.out_features = out_features

    def forward(self, samples: Tensor) -> Tensor:
        """Encode a set."""
        return self.linear(samples.mean(-2))


class DeepSets(nn.Module):
    r"""Deep Sets, :math:`\rho(\operatorname{mean}_n \phi(x_n))`, Zaheer et al. 2017, https://arxiv.org/abs/1703.06114.

    Shape: ``(*, N, D)`` to ``(*, E)``; the order of the N samples does not matter.
    """

    def __init__(self, in_features: int, out_features: int, *, width: int = 128) -> None:
        super().__init__()
        self.phi = nn.Sequential(nn.Linear(in_features, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.rho = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, out_features))
        self.out_features = out_features

    def forward(self, samples: Tensor) -> Tensor:
        """Encode a set."""
        return self.rho(self.phi(samples).mean(-2))


class Attention(nn.Module):
    """Multi-head attention of queries ``(*, M, E)`` to keys ``(*, N, E)``, with a bias ``(*, heads, M, N)``."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise InputError(f"width must be a multiple of heads, got width {width} and {heads} heads")
        self.heads = heads
        self.query = nn.Linear(width, width)
        # A bias on the keys adds the same to all logits of a query, and one on the values the same to all outputs.
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width)

    def forward(self, queries: Tensor, keys: Tensor, bias: Tensor | None = None) -> Tensor:
        q = self.query(queries).unflatten(-1, (self.heads, -1)).transpose(-3, -2)
        k, v = self.key_value(keys).unflatten(-1, (2 * self.heads, -1)).transpose(-3, -2).chunk(2, -3)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.out(mixed.transpose(-3, -2).flatten(-2))


def feed_forward(width: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Dropout(dropout), nn.Linear(2 * width, width)
    )


class SetAttention(nn.Module):
    """Set transformer with one learned seed that pools the set, Lee et al. 2019, https://arxiv.org/abs/1810.00825.

    Shape: ``(*, N, D)`` to ``(*, E)``; the order of the N samples does not matter.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        width: int = 128,
        blocks: int = 2,
        heads: int = 4,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(in_features, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(blocks))
        self.attentions = nn.ModuleList(Attention(width, heads) for _ in range(blocks))
        self.mlps = nn.ModuleList(feed_forward(width, dropout) for _ in range(blocks))
        self.seed = nn.Parameter(torch.randn(1, width) / width**0.5)
        self.pool = Attention(width, heads)
        self.out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, out_features))
        self.out_features = out_features

    def forward(self, samples: Tensor) -> Tensor:
        """Encode a set."""
        x = self.embed(samples)
        for norm, attention, mlp in zip(self.norms, self.attentions, self.mlps, strict=True):
            h = norm(x)
            x = x + attention(h, h)
            x = x + mlp(x)
        seed = self.seed.expand(*x.shape[:-2], *self.seed.shape)
        return self.out(self.pool(seed, x).squeeze(-2))
