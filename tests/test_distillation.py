"""The last layer that repeats in closed form what an encoder says of stored samples."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_methods import small_episodes, small_network
from test_encoder import larger
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from l2l_hyper import HyperAdapter, InputError, compare, evaluate, load
from l2l_hyper.data.episode import Episodes
from l2l_hyper.methods import METHODS
from l2l_hyper.methods import hyper_adapter as module

BANK = 40


def bank() -> Tensor:
    return torch.rand(BANK, 1, 8, 8, generator=torch.Generator().manual_seed(3), dtype=torch.double)


def built(*, samples: Tensor | None = None, **options: Any) -> module.HyperAdapter:
    given: dict[str, Any] = {"base_learner": "cosine", "generator": "distilled", "scale": 0.7, "bank": BANK, **options}
    encoder = larger().requires_grad_(False)
    torch.manual_seed(5)
    method = METHODS["hyper-adapter"].build(small_network().double(), given, "running", encoder, samples).double()
    assert isinstance(method, module.HyperAdapter)
    return method


def slow(method: module.HyperAdapter, episode: Episodes) -> Tensor:
    """Logits of the queries of one episode, one class and one sample at a time, by least squares."""
    network, encoder, distillation = method.network.module, larger()[:-1].eval(), method.residual
    centre = method.network.head.centre

    def features(x: Tensor) -> Tensor:
        read = network[:-1](x) - centre
        return read / read.norm(dim=1, keepdim=True)

    samples, h = bank(), features(bank())
    seen, own, labels = encoder(episode.support[0]), features(episode.support[0]), episode.support_labels[0]
    classes, base = [], []
    for k in range(int(labels.max()) + 1):
        classes.append(torch.stack([row / row.norm() for row in seen[labels == k]]).mean(0))
        base.append(own[labels == k].mean(0))
    said = torch.empty(BANK, len(classes), dtype=torch.double)
    for b, row in enumerate(encoder(samples)):
        likeness = torch.stack([row @ c / row.norm() / c.norm() for c in classes])
        said[b] = torch.softmax(distillation.log_temperature.exp() * likeness, 0)
    spread = h - h.mean(0)
    ridge = distillation.log_ridge.exp() * spread.square().mean() * BANK
    # Ridge regression as least squares, with rows that pull the coefficients to zero.
    wide = torch.cat([spread, ridge.sqrt() * torch.eye(h.shape[1]).double()])
    wanted = torch.cat([said - said.mean(0), torch.zeros(h.shape[1], len(classes)).double()])
    delta = torch.linalg.lstsq(wide, wanted).solution.T
    rows = method.base_learner.log_scale.exp() * torch.stack([b / b.norm() for b in base])
    size = method.options.scale * distillation.log_size.exp() * rows.square().mean().sqrt()
    delta = size * delta / delta.square().mean().sqrt()
    query = features(episode.query[0])
    return torch.stack([(q - h.mean(0)) @ delta.T + rows @ q for q in query])


def test_outputs_are_those_of_slow_code() -> None:
    method, episodes = built(samples=bank()), small_episodes()
    with torch.no_grad():
        for value in (method.residual.log_ridge, method.residual.log_temperature, method.residual.log_size):
            value.add_(0.3)
    method.eval()
    outputs = method.predict(method.adapt(episodes.support_set), episodes.query)
    for task, episode in enumerate(episodes.split(1)):
        torch.testing.assert_close(outputs[task], slow(method, episode), rtol=1e-9, atol=1e-9)


def test_the_gradient_is_that_of_the_loss() -> None:
    """Along a random direction of all parameters, by finite differences, through the random part of the bank."""
    method, episodes = built(samples=bank(), bank_batch=25).train(), small_episodes()
    parameters = [p for p in method.parameters() if p.requires_grad]
    torch.manual_seed(0)
    direction = [torch.randn_like(p) for p in parameters]

    def loss() -> Tensor:
        torch.manual_seed(11)
        adapted = method.adapt(episodes.support_set)
        return method.loss(adapted, method.predict(adapted, episodes.query), episodes).sum()

    gradients = torch.autograd.grad(loss(), parameters)
    assert all(g.abs().max() > 0 for g in gradients)
    along = sum(float((g * d).sum()) for g, d in zip(gradients, direction, strict=True))
    ends, step = [], 1e-6
    for sign in (1, -1):
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p.add_(sign * step * d)
            ends.append(float(loss()))
            for p, d in zip(parameters, direction, strict=True):
                p.sub_(sign * step * d)
    assert along == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-5)


def outputs(method: module.HyperAdapter) -> Tensor:
    episodes = small_episodes()
    with torch.no_grad():
        return method.predict(method.adapt(episodes.support_set), episodes.query)


def moved(method: nn.Module) -> None:
    with torch.no_grad():
        for p in method.parameters():
            p.add_(0.1 * torch.randn_like(p))


def test_features_of_the_bank_follow_the_network() -> None:
    torch.manual_seed(0)
    method = built(samples=bank()).eval()
    first = outputs(method)
    optimizer = torch.optim.Adam(method.network.parameters(), 0.1, fused=True)  # which no counter of torch's counts
    for p in method.network.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()
    second = outputs(method)
    again = built(samples=bank()).eval()
    again.load_state_dict(method.state_dict())
    assert (first - second).abs().max() > 1e-2
    torch.testing.assert_close(outputs(again), second, rtol=0, atol=0)


def test_features_of_the_bank_follow_averaged_weights() -> None:
    torch.manual_seed(0)
    method = built(samples=bank()).eval()
    averaged = AveragedModel(method, avg_fn=lambda _, new, __: new, use_buffers=True)
    outputs(averaged.module)
    for _ in range(2):
        moved(method.network)
        averaged.update_parameters(method)
        torch.testing.assert_close(outputs(averaged.module), outputs(method), rtol=0, atol=0)


def test_a_loaded_method_needs_no_samples_except_in_training() -> None:
    method = built(samples=bank()).eval()
    expected = outputs(method)
    loaded = built().eval()
    with pytest.raises(InputError, match="expected the samples of the bank, got none; give bank="):
        outputs(loaded)
    loaded.load_state_dict(method.state_dict())
    torch.testing.assert_close(outputs(loaded), expected, rtol=0, atol=0)
    with pytest.raises(InputError, match="expected the samples of the bank to train with"):
        outputs(loaded.train())
    assert not [name for name in method.state_dict() if "samples" in name]


def test_relabelling_permutes_rows_and_the_order_of_samples_does_not_matter() -> None:
    method, episodes = built(samples=bank()).eval(), small_episodes()
    rows = method.adapt(episodes.support_set).weights["7.weight"]
    shuffled = copy.copy(episodes)
    order = torch.randperm(episodes.support.shape[1])
    permutation = torch.tensor([2, 0, 3, 1])
    shuffled = Episodes(
        episodes.support[:, order], permutation[episodes.support_labels[:, order]], episodes.query, None, episodes.ways
    )
    torch.testing.assert_close(method.adapt(shuffled.support_set).weights["7.weight"][:, permutation], rows)


def test_controls_exchange_weight_and_bias_together() -> None:
    method, episodes = built(samples=bank()).eval(), small_episodes()
    adapted = method.adapt(episodes.support_set)
    plain = built(residual=False).eval()
    plain.load_state_dict({name: v for name, v in method.state_dict().items() if not name.startswith("residual.")})
    without = method.controlled(adapted, "no residual")
    base = plain.adapt(episodes.support_set)
    torch.testing.assert_close(without.weights["7.weight"], base.weights["7.weight"])
    torch.testing.assert_close(without.weights["7.bias"], base.weights["7.bias"])
    others = method.controlled(adapted, "another task's").weights
    for name in ("7.weight", "7.bias"):
        torch.testing.assert_close(
            others[name] - base.weights[name], (adapted.weights[name] - base.weights[name]).roll(1, 0)
        )


def test_in_the_place_of_maml() -> None:
    torch.manual_seed(0)
    model, encoder = small_network().double(), larger().requires_grad_(False)
    options = {"generator": "distilled", "bank_batch": 20, "scale": 1.0}
    learner = HyperAdapter(model, encoder=encoder, bank=bank(), **options).double()
    episode = next(small_episodes().split(1))
    loss = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(learner.parameters(), 0.01)
    losses = []
    for _ in range(20):
        task = learner.clone()
        task.adapt(loss(task(episode.support[0]), episode.support_labels[0]))
        losses.append(loss(task(episode.query[0]), episode.query_labels[0]))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0] - 0.1
    task = learner.eval().clone()
    task.adapt(support=(episode.support[0], episode.support_labels[0]), ways=4)
    answered = task(episode.query[0]).detach()
    moved(encoder)
    torch.testing.assert_close(task(episode.query[0]).detach(), answered)  # queries never pass the encoder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda given: given.pop("encoder"), "needs a frozen encoder; give encoder="),
        (lambda given: given["encoder"].requires_grad_(True), "needs a frozen encoder"),
        (lambda given: given.pop("bank"), "needs stored samples; give bank="),
        (lambda given: given.update(normalization="support"), "needs normalization by running averages"),
        (lambda given: given.update(generate=["3.*"]), "needs weights below the last layer that all tasks share"),
        (lambda given: given.update(base_learner="gradient"), "leave out generate= and gradient steps"),
        (lambda given: given.update(bank=[1, 2]), "bank must be a tensor of samples"),
    ],
)
def test_what_it_cannot_do_is_said(change: Callable[[dict[str, Any]], Any], message: str) -> None:
    given: dict[str, Any] = {"encoder": larger().requires_grad_(False), "generator": "distilled", "bank": bank()}
    change(given)
    with pytest.raises(InputError, match=message):
        HyperAdapter(small_network().double(), **given)


def test_a_row_of_a_comparison_is_trained_stopped_loaded_and_tested(tmp_path: Path) -> None:
    options = {
        "protonet": {"distance": "cosine"},
        "hyper-adapter": {"generator": "distilled", "encoder": "protonet", "bank": 60, "bank_batch": 30, "scale": 1.0},
    }
    plan: dict[str, Any] = {
        "backbone": "mlp",
        "normalization": "running",
        "iterations": 4,
        "validate_every": 2,
        "meta_batch": 2,
        "validation_episodes": 3,
        "test_episodes": 5,
        "options": options,
        "seeds": [0],
    }
    (record,) = (
        r
        for r in compare("glyphs", ["protonet", "hyper-adapter"], out=tmp_path, **plan)
        if r.run.method == "hyper-adapter"
    )
    learner = load(tmp_path / "checkpoints" / "hyper-adapter-seed0.safetensors")
    assert learner.method.residual.bank.samples is None and learner.method.residual.bank.features.shape[0] == 60
    scores = evaluate(learner, "glyphs", ways=5, shots=1, queries=record.run.experiment.queries, test_episodes=5)
    assert scores.tolist() == pytest.approx(record.scores)
