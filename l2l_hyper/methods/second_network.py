"""A second network beside the one that answers queries: an encoder of support sets, or a teacher."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.episode import Episodes
from ..errors import InputError
from ..functional import EpisodicBatchNorm, convert_norm, in_float32, share_copy
from .taskwise import TaskwiseNetwork, class_means

__all__ = ["SecondNetwork", "divergence"]

_GRID = 4
_SCALE = 10.0  # of the cosines by which a teacher classifies


class SecondNetwork(TaskwiseNetwork):
    r"""A network for T tasks at once, its parameters shared, its last layer unused.

    BatchNorm layers use running averages; normalization layers that say where their statistics come from keep to it.

    With ``layers`` it reads more of a sample than its features g: the outputs of inner layers as well, each as means m
    over a grid of 4 × 4 of its positions, all parts of unit length,

    .. math:: \Bigl[\frac{g}{\lVert g \rVert},\; \frac{m_1}{\lVert m_1 \rVert},\; \frac{m_2}{\lVert m_2 \rVert},
              \dots\Bigr]

    Args:
        network: the network.
        layers: names of inner layers of it whose outputs are feature maps, separated by commas.

    Attributes:
        size: E, how many numbers it reads of a sample.

    Raises:
        InputError: if no parameter requires a gradient and there are BatchNorm layers that have seen no batch; for a
            layer that is not there, or has no convolution that would say how many channels its output has.
    """

    def __init__(self, network: nn.Module, layers: str = "") -> None:
        super().__init__(convert_norm(share_copy(network), "running", declared=False))
        self.release_head()
        if not any(p.requires_grad for p in self.parameters()):
            for name, norm in self.module.named_modules():
                if isinstance(norm, EpisodicBatchNorm) and norm.mode == "running" and not norm.num_batches_tracked:
                    raise InputError(
                        f"expected a trained network, but its layer {name!r} has no running averages: train it with "
                        "them, or call convert_norm(network, 'support') if it was trained with statistics of the "
                        "support set"
                    )
        self._channels = {name.strip(): self._channels_of(name.strip()) for name in layers.split(",") if name.strip()}
        self.size = self.head.in_features + _GRID**2 * sum(self._channels.values())

    def read(self, x: Tensor) -> Tensor:
        """What it reads of samples ``(T, N, *)``, ``(T, N, E)``, the features first.

        Raises:
            InputError: for an inner layer whose output is no feature map of as many channels as its last convolution.
        """
        seen = self(x, layers=self._channels)
        if not self._channels:
            return in_float32(seen.features)
        parts = [seen.features, *(self._means(name, output) for name, output in seen.layers.items())]
        return torch.cat([F.normalize(in_float32(part), dim=-1) for part in parts], -1)

    def _channels_of(self, name: str) -> int:
        inner = dict(self.module.named_modules())
        convolutions = [m for m in inner[name].modules() if isinstance(m, nn.Conv2d)] if name in inner else []
        if not convolutions:
            known = [n for n, m in inner.items() if n and any(isinstance(part, nn.Conv2d) for part in m.modules())]
            raise InputError(f"expected layers of the encoder with convolutions, got {name!r}; there are {known}")
        return convolutions[-1].out_channels

    def _means(self, name: str, output: Tensor) -> Tensor:
        """Over a grid of positions, ``(T, N, 16 C)``."""
        if output.ndim != 5 or output.shape[2] != self._channels[name]:
            raise InputError(
                f"expected feature maps (T, N, {self._channels[name]}, H, W) of the layer {name!r} of the encoder, got "
                f"{tuple(output.shape)}; name a layer that ends in its last convolution"
            )
        return F.adaptive_avg_pool2d(output.flatten(0, 1), _GRID).flatten(1).unflatten(0, output.shape[:2])


def divergence(teacher: TaskwiseNetwork, outputs: Tensor, episodes: Episodes) -> Tensor:
    r"""Of the predictions for the queries from a teacher's, which is a cosine Prototypical Network with scale 10.

    .. math:: \operatorname{KL}\bigl(p_{\text{teacher}} \,\Vert\, \operatorname{softmax}(\text{outputs})\bigr)

    Args:
        teacher: its features are compared, or what the episodes carry of them; it gets no gradient.
        outputs: ``(T, Q, C)``.
        episodes: T of them.

    Returns:
        The mean over the queries of each episode, ``(T,)``.
    """
    with torch.no_grad():
        shown, asked = episodes.support_encoded, episodes.query_encoded
        if shown is None or asked is None:
            seen = teacher(episodes.support)
            shown, asked = seen.features, teacher(episodes.query, None, seen.statistics).features
        size = teacher.head.in_features  # other numbers may follow
        support, query = (F.normalize(features[..., :size], dim=-1) for features in (shown, asked))
        means, _ = class_means(support, episodes.support_set.one_hot(support.dtype))
        taught = (_SCALE * query @ F.normalize(means, dim=-1).mT).log_softmax(-1)
    apart = F.kl_div(outputs.log_softmax(-1), taught, log_target=True, reduction="none")
    return apart.sum(-1).mean(-1)
