"""A trained learner from the checkpoint that a comparison keeps."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..bridge.protocol import Learner
from ..data import TASKSETS
from ..data.registry import OF_A_FOLDER
from ..errors import InputError
from ..files import expanded
from ..methods import METHODS, Method
from .backbone import backbone_of
from .checkpoint import SUFFIX, Checkpoint, Damaged, read_finished
from .config import Run
from .encoder import read_encoder
from .parts import find_device
from .recipe.classification import add_classifier

__all__ = ["TrainedLearner", "build", "encoder_file", "encoder_name", "load", "located", "read_trained"]

_HUB = "hf://"


class TrainedLearner(Learner):
    """A learner with the weights of a checkpoint, and what the checkpoint knows of its training.

    It adapts and predicts as any :class:`~l2l_hyper.bridge.protocol.Learner`, and its ``method`` is what
    :func:`l2l_hyper.evaluate` takes.

    Attributes:
        run: the configuration.
        sample_shape: shape of the samples.
        file: the checkpoint.
    """

    def __init__(self, method: Method, checkpoint: Checkpoint, file: Path) -> None:
        super().__init__(method)
        self.run, self.sample_shape, self.file = checkpoint.run, checkpoint.sample_shape, file
        self._ways = checkpoint.run.experiment.ways

    def read(self, paths: Iterable[str | Path]) -> Tensor:
        """Files as the samples that it was trained on, with shape ``(N, *sample_shape)``.

        Images are cut to the proportions of the samples and resized; the tasksets of the training decide the rest.

        Raises:
            InputError: for a file that cannot be read, and where the tasksets do not say how.
        """
        e = self.run.experiment
        entry = TASKSETS[e.tasksets]
        samples = [entry.sample(Path(path), self.sample_shape, e.tasksets_options) for path in paths]
        if not samples:
            raise InputError("expected files to read, got none")
        return torch.stack(samples).to(next(self.parameters()).device)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the checkpoint, that of its encoder, and the model card, as a repository of the Hugging Face Hub.

        The files are ``model.safetensors``, ``config.json`` and ``README.md``, and that of the encoder.

        Raises:
            InputError: where the weights are no longer those of the checkpoint or it has no model card, and without the
                extra ``hub``.
        """
        from .hub import OnHub  # needs an extra

        OnHub(self).save_pretrained(folder)

    def push_to_hub(self, repository: str, **options: Any) -> str:
        """Put what :meth:`save_pretrained` writes into a repository of the Hub, which is made if need be.

        Args:
            repository: ``"owner/name"``.
            options: such as ``private=True``; all are those of ``huggingface_hub.ModelHubMixin.push_to_hub``.

        Returns:
            The address of the commit.

        Raises:
            InputError: as :meth:`save_pretrained`.
        """
        from .hub import OnHub

        return OnHub(self).push_to_hub(repository, **options)

    @staticmethod
    def from_pretrained(
        source: str | Path, *, device: str = "cpu", trust: bool = False, **options: Any
    ) -> TrainedLearner:
        """The learner of a repository of the Hub, ``"owner/name"``, or of a folder of :meth:`save_pretrained`.

        Args:
            source: the repository or the folder.
            device: as in :func:`load`.
            trust: as in :func:`load`.
            options: such as ``revision="main"``; all are those of ``huggingface_hub.ModelHubMixin.from_pretrained``.

        Raises:
            InputError: for a source that cannot be reached, without the extra ``hub``, and as :func:`load`.
        """
        from .hub import read

        return read(source, device=device, trust=trust, **options)


def load(path: str | Path, *, device: str = "cpu", trust: bool = False) -> TrainedLearner:
    """The trained learner of a checkpoint, which ``compare`` keeps as ``OUT/checkpoints/METHOD-seedN.safetensors``.

    Args:
        path: of the checkpoint; or ``"hf://owner/name"``, see :meth:`TrainedLearner.from_pretrained`.
        device: such as "cuda".
        trust: whether code that the checkpoint names, as ``package.module:object``, may be imported and run.

    Returns:
        The learner in evaluation mode, with the weights that validation selected.

    Raises:
        InputError: for a file that is no checkpoint of a finished training, and names in it that are unknown or name
            code that is not trusted.

    Example:
        >>> learner = load("runs/demo/checkpoints/protonet-seed0.safetensors")  # doctest: +SKIP
        >>> learner.adapt(support=(learner.read(["a.png", "b.png"]), torch.tensor([0, 1])), ways=2)  # doctest: +SKIP
        >>> learner(learner.read(["c.png"])).softmax(-1)  # doctest: +SKIP
    """
    if str(path).startswith(_HUB):
        return TrainedLearner.from_pretrained(str(path).removeprefix(_HUB), device=device, trust=trust)
    checkpoint, file = read_trained(path, trust=trust), expanded(str(path)).absolute()
    return TrainedLearner(build(checkpoint, file)[0], checkpoint, file).to(find_device(device)).eval()


def located(path: str | Path, *, trust: bool = False) -> Path:
    """The file of a checkpoint, fetched if it is ``"hf://owner/name"``; else as :func:`load`."""
    return load(path, trust=trust).file if str(path).startswith(_HUB) else Path(path)


def read_trained(path: str | Path, *, trust: bool = False) -> Checkpoint:
    """The checkpoint of a finished training; arguments and errors are those of :func:`load`."""
    file = expanded(str(path))
    try:
        checkpoint = read_finished(file.read_bytes(), file)
    except OSError as error:
        raise InputError(
            f"expected a checkpoint, but {file} cannot be read ({error.strerror}); try one in the folder checkpoints "
            "of a comparison"
        ) from error
    except Damaged as damaged:
        raise InputError(f"expected a checkpoint of `l2l-hyper compare`, but {damaged}; try another file") from damaged
    if not trust:
        _require_no_code(checkpoint.run, file)
    return checkpoint


def build(checkpoint: Checkpoint, path: Path) -> tuple[Method, nn.Module]:
    """The method of a checkpoint with the selected weights, and the backbone that it is built around.

    Args:
        checkpoint: what was read.
        path: from where, beside which the checkpoint of its encoder may lie.

    Raises:
        InputError: for names that are unknown, and weights of another network.
    """
    run, weights = checkpoint.run, checkpoint.tensors["selected"]
    backbone, options = backbone_of(run.experiment, run.options)
    model = backbone.build(checkpoint.outputs, checkpoint.sample_shape, options)
    file = encoder_file(run, path)
    encoder = None if file is None else read_encoder(str(file), run.seed, checkpoint.sample_shape)
    method = METHODS[run.method].build(model, run.options, run.experiment.normalization, encoder)
    if "whole_classifier.weight" in weights:
        add_classifier(method, len(weights["whole_classifier.weight"]), run.experiment.classifier)
    try:
        method.load_state_dict(weights)
    except RuntimeError as error:
        what = " ".join(str(error).split())
        raise InputError(f"expected the weights of {run.method} in {path}, got others ({what[:300]})") from error
    return method, model


def encoder_name(run: Run) -> str:
    """How the checkpoint of a run's encoder is called where it lies beside that of the run."""
    return f"{replace(run, method=_named_encoder(run)).name}{SUFFIX}"


def encoder_file(run: Run, path: Path) -> Path | None:
    """The checkpoint of a run's encoder: that of a row of the same comparison, or the file that is named."""
    if not _named_encoder(run):
        return None
    beside = path.with_name(encoder_name(run))
    return beside if beside.exists() else expanded(_named_encoder(run))


def _named_encoder(run: Run) -> str:
    return str(run.options.get("encoder", "")).replace("{seed}", str(run.seed))


def _require_no_code(run: Run, file: Path) -> None:
    """Raise ``InputError`` where a name would import a module, in the checkpoint or in that of its encoder."""
    e = run.experiment
    names = [run.method.partition("@")[0], e.backbone, str(run.options.get("backbone", "")), e.metric or ""]
    if e.tasksets.partition(":")[0] not in OF_A_FOLDER:
        names.append(e.tasksets)
    for name in names:
        if ":" in name:
            raise InputError(
                f"{file} names code to run, {name}, which may be anything; where you know it, trust it "
                "(--trust, or trust=True)"
            )
    encoder = encoder_file(run, file)
    if encoder is not None:
        read_trained(encoder)
