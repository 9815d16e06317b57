"""Any of our learners as the engine sees it: all tasks of a batch in one pass."""

from __future__ import annotations

from torch import Tensor

from ..learners import Adapted, Learner
from .base import Episodic

__all__ = ["Batched"]


class Batched(Episodic):
    """A learner adapted for a number of steps.

    With ``HyperAdapter(start="gradient", generate=["*"], residual=False)`` this is MAML, with the last layer only
    ANIL, with ``start="prototype"`` ProtoNet: the tests hold them equal to learn2learn's in value and gradient.
    """

    def __init__(self, learner: Learner, *, steps: int = 1) -> None:
        super().__init__()
        self.learner = learner
        self.steps = steps
        self.changes_body = learner.changes_body

    def adapt(self, support: Tensor, labels: Tensor) -> Adapted:
        """Weights and statistics for T tasks."""
        return self.learner.adapt_tasks(support, labels, steps=self.steps)

    def predict(self, adapted: Adapted, query: Tensor) -> Tensor:
        """Outputs ``(T, Q, C)``."""
        return self.learner.predict_tasks(adapted, query)

    def generated(self, adapted: Adapted) -> int:
        """Numbers in the generated weights of one task."""
        return sum(w[0].numel() for w in adapted.weights.values())
