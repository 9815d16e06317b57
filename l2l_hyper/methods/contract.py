"""What a method is: it adapts to support sets and predicts queries; the rest has defaults."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..data.episode import Episodes, SupportSet
from ..errors import InputError
from ..functional.norm import convert_norm, statistics_of, update_running
from ..settings import Positive, check_fields
from .second_network import SecondNetwork

__all__ = ["Method", "OneByOne", "Options", "as_method"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of a method; each is a key of ``[options.METHOD]`` in a preset and of ``--option METHOD.KEY=VALUE``.

    Attributes:
        lr: learning rate of meta-training.
        backbone: name of the network of this row, where it is not that of the comparison.
        backbone_options: options of the backbone of this row, over those of the comparison.
        pretrained: an earlier row of the comparison, or a checkpoint, whose backbone this row starts from.

    Raises:
        InputError: for a value of another type or out of the range that its field declares.
    """

    lr: Positive = 3e-3
    backbone: str = ""
    backbone_options: dict[str, Any] = field(default_factory=dict)
    pretrained: str = ""

    def __post_init__(self) -> None:
        check_fields(self, "option")


class Method(nn.Module):
    """A method of a comparison.  Any ``nn.Module`` with ``adapt`` and ``predict`` will do; see :func:`as_method`.

    A class derived from this one is given T tasks at once and may say more: its options, what its loss is, and two
    facts that decide how many tasks go together.  Its constructor takes the backbone and the options.

    Attributes:
        Options: a dataclass of its options.
        controls: names of the controls that it can be tested under, see :meth:`controlled`.
        one_by_one: whether it gains nothing from several tasks at once.
        adapts_features: whether each task has features of its own, made by weights of its own.
        reads_features_only: whether in a test it reads nothing of a sample but the features that ``network`` makes of
            it under weights that all tasks share, and of a support sample what a frozen ``encoder`` reads, if there is
            one. It says nothing of a class that is derived from the one that has it.
        transductive: whether the outputs on a query depend on the queries beside it.
    """

    Options: ClassVar[type[Any]] = Options
    controls: tuple[str, ...] = ()
    one_by_one: ClassVar[bool] = False
    adapts_features: bool = False
    reads_features_only: bool = False
    transductive: bool = False

    @property
    def reader(self) -> SecondNetwork | None:
        """A frozen second network; what it reads of the samples episodes may carry."""
        return None

    def adapt(self, support: SupportSet) -> Any:
        """Adapt to T tasks; whatever this returns goes to :meth:`predict`."""
        raise NotImplementedError

    def predict(self, adapted: Any, query: Tensor) -> Tensor:
        """Outputs ``(T, Q, *)``, such as logits ``(T, Q, C)``, on queries ``(T, Q, *)``."""
        raise NotImplementedError

    def predict_each(self, adapted: Sequence[Any], query: Tensor) -> list[Tensor]:
        """Outputs ``(T, Q, *)`` for each of several adaptations of the same tasks, such as those under controls."""
        return [self.predict(one, query) for one in adapted]

    def penalty(self, adapted: Any) -> Tensor | float:
        """A term that is added to the loss of each task, shape ``(T,)``."""
        return 0.0

    def loss(self, adapted: Any, outputs: Tensor, episodes: Episodes) -> Tensor:
        """What meta-training minimises, per task, shape ``(T,)``: the episodes' own loss, and the penalty."""
        return episodes.loss(outputs, episodes.query_labels) + self.penalty(adapted)

    def controlled(self, adapted: Any, control: str) -> Any:
        """What T tasks were adapted to under a control, such as with what was generated for another of them."""
        raise NotImplementedError


class OneByOne(Method):
    """A module that knows nothing of many tasks, normalization or penalties, given one task at a time.

    Its normalization layers meet, with each query, the statistics that they had when it adapted.

    Args:
        module: what has ``adapt(support)`` and ``predict(adapted, query)``; a leading task dimension of 1 stays.
    """

    one_by_one = True

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module: Any = module
        self.transductive = bool(getattr(module, "transductive", False))

    def adapt(self, support: SupportSet) -> list[tuple[Any, dict[str, tuple[Tensor, Tensor]]]]:
        """Adapt to each task in turn."""
        return [self._adapt_one(one) for one in support]

    def predict(self, adapted: list[tuple[Any, dict[str, tuple[Tensor, Tensor]]]], query: Tensor) -> Tensor:
        """Outputs on the queries of each task in turn."""
        outputs = []
        for (task, statistics), x in zip(adapted, query.split(1), strict=True):
            with statistics_of(self.module, statistics):
                outputs.append(self.module.predict(task, x))
            if not isinstance(outputs[-1], Tensor) or len(outputs[-1]) != 1:
                raise InputError(
                    f"predict of {type(self.module).__name__} must give the outputs of one task, a tensor of shape "
                    f"(1, Q, ...), got {getattr(outputs[-1], 'shape', type(outputs[-1]).__name__)}"
                )
        return torch.cat(outputs)

    def penalty(self, adapted: list[tuple[Any, Any]]) -> Tensor | float:
        """The module's own, if it has one."""
        if not hasattr(self.module, "penalty"):
            return 0.0
        return torch.stack([torch.as_tensor(self.module.penalty(task)).sum() for task, _ in adapted])

    def _adapt_one(self, support: SupportSet) -> tuple[Any, dict[str, tuple[Tensor, Tensor]]]:
        with statistics_of(self.module, None) as statistics:
            task = self.module.adapt(support)
        if self.training:
            update_running(self.module, {n: (mean[None], var[None]) for n, (mean, var) in statistics.items()})
        return task, dict(statistics)


def as_method(module: nn.Module, normalization: str) -> Method:
    """The module as a comparison trains it: checked, its BatchNorm layers declared, one task at a time if need be.

    Args:
        module: a :class:`Method`, or any module with ``adapt(support)`` and ``predict(adapted, query)``.
        normalization: "support", "transductive" or "running", see :class:`~l2l_hyper.functional.EpisodicBatchNorm`.

    Raises:
        InputError: for anything else.
    """
    missing = [name for name in ("adapt", "predict") if not _defined(module, name)]
    if not isinstance(module, nn.Module) or missing:
        what = " and ".join(f"{name}()" for name in missing) or "nn.Module as a base"
        raise InputError(
            f"a method is an nn.Module with adapt(support) -> adapted and predict(adapted, query) -> outputs, "
            f"{type(module).__name__} has no {what}; see docs/extend.md"
        )
    module = convert_norm(module, normalization, declared=False)  # type: ignore[arg-type]
    return module if isinstance(module, Method) else OneByOne(module)


def _defined(module: object, name: str) -> bool:
    method: Callable[..., Any] | None = getattr(type(module), name, None)
    return callable(method) and method is not getattr(Method, name)
