"""Class attention: one embedding per class of a task, read off its support set."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..hypernet.encoders import Attention, feed_forward

__all__ = ["ClassAttention"]


class ClassAttention(nn.Module):
    r"""One embedding per class: class tokens attend to the support samples, then to each other.

    The label enters only as a learned bias of the attention of class k to sample n, :math:`a\,y_{nk} + b\,p_{nk}`,
    where y are the targets and p the predictions of the weights so far.  Relabelling the classes therefore permutes the
    embeddings and nothing else, and any number of ways and shots will do.

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
        self.reads = nn.ModuleList(Attention(width, heads) for _ in range(blocks))
        self.mixes = nn.ModuleList(Attention(width, heads) for _ in range(blocks))
        self.mlps = nn.ModuleList(feed_forward(width, dropout) for _ in range(blocks))
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
