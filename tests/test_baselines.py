"""Implementations of the same baseline agree: learn2learn's classes, higher, and all tasks at once."""

from __future__ import annotations

import copy
from typing import get_args
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from l2l_hyper._learn2learn import learn2learn
from l2l_hyper.engine import METHODS
from l2l_hyper.nn import Normalization, TaskNorm

WAYS = 3


@pytest.fixture
def batch() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    labels = torch.arange(WAYS)
    x, q = (torch.randn(2, WAYS * n, 1, 28, 28, dtype=torch.double) for n in (2, 3))
    return x, labels.repeat_interleave(2).expand(2, -1), q, labels.repeat_interleave(3).expand(2, -1)


BATCHED = [(name, "batched", mode) for name in ("maml", "anil", "protonet") for mode in get_args(Normalization)]
HIGHER = [("maml", "higher", mode) for mode in ("support", "transductive")]  # its copies keep running averages apart


@pytest.mark.parametrize(("name", "implementation", "normalization"), BATCHED + HIGHER)
def test_implementations_agree_in_value_gradient_and_statistics(
    batch: tuple[Tensor, Tensor, Tensor, Tensor], name: str, implementation: str, normalization: str
) -> None:
    x, y, q, qy = batch
    torch.manual_seed(0)
    model = learn2learn().vision.models.OmniglotCNN(WAYS, hidden_size=4).double()
    seen = []
    for one in ("learn2learn", implementation):
        mine: nn.Module = copy.deepcopy(model)
        options = {"implementation": one} | ({} if name == "protonet" else {"steps": 2, "inner_lr": 0.3})
        method = METHODS[name].build(mine, options, normalization).double()
        outputs = method.predict(method.adapt(x, y), q)
        loss = F.cross_entropy(outputs.flatten(0, 1), qy.flatten())
        parameters = list(mine.base.parameters()) + (list(mine.classifier.parameters()) if name != "protonet" else [])
        gradients = torch.autograd.grad(loss, parameters)
        method.eval()
        with torch.no_grad():
            evaluated = method.predict(method.adapt(x, y), q)
        if normalization != "running":
            torch.testing.assert_close(evaluated, outputs.detach())
        assert not evaluated.requires_grad
        seen.append((loss, evaluated.log_softmax(-1), gradients, method.generated(method.adapt(x, y))))
    (loss, evaluated, gradients, generated), (other_loss, other_evaluated, other_gradients, other_generated) = seen
    torch.testing.assert_close(loss, other_loss)
    if normalization != "running":  # tasks one by one move running averages more often than all at once
        torch.testing.assert_close(evaluated, other_evaluated)
    for a, b in zip(gradients, other_gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)
    assert generated == other_generated or name == "protonet"  # a bias a class more


@pytest.mark.parametrize("implementation", ["learn2learn", "higher", "batched"])
def test_maml_passes_the_support_set_once_a_step_and_once_more_for_its_statistics(
    batch: tuple[Tensor, Tensor, Tensor, Tensor], implementation: str
) -> None:
    x, y, _, _ = batch
    for normalization, passes in (("transductive", 2), ("support", 3)):
        model = learn2learn().vision.models.OmniglotCNN(WAYS, hidden_size=4).double()
        method = METHODS["maml"].build(model, {"implementation": implementation, "steps": 2}, normalization).double()
        with patch.object(TaskNorm, "forward", autospec=True, side_effect=TaskNorm.forward) as forward:
            method.adapt(x[:1], y[:1])
        assert forward.call_count == 4 * passes  # layers


@pytest.mark.parametrize("name", ["maml", "anil", "protonet"])
def test_running_averages_move_while_training_and_only_then(
    batch: tuple[Tensor, Tensor, Tensor, Tensor], name: str
) -> None:
    x, y, _, _ = batch
    for implementation in ("learn2learn", "batched"):
        model = learn2learn().vision.models.OmniglotCNN(WAYS, hidden_size=4).double()
        method = METHODS[name].build(model, {"implementation": implementation}, "running").double()
        buffers = {n: b for n, b in method.named_buffers() if n.endswith("running_mean")}
        assert not any(b.any() for b in buffers.values())
        method.eval().adapt(x, y)
        assert not any(b.any() for b in buffers.values())
        method.train().adapt(x, y)
        assert buffers and all(b.any() for b in buffers.values())


def test_unknown_options_are_refused() -> None:
    model = learn2learn().vision.models.OmniglotCNN(WAYS, hidden_size=4)
    with pytest.raises(ValueError, match="maml has no option 'inner'; it has lr, inner_lr"):
        METHODS["maml"].build(model, {"inner": 1}, "support")
    for name in ("maml", "anil", "protonet"):
        with pytest.raises(ValueError, match="implementation must be one of learn2learn"):
            METHODS[name].build(model, {"implementation": "jax"}, "support")
