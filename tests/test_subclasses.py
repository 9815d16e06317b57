"""Subclasses: what a network tells apart within a class becomes classes of training episodes, and of nothing else."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_training import LITTLE, Killed, kill_at, train, without_times

from l2l_hyper import InputError
from l2l_hyper.data import TensorTaskset
from l2l_hyper.experiment.checkpoint import checkpoint_path
from l2l_hyper.experiment.config import Experiment, Run
from l2l_hyper.experiment.recipe.subclasses import divided, with_subclasses

KINDS = 3


def tasks(x: torch.Tensor, labels: torch.Tensor) -> TensorTaskset:
    return TensorTaskset(x, labels, ways=2, samples=4, scale=2.0, seed=5, name="train")


def samples_of_kinds() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Samples in random order, their classes, and their kinds: a direction each, the same in all classes."""
    g = torch.Generator().manual_seed(0)
    order = torch.randperm(4 * KINDS * 20, generator=g)
    classes = torch.arange(4).repeat_interleave(KINDS * 20)[order]
    kinds = torch.arange(KINDS).repeat(4 * 20)[order]
    return torch.eye(6)[kinds] + 0.05 * torch.randn(len(order), 6, generator=g), classes, kinds


def test_subclasses_are_what_the_features_tell_apart_within_a_class() -> None:
    x, classes, kinds = samples_of_kinds()
    subclasses = with_subclasses(tasks(x, classes), 3 * x, KINDS, samples=4)
    assert subclasses.num_classes == 4 * KINDS
    found = [set(subclasses.members(number).tolist()) for number in range(4 * KINDS)]
    expected = [
        set(torch.nonzero((classes == c) & (kinds == k))[:, 0].tolist()) for c in range(4) for k in range(KINDS)
    ]
    assert sorted(map(sorted, found)) == sorted(map(sorted, expected))


def test_all_samples_of_a_class_come_as_episodes_give_them() -> None:
    x, classes, _ = samples_of_kinds()
    taskset = tasks(x, classes)
    indices = taskset.members(2)
    samples = taskset.at(torch.from_numpy(indices))
    assert indices.tolist() == torch.nonzero(classes == 2)[:, 0].tolist()
    torch.testing.assert_close(samples, 2 * x[classes == 2])


def test_each_sample_is_in_one_subclass_with_enough_for_an_episode() -> None:
    features = np.random.default_rng(0).normal(size=(200, 5)).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        labels = divided(features, 40, samples=9)
        of_equal_samples = divided(np.ones((30, 5), np.float32), 4, samples=5)
    sizes = np.bincount(labels)
    assert sizes.sum() == 200 and sizes.min() >= 9 and len(sizes) > 8
    assert np.array_equal(labels, divided(features, 40, samples=9))
    assert (of_equal_samples == 0).all()
    assert (divided(features[:17], 4, samples=9) == 0).all()


def test_small_subclasses_join_the_nearest() -> None:
    at = np.array([[0.0], [10.0], [11.0], [30.0]], np.float32)
    features = at.repeat([8, 8, 2, 8], axis=0)
    labels = divided(features, 4, samples=4)
    assert len(set(labels)) == 3 and (labels[16:18] == labels[8]).all()


def test_a_training_with_more_ways_than_classes_goes_on_to_the_identical_result(tmp_path: Path) -> None:
    images = torch.rand(5 * 40, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    given = [TensorTaskset(images, torch.arange(5).repeat_interleave(40), ways=3, samples=3, name=n) for n in "abc"]
    first = Run(experiment=LITTLE, method="protonet")
    before = train(first, tmp_path / "first", tasksets=given)
    encoder = str(checkpoint_path(tmp_path / "first", first))
    run = replace(first, experiment=replace(LITTLE, train_ways=8, subclasses=3, subclass_encoder=encoder))
    whole = train(run, tmp_path / "whole", tasksets=given)
    with pytest.raises(Killed):
        train(run, tmp_path / "killed", tasksets=given, progress=kill_at(3))
    assert without_times(train(run, tmp_path / "killed", tasksets=given)) == without_times(whole)
    assert whole["manifest"] == before["manifest"]
    with pytest.raises(InputError, match="has 5 classes, got ways=8"):
        train(replace(first, experiment=replace(LITTLE, train_ways=8)), tmp_path / "none", tasksets=given)


@pytest.mark.parametrize("given", [{"subclasses": 2}, {"subclass_encoder": "runs/a.safetensors"}])
def test_subclasses_need_an_encoder_and_the_other_way_round(given: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="expected subclasses and subclass_encoder together"):
        Experiment(**given)
