"""HyperAdapter for PyTorch Lightning, beside learn2learn's ``LightningMAML`` and with its arguments."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from .._learn2learn import learn2learn
from ..errors import InputError
from ..methods.hyper_adapter import HyperAdapterOptions
from .hyper_adapter import HyperAdapter

try:
    import pytorch_lightning as pl
except ImportError as error:
    raise InputError(
        f"expected pytorch_lightning to be importable, got: {error}; try pip install 'l2l_hyper[lightning]'"
    ) from error

learn2learn()  # first, so that its import prints nothing
from learn2learn.algorithms import LightningEpisodicModule, LightningMAML  # noqa: E402
from learn2learn.utils import accuracy  # noqa: E402

__all__ = ["LightningHyperAdapter", "TrackTestAccuracyCallback"]

_EPISODIC = (
    *("train_ways", "train_shots", "train_queries", "test_ways", "test_shots", "test_queries"),
    *("lr", "scheduler_step", "scheduler_decay", "adaptation_steps", "adaptation_lr"),
)
_NOT_HERE = ("lr", "inner_lr", "steps", "encoder", "bank", "teacher")
_OPTIONS = (
    *("first_order", "allow_unused", "allow_nograd", "normalization", "start", "change"),
    *(f.name for f in dataclasses.fields(HyperAdapterOptions) if f.name not in _NOT_HERE),
)


class LightningHyperAdapter(LightningEpisodicModule):
    """:class:`~l2l_hyper.HyperAdapter` in the place of learn2learn's ``LightningMAML``.

    A batch is one task: its samples class by class, the shots of a class before its queries, and labels from zero, as
    learn2learn's benchmark tasksets give them.  The adapter is given the support labels outright
    (``adapt(support=(x, y))``), which holds in mixed precision as well, and under the inference mode that Lightning
    tests in.  Train and test tasks may differ in ways, unless ``base_learner`` is "gradient" or "own".

    ``normalization`` is "transductive" by default: ``LightningMAML`` validates and tests in training mode, so
    its BatchNorm layers always use the statistics of the batch.  With "running" they use running averages there.

    Lightning's ``Trainer`` has to be that of ``pytorch_lightning``, which learn2learn builds on;
    the one of ``lightning.pytorch`` accepts no module of it.

    Args:
        model: any network whose last layer is an ``nn.Linear``.
        loss: of the queries' outputs and labels; the mean cross-entropy if left out.
        **kwargs: ``train_ways``, ``train_shots``, ``train_queries``, ``test_ways``, ``test_shots``, ``test_queries``,
            ``lr`` (of Adam), ``scheduler_step``, ``scheduler_decay``, ``adaptation_steps`` and ``adaptation_lr`` (the
            adapter's ``lr``), with learn2learn's defaults; and any option of :class:`~l2l_hyper.HyperAdapter`.  What
            else a script's ``vars(args)`` holds is ignored, as learn2learn's modules do.

    Raises:
        InputError: for a keyword that is nearly one of the above, for what the adapter refuses, and for
            ``data_parallel``, which does not reach a clone.

    Example:
        >>> network = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 5))
        >>> module = LightningHyperAdapter(network, train_queries=3, adaptation_lr=0.5, normalization="support")
        >>> task = torch.randn(20, 4), torch.arange(5).repeat_interleave(4)
        >>> loss, accuracy = module.meta_learn(task, 0, ways=5, shots=1, queries=3)
    """

    adaptation_steps: int = LightningMAML.adaptation_steps
    adaptation_lr: float = LightningMAML.adaptation_lr
    add_model_specific_args = staticmethod(LightningMAML.add_model_specific_args)

    def __init__(self, model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor] | None = None, **kwargs: Any) -> None:
        super().__init__()
        _refuse_typos(kwargs)
        if kwargs.get("data_parallel"):
            raise InputError(
                "data_parallel would replicate the network without the task's weights; leave it out and let Lightning "
                "spread tasks over devices, with Trainer(devices=..., strategy='ddp')"
            )
        episodic = {name: kwargs.get(name, getattr(type(self), name)) for name in _EPISODIC}
        for name, value in episodic.items():
            setattr(self, name, value)
        options = {name: kwargs[name] for name in _OPTIONS if name in kwargs}
        self.save_hyperparameters({**episodic, **options})
        self.loss = nn.CrossEntropyLoss() if loss is None else loss
        self.model = HyperAdapter(model, self.adaptation_lr, **{"normalization": "transductive", **options})

    def meta_learn(
        self, batch: tuple[Tensor, Tensor], batch_idx: int, ways: int, shots: int, queries: int
    ) -> tuple[Tensor, Tensor]:
        """Loss and accuracy on the queries of one task, after adapting to its support set.

        Args:
            batch: samples of shape ``(N, ...)`` and labels of shape ``(N,)``, N = ways · (shots + queries).
            batch_idx: not used; Lightning's.
            ways: classes of the task.
            shots: support samples per class.
            queries: query samples per class.

        Raises:
            InputError: if the task has another size, or its labels are not in groups, one per class.
        """
        with_gradients = torch.is_grad_enabled()
        # Some starts take gradients on the support set, which inference mode has no way to.
        with torch.inference_mode(False), torch.set_grad_enabled(with_gradients):
            support, (x, y) = _split(batch, ways, shots, queries)
            learner = self.model.clone()
            for _ in range(self.adaptation_steps):
                learner.adapt(support=support, ways=ways)
            outputs = learner(x)
            return self.loss(outputs, y), accuracy(outputs, y)


class TrackTestAccuracyCallback(pl.Callback):
    """Log ``test_loss`` and ``test_accuracy`` after every validation, over all tasks of the datamodule's test loader.

    In the place of learn2learn's callback of this name, which calls ``trainer.test`` while ``trainer.fit`` runs, as
    Lightning no longer allows.  Serves learn2learn's modules too.
    """

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Lightning's hook."""
        if trainer.sanity_checking:
            return
        loader = trainer.datamodule.test_dataloader()  # type: ignore[attr-defined]
        metrics = []
        for index, batch in enumerate(islice(loader, len(loader))):
            batch = trainer.strategy.batch_to_device(trainer.precision_plugin.convert_input(batch))
            with trainer.precision_plugin.val_step_context():
                loss, hits = pl_module.meta_learn(
                    batch, index, pl_module.test_ways, pl_module.test_shots, pl_module.test_queries
                )
            metrics.append((loss.item(), hits.item()))
        losses, accuracies = zip(*metrics, strict=True)
        pl_module.log("test_loss", sum(losses) / len(losses))
        pl_module.log("test_accuracy", sum(accuracies) / len(accuracies))


def _refuse_typos(kwargs: dict[str, Any]) -> None:
    known = (*_EPISODIC, *_OPTIONS, "data_parallel")
    for name in kwargs:
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
        if close and name not in known:
            raise InputError(f"expected an option of LightningHyperAdapter, got {name!r}; try {close[0]!r}")


def _split(
    batch: tuple[Tensor, Tensor], ways: int, shots: int, queries: int
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Support and query set of a task."""
    data, labels = batch
    if len(data) != ways * (shots + queries):
        raise InputError(
            f"expected a task of {ways} ways · ({shots} shots + {queries} queries) = {ways * (shots + queries)} "
            f"samples, got {len(data)}; give the module the ways, shots and queries that the tasks were made with"
        )
    by_class = labels.unflatten(0, (ways, -1))
    classes = torch.arange(ways, device=labels.device)
    if (by_class != by_class[:, :1]).any() or (by_class[:, 0].sort().values != classes).any():
        raise InputError(
            f"expected samples class by class with labels 0 … {ways - 1}, got labels {labels.tolist()}; "
            "try learn2learn's RemapLabels and ConsecutiveLabels on the tasks"
        )
    is_query = torch.arange(len(data), device=data.device) % (shots + queries) >= shots
    return (data[~is_query], labels[~is_query]), (data[is_query], labels[is_query])
