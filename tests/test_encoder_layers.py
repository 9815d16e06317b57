"""Inner layers of the encoder that the residual reads besides its features."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers_methods import larger, small_episodes, small_network
from helpers_training import LITTLE, train
from torch import nn
from torch.nn import functional as F

import l2l_hyper
from l2l_hyper import InputError
from l2l_hyper.experiment.checkpoint import checkpoint_path
from l2l_hyper.experiment.config import Run
from l2l_hyper.methods import METHODS
from l2l_hyper.methods.second_network import SecondNetwork

OPTIONS = {"generator": "linear", "scale": 1.0, "penalty": 0.0}


def test_what_is_read_are_the_features_and_means_over_positions() -> None:
    network = nn.Sequential(nn.Conv2d(1, 3, 1), nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(2 * 6 * 6, 4)).double()
    x = torch.rand(2, 5, 1, 8, 8, dtype=torch.double)
    first = network[0](x.flatten(0, 1))
    second = network[1](first)
    halves = first.unflatten(-1, (4, 2)).mean(-1).unflatten(-2, (4, 2)).mean(-2)
    parts = [second.flatten(1), halves.flatten(1), F.adaptive_avg_pool2d(second, 4).flatten(1)]
    expected = torch.cat([part / part.norm(dim=1, keepdim=True) for part in parts], 1)
    second_network = SecondNetwork(network, "0, 1")
    assert second_network.size == expected.shape[1] == 72 + 3 * 16 + 2 * 16
    torch.testing.assert_close(second_network.read(x), expected.unflatten(0, (2, 5)))
    torch.testing.assert_close(SecondNetwork(network).read(x), parts[0].unflatten(0, (2, 5)))


def test_the_residual_depends_on_them() -> None:
    episodes = small_episodes()
    method = METHODS["hyper-adapter"].build(
        small_network().double(), {**OPTIONS, "encoder_layers": "0"}, "running", larger().requires_grad_(False)
    )
    method.double()
    adapted = method.adapt(episodes.support_set)
    method.loss(adapted, method.predict(adapted, episodes.query), episodes).sum().backward()
    size = 108 + 12 * 16
    (gradient,) = (p.grad for n, p in method.named_parameters() if n.startswith("residual.") and p.shape[-1] == size)
    assert gradient is not None and gradient.abs().sum(0).min() > 0


def test_in_a_comparison_with_subclasses_read_once(tmp_path: Path) -> None:
    first = Run(experiment=LITTLE, method="protonet")
    train(first, tmp_path / "first")
    encoder = str(checkpoint_path(tmp_path / "first", first))
    experiment = replace(LITTLE, train_ways=8, subclasses=3, subclass_encoder=encoder, encode_once=True)
    losses = []
    for layers in ("", "features.0"):
        run = Run(experiment=experiment, method="hyper-adapter", options={**OPTIONS, "encoder": encoder})
        run = replace(run, options={**run.options, "encoder_layers": layers})
        losses.append([point["loss"] for point in train(run, tmp_path / f"layers{layers}")["training"]])
    assert losses[0] != losses[1]


def test_layers_that_cannot_be_read_are_refused() -> None:
    network = nn.Sequential(nn.Sequential(nn.Conv2d(1, 3, 1), nn.Flatten()), nn.ReLU(), nn.Linear(192, 4))
    with pytest.raises(InputError, match=r"layers of the encoder with convolutions, got 'layer9'; there are \['0', '0"):
        SecondNetwork(network, "layer9")
    with pytest.raises(InputError, match="with convolutions, got '1'"):
        SecondNetwork(network, "0,1")
    with pytest.raises(
        InputError, match=r"feature maps \(T, N, 3, H, W\) of the layer '0' of the encoder, got \(1, 2, "
    ):
        SecondNetwork(network, "0").read(torch.rand(1, 2, 1, 8, 8))
    with pytest.raises(InputError, match="expected an encoder for encoder_layers='0', got none; give encoder="):
        l2l_hyper.HyperAdapter(small_network(), encoder_layers="0")
