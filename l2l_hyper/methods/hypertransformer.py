r"""HyperTransformer, Zhmoginov et al. 2022, "HyperTransformer: Model Generation for Supervised and Semi-Supervised
Few-Shot Learning", https://arxiv.org/abs/2201.04182; here the version that generates the last layer alone.

A transformer reads one token per support sample, its features, and one token per class, the same for all classes, whose
outputs a linear map G turns into the rows of the last layer:

.. math:: [s_1 \dots s_N, t_1 \dots t_C] = \operatorname{Transformer}\bigl([E h_1 \dots E h_N, e \dots e];\, S\bigr),
          \qquad w_c = G\,t_c, \qquad o_c(x) = \langle w_c, h(x) \rangle

where each layer is attention of all tokens to all, then a perceptron, each followed by layer normalization of its sum
with its input.

What differs from the paper: it generates convolutions too, layer by layer, and finds that for larger networks the last
layer alone does as well or better; unlabelled samples are left out.  It tells the transformer the labels by learned
embeddings of the class *numbers*, and each class token has an embedding of its own, so that relabelling a task changes
its answers and ways are fixed.  Here the labels enter as S: tokens of the same class, samples and their class token,
attend to each other with a learned bias, one per head and layer.  Any ways and shots will do.  As in the defaults of
its code there is no generated bias.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..data.episode import SupportSet
from ..functional import full_precision
from ..hypernet.encoders import Attention
from ..settings import Count, Depth, Share
from .contract import Options
from .feature_method import FeatureMethod
from .taskwise import Adapted

__all__ = ["HyperTransformer", "HyperTransformerOptions", "TransformerLayer"]


@dataclass(frozen=True, kw_only=True)
class HyperTransformerOptions(Options):
    """Options of HyperTransformer.

    Attributes:
        width: width of the tokens.
        layers: layers of the transformer.
        heads: attention heads.
        dropout: on what attention and perceptrons add, while training.
    """

    width: Count = 128
    layers: Depth = 3
    heads: Count = 4
    dropout: Share = 0.0


class TransformerLayer(nn.Module):
    """Attention and a perceptron, each followed by layer normalization of its sum with its input.

    Shape: tokens ``(*, M, E)`` and whether two are of the same class ``(*, M, M)``, to ``(*, M, E)``.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(width, heads)
        # Half of the heads start by looking at their own class.
        same_class = torch.zeros(heads)
        same_class[: (heads + 1) // 2] = 3.0
        self.same_class = nn.Parameter(same_class)
        self.perceptron = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, same_class: Tensor) -> Tensor:
        """The tokens, each changed by what it reads of the others."""
        bias = self.same_class[:, None, None] * same_class.unsqueeze(-3)
        tokens = self.norms[0](tokens + self.dropout(self.attention(tokens, tokens, bias)))
        return self.norms[1](tokens + self.dropout(self.perceptron(tokens)))


class HyperTransformer(FeatureMethod):
    """HyperTransformer, with a generated last layer, for T tasks at once.

    Args:
        model: the network; of its last layer only the inputs matter.
        options: see :class:`HyperTransformerOptions`.

    Raises:
        InputError: if the width is no multiple of the heads.
    """

    Options = HyperTransformerOptions
    label = "HyperTransformer"

    def __init__(
        self,
        model: nn.Module,
        options: HyperTransformerOptions = HyperTransformerOptions(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__(model)
        width = options.width
        self.embed = nn.Linear(self.features, width)
        self.class_token = nn.Parameter(torch.randn(width) / width**0.5)
        self.layers = nn.ModuleList(
            TransformerLayer(width, options.heads, options.dropout) for _ in range(options.layers)
        )
        self.rows = nn.Linear(width, self.features)

    def adapt(self, support: SupportSet) -> Adapted:
        """The generated last layer of each task."""
        seen, one_hot = self.read(support)
        with full_precision(seen.features.device):
            samples = self.embed(seen.features)
            classes = self.class_token.expand(*one_hot.shape[::2], -1)
            labels = torch.cat([one_hot, torch.eye(one_hot.shape[-1]).to(one_hot).expand(len(one_hot), -1, -1)], 1)
            tokens, same_class = torch.cat([samples, classes], 1), labels @ labels.transpose(1, 2)
            for layer in self.layers:
                tokens = layer(tokens, same_class)
            weight = self.rows(tokens[:, one_hot.shape[1] :])
            return Adapted(self.network.head_weights(weight, weight.new_zeros(weight.shape[:2])), seen.statistics)

    def predict(self, adapted: Adapted, query: Tensor) -> Tensor:
        """Logits ``(T, Q, C)``."""
        return self.network(query, adapted.weights, adapted.statistics).outputs
