"""What of a training is tensors: put into a checkpoint, and taken back from one that fits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from ..errors import InputError
from ..methods import Method
from .checkpoint import Damaged

__all__ = ["Learned"]


@dataclass
class Learned:
    """A method that is trained, and what belongs to it.

    Attributes:
        method: the method.
        optimizer: its optimizer.
        averaged: the average of its weights, where there is one.
        selected: state dict of the method, or of the average, at the best validation score so far.
    """

    method: Method
    optimizer: torch.optim.Optimizer
    averaged: AveragedModel | None
    selected: dict[str, Tensor] = field(default_factory=dict)

    def tensors(self, *, finished: bool = False) -> dict[str, dict[str, Tensor]]:
        """All of it by part and name, and the states of torch's random generators.

        Of a training that is finished, the selected weights and those states: nothing goes on from the rest.

        Raises:
            InputError: when the method keeps something else than tensors.
        """
        method = self.method.state_dict()
        for name, value in method.items():
            if not isinstance(value, Tensor):
                raise InputError(
                    f"expected tensors in the state dict of a method, got {type(value).__name__} in {name!r}"
                )
        if finished:
            return {"selected": self.selected, "random": _random_states()}
        return {
            "selected": self.selected,
            "method": method,
            "averaged": {} if self.averaged is None else self.averaged.state_dict(),
            "optimizer": {
                f"{index}.{name}": value
                for index, state in self.optimizer.state_dict()["state"].items()
                for name, value in state.items()
            },
            "random": _random_states(),
        }

    def require_fit(self, tensors: Mapping[str, dict[str, Tensor]], *, finished: bool) -> None:
        """Check that :meth:`load` can go on from these, which are of a training that is finished or not.

        Raises:
            Damaged: when names, shapes or types are others.
        """
        own = self.tensors()
        saved = {**dict.fromkeys(self.tensors(finished=finished), {}), **tensors}
        random = {"cpu": own["random"]["cpu"]}  # and GPUs, of which there may be another number
        random |= {name: own["random"].get(name, value) for name, value in saved["random"].items()}
        selected = own["method"] if saved["selected"] else {}
        optimizer = self._like_states(saved.get("optimizer", {}))
        expected = {**own, "selected": selected, "optimizer": optimizer, "random": random}
        for part, values in saved.items():
            if _forms(values) != _forms(expected.get(part, {})):
                raise Damaged(
                    f"names, shapes or types of the part {part!r} of its checkpoint are not those of this run"
                )

    def load(self, tensors: Mapping[str, dict[str, Tensor]]) -> None:
        """Go on from what :meth:`tensors` gave."""
        self.selected = tensors.get("selected", {})
        if "method" in tensors:
            self._load_training(tensors)
        for name in _random_states().keys() & tensors["random"].keys():
            if name == "cpu":
                torch.set_rng_state(tensors["random"][name])
            else:
                torch.cuda.set_rng_state(tensors["random"][name], name)

    def _load_training(self, tensors: Mapping[str, dict[str, Tensor]]) -> None:
        self.method.load_state_dict(tensors["method"])
        if self.averaged is not None:
            self.averaged.load_state_dict(tensors["averaged"])
        saved = tensors.get("optimizer", {})
        like, optimizer = self._like_states(saved), self.optimizer.state_dict()
        optimizer["state"] = {}
        for name, value in saved.items():
            index, _, kind = name.partition(".")
            # In the memory layout of the parameter, in which fused optimizers read it.
            optimizer["state"].setdefault(int(index), {})[kind] = torch.empty_like(like[name]).copy_(value)
        self.optimizer.load_state_dict(optimizer)

    def _like_states(self, saved: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors like those that the optimizer keeps, of the parameters that have some in ``saved``."""
        kinds = (
            ("momentum_buffer",) if isinstance(self.optimizer, torch.optim.SGD) else ("step", "exp_avg", "exp_avg_sq")
        )
        parameters = [p.detach() for group in self.optimizer.param_groups for p in group["params"]]
        with_state = {name.partition(".")[0] for name in saved}
        return {
            f"{index}.{kind}": torch.zeros((), dtype=torch.float32) if kind == "step" else p
            for index, p in enumerate(parameters)
            if str(index) in with_state
            for kind in kinds
        }


def _forms(tensors: Mapping[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (value.shape, value.dtype) for name, value in tensors.items()}


def _random_states() -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        states |= {f"cuda:{number}": state for number, state in enumerate(torch.cuda.get_rng_state_all())}
    return states
