"""What every method of METHODS has in common; a method that is added there is tested here."""

from __future__ import annotations

import copy
import dataclasses
import io
import pickle
from typing import Any

import pytest
import torch
from helpers_methods import QUERIES, SHOTS, TASKS, WAYS, small_episodes, small_method
from torch import Tensor

from l2l_hyper import InputError
from l2l_hyper.data.episode import Episodes
from l2l_hyper.methods import METHODS, Method

# Options that change what is computed, besides the defaults of every method.
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("hyper-adapter", {"base_learner": "prototype", "generate": "1.*", "width": 16}),
    ("hyper-adapter", {"base_learner": "gradient", "generate": "0.*", "modulation": "low-rank", "width": 16}),
    ("maml", {"steps": 2}),
    ("protonet", {"temperature": "learned"}),
    ("r2d2", {"penalty": 0.1, "scale": 1.0}),
    ("frn", {"layer": "5", "by_dimension": True}),
    ("simple-cnaps", {"temperature": "learned", "generate": "1.*,4.*", "width": 16}),
    ("hypershot", {"train_on_support": False, "layers": 1}),
    ("hypermaml", {"hidden": 1}),
]
CASES: list[tuple[str, dict[str, Any]]] = [(name, {}) for name in METHODS] + VARIANTS
every_method = pytest.mark.parametrize(
    ("name", "options"), CASES, ids=[" ".join([name, *(f"{k}={v}" for k, v in o.items())]) for name, o in CASES]
)


def outputs_of(method: Method, episodes: Episodes) -> Tensor:
    return method.predict(method.adapt(episodes.support_set), episodes.query)


def losses_of(method: Method, episodes: Episodes) -> Tensor:
    adapted = method.adapt(episodes.support_set)
    return method.loss(adapted, method.predict(adapted, episodes.query), episodes)


def trained(method: Method) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in method.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("name", list(METHODS))
def test_entry_says_what_the_method_is(name: str) -> None:
    entry = METHODS[name]
    assert entry.label and entry.summary
    assert dataclasses.is_dataclass(entry.options)
    assert entry.complete({}).lr > 0
    with pytest.raises(InputError, match="no-such-option"):
        entry.complete({"no-such-option": 1})


@every_method
@pytest.mark.parametrize("normalization", ["support", "transductive", "running"])
def test_outputs_and_losses(name: str, options: dict[str, Any], normalization: str) -> None:
    method, episodes = small_method(name, normalization=normalization, **options), small_episodes()
    adapted = method.adapt(episodes.support_set)
    outputs = method.predict(adapted, episodes.query)
    assert outputs.shape == (TASKS, WAYS * QUERIES, WAYS)
    assert outputs.isfinite().all()
    losses = method.loss(adapted, outputs, episodes)
    assert losses.shape == (TASKS,)
    assert losses.isfinite().all()


@every_method
def test_a_gradient_reaches_every_trained_parameter(name: str, options: dict[str, Any]) -> None:
    method = small_method(name, **options)
    losses_of(method, small_episodes()).sum().backward()
    assert trained(method)
    for parameter, p in trained(method).items():
        assert p.grad is not None and p.grad.any() and p.grad.isfinite().all(), parameter


@every_method
def test_gradients_agree_with_finite_differences(name: str, options: dict[str, Any]) -> None:
    method, episodes, eps = small_method(name, **options), small_episodes(), 1e-6
    parameters = list(trained(method).values())
    loss = losses_of(method, episodes).sum()
    gradients = torch.autograd.grad(loss, parameters)
    generator = torch.Generator().manual_seed(3)
    direction = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]

    @torch.no_grad()
    def moved(step: float) -> Tensor:
        for p, d in zip(parameters, direction, strict=True):
            p.add_(d, alpha=step)
        shifted = losses_of(method, episodes).sum()
        for p, d in zip(parameters, direction, strict=True):
            p.sub_(d, alpha=step)
        return shifted

    numeric = (moved(eps) - moved(-eps)) / (2 * eps)
    exact = sum((g * d).sum() for g, d in zip(gradients, direction, strict=True))
    torch.testing.assert_close(exact, numeric, rtol=1e-5, atol=1e-8)


@every_method
def test_relabelling_the_classes_permutes_the_outputs(name: str, options: dict[str, Any]) -> None:
    """Where outputs begin at rows of the network's own last layer, its rows are permuted too."""
    method, episodes = small_method(name, **options), small_episodes()
    order = torch.tensor([2, 0, 3, 1])
    before, losses = outputs_of(method, episodes), losses_of(method, episodes)
    relabelled = dataclasses.replace(
        episodes, support_labels=order[episodes.support_labels], query_labels=order[episodes.query_labels]
    )
    head: Any = method.get_submodule("network.module.7")
    with torch.no_grad():
        for row_wise in (head.weight, head.bias):
            row_wise[order] = row_wise.clone()
    torch.testing.assert_close(outputs_of(method, relabelled)[..., order], before)
    torch.testing.assert_close(losses_of(method, relabelled), losses)


@every_method
def test_the_order_of_the_support_samples_does_not_matter(name: str, options: dict[str, Any]) -> None:
    method, episodes = small_method(name, **options), small_episodes()
    order = torch.randperm(WAYS * SHOTS, generator=torch.Generator().manual_seed(4))
    shuffled = dataclasses.replace(
        episodes, support=episodes.support[:, order], support_labels=episodes.support_labels[:, order]
    )
    torch.testing.assert_close(outputs_of(method, shuffled), outputs_of(method, episodes))
    torch.testing.assert_close(losses_of(method, shuffled), losses_of(method, episodes))


@every_method
def test_a_query_sees_the_other_queries_only_where_the_method_says_so(name: str, options: dict[str, Any]) -> None:
    method, episodes = small_method(name, **options), small_episodes()
    adapted = method.adapt(episodes.support_set)
    alone, together = method.predict(adapted, episodes.query[:, :1]), method.predict(adapted, episodes.query)[:, :1]
    assert method.transductive != torch.allclose(alone, together, rtol=1e-7, atol=1e-7)


@every_method
def test_many_tasks_at_once_are_the_tasks_one_by_one(name: str, options: dict[str, Any]) -> None:
    method, episodes = small_method(name, **options), small_episodes()
    parameters = list(trained(method).values())
    adapted = method.adapt(episodes.support_set)
    outputs = method.predict(adapted, episodes.query)
    together = method.loss(adapted, outputs, episodes)
    one_by_one = torch.cat([losses_of(method, task) for task in episodes])
    torch.testing.assert_close(outputs, torch.cat([outputs_of(method, task) for task in episodes]))
    torch.testing.assert_close(together, one_by_one)
    for a, b in zip(
        torch.autograd.grad(together.sum(), parameters), torch.autograd.grad(one_by_one.sum(), parameters), strict=True
    ):
        torch.testing.assert_close(a, b)


@every_method
def test_without_gradients_the_values_are_the_same(name: str, options: dict[str, Any]) -> None:
    method, episodes = small_method(name, **options).eval(), small_episodes()
    expected = outputs_of(method, episodes)
    with torch.no_grad():
        outputs = outputs_of(method, episodes)
    assert not outputs.requires_grad
    torch.testing.assert_close(outputs, expected)


@every_method
def test_copies_and_saved_methods_predict_the_same(name: str, options: dict[str, Any]) -> None:
    method, episodes = small_method(name, **options), small_episodes()
    losses_of(method, episodes)  # what a method keeps of its training belongs to its state
    method.eval()
    expected = outputs_of(method, episodes)
    file = io.BytesIO()
    torch.save(method.state_dict(), file)
    file.seek(0)
    loaded = small_method(name, **options).eval()
    for p in loaded.parameters():
        torch.nn.init.ones_(p)
    loaded.load_state_dict(torch.load(file))
    for other in (loaded, copy.deepcopy(method), pickle.loads(pickle.dumps(method))):
        torch.testing.assert_close(outputs_of(other, episodes), expected)


@every_method
@pytest.mark.parametrize("shots", [1, 5])
def test_other_shots_than_in_training(name: str, options: dict[str, Any], shots: int) -> None:
    method = small_method(name, **options)
    losses_of(method, small_episodes()).sum().backward()
    episodes = small_episodes(shots=shots)
    losses = losses_of(method.eval(), episodes)
    assert losses.isfinite().all()
    assert outputs_of(method, episodes).shape == (TASKS, WAYS * QUERIES, WAYS)


@every_method
@pytest.mark.parametrize("ways", [2, WAYS + 1])
def test_other_ways_than_in_training_or_an_error_that_says_so(name: str, options: dict[str, Any], ways: int) -> None:
    method = small_method(name, **options)
    losses_of(method, small_episodes()).sum().backward()
    episodes = small_episodes(ways=ways)
    try:
        outputs = outputs_of(method.eval(), episodes)
    except InputError as error:
        assert "ways" in str(error)
    else:
        assert outputs.shape == (TASKS, ways * QUERIES, ways)
        assert outputs.isfinite().all()


@every_method
def test_classes_with_different_numbers_of_shots(name: str, options: dict[str, Any]) -> None:
    method, episodes = small_method(name, **options), small_episodes(shots=3)
    kept = [0, 3, 4, 5, 6, 7, 9, 10, 11]  # one, three, two and three of the four classes
    uneven = dataclasses.replace(
        episodes, support=episodes.support[:, kept], support_labels=episodes.support_labels[:, kept]
    )
    outputs = outputs_of(method, uneven)
    torch.testing.assert_close(outputs, torch.cat([outputs_of(method, task) for task in uneven]))
    assert outputs.isfinite().all()
