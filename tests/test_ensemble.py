"""An ensemble: trained networks that are read as one and stay as they are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers_training import LITTLE, train
from torch import nn
from torch.nn import functional as F

import l2l_hyper
from l2l_hyper import InputError
from l2l_hyper.backbones import BACKBONES, register_backbone
from l2l_hyper.experiment.checkpoint import checkpoint_path
from l2l_hyper.experiment.config import Experiment, Run

COSINE = {"distance": "cosine"}


def trained(folder: Path, seed: int, options: dict[str, str] = COSINE) -> str:
    run = Run(experiment=LITTLE, method="protonet", options=options, seed=seed)
    train(run, folder)
    return str(checkpoint_path(folder, run))


def of(files: list[str]) -> Run:
    experiment = replace(
        LITTLE,
        backbone="ensemble",
        backbone_options={"of": "conv4", "members": 2, "channels": LITTLE.channels},
        channels=Experiment().channels,
        pretrained=",".join(files),
    )
    return Run(experiment=experiment, method="protonet", options=COSINE)


def test_features_are_those_of_the_members_side_by_side_and_stay_so_in_training(tmp_path: Path) -> None:
    files = [trained(tmp_path, seed) for seed in (0, 1)]
    run = of(files)
    train(run, tmp_path / "ensemble")
    ensemble = l2l_hyper.load(checkpoint_path(tmp_path / "ensemble", run))
    x = torch.rand(6, *ensemble.sample_shape)
    parts = [l2l_hyper.load(file).method.network(x[None], track=False).features[0] for file in files]
    expected = torch.cat(parts, 1)
    torch.testing.assert_close(parts[0].norm(dim=1), torch.ones(6))
    network = ensemble.method.network
    torch.testing.assert_close(network.module.features(x), expected)
    centre = network.head.centre
    assert centre.any(), "what is trained is where the angles are measured from, and the scale"
    read = network(x[None], track=False).features[0]
    torch.testing.assert_close(read, F.normalize(expected - centre, dim=-1))


def test_it_reads_support_sets_as_an_encoder(tmp_path: Path) -> None:
    files = [trained(tmp_path, seed) for seed in (0, 1)]
    run = of(files)
    train(run, tmp_path / "ensemble")
    options = {"generator": "linear", "teacher": 1.0, "encoder": str(checkpoint_path(tmp_path / "ensemble", run))}
    adapter = Run(experiment=replace(LITTLE, encode_once=True), method="hyper-adapter", options=options)
    train(adapter, tmp_path / "adapter")
    reader = l2l_hyper.load(checkpoint_path(tmp_path / "adapter", adapter)).method.reader
    assert reader.size == 2 * l2l_hyper.load(files[0]).method.network.head.in_features


def test_what_cannot_be_an_ensemble_is_refused(tmp_path: Path) -> None:
    files = [trained(tmp_path, seed) for seed in (0, 1)]
    run = of(files)
    with pytest.raises(InputError, match="expected pretrained weights for a backbone that is frozen, got none"):
        train(replace(run, experiment=replace(run.experiment, pretrained=None)), tmp_path / "none")
    with pytest.raises(InputError, match=r"with 'features.2.own_centre' of shape \(\d+,\), got nothing"):
        three = replace(run.experiment, backbone_options={**run.experiment.backbone_options, "members": 3})
        train(replace(run, experiment=three), tmp_path / "three")
    plain = trained(tmp_path / "plain", 0, {})
    with pytest.raises(InputError, match="reads features of unit length, got .*plain.*; train it by protonet"):
        train(replace(run, experiment=replace(run.experiment, pretrained=f"{files[0]},{plain}")), tmp_path / "plain")
    with pytest.raises(InputError, match="a backbone with features and classifier for an ensemble, got 'test-linear'"):
        register_backbone("test-linear", lambda ways, sample_shape: nn.Linear(sample_shape[0], ways))
        BACKBONES["ensemble"].build(5, (3,), {"of": "test-linear"})
    with pytest.raises(InputError, match="unknown backbone"):
        BACKBONES["ensemble"].build(5, (3, 32, 32), {"of": "conv5"})
    with pytest.raises(InputError, match="members must be greater than or equal to 1"):
        BACKBONES["ensemble"].build(5, (3, 32, 32), {"members": 0})
