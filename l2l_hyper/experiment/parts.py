"""What the names in a plan stand for: tasksets, backbone, metric, methods with their options, device."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import kernels
from ..backbones import BACKBONES, BackboneEntry
from ..data import METRICS, TASKSETS, BenchmarkTasksets, Episodes, Metric, TensorTaskset, manifest
from ..data.unbalanced import UnbalancedTaskset
from ..errors import InputError
from ..files import expanded
from ..memory import require_memory
from ..methods import METHODS, Method, MethodEntry
from ..settings import checked, defaults
from .backbone import backbone_of
from .checkpoint import checkpoint_path
from .config import Experiment, Run
from .distributed import first_then_others
from .encoder import read_encoder
from .logs import LOGS
from .plan import Plan

__all__ = ["Parts", "find_device", "label_of"]


class Parts:
    """The objects of a plan; tasksets are read when they are first asked for.

    Args:
        plan: the names.
        methods: the class or function of a method, where it is none of :data:`~l2l_hyper.methods.METHODS`.
        backbone: the same for the backbone.
        tasksets: the three tasksets, where they are not named.
        trains: whether the taskset of the training has to give training tasks.

    Raises:
        InputError: for a name that nothing has, an option that a method or the backbone does not have or that is of
            another type, and a device that is not there.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        methods: Mapping[str, Callable[..., nn.Module]] | None = None,
        backbone: Callable[..., nn.Module] | None = None,
        tasksets: Sequence[Any] | None = None,
        trains: bool = True,
    ) -> None:
        if plan.kernels:
            kernels.enable()
        e, given = plan.experiment, methods or {}
        _require_memory(e)
        self.plan, self._trains = plan, trains
        self.read: dict[tuple[str, str], Tensor] = {}  # by encoders, of training samples: path and inner layers
        self.device = find_device(plan.device)
        self.data_root = expanded(plan.data_root)
        self._tasksets = TASKSETS[e.tasksets] if tasksets is None else TASKSETS.entry(e.tasksets, tasksets)
        self.metric: Metric | None = None if e.metric is None else METRICS[e.metric]
        self.backbone: BackboneEntry = (
            BACKBONES[e.backbone] if backbone is None else BACKBONES.entry(e.backbone, backbone)
        )
        self.methods: dict[str, MethodEntry] = {
            name: METHODS.entry(name, given[name]) if name in given else METHODS[name]
            for name in dict.fromkeys([*plan.methods, *plan.options, *plan.grids])
        }
        self.logs = [LOGS[name] for name in plan.log]
        if plan.baseline is not None and plan.baseline not in self.methods:
            METHODS[plan.baseline]
        self.options = {name: self._options(entry) for name, entry in self.methods.items()}
        self.grids = {name: self._grid(name, table) for name, table in plan.grids.items()}
        for options in ({}, *self.options.values()):
            backbone_of(e, options, self.backbone)

    @functools.cached_property
    def tasksets(self) -> BenchmarkTasksets:
        """Those of training, validation and test."""
        e = self.plan.experiment
        samples = max(e.test_shots or (e.shots,)) + e.queries
        train_samples = max(e.train_shots or (e.shots,)) + (e.train_queries or e.queries)
        options = {
            "train_ways": (e.train_ways if self._trains and not e.subclasses else None) or e.ways,
            "train_samples": train_samples if self._trains else samples,
            "test_ways": e.ways,
            "test_samples": samples,
            "root": str(self.data_root),
            "device": self.device,
            "split_seed": e.split_seed,
        }
        for name in options.keys() & e.tasksets_options.keys():
            raise InputError(f"tasksets_options has {name}, which other settings decide; leave it out")
        options |= e.tasksets_options
        with first_then_others():
            built = self._tasksets.build(options)
        if not e.unbalanced_queries:
            return built
        if not isinstance(built.test, TensorTaskset):
            raise InputError(f"unbalanced_queries needs a TensorTaskset, got {type(built.test).__name__}; leave it out")
        return built._replace(test=UnbalancedTaskset(built.test, e.unbalanced_queries))

    @functools.cached_property
    def manifests(self) -> dict[int, dict[str, Any]]:
        """What the episodes of each number of shots are."""
        e = self.plan.experiment
        return {
            shots: manifest(
                self.tasksets,
                name=" ".join([e.tasksets, *(f"{name}={value}" for name, value in e.tasksets_options.items())]),
                ways=e.ways,
                shots=shots,
                queries=e.queries,
                split_seed=e.split_seed,
                episodes=e.test_episodes,
            )
            for shots in e.test_shots or (e.shots,)
        }

    def model(self, run: Run, episode: Episodes) -> nn.Module:
        """The backbone of a run for such episodes, with the initial weights of its seed."""
        torch.manual_seed(run.seed)
        np.random.seed(run.seed)  # noqa: NPY002 - learn2learn draws some initial weights with scipy, from numpy's global state
        backbone, options = backbone_of(run.experiment, run.options, self.backbone)
        sample_shape, outputs = self.form(episode)
        return backbone.build(outputs, sample_shape, options)

    def form(self, episode: Episodes) -> tuple[tuple[int, ...], int]:
        """Shape of a sample and number of outputs of the backbone for such episodes."""
        values = episode.query_labels.shape[2:].numel()
        outputs = self.plan.experiment.ways if episode.ways is not None else values
        return tuple(episode.support.shape[2:]), outputs

    def method(self, run: Run, model: nn.Module, folder: Path | None = None) -> Method:
        """The method of a run around its backbone, on the device.

        Args:
            run: which.
            model: its backbone.
            folder: of the comparison, where the checkpoint of another row lies that is named as the encoder.
        """
        entry, path = self.methods[run.method], self.weights_of(run, "encoder", folder)
        shape = tuple(self.tasksets.train.batch([0], shots=1, queries=1).support.shape[2:])
        encoder = read_encoder(path, run.seed, shape) if path else None
        bank = self._bank(getattr(entry.complete(run.options), "bank", 0), run.seed)
        method = entry.build(model, run.options, run.experiment.normalization, encoder, bank).to(self.device)
        if self.device.type == "cpu":
            method.to(memory_format=torch.channels_last)  # convolutions are two to three times faster
        return method

    def _bank(self, size: int, seed: int) -> Tensor | None:
        """So many samples of the training classes."""
        if not size:
            return None
        train = self.tasksets.train
        if not isinstance(train, TensorTaskset):
            raise InputError(
                f"bank={size} needs a training taskset that draws single samples, a TensorTaskset, got "
                f"{type(train).__name__}; use bank=0"
            )
        return train.classified(range(size), seed=seed)[0].cpu()

    def weights_of(self, run: Run, option: str, folder: Path | None) -> str:
        """Path of the trained weights that an option names, a checkpoint or an earlier row of the comparison."""
        named, methods = str(run.options.get(option, "")), self.plan.methods
        if named not in methods:
            return named
        if folder is None or methods.index(named) >= methods.index(run.method):
            raise InputError(
                f"{run.method} has {option}={named!r}, a row that must be trained before and kept: name it earlier "
                "among the methods, and give an output folder"
            )
        return str(checkpoint_path(folder, replace(run, method=named)))

    def _options(self, entry: MethodEntry) -> dict[str, Any]:
        given = self.plan.options.get(entry.name, {})
        values = checked(entry.options, given, f"option of {entry.name}", f"{entry.name}.")
        return {**defaults(entry.options), **values}

    def _grid(self, method: str, table: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        entry, kind = self.methods[method], f"option of {method}"
        return {
            name: [checked(entry.options, {name: value}, kind, f"{method}.")[name] for value in values]
            for name, values in table.items()
        }


def _require_memory(e: Experiment) -> None:
    """Raise ``InputError`` for more validation or test episodes than memory holds the numbers and scores of."""
    form = {"ways": e.ways, "shots": max(e.test_shots or (e.shots,)), "queries": e.queries}
    samples = form["ways"] * (form["shots"] + form["queries"])
    for name in ("validation_episodes", "test_episodes"):
        counts = {name: getattr(e, name), **form}
        needed = counts[name] * (200 + 64 * samples)
        require_memory(needed, f"{counts[name]:,} {name}", f"lower {max(counts, key=counts.__getitem__)}")


def label_of(entry: MethodEntry, options: Mapping[str, Any]) -> str:
    """Name of the method in tables, with the implementation where it is not the package's own."""
    implementation = options.get("implementation", "batched")
    return entry.label if implementation == "batched" else f"{entry.label} ({implementation})"


def find_device(name: str) -> torch.device:
    """The device of a name.

    Raises:
        InputError: for one that is not there.
    """
    try:
        device = torch.device(name)
        if device.type == "cuda":
            there = (device.index or 0) < torch.cuda.device_count()
        else:
            there = device.type != "meta" and torch.empty(0, device=device).device.type == device.type
    except (RuntimeError, AssertionError, NotImplementedError):
        there = False
    if not there:
        gpus = torch.cuda.device_count()
        raise InputError(f"expected a device that is there, got {name!r}; try cpu{' or cuda' if gpus else ''}")
    return device
