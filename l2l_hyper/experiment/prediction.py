"""What a trained learner predicts for files, from a folder of support files per class."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..data import TASKSETS
from ..data.image_file import class_files, sample_files
from ..errors import InputError
from .trained import TrainedLearner

__all__ = ["Prediction", "predict"]

_AT_ONCE = 64  # queries


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What was predicted, and from what.

    Attributes:
        classes: their names.
        support: the support samples, ``(N, *)``.
        support_labels: the numbers of their classes, ``(N,)``.
        files: of the queries.
        query: the queries, ``(M, *)``.
        probabilities: of each class for each query, ``(M, classes)``.
    """

    classes: list[str]
    support: Tensor
    support_labels: Tensor
    files: list[Path]
    query: Tensor
    probabilities: Tensor

    @property
    def predicted(self) -> list[str]:
        """The most probable class of each query."""
        return [self.classes[k] for k in self.probabilities.argmax(-1).tolist()]


@torch.no_grad()
def predict(learner: TrainedLearner, support: Path, query: Path) -> Prediction:
    """Adapt to the files of a folder, and predict those of another.

    Queries are predicted 64 at once, and all together where the method or its normalization layers read them together
    ("transductive").

    Args:
        learner: what :func:`l2l_hyper.load` returned.
        support: a folder with one sub-folder per class.
        query: a folder of files.

    Raises:
        InputError: for folders of another form, files that cannot be read, fewer than two classes, and classes that the
            method cannot adapt to.
    """
    e = learner.run.experiment
    endings = TASKSETS[e.tasksets].endings
    for folder in (support, query):
        if not folder.is_dir():
            raise InputError(f"expected a folder of files, got {folder}; try another path")
    of_class, files = class_files(support, endings), sample_files(query, endings)
    if len(of_class) < 2:
        raise InputError(f"expected a sub-folder per class in {support}, for two classes or more, got {len(of_class)}")
    x = learner.read(path for paths in of_class.values() for path in paths)
    y = torch.tensor([k for k, paths in enumerate(of_class.values()) for _ in paths], device=x.device)
    adapted = learner.adapt_tasks(x[None], y[None], ways=len(of_class))
    queries = learner.read(files)
    together = learner.method.transductive or e.normalization == "transductive"
    at_once = len(files) if together else _AT_ONCE
    outputs = [learner.predict_tasks(adapted, part[None])[0] for part in queries.split(at_once)]
    return Prediction(
        classes=list(of_class),
        support=x.cpu(),
        support_labels=y.cpu(),
        files=files,
        query=queries.cpu(),
        probabilities=torch.cat(outputs).double().softmax(-1).cpu(),
    )
