"""Backbones: every benchmark's image size, options by name, and errors that name what fits."""

from __future__ import annotations

import copy
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from l2l_hyper._learn2learn import learn2learn
from l2l_hyper.backbones import BACKBONES, BackboneEntry, register_backbone
from l2l_hyper.errors import InputError
from l2l_hyper.functional import convert_norm
from l2l_hyper.methods import TaskwiseNetwork

SIZES = [(1, 28, 28), (3, 32, 32), (3, 84, 84)]
SMALL: dict[str, dict[str, Any]] = {"wrn28": {"width": 1}}
CASES = [
    *((name, shape) for name in ("conv4", "cnn4", "resnet12", "wrn28", "mlp") for shape in SIZES),
    ("omniglot-cnn", SIZES[0]),
    ("mlp", (7,)),
]


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_every_benchmarks_samples_are_read(name: str, shape: tuple[int, ...]) -> None:
    """Logits of many tasks at once, from features by a last linear layer, and a gradient to every parameter."""
    torch.manual_seed(0)
    model = BACKBONES[name].build(5, shape, SMALL.get(name))
    x = torch.rand(2, 4, *shape)
    seen = TaskwiseNetwork(convert_norm(copy.deepcopy(model), "support"))(x)
    assert seen.outputs.shape == (2, 4, 5)
    assert seen.features.shape[-1] == model.classifier.in_features
    torch.testing.assert_close(model(x[0]), model.classifier(model.features(x[0])))
    model(x[0]).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "options", "features"),
    [
        ("conv4", {"channels": 8}, 8 * 2 * 2),
        ("conv4", {"hidden": 8}, 8 * 2 * 2),  # its name in old presets
        ("conv4", {"channels": 8, "layers": 2}, 8 * 8 * 8),
        ("conv4", {"channels": 8, "halvings": 3}, 8 * 4 * 4),
        ("conv4", {"channels": 8, "pooled": True}, 8),
        ("conv4", {"channels": 8, "layers": 3, "max_pool": False}, 8 * 4 * 4),
        ("cnn4", {"channels": 8, "layers": 2}, 8 * 2 * 2),
        ("cnn4", {"channels": 8, "layers": 1, "max_pool": False}, 8 * 4 * 4),
        ("resnet12", {"wider": False, "pooled": False, "dropout": 0.1}, 512 * 2 * 2),
        ("wrn28", {"width": 1, "dropout": 0.1}, 64),
        ("mlp", {"sizes": [12, 9]}, 9),
    ],
)
def test_options(name: str, options: dict[str, Any], features: int) -> None:
    model = BACKBONES[name].build(5, (3, 32, 32), options)
    assert model.features(torch.rand(2, 3, 32, 32)).shape == (2, features) == (2, model.classifier.in_features)


@pytest.mark.parametrize("max_pool", [True, False])
def test_conv4_is_learn2learns_conv_base(max_pool: bool) -> None:
    base = learn2learn().vision.models.ConvBase(hidden=8, channels=3, max_pool=max_pool, layers=3)
    ours = BACKBONES["conv4"].build(5, (3, 21, 17), {"channels": 8, "layers": 3, "max_pool": max_pool})
    ours.features.load_state_dict(base.state_dict())
    x = torch.rand(4, 3, 21, 17)
    torch.testing.assert_close(ours.features(x), base(x).flatten(1))


def _learn2learns(name: str) -> nn.Module:
    models = learn2learn().vision.models
    if name == "omniglot-cnn":
        return models.OmniglotCNN(5)
    if name == "cnn4":
        return models.CNN4(5)
    return models.ResNet12(5, dropblock_dropout=0.0) if name == "resnet12" else models.WRN28(5)


@pytest.mark.parametrize("name", ["omniglot-cnn", "cnn4", "resnet12"])
def test_initial_weights_and_outputs_are_learn2learns(name: str) -> None:
    shape = (1, 28, 28) if name == "omniglot-cnn" else (3, 84, 84)
    made = []
    for make in (lambda: BACKBONES[name].build(5, shape), lambda: _learn2learns(name)):
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002 - learn2learn may draw from it
        random.seed(0)
        made.append(make())
    ours, theirs = made
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert all(a.equal(b) for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True))
    x = torch.rand(2, *shape)
    torch.testing.assert_close(ours(x), theirs(x))


def test_wrn28_is_learn2learns() -> None:
    theirs = _learn2learns("wrn28").eval()
    ours = BACKBONES["wrn28"].build(5, (3, 84, 84)).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.rand(1, 3, 84, 84)
    torch.testing.assert_close(ours(x), theirs(x))


def test_stride_of_wrn28_halves_the_images() -> None:
    model = BACKBONES["wrn28"].build(5, (3, 84, 84), {"width": 1, "stride": 2})
    assert model.features.conv1(torch.rand(1, 3, 84, 84)).shape == (1, 16, 42, 42)
    assert model.features(torch.rand(1, 3, 84, 84)).shape == (1, 64)


@pytest.mark.parametrize(
    ("name", "shape", "options", "message"),
    [
        (
            "omniglot-cnn",
            (3, 32, 32),
            {},
            r"images of shape \(1, 28, 28\), got samples of shape \(3, 32, 32\).*'conv4'",
        ),
        ("conv4", (7,), {}, r"reads images.*got samples of shape \(7,\); try backbone 'mlp'"),
        ("conv4", (3, 15, 15), {}, "at least 16 x 16 pixels.*fewer layers"),
        ("cnn4", (3, 15, 15), {}, "at least 16 x 16 pixels.*'conv4'"),
        ("resnet12", (3, 8, 8), {}, "at least 16 x 16 pixels"),
        ("mlp", (), {}, "at least one dimension"),
        ("cnn4", (3, 84, 84), {"layers": 5}, "cnn4.layers must be less than or equal to 4, got 5; try 4"),
        ("conv4", (3, 84, 84), {"chanels": 5}, "unknown option of backbone conv4: 'chanels'; did you mean channels?"),
        ("mlp", (7,), {"hidden": 5}, "unknown option of backbone mlp: 'hidden'; try one of sizes"),
    ],
)
def test_errors_name_what_fits(name: str, shape: tuple[int, ...], options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        BACKBONES[name].build(5, shape, options)


def test_a_function_of_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spelled ``module:function``, and registered."""
    (tmp_path / "their_networks.py").write_text(
        "from torch import nn\n\n\n"
        "def small(ways, sample_shape, bias=True, **more):\n"
        '    """A linear layer."""\n'
        "    assert set(more) <= {'anything'}\n"
        "    return nn.Linear(sample_shape[0], ways, bias)\n\n\n"
        "def wrong(ways):\n"
        "    return nn.Linear(3, ways)\n\n\n"
        "def nothing(ways, sample_shape):\n"
        "    return None\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "their_networks", raising=False)
    entry = BACKBONES["their_networks:small"]
    assert (entry.name, entry.summary, entry.options) == ("their_networks:small", "A linear layer.", {"bias": True})
    model = entry.build(5, (3,), {"bias": False, "anything": 1})
    assert model.weight.shape == (5, 3) and model.bias is None
    with pytest.raises(InputError, match=r"make\(ways, sample_shape, \*\*options\)"):
        BACKBONES["their_networks:wrong"]
    with pytest.raises(InputError, match="expected an nn.Module"):
        BACKBONES["their_networks:nothing"].build(5, (3,))
    register_backbone("test-their-small", entry.make, summary="theirs")
    assert BACKBONES["test-their-small"] == BackboneEntry("test-their-small", "theirs", entry.make)
    with pytest.raises(InputError, match="is a backbone of l2l_hyper itself"):
        register_backbone("conv4", entry.make)


def test_every_backbone_says_what_it_is() -> None:
    for name in ("conv4", "omniglot-cnn", "cnn4", "resnet12", "wrn28", "mlp", "ensemble"):
        entry = BACKBONES[name]
        assert name in BACKBONES and entry.name == name and entry.summary and entry.options
