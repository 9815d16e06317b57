"""Implementations of the same method agree: learn2learn's classes, higher, and all tasks at once."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from l2l_hyper import InputError
from l2l_hyper._learn2learn import learn2learn
from l2l_hyper.data.episode import Episodes
from l2l_hyper.functional import Normalization
from l2l_hyper.methods import METHODS

WAYS = 3


@pytest.fixture
def episodes() -> Episodes:
    torch.manual_seed(0)
    labels = torch.arange(WAYS)
    x, q = (torch.randn(2, WAYS * n, 1, 28, 28, dtype=torch.double) for n in (2, 3))
    return Episodes(x, labels.repeat_interleave(2).expand(2, -1), q, labels.repeat_interleave(3).expand(2, -1), WAYS)


def backbone() -> nn.Module:
    torch.manual_seed(0)
    return learn2learn().vision.models.OmniglotCNN(WAYS, hidden_size=4).double()


IMPLEMENTATIONS = [
    (name, "learn2learn", mode) for name in ("maml", "anil", "protonet") for mode in get_args(Normalization)
]
IMPLEMENTATIONS += [("maml", "higher", mode) for mode in get_args(Normalization)]


@pytest.mark.parametrize(("name", "implementation", "normalization"), IMPLEMENTATIONS)
def test_implementations_agree_in_value_gradient_and_statistics(
    episodes: Episodes, name: str, implementation: str, normalization: Normalization
) -> None:
    seen = []
    for one in ("batched", implementation):
        model = backbone()
        options = {"implementation": one} | ({} if name == "protonet" else {"steps": 2, "inner_lr": 0.3})
        method = METHODS[name].build(model, options, normalization).double()
        adapted = method.adapt(episodes.support_set)
        loss = method.loss(adapted, method.predict(adapted, episodes.query), episodes)
        parameters = list(model.base.parameters()) + (list(model.classifier.parameters()) if name != "protonet" else [])
        gradients = torch.autograd.grad(loss.sum(), parameters)
        outputs = method.predict(adapted, episodes.query)
        method.eval()
        with torch.no_grad():
            evaluated = method.predict(method.adapt(episodes.support_set), episodes.query)
        if normalization != "running":
            torch.testing.assert_close(evaluated, outputs.detach())
        assert not evaluated.requires_grad
        seen.append((loss, evaluated.log_softmax(-1), gradients))
    (loss, evaluated, gradients), (expected_loss, expected, expected_gradients) = seen
    torch.testing.assert_close(loss, expected_loss)
    if normalization != "running":  # tasks one by one move running averages more often than all at once
        torch.testing.assert_close(evaluated, expected)
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ["maml", "anil", "protonet"])
@pytest.mark.parametrize("implementation", ["batched", "learn2learn"])
def test_running_averages_move_while_training_and_only_then(episodes: Episodes, name: str, implementation: str) -> None:
    method = METHODS[name].build(backbone(), {"implementation": implementation}, "running").double()
    buffers = {n: b for n, b in method.named_buffers() if n.endswith("running_mean")}
    assert not any(b.any() for b in buffers.values())
    method.eval().adapt(episodes.support_set)
    assert not any(b.any() for b in buffers.values())
    method.train().adapt(episodes.support_set)
    assert buffers and all(b.any() for b in buffers.values())


@pytest.mark.parametrize(
    ("name", "implementation"), [("maml", "learn2learn"), ("maml", "higher"), ("anil", "learn2learn")]
)
def test_one_task_moves_running_averages_as_in_the_other_implementation(
    episodes: Episodes, name: str, implementation: str
) -> None:
    averages = []
    for one in ("batched", implementation):
        method = METHODS[name].build(backbone(), {"implementation": one, "steps": 2}, "running").double()
        method.adapt(episodes.task(0).support_set)
        averages.append([b for n, b in method.named_buffers() if "running" in n])
    torch.testing.assert_close(*averages)


@pytest.mark.parametrize("name", ["maml", "anil"])
def test_first_order_and_second_order_have_the_same_values(episodes: Episodes, name: str) -> None:
    """And without a graph, too, whatever the normalization."""
    for implementation in ("batched", "learn2learn"):
        method = METHODS[name].build(backbone(), {"implementation": implementation, "steps": 2}, "support").double()
        with torch.no_grad():
            expected = method.predict(method.adapt(episodes.support_set), episodes.query)
        found = method.predict(method.adapt(episodes.support_set), episodes.query)
        torch.testing.assert_close(found.detach(), expected)


def test_first_order_maml_agrees_with_learn2learns(episodes: Episodes) -> None:
    def gradients(implementation: str, first_order: bool) -> tuple[Tensor, ...]:
        model = backbone()
        options = {"implementation": implementation, "first_order": first_order, "steps": 2}
        method = METHODS["maml"].build(model, options, "transductive").double()
        adapted = method.adapt(episodes.support_set)
        loss = method.loss(adapted, method.predict(adapted, episodes.query), episodes)
        return torch.autograd.grad(loss.sum(), list(model.parameters()))

    first, second = gradients("batched", True), gradients("batched", False)
    torch.testing.assert_close(first, gradients("learn2learn", True), rtol=1e-6, atol=1e-9)
    assert any(not torch.allclose(a, b) for a, b in zip(first, second, strict=True))


def test_a_method_trains_the_backbones_own_parameters() -> None:
    model = backbone()
    own = {id(p) for p in model.parameters()}
    method = METHODS["maml"].build(model, {}, "support")
    assert {id(p) for p in method.parameters()} == own


def test_unknown_options_are_refused() -> None:
    with pytest.raises(InputError, match="option of maml"):
        METHODS["maml"].build(backbone(), {"inner": 1}, "support")
    for name in ("maml", "anil", "protonet"):
        with pytest.raises(InputError, match=f"{name}.implementation must be 'batched'.* 'learn2learn'"):
            METHODS[name].build(backbone(), {"implementation": "jax"}, "support")
    with pytest.raises(InputError, match="no temperature"):
        METHODS["protonet"].build(backbone(), {"implementation": "learn2learn", "temperature": "learned"}, "support")
