"""A second network beside the one that answers queries: an encoder of support sets, or a teacher."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.episode import Episodes
from ..errors import InputError
from ..functional import EpisodicBatchNorm, convert_norm, share_copy
from .taskwise import TaskwiseNetwork, class_means

__all__ = ["divergence", "second_network"]

_SCALE = 10.0  # of the cosines by which a teacher classifies


def second_network(network: nn.Module) -> TaskwiseNetwork:
    """The network for T tasks at once, its parameters shared, its last layer unused.

    BatchNorm layers use running averages; normalization layers that say where their statistics come from keep to it.

    Raises:
        InputError: if no parameter requires a gradient and there are BatchNorm layers that have seen no batch.
    """
    second = TaskwiseNetwork(convert_norm(share_copy(network), "running", declared=False))
    second.release_head()
    if not any(p.requires_grad for p in second.parameters()):
        for name, norm in second.module.named_modules():
            if isinstance(norm, EpisodicBatchNorm) and norm.mode == "running" and not norm.num_batches_tracked:
                raise InputError(
                    f"expected a trained network, but its layer {name!r} has no running averages: train it with them, "
                    "or call convert_norm(network, 'support') if it was trained with statistics of the support set"
                )
    return second


def divergence(teacher: TaskwiseNetwork, outputs: Tensor, episodes: Episodes) -> Tensor:
    r"""Of the predictions for the queries from a teacher's, which is a cosine Prototypical Network with scale 10.

    .. math:: \operatorname{KL}\bigl(p_{\text{teacher}} \,\Vert\, \operatorname{softmax}(\text{outputs})\bigr)

    Args:
        teacher: its features are compared, or those that the episodes carry; it gets no gradient.
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
        support, query = (F.normalize(features, dim=-1) for features in (shown, asked))
        means, _ = class_means(support, episodes.support_set.one_hot(support.dtype))
        taught = (_SCALE * query @ F.normalize(means, dim=-1).mT).log_softmax(-1)
    apart = F.kl_div(outputs.log_softmax(-1), taught, log_target=True, reduction="none")
    return apart.sum(-1).mean(-1)
