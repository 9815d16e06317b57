"""Weights that every method starts from, read from the checkpoint of an earlier run or a backbone's state dict."""

from __future__ import annotations

import hashlib
import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ...errors import InputError
from ...files import expanded
from ...methods.contract import Method
from ...methods.taskwise import TaskwiseNetwork
from ..checkpoint import SUFFIX, Damaged, read_finished
from ..config import Run

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
        run: what trained them, where the file says so.
    """

    path: Path
    sha256: str
    backbone: dict[str, Tensor]
    classifier: dict[str, Tensor]
    centre: Tensor | None
    run: Run | None

    def load_backbone(self, model: nn.Module) -> None:
        """Put the weights into a backbone; its last ``nn.Linear``, which makes the outputs, stays as it is.

        Raises:
            InputError: when a weight is missing or of another shape.
        """
        linear = [name for name, m in model.named_modules() if isinstance(m, nn.Linear)]
        own = model.state_dict()
        wanted = {name: value for name, value in own.items() if not linear or not name.startswith(f"{linear[-1]}.")}
        for name, value in wanted.items():
            self._require_shape(name, value, self.backbone.get(name))
        model.load_state_dict({**own, **{name: self.backbone[name] for name in wanted}})

    def load_centre(self, network: TaskwiseNetwork) -> None:
        """Put the centre into a network whose last layer has one.

        Raises:
            InputError: when it is of another shape.
        """
        centre = network.head.centre
        if centre is not None and self.centre is not None:
            self._require_shape("centre", centre, self.centre)
            with torch.no_grad():
                centre.copy_(self.centre)

    def load_heads(self, method: Method) -> None:
        """Put centre and classifier into a method that has such; a classifier of other classes stays as it is."""
        network = getattr(method, "network", None)
        if isinstance(network, TaskwiseNetwork):
            self.load_centre(network)
        classifier = getattr(method, "whole_classifier", None)
        if classifier is not None:
            own = {name: value.shape for name, value in classifier.state_dict().items()}
            if own == {name: value.shape for name, value in self.classifier.items()}:
                classifier.load_state_dict(self.classifier)

    def _require_shape(self, name: str, expected: Tensor, arrived: Tensor | None) -> None:
        if arrived is None or arrived.shape != expected.shape:
            what = "nothing" if arrived is None else str(tuple(arrived.shape))
            raise InputError(
                f"expected weights of the backbone in {self.path}, with {name!r} of shape {tuple(expected.shape)}, "
                f"got {what}; pretrain the same backbone with the same options"
            )


def read_pretrained(path: str, seed: int) -> Pretrained:
    """The weights of a checkpoint that a run of this package wrote, or of a backbone's own state dict.

    Args:
        path: of the file, or of several, separated by commas, for the members of an
            :func:`~l2l_hyper.backbones.ensemble.ensemble`; ``{seed}`` in it stands for the seed.
        seed: of the run that begins.

    Raises:
        InputError: when a file cannot be read or holds no weights, and for a member of an ensemble whose features were
            not of unit length.
    """
    networks = [_read(name.strip(), seed) for name in path.split(",")]
    return networks[0] if len(networks) == 1 else _of_ensemble(networks)


def _of_ensemble(members: list[Pretrained]) -> Pretrained:
    weights: dict[str, Tensor] = {}
    for k, member in enumerate(members):
        if member.centre is None:
            raise InputError(
                f"expected a member of an ensemble that reads features of unit length, got {member.path}; train it by "
                "protonet with distance='cosine'"
            )
        own = {name: value for name, value in member.backbone.items() if name.startswith("features.")}
        weights |= {f"features.{k}.{name}": value for name, value in {**own, "own_centre": member.centre}.items()}
    files, digests = (",".join(str(getattr(member, name)) for member in members) for name in ("path", "sha256"))
    return Pretrained(Path(files), hashlib.sha256(digests.encode()).hexdigest(), weights, {}, None, None)


def _read(path: str, seed: int) -> Pretrained:
    file = expanded(path.replace("{seed}", str(seed)))
    try:
        content = file.read_bytes()
    except OSError as error:
        raise InputError(
            f"expected trained weights in {file} ({error.strerror}): train them first, or correct the path"
        ) from error
    try:
        weights, run = _checkpoint(content, file) if file.suffix == SUFFIX else (_saved_by_torch(content, file), None)
    except Damaged as damaged:
        raise InputError(
            f"expected trained weights, but {damaged}: train them again, or name another file"
        ) from damaged

    def under(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}

    backbone = under(_BACKBONE) or weights
    centre = next((value for name, value in backbone.items() if name.endswith(".centre")), None)
    return Pretrained(file, hashlib.sha256(content).hexdigest(), backbone, under(_CLASSIFIER), centre, run)


def _checkpoint(content: bytes, file: Path) -> tuple[dict[str, Tensor], Run]:
    """The weights that validation selected."""
    saved = read_finished(content, file)
    return saved.tensors["selected"], saved.run


def _saved_by_torch(content: bytes, file: Path) -> dict[str, Tensor]:
    """The weights in a state dict, or in a checkpoint of an earlier version."""
    stream = io.BytesIO(content)
    try:
        # torch writes checksums into its files, and does not read them.
        whole = not zipfile.is_zipfile(stream) or zipfile.ZipFile(stream).testzip() is None
        stream.seek(0)
        saved = torch.load(stream, map_location="cpu", weights_only=True) if whole else None
    except Exception as error:  # torch raises several kinds for a damaged file
        raise Damaged(f"{file} is damaged ({type(error).__name__})") from error
    if not whole:
        raise Damaged(f"{file} is damaged (its checksum does not match)")
    match saved:
        case {"state": {"best": {"weights": dict(weights)}}}:
            pass
        case dict(weights) if "state" not in weights:
            pass
        case _:
            raise InputError(
                f"expected a checkpoint with trained weights in {file}, got one without; train it to its end"
            )
    return {name: value for name, value in weights.items() if isinstance(value, Tensor)}
