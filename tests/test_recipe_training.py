"""Training by a recipe: resumed runs are identical, gradients are exact, several numbers of shots are tested."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_training import LITTLE, Killed, kill_at, train, without_times
from torch import Tensor, nn

from l2l_hyper import InputError
from l2l_hyper.backbones import BACKBONES
from l2l_hyper.data import ACCURACY, TensorTaskset
from l2l_hyper.experiment.checkpoint import load_checkpoint
from l2l_hyper.experiment.config import Experiment, Run
from l2l_hyper.experiment.provenance import collect
from l2l_hyper.experiment.recipe.augmentation import augmented_episodes, augmented_images
from l2l_hyper.experiment.recipe.classification import attach_classifier, class_pass
from l2l_hyper.experiment.recipe.objective import Objective
from l2l_hyper.experiment.records import make_record, read_records, write_record
from l2l_hyper.experiment.training import train_and_test
from l2l_hyper.functional import EpisodicBatchNorm
from l2l_hyper.methods import METHODS
from l2l_hyper.report import summarize

EVERYTHING = replace(
    LITTLE,
    iterations=6,
    optimizer="adamw",
    weight_decay=0.05,
    warmup=0.2,
    schedule="step",
    augmentation="crop-flip",
    rotation_classes=True,
    class_weight=0.5,
    label_smoothing=0.1,
    train_shots=(1, 3),
    test_shots=(1, 4),
    average=0.5,
    backbone_lr=0.5,
)


@pytest.mark.parametrize("method", ["hyper-adapter", "maml", "protonet"])
def test_a_killed_run_with_every_option_goes_on_to_the_identical_result(tmp_path: Path, method: str) -> None:
    run = Run(experiment=EVERYTHING, method=method, seed=1)
    whole = train(run, tmp_path / "whole")
    for iteration in (3, 5):
        with pytest.raises(Killed):
            train(run, tmp_path / "killed", progress=kill_at(iteration))
    assert without_times(train(run, tmp_path / "killed")) == without_times(whole)
    other = train(replace(run, experiment=replace(EVERYTHING, average=None)), tmp_path / "other")
    losses, validated = (
        [[p["loss"] for p in r[curve]] for r in (other, whole)] for curve in ("training", "validation")
    )
    assert losses[0] == losses[1] and validated[0] != validated[1]


def test_one_model_is_tested_with_several_numbers_of_shots(tmp_path: Path) -> None:
    record = train(Run(experiment=EVERYTHING, method="protonet"), tmp_path)
    (other,) = record["other_shots"]
    assert other["shots"] == 4 and len(other["scores"]) == len(record["scores"]) == 5
    assert other["manifest"]["shots"] == 4 and other["manifest"]["hash"] != record["manifest"]["hash"]


def test_records_of_several_shots_make_a_table_of_each(tmp_path: Path) -> None:
    from l2l_hyper.experiment.parts import Parts
    from l2l_hyper.experiment.plan import Plan

    plan = Plan(experiment=EVERYTHING, methods=("protonet", "r2d2"))
    parts = Parts(plan)
    for run in plan.runs(parts.options):
        _, result = train_and_test(run, parts, folder=None)
        write_record(tmp_path, make_record(run, run.method, collect("a test", "cpu"), result))
    records = read_records(tmp_path)
    for shots in (1, 4):
        summary = summarize([record.at(shots) for record in records])
        assert summary.experiment.shots == shots and len(summary.rows) == 2
    at_four = {record.run.method: record.at(4).scores.tolist() for record in records}
    assert at_four == {r.run.method: r.result.other_shots[0].scores for r in records}
    with pytest.raises(InputError, match="tested with, 1, 4, got 2"):
        records[0].at(2)


def test_the_shots_of_the_table_are_among_those_tested() -> None:
    with pytest.raises(InputError, match="test_shots must have shots, 1, among them"):
        Experiment(test_shots=(5,))


def small(normalization: Any, at_once: int, method: str = "protonet") -> Objective:
    torch.manual_seed(0)
    x = torch.rand(40, 1, 8, 8, dtype=torch.double)
    taskset = TensorTaskset(x, torch.arange(8).repeat_interleave(5), ways=3, samples=4)
    model = BACKBONES["conv4"].build(3, (1, 8, 8), {"channels": 4, "layers": 2})
    built = METHODS[method].build(model, {}, normalization)
    attach_classifier(built, taskset, "cosine")
    experiment = replace(EVERYTHING, normalization=normalization, meta_batch=3, train_shots=(2,))
    return Objective(
        Run(experiment=experiment, method=method),
        built.double(),
        taskset,
        ACCURACY,
        classes=taskset,
        at_once=at_once,
        device=torch.device("cpu"),
        autocast=torch.autocast("cpu", torch.bfloat16, enabled=False),
    )


def gradients(objective: Objective) -> tuple[Tensor, list[Tensor]]:
    loss, _ = objective.backward(4)
    return loss, [p.grad for p in objective.method.parameters() if p.grad is not None]


@pytest.mark.parametrize("normalization", ["support", "running"])
@pytest.mark.parametrize("method", ["protonet", "maml"])
def test_the_gradient_is_that_of_the_loss_whatever_goes_together(normalization: str, method: str) -> None:
    """Of the loss written out, where the class batch and the episodes are one graph."""
    objective = small(normalization, at_once=3, method=method)
    loss, whole = gradients(objective)
    in_parts_loss, in_parts = gradients(small(normalization, at_once=1, method=method))
    torch.testing.assert_close((in_parts_loss, in_parts), (loss, whole))

    for p in objective.method.parameters():
        p.grad = None
    e, taskset = objective.run.experiment, objective.taskset
    x, labels = taskset.classified(range(48, 60), seed=0)  # type: ignore[attr-defined]
    class_loss, seen = class_pass(objective.method, augmented_images(x, range(48, 60), "class", 0), labels, 0.1)
    episodes = augmented_episodes(taskset.batch(range(12, 15), ways=3, shots=2, queries=2, seed=0), range(12, 15), 0)
    layers = {n: objective.method.network.module.get_submodule(n) for n in seen.statistics}  # type: ignore[union-attr]
    if normalization == "running":
        for name, layer in layers.items():
            layer.support_mean, layer.support_var = (value[0] for value in seen.statistics[name])
    adapted = objective.method.adapt(episodes.support_set)
    outputs = objective.method.predict(adapted, episodes.query)
    written_out = objective.method.loss(adapted, outputs, episodes).sum() + 3 * e.class_weight * class_loss
    written_out.backward()
    expected = [p.grad for p in objective.method.parameters() if p.grad is not None]
    torch.testing.assert_close((loss, whole), (written_out.detach(), expected))


def test_every_method_starts_from_the_weights_of_one_run(tmp_path: Path) -> None:
    train(Run(experiment=EVERYTHING, method="protonet", seed=5), tmp_path / "first")
    saved = load_checkpoint(tmp_path / "first/checkpoints/protonet-seed5.safetensors").tensors["selected"]
    second = replace(
        EVERYTHING,
        pretrained=str(tmp_path / "first/checkpoints/protonet-seed{seed}.safetensors"),
        backbone_lr=0.0,
        weight_decay=0.0,
        average=None,
    )
    hashes = set()
    for method in ("r2d2", "maml"):
        record = train(Run(experiment=second, method=method, seed=5), tmp_path / method)
        hashes.add(record["pretrained"])
        hashes.add(load_checkpoint(tmp_path / f"{method}/checkpoints/{method}-seed5.safetensors").state.pretrained)
        weights = load_checkpoint(tmp_path / f"{method}/checkpoints/{method}-seed5.safetensors").tensors["selected"]
        convolutions = [name for name in saved if name.endswith("conv.weight")]
        assert len(convolutions) == 4
        assert all(torch.equal(weights[name], saved[name]) for name in convolutions)
        assert not torch.equal(weights["whole_classifier.weight"], saved["whole_classifier.weight"])
    assert len(hashes) == 1 and len(hashes.pop()) == 64


def test_maml_may_normalize_by_its_own_support_sets(tmp_path: Path) -> None:
    record = train(Run(experiment=EVERYTHING, method="maml", options={"normalization": "support"}), tmp_path)
    assert record["normalization"] == "support"
    layers = METHODS["maml"].build(BACKBONES["conv4"].build(3, (1, 16, 16)), {"normalization": "support"}, "running")
    assert {m.mode for m in layers.modules() if isinstance(m, EpisodicBatchNorm)} == {"support"}


def test_the_class_batch_needs_features(tmp_path: Path) -> None:
    class Plain(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def adapt(self, support):  # type: ignore[no-untyped-def]
            return None

        def predict(self, adapted, query):  # type: ignore[no-untyped-def]
            return self.model(query[0])[None]

    with pytest.raises(InputError, match="class_batch needs a method"):
        train(Run(experiment=EVERYTHING, method="plain"), tmp_path, methods={"plain": Plain})
