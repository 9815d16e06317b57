"""The last layer that repeats in closed form what an encoder says of stored samples."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_methods import larger, small_episodes, small_network
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

from l2l_hyper import HyperAdapter, InputError, compare, evaluate, load
from l2l_hyper.data.episode import Episodes
from l2l_hyper.methods import METHODS
from l2l_hyper.methods import distillation as distilled
from l2l_hyper.methods import hyper_adapter as module
from l2l_hyper.methods.taskwise import class_means

BANK = 40


def bank() -> Tensor:
    return torch.rand(BANK, 1, 8, 8, generator=torch.Generator().manual_seed(3), dtype=torch.double)


def built(*, samples: Tensor | None = None, **options: Any) -> module.HyperAdapter:
    given: dict[str, Any] = {"base_learner": "cosine", "residual": False, "bank": BANK, **options}
    encoder = larger().requires_grad_(False)
    torch.manual_seed(5)
    method = METHODS["hyper-adapter"].build(small_network().double(), given, "running", encoder, samples).double()
    assert isinstance(method, module.HyperAdapter)
    return method


def slow(method: module.HyperAdapter, episode: Episodes) -> Tensor:
    """Logits of the queries of one episode, one class and one sample at a time."""
    network, encoder = method.network.module, larger()[:-1].eval()
    centre, scale = method.network.head.centre, method.base_learner.log_scale.exp()

    def features(x: Tensor) -> Tensor:
        read = network[:-1](x) - centre
        return read / read.norm(dim=1, keepdim=True)

    h, own, seen = features(bank()), features(episode.support[0]), encoder(episode.support[0])
    labels, ways = episode.support_labels[0], int(episode.support_labels.max()) + 1
    classes = [torch.stack([row / row.norm() for row in seen[labels == k]]).mean(0) for k in range(ways)]
    said = torch.empty(BANK, ways, dtype=torch.double)
    for b, row in enumerate(encoder(bank())):
        said[b] = torch.softmax(torch.stack([15 * row @ c / row.norm() / c.norm() for c in classes]), 0)
    spread = h - h.mean(0)
    ridge = 0.1 * spread.square().mean() * BANK
    delta, start = torch.zeros(ways, h.shape[1]).double(), said.mean(0).log()
    for _ in range(8):
        rest = torch.stack([p - torch.softmax(delta @ x + start, 0) for p, x in zip(said, spread, strict=True)])
        # Ridge regression as least squares, with rows that pull the coefficients to zero.
        wide = torch.cat([spread, ridge.sqrt() * torch.eye(h.shape[1]).double()])
        wanted = torch.cat([rest, torch.zeros(h.shape[1], ways).double()])
        delta = delta + 2 * torch.linalg.lstsq(wide, wanted).solution.T
    means = [own[labels == k].mean(0) for k in range(ways)]
    rows = scale * torch.stack([mean / mean.norm() for mean in means])
    return torch.stack([rows @ q + 2 * delta @ (q - h.mean(0)) for q in features(episode.query[0])])


def test_outputs_are_those_of_slow_code() -> None:
    method, episodes = built(samples=bank()).eval(), small_episodes()
    outputs = method.predict(method.adapt(episodes.support_set), episodes.query)
    for task, episode in enumerate(episodes.split(1)):
        torch.testing.assert_close(outputs[task], slow(method, episode), rtol=1e-9, atol=1e-9)


def test_the_steps_come_near_what_the_encoder_says() -> None:
    """The divergence of the layer from the encoder on the bank falls, to less than half of that of one step."""
    method, episodes = built(samples=bank()).eval(), small_episodes()
    distillation, found = method.distillation, []
    targets = method.network.targets(episodes.support_set, classes=True).double()
    said = 15 * F.normalize(class_means(F.normalize(read_by(method, episodes), dim=-1), targets)[0], dim=-1)
    for steps in (0, 1, 8, 200):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(distilled, "_STEPS", steps)
            weight, bias = distillation(method.network, method.encoder, read_by(method, episodes), targets)
        taught = (said @ F.normalize(distillation.read, dim=-1).T).softmax(1)
        start = taught.mean(-1, keepdim=True).log()
        answered = ((weight @ distillation.features.T + bias.unsqueeze(-1)) / 2 + start).log_softmax(1)
        found.append(float((taught * (taught.log() - answered)).sum(1).mean()))
    assert found[0] > found[1] > found[2] > found[3] and found[2] < found[0] / 2


def read_by(method: module.HyperAdapter, episodes: Episodes) -> Tensor:
    return method.encoder(episodes.support).features


def test_training_is_that_of_a_distilled_prototypical_network() -> None:
    episodes = small_episodes()
    method = built(samples=bank(), teacher=0.6, linear_map=True).train()
    options = {"distance": "cosine", "linear_map": True, "weight": 0.6}
    teacher = larger().requires_grad_(False)
    torch.manual_seed(5)
    other = METHODS["protonet-distilled"].build(small_network().double(), options, "running", teacher).double()
    losses = []
    for each in (method, other):
        adapted = each.adapt(episodes.support_set)
        losses.append(each.loss(adapted, each.predict(adapted, episodes.query), episodes))
        losses[-1].sum().backward()
    torch.testing.assert_close(losses[0], losses[1])
    for name, p in method.network.named_parameters():
        torch.testing.assert_close(p.grad, other.network.get_parameter(name).grad)
    torch.testing.assert_close(method.linear_map.weight.grad, other.linear_map.weight.grad)
    torch.testing.assert_close(method.base_learner.log_scale.grad, other.prototype.log_scale.grad)


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


def test_a_loaded_method_needs_no_samples() -> None:
    method = built(samples=bank()).eval()
    expected = outputs(method)
    loaded = built().eval()
    with pytest.raises(InputError, match="expected the samples of the bank, got none; give bank="):
        outputs(loaded)
    loaded.load_state_dict(method.state_dict())
    torch.testing.assert_close(outputs(loaded), expected, rtol=0, atol=0)
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
    plain = built(bank=0).eval()
    plain.load_state_dict({name: v for name, v in method.state_dict().items() if not name.startswith("distillation.")})
    without = method.controlled(adapted, "no residual")
    base = plain.adapt(episodes.support_set)
    torch.testing.assert_close(without.weights["7.weight"], base.weights["7.weight"])
    torch.testing.assert_close(without.weights["7.bias"], base.weights["7.bias"])
    others = method.controlled(adapted, "another task's").weights
    for name in ("7.weight", "7.bias"):
        torch.testing.assert_close(
            others[name] - base.weights[name], (adapted.weights[name] - base.weights[name]).roll(1, 0)
        )


@pytest.mark.parametrize("generator", ["attention", "linear", "mlp"])
def test_what_is_distilled_is_added_to_what_is_generated(generator: str) -> None:
    """Logits are those of the residual alone and of the bank alone, less the base learner's; in training none."""
    torch.manual_seed(1)
    both = built(samples=bank(), residual=True, generator=generator, scale=1.0).eval()
    moved(both.residual)
    alone = built(residual=True, generator=generator, scale=1.0, bank=0).eval()
    alone.load_state_dict({name: v for name, v in both.state_dict().items() if not name.startswith("distillation.")})
    bank_alone, base = built(samples=bank()).eval(), built(bank=0).eval()
    torch.testing.assert_close(outputs(both), outputs(alone) + outputs(bank_alone) - outputs(base))
    assert (outputs(alone) - outputs(base)).abs().max() > 0.01 < (outputs(bank_alone) - outputs(base)).abs().max()

    episodes = small_episodes()
    adapted = both.eval().adapt(episodes.support_set)
    without = both.controlled(adapted, "no residual").weights["7.weight"]
    torch.testing.assert_close(without, base.adapt(episodes.support_set).weights["7.weight"])
    swapped = Episodes(
        episodes.support.roll(1, 0), episodes.support_labels.roll(1, 0), episodes.query, None, episodes.ways
    )
    other = both.controlled(adapted, "another task's").weights["7.weight"]
    learned, distilled = (each.adapt(swapped.support_set).sums["7.weight"] for each in (alone, bank_alone))
    own = F.normalize(without + learned[1], dim=-1) * without.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(other, own + distilled[2])
    torch.testing.assert_close(outputs(both.train()), outputs(alone.train()))


def test_in_the_place_of_maml() -> None:
    model, encoder = small_network().double(), larger().requires_grad_(False)
    learner = HyperAdapter(model, encoder=encoder, residual=False, bank=bank()).double()
    episode = next(small_episodes().split(1))
    loss = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(learner.parameters(), 0.01)
    losses = []
    for _ in range(20):
        task = learner.clone()
        with pytest.warns(UserWarning, match="call eval"):
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
        (lambda given: given.pop("encoder"), "a bank needs a frozen encoder; give encoder="),
        (lambda given: given["encoder"].requires_grad_(True), "needs a frozen encoder"),
        (lambda given: given.update(normalization="support"), "needs normalization by running averages"),
        (lambda given: given.update(generate=["3.*"]), "and weights below it that all tasks share"),
        (lambda given: given.update(base_learner="gradient"), "needs a base learner in closed form"),
        (lambda given: given.update(base_learner="own"), "needs a base learner in closed form"),
        (lambda given: given.update(teacher=1.0), "unknown option"),
        (lambda given: given.update(bank=torch.rand(5, 2).double()), "expected samples that the network reads"),
        (lambda given: given.update(bank=[1, 2]), "bank must be a tensor of samples"),
    ],
)
def test_what_it_cannot_do_is_said(change: Callable[[dict[str, Any]], Any], message: str) -> None:
    given: dict[str, Any] = {"encoder": larger().requires_grad_(False), "residual": False, "bank": bank()}
    change(given)
    episode = next(small_episodes().split(1))
    with pytest.raises(InputError, match=message):
        task = HyperAdapter(small_network().double(), **given).double().eval().clone()
        task.adapt(support=(episode.support[0], episode.support_labels[0]), ways=4)


def test_a_row_of_a_comparison_is_trained_stopped_loaded_and_tested(tmp_path: Path) -> None:
    options = {
        "protonet": {"distance": "cosine"},
        "hyper-adapter": {"generator": "linear", "encoder": "protonet", "bank": 60, "teacher": 1.0},
    }
    plan: dict[str, Any] = {
        "backbone": "conv4",
        "channels": 4,
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
    averages = [value for name, value in learner.method.state_dict().items() if name.endswith("running_mean")]
    assert averages and all(value.any() for value in averages)
    assert learner.method.distillation.samples is None and learner.method.distillation.features.shape[0] == 60
    scores = evaluate(learner, "glyphs", ways=5, shots=1, queries=record.run.experiment.queries, test_episodes=5)
    assert scores.tolist() == pytest.approx(record.scores)


def test_a_random_residual_has_the_mean_and_deviation_of_the_tasks() -> None:
    own = torch.randn(4000, 2, 3).double() * torch.tensor([1.0, 5.0, 0.1]) + 3
    random = module._CONTROLS["random"](own)
    torch.testing.assert_close(random.mean(0), own.mean(0), atol=0.3, rtol=0)
    torch.testing.assert_close(random.std(0), own.std(0), atol=0, rtol=0.05)
    assert torch.equal(random, module._CONTROLS["random"](own))
    normal = [((x - x.mean(0)) / x.std(0)).flatten() for x in (own, random)]
    assert abs((normal[0] * normal[1]).mean()) < 0.03  # it knows nothing of its task
