"""Encoders: what a task is (a description, or its support set) to an embedding."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import InputError

__all__ = ["ClassAttention", "DeepSets", "Given", "Mean", "SetAttention"]


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


class Mean(nn.Module):
    """Mean over the support set of a linear map of each sample.

    Shape: ``(*, N, D)`` to ``(*, E)``; the order of the N samples does not matter.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features)
        self.out_features = out_features

    def forward(self, samples: Tensor) -> Tensor:
        """Encode a support set."""
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
        """Encode a support set."""
        return self.rho(self.phi(samples).mean(-2))


class _Attention(nn.Module):
    """Multi-head attention of queries ``(*, M, E)`` to keys ``(*, N, E)``, with a bias ``(*, heads, M, N)``."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
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


def _feed_forward(width: int, dropout: float) -> nn.Sequential:
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
        self.attentions = nn.ModuleList(_Attention(width, heads) for _ in range(blocks))
        self.mlps = nn.ModuleList(_feed_forward(width, dropout) for _ in range(blocks))
        self.seed = nn.Parameter(torch.randn(1, width) / width**0.5)
        self.pool = _Attention(width, heads)
        self.out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, out_features))
        self.out_features = out_features

    def forward(self, samples: Tensor) -> Tensor:
        """Encode a support set."""
        x = self.embed(samples)
        for norm, attention, mlp in zip(self.norms, self.attentions, self.mlps, strict=True):
            h = norm(x)
            x = x + attention(h, h)
            x = x + mlp(x)
        seed = self.seed.expand(*x.shape[:-2], *self.seed.shape)
        return self.out(self.pool(seed, x).squeeze(-2))


class ClassAttention(nn.Module):
    r"""One embedding a class: class tokens attend to the support samples, then to each other.

    The label enters only as a learned bias of the attention of class k to sample n, :math:`a\,y_{nk} + b\,p_{nk}`,
    where y are the targets and p the predictions of the weights so far.  Relabelling the classes therefore permutes the
    embeddings and nothing else; ways and shots are free.

    Shape:
        rows ``(*, C, D)``, samples ``(*, N, F)``, targets and predictions ``(*, N, C)``, to ``(*, C, E)``.
    """

    def __init__(
        self,
        row_features: int,
        sample_features: int,
        *,
        width: int = 128,
        blocks: int = 2,
        heads: int = 4,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.rows = nn.Linear(2 * row_features, width)
        self.samples = nn.Sequential(nn.Linear(sample_features, width), nn.Dropout(dropout))
        self.sample_norm = nn.LayerNorm(width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * blocks))
        self.reads = nn.ModuleList(_Attention(width, heads) for _ in range(blocks))
        self.mixes = nn.ModuleList(_Attention(width, heads) for _ in range(blocks))
        self.mlps = nn.ModuleList(_feed_forward(width, dropout) for _ in range(blocks))
        # Half of the heads start by looking at their own class.
        same_class = torch.zeros(blocks, 2, heads)
        same_class[:, 0, : (heads + 1) // 2] = 3.0
        self.label_bias = nn.Parameter(same_class)
        self.norm = nn.LayerNorm(width)
        self.out_features = width

    def forward(self, rows: Tensor, samples: Tensor, targets: Tensor, predictions: Tensor) -> Tensor:
        """Encode each class of a task from its current row of weights and the support set."""
        mean = rows.mean(-2, keepdim=True)
        classes = self.rows(torch.cat([rows - mean, mean.expand_as(rows)], -1))
        samples = self.sample_norm(self.samples(samples))
        signals = torch.stack([targets, predictions], -1).transpose(-3, -2)  # (*, C, N, 2)
        for i, (read, mix, mlp) in enumerate(zip(self.reads, self.mixes, self.mlps, strict=True)):
            bias = (signals @ self.label_bias[i]).movedim(-1, -3)  # (*, heads, C, N)
            classes = classes + read(self.norms[2 * i](classes), samples, bias)
            h = self.norms[2 * i + 1](classes)
            classes = classes + mix(h, h)
            classes = classes + mlp(classes)
        return self.norm(classes)
