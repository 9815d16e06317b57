"""What methods share that make outputs of a network's features and never use the network's own last layer."""

from __future__ import annotations

from torch import Tensor, nn

from ..data.episode import SupportSet
from ..functional import Statistics
from .contract import Method
from .taskwise import Pass, TaskwiseNetwork

__all__ = ["FeatureMethod"]


class FeatureMethod(Method):
    """A method that reads features of a network.

    Args:
        model: the network; of its last layer only the inputs matter.

    Raises:
        InputError: if the model has no linear layer.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.network = TaskwiseNetwork(model)
        self.network.release_head()

    @property
    def features(self) -> int:
        """D, the number of features."""
        return self.network.head.in_features

    def read(self, support: SupportSet) -> tuple[Pass, Tensor]:
        """The pass of the support set and its one-hot classes ``(T, N, C)``; raises ``InputError`` in regression."""
        seen = self.network(support.x)
        return seen, support.one_hot(seen.features.dtype)

    def read_queries(self, query: Tensor, statistics: Statistics) -> Tensor:
        """Features ``(T, Q, D)`` of queries, normalized as their support sets were."""
        return self.network(query, None, statistics).features
