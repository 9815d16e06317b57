"""A larger network that reads the support set beside the deployed one, and the rows that it is compared with."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers_methods import larger, small_episodes, small_network
from torch import Tensor, nn
from torch.nn import functional as F

from l2l_hyper import HyperAdapter, InputError
from l2l_hyper.data.episode import Episodes
from l2l_hyper.functional import convert_norm
from l2l_hyper.methods import METHODS
from l2l_hyper.methods.taskwise import class_means


def noisy(module: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    with torch.no_grad():
        for p in module.parameters():
            if not p.any():
                p.normal_(0, 0.3)
    return module


@pytest.mark.parametrize("generator", ["attention", "linear", "mlp"])
def test_queries_never_pass_the_encoder(generator: str) -> None:
    episodes, encoder = small_episodes(), larger().requires_grad_(False)
    options = {"base_learner": "cosine", "generator": generator, "width": 16, "blocks": 1}
    method = noisy(METHODS["hyper-adapter"].build(small_network().double(), options, "support", encoder).double())
    passed: list[int] = []
    hook = method.encoder.register_forward_hook(lambda *call: passed.append(len(call[1][0])))
    adapted = method.adapt(episodes.support_set)
    assert passed == [len(episodes)]
    outputs = method.predict(adapted, episodes.query)
    hook.remove()
    assert passed == [len(episodes)]
    method.loss(adapted, outputs, episodes).sum().backward()
    learned = [name for name, p in method.named_parameters() if p.requires_grad]
    assert not [name for name in learned if method.get_parameter(name).grad is None]
    assert not [name for name in learned if name.startswith("encoder.")]


@pytest.mark.parametrize("generator", ["attention", "linear", "mlp"])
def test_the_weights_depend_on_what_the_encoder_reads(generator: str) -> None:
    """With the support images of the encoder exchanged for another task's, the class vectors change."""
    episodes = small_episodes()
    options = {"base_learner": "cosine", "generator": generator, "width": 16, "blocks": 1}
    method = noisy(METHODS["hyper-adapter"].build(small_network().double(), options, "support", larger()).double())
    own = method.adapt(episodes.support_set).weights
    read = method.encoder.read
    method.encoder.read = lambda x: read(x.roll(1, 0))  # type: ignore[method-assign]
    others = method.adapt(episodes.support_set).weights
    assert all((own[name] - others[name]).abs().max() > 1e-3 for name in own)


@pytest.mark.parametrize("generator", ["attention", "linear"])
@pytest.mark.parametrize("modulation", ["feature-wise", "low-rank"])
def test_weights_below_the_last_layer_depend_on_what_the_encoder_reads(modulation: str, generator: str) -> None:
    episodes, encoder = small_episodes(), larger().requires_grad_(False)
    options = {"generator": generator, "generate": "0.weight", "modulation": modulation, "width": 16, "blocks": 1}
    method = noisy(METHODS["hyper-adapter"].build(small_network().double(), options, "support", encoder).double())
    own = method.adapt(episodes.support_set).weights["0.weight"]
    read = method.encoder.read
    method.encoder.read = lambda x: read(x.roll(1, 0))  # type: ignore[method-assign]
    others = method.adapt(episodes.support_set).weights["0.weight"]
    torch.testing.assert_close(others, own.roll(1, 0))
    assert (own - others).abs().max() > 1e-3


def test_the_linear_generator_is_one_matrix_of_the_encoders_class_means() -> None:
    episodes, encoder = small_episodes(), larger().requires_grad_(False)
    options = {"base_learner": "prototype", "generator": "linear"}
    method = noisy(METHODS["hyper-adapter"].build(small_network().double(), options, "support", encoder).double())
    base = METHODS["hyper-adapter"].build(
        copy.deepcopy(method.network.module), {"residual": False, **options}, "support"
    )
    base.base_learner.load_state_dict(method.base_learner.state_dict())
    linear = method.residual.generator.linear
    difference = {
        name: w - base.adapt(episodes.support_set).weights[name]
        for name, w in method.adapt(episodes.support_set).weights.items()
    }
    for t, support in enumerate(episodes.support_set):
        features = encoder[:-1].eval()(support.x[0])
        means, _ = class_means(features[None] / features.square().mean().sqrt(), support.one_hot(features.dtype))
        weight = base.adapt(support).weights["7.weight"][0]
        change = (means[0] @ linear.weight.T + linear.bias)[:, :-1]
        torch.testing.assert_close(difference["7.weight"][t], 0.2 * weight.square().mean().sqrt() * change)


def test_for_unit_length_the_residual_of_a_perceptron_turns_rows_and_keeps_their_length() -> None:
    episodes, encoder = small_episodes(), larger().requires_grad_(False)
    options = {"base_learner": "cosine", "generator": "mlp", "width": 16, "dropout": 0.5, "scale": 0.7}
    method = noisy(METHODS["hyper-adapter"].build(small_network().double(), options, "support", encoder).double())
    method.eval()  # no dropout
    adapted = method.adapt(episodes.support_set)
    without = method.controlled(adapted, "no residual").weights
    made, generate, centre = method.residual.encoder, method.residual.generator.linear, method.network.head.centre
    for t, support in enumerate(episodes.support_set):
        row = without["7.weight"][t]
        features = F.normalize(method.network.module[:-1](support.x[0]) - centre, dim=-1)
        read = encoder[:-1].eval()(support.x[0])
        means, _ = class_means(read[None] / read.square().mean().sqrt(), support.one_hot(read.dtype))
        unit = row.square().mean().sqrt()
        rows = torch.cat([row / unit, torch.zeros(len(row), 1, dtype=row.dtype)], -1)
        change = (
            F.gelu(torch.cat([means[0], rows], -1) @ made[0].weight.T + made[0].bias) @ generate.weight.T
            + generate.bias
        )
        turned = row + 0.7 * unit * change[:, :-1]
        wanted = turned * (row.norm(dim=1) / turned.norm(dim=1)).unsqueeze(1)
        torch.testing.assert_close(adapted.weights["7.weight"][t], wanted)
        bias_unit = unit * features.square().mean().sqrt() * features.shape[1] ** 0.5
        torch.testing.assert_close(adapted.weights["7.bias"][t], 0.7 * bias_unit * change[:, -1])
    others = method.controlled(adapted, "another task's").weights["7.weight"]
    torch.testing.assert_close(others.norm(dim=-1), without["7.weight"].norm(dim=-1))
    assert (others - adapted.weights["7.weight"]).abs().max() > 1e-3


def test_a_frozen_encoder_stays_as_it_is_and_one_that_learns_does_not() -> None:
    for frozen in (True, False):
        encoder = larger().requires_grad_(not frozen)
        learner = noisy(
            HyperAdapter(small_network().double(), base_learner="cosine", encoder=encoder, width=16).double()
        )
        learner.train()
        assert learner.method.encoder.training is not frozen
        before = copy.deepcopy(encoder.state_dict())
        episodes = small_episodes()
        x, y, q, qy = (t[0] for t in (episodes.support, episodes.support_labels, episodes.query, episodes.query_labels))
        clone = learner.clone()
        clone.adapt(F.cross_entropy(clone(x), y))
        F.cross_entropy(clone(q), qy).backward()
        assert (encoder[0].weight.grad is None) is frozen
        if frozen:
            assert all(torch.equal(value, encoder.state_dict()[name]) for name, value in before.items())


@pytest.mark.parametrize("options", [{"distance": "cosine"}, {"distance": "cosine", "linear_map": True}])
def test_cosine_prototypes(options: dict[str, object]) -> None:
    """Against the formula, task by task: cosine of what is left of features and centre, and of the class means."""
    episodes = small_episodes()
    method = METHODS["protonet"].build(small_network().double(), options, "support").double()
    with torch.no_grad():
        method.network.head.centre.normal_()
        if method.linear_map is not None:
            method.linear_map.weight.add_(0.1 * torch.randn_like(method.linear_map.weight))
    adapted = method.adapt(episodes.support_set)
    outputs = method.predict(adapted, episodes.query)
    body, centre = method.network.module[:-1], method.network.head.centre

    def unit(x: Tensor) -> Tensor:
        return F.normalize(body(x) - centre, dim=-1)

    for t in range(len(episodes)):
        means = torch.stack([unit(episodes.support[t])[episodes.support_labels[t] == c].mean(0) for c in range(4)])
        if method.linear_map is not None:
            means = means @ method.linear_map.weight.T
        torch.testing.assert_close(adapted.weights["7.weight"][t], 10 * F.normalize(means, dim=-1))
    assert outputs.abs().max() <= 10


def test_a_distilled_protonet_learns_from_the_teacher_and_is_a_protonet_afterwards() -> None:
    episodes = small_episodes()
    options = {"distance": "cosine", "weight": 3.0}
    method = METHODS["protonet-distilled"].build(small_network().double(), options, "support", larger()).double()
    plain = METHODS["protonet"].build(copy.deepcopy(method.network.module), {"distance": "cosine"}, "support").double()
    plain.network.load_state_dict(method.network.state_dict())
    adapted = method.adapt(episodes.support_set)
    outputs = method.predict(adapted, episodes.query)
    torch.testing.assert_close(outputs, plain.predict(plain.adapt(episodes.support_set), episodes.query))
    taught = teachers_outputs(method.teacher.module, episodes)
    expected = episodes.loss(outputs, episodes.query_labels) + 3.0 * F.kl_div(
        outputs.log_softmax(-1), taught.softmax(-1), reduction="none"
    ).sum(-1).mean(-1)
    torch.testing.assert_close(method.loss(adapted, outputs, episodes), expected)
    assert not any(p.requires_grad for p in method.teacher.parameters())


def teachers_outputs(teacher: nn.Module, episodes: Episodes) -> Tensor:
    def unit(x: Tensor) -> Tensor:
        return F.normalize(teacher[:-1].eval()(x), dim=-1)

    outputs = []
    for support, labels, query in zip(episodes.support, episodes.support_labels, episodes.query, strict=True):
        means = torch.stack([unit(support)[labels == c].mean(0) for c in range(4)])
        outputs.append(10 * unit(query) @ F.normalize(means, dim=-1).T)
    return torch.stack(outputs)


@pytest.mark.parametrize("name", ["hyper-adapter", "protonet-distilled"])
def test_a_frozen_network_without_running_averages_is_refused(name: str) -> None:
    encoder = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).requires_grad_(False)
    network = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    with pytest.raises(InputError, match="layer '1' has no running averages: train it with them"):
        METHODS[name].build(network, {}, "support", encoder)
    METHODS[name].build(network, {}, "support", convert_norm(copy.deepcopy(encoder), "support"))
    with torch.no_grad():
        encoder(torch.randn(20, 6))
    METHODS[name].build(network, {}, "support", encoder)
