"""Weights that every method starts from, read from the checkpoint of an earlier run or a backbone's state dict."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import InputError
from ...methods.contract import Method
from ...methods.taskwise import TaskwiseNetwork
from ..checkpoint import load_checkpoint

__all__ = ["Pretrained", "read_pretrained"]

_BACKBONE, _CLASSIFIER = "network.module.", "whole_classifier."


@dataclass(frozen=True)
class Pretrained:
    """Weights by name.

    Attributes:
        path: the file.
        sha256: of the file.
        backbone: weights and buffers of the backbone.
        classifier: those of the classifier of all training classes; empty where there was none.
        centre: the centre about which the last layer read features of unit length, where it did.
    """

    path: Path
    sha256: str
    backbone: dict[str, Tensor]
    classifier: dict[str, Tensor]
    centre: Tensor | None

    def load_backbone(self, model: nn.Module) -> None:
        """Put the weights into a backbone; its last ``nn.Linear``, which makes the outputs, stays as it is.

        Raises:
            InputError: when a weight is missing or of another shape.
        """
        linear = [name for name, m in model.named_modules() if isinstance(m, nn.Linear)]
        own = model.state_dict()
        wanted = {name: value for name, value in own.items() if not linear or not name.startswith(f"{linear[-1]}.")}
        for name, value in wanted.items():
            arrived = self.backbone.get(name)
            if arrived is None or arrived.shape != value.shape:
                what = "nothing" if arrived is None else str(tuple(arrived.shape))
                raise InputError(
                    f"expected weights of the backbone in {self.path}, with {name!r} of shape {tuple(value.shape)}, "
                    f"got {what}; pretrain the same backbone with the same options"
                )
        model.load_state_dict({**own, **{name: self.backbone[name] for name in wanted}})

    def load_heads(self, method: Method) -> None:
        """Put centre and classifier into a method that has such; a classifier of other classes stays as it is."""
        network = getattr(method, "network", None)
        centre = network.head.centre if isinstance(network, TaskwiseNetwork) else None
        if centre is not None and self.centre is not None:
            with torch.no_grad():
                centre.copy_(self.centre)
        classifier = getattr(method, "whole_classifier", None)
        if classifier is not None:
            own = {name: value.shape for name, value in classifier.state_dict().items()}
            if own == {name: value.shape for name, value in self.classifier.items()}:
                classifier.load_state_dict(self.classifier)


def read_pretrained(path: str, seed: int) -> Pretrained:
    """The weights of a checkpoint that a run of this package wrote, or of a backbone's own state dict.

    Args:
        path: of the file; ``{seed}`` in it stands for the seed.
        seed: of the run that begins.

    Raises:
        InputError: when the file cannot be read or holds no weights.
    """
    file = Path(path.replace("{seed}", str(seed))).expanduser()
    try:
        content = file.read_bytes()
    except OSError as error:
        raise InputError(
            f"expected pretrained weights in {file} ({error.strerror}): train them first, or correct 'pretrained'"
        ) from error
    weights = _weights(load_checkpoint(file, torch.device("cpu")), file)
    found = {name: value for name, value in weights.items() if isinstance(value, Tensor)}

    def under(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): value for name, value in found.items() if name.startswith(prefix)}

    backbone = under(_BACKBONE) or found
    centre = next((value for name, value in backbone.items() if name.endswith(".centre")), None)
    return Pretrained(file, hashlib.sha256(content).hexdigest(), backbone, under(_CLASSIFIER), centre)


def _weights(saved: Any, file: Path) -> dict[str, Any]:
    """The weights that validation selected, or the state dict that the file is."""
    if isinstance(saved, dict) and "state" in saved:
        best = saved["state"].get("best")
        if best is not None:
            return dict(best["weights"])
    elif isinstance(saved, dict):
        return saved
    raise InputError(f"expected a checkpoint with trained weights in {file}, got one without; train it to its end")
