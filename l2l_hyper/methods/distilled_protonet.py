r"""A Prototypical Network that learns from a larger one, after Hinton et al. 2015, https://arxiv.org/abs/1503.02531.

On each training episode the queries also pass a larger, frozen network, the teacher, which classifies them as a cosine
Prototypical Network with scale 10.  The loss of an episode is

.. math:: L + \beta\,\operatorname{KL}\bigl(p_{\text{teacher}} \,\Vert\, p\bigr),

averaged over queries.  At test the method is :class:`~l2l_hyper.methods.protonet.ProtoNet` and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from ..data.episode import Episodes
from ..errors import InputError
from ..functional import share_copy
from ..settings import NonNegative
from .protonet import ProtoNet, ProtoNetOptions
from .second_network import SecondNetwork, divergence
from .taskwise import Adapted

__all__ = ["DistilledProtoNet", "DistilledProtoNetOptions"]


@dataclass(frozen=True, kw_only=True)
class DistilledProtoNetOptions(ProtoNetOptions):
    """Options of a distilled Prototypical Network, besides those of a plain one.

    Attributes:
        encoder: the teacher: an earlier row of the comparison, or a checkpoint, in whose path ``{seed}`` stands for the
            training seed.
        weight: β.
    """

    encoder: str = ""
    weight: NonNegative = 1.0


class DistilledProtoNet(ProtoNet):
    """A Prototypical Network with a teacher, for T tasks at once.

    Args:
        model: the network; of its last layer only the inputs matter.
        options: see :class:`DistilledProtoNetOptions`.
        encoder: the teacher.

    Raises:
        InputError: without a teacher.
    """

    Options = DistilledProtoNetOptions
    label = "ProtoNet, distilled"
    reads_features_only = True

    def __init__(
        self, model: nn.Module, options: DistilledProtoNetOptions, *, encoder: nn.Module | None = None
    ) -> None:
        super().__init__(model, options)
        if encoder is None:
            raise InputError("expected a teacher for the distilled Prototypical Network, got none; give encoder=")
        self.weight = options.weight
        self.teacher = SecondNetwork(share_copy(encoder).requires_grad_(False)).eval()

    @property
    def reader(self) -> SecondNetwork:
        """The teacher."""
        return self.teacher

    def train(self, mode: bool = True) -> DistilledProtoNet:
        """As of any module; the teacher stays in evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def loss(self, adapted: Adapted, outputs: Tensor, episodes: Episodes) -> Tensor:
        """The loss of each episode and what it differs from the teacher, ``(T,)``."""
        own = super().loss(adapted, outputs, episodes)
        return own + self.weight * divergence(self.teacher, outputs, episodes)
