"""Networks from one shared generator: what is generated, what is stored, and the plain module that it expands to."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn

from l2l_hyper import InputError
from l2l_hyper.uses import Compressed


def convolutional() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(72, 5))


@pytest.mark.parametrize("patterns", [None, ["*"], ["0.*", "1.weight"]], ids=["default", "all", "some"])
def test_weights_are_what_the_formula_says(patterns: list[str] | None) -> None:
    torch.manual_seed(0)
    model = convolutional()
    compressed = Compressed(model, patterns=patterns, chunk=72, chunk_features=3, width=7).double()
    generator = compressed.hyper.generator
    chunks = []
    for z in generator.chunks:
        hidden = (generator.hidden.weight @ z + generator.hidden.bias).relu()
        chunks.append(generator.linear.weight @ hidden + generator.linear.bias)
    vector, generated, offset = torch.cat(chunks), compressed.weights(), 0
    for name, weight in generated.items():
        piece, offset = vector[offset : offset + weight.numel()].view_as(weight), offset + weight.numel()
        if weight.dim() > 1:
            expected = piece * (weight[0].numel() / (1 if f"{name[:-6]}bias" in generated else 2)) ** -0.5
        else:
            expected = {"1.weight": 1 + 0.1 * piece, "1.bias": 0.1 * piece}.get(name, piece)
        torch.testing.assert_close(weight, expected)
    names = dict(model.named_parameters())
    assert set(generated) == ({"0.weight", "4.weight"} if patterns is None else set(names) if patterns == ["*"] else
                              {"0.weight", "0.bias", "1.weight"})  # fmt: skip


def test_expanded_network_is_plain_and_answers_the_same() -> None:
    torch.manual_seed(0)
    model = convolutional()
    compressed = Compressed(model, chunk=72, chunk_features=3, width=7)
    x = torch.randn(4, 3, 5, 5)
    compressed(x)  # moves the running averages
    compressed.eval()
    plain = compressed.expand()
    assert torch.equal(plain(x), compressed(x))
    assert plain.state_dict().keys() == model.state_dict().keys()
    assert all(isinstance(p, nn.Parameter) for p in plain.parameters())
    model.load_state_dict(plain.state_dict())
    assert torch.equal(model.eval()(x), compressed(x))
    with torch.no_grad():
        plain[0].weight.zero_()
        plain[1].bias.fill_(5)
    assert not torch.equal(plain(x), compressed(x))


def test_only_what_is_stored_is_saved() -> None:
    torch.manual_seed(0)
    compressed = Compressed(convolutional(), chunk=72, chunk_features=3, width=7)
    chunks = 360 // 72 + 216 // 72
    assert compressed.stored_parameters == 3 * chunks + 7 * (3 + 1) + 72 * (7 + 1) + (8 + 8 + 8 + 5)
    state = compressed.state_dict()
    assert sum(v.numel() for v in state.values()) == compressed.stored_parameters + 8 + 8 + 1  # running averages
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    other = Compressed(convolutional(), chunk=72, chunk_features=3, width=7)
    other.load_state_dict(torch.load(file, weights_only=True))
    x = torch.randn(4, 3, 5, 5)
    assert torch.equal(other(x), compressed(x))


def test_generated_normalization_starts_as_the_layer_does() -> None:
    torch.manual_seed(0)
    weights = Compressed(nn.LayerNorm(4096), patterns=["*"], chunk=64, chunk_features=8, width=64).weights()
    assert abs(weights["weight"].mean() - 1) < 0.02 and abs(weights["bias"].mean()) < 0.02
    assert 0.07 < weights["weight"].std() < 0.13 and 0.07 < weights["bias"].std() < 0.13


def test_a_layer_that_the_tree_holds_twice_is_one() -> None:
    shared = nn.Linear(6, 6)
    compressed = Compressed(nn.Sequential(shared, nn.ReLU(), shared), chunk=6, chunk_features=2, width=3)
    plain = compressed.expand()
    x = torch.randn(4, 6)
    assert plain[0] is plain[2] and torch.equal(plain(x), compressed(x))


def test_weights_stay_in_full_precision() -> None:
    compressed = Compressed(nn.Linear(8, 8), chunk=8, chunk_features=2, width=3)
    with torch.autocast("cpu", torch.bfloat16):
        assert compressed.weights()["weight"].dtype == torch.float32


def test_errors_say_what_to_try() -> None:
    with pytest.raises(InputError, match="got none; give patterns"):
        Compressed(nn.LayerNorm(4))
    with pytest.raises(InputError, match="matches no parameter"):
        Compressed(nn.Linear(2, 2), patterns=["head.*"])
    with pytest.raises(InputError, match="must be at least 1, got 0 and 32"):
        Compressed(nn.Linear(2, 2), chunk_features=0)
