"""Networks from one shared generator: what is generated, what is stored, and the plain module that it expands to."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from uses import compression as study
from uses import images

from l2l_hyper import InputError
from l2l_hyper.data.cache import ImageSet
from l2l_hyper.uses import Compressed


def convolutional() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(72, 5))


@pytest.mark.parametrize("patterns", [None, ["*"], ["0.*", "1.weight"]], ids=["default", "all", "some"])
def test_weights_are_what_the_formula_says(patterns: list[str] | None) -> None:
    torch.manual_seed(0)
    model = convolutional()
    compressed = Compressed(model, patterns=patterns, chunk=72, chunk_features=3).double()
    generator = compressed.hyper.generator
    chunks = []
    for z in generator.chunks:
        chunks.append(generator.linear.weight @ z + generator.linear.bias)
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
    compressed = Compressed(model, chunk=72, chunk_features=3)
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
    compressed = Compressed(convolutional(), chunk=72, chunk_features=3)
    chunks = 360 // 72 + 216 // 72
    assert compressed.stored_parameters == 3 * chunks + 72 * (3 + 1) + (8 + 8 + 8 + 5)
    state = compressed.state_dict()
    assert sum(v.numel() for v in state.values()) == compressed.stored_parameters + 8 + 8 + 1  # running averages
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    other = Compressed(convolutional(), chunk=72, chunk_features=3)
    other.load_state_dict(torch.load(file, weights_only=True))
    x = torch.randn(4, 3, 5, 5)
    assert torch.equal(other(x), compressed(x))


def test_generated_normalization_starts_as_the_layer_does() -> None:
    torch.manual_seed(0)
    weights = Compressed(nn.LayerNorm(4096), patterns=["*"], chunk=64, chunk_features=8).weights()
    assert abs(weights["weight"].mean() - 1) < 0.02 and abs(weights["bias"].mean()) < 0.02
    assert 0.07 < weights["weight"].std() < 0.13 and 0.07 < weights["bias"].std() < 0.13


def test_a_layer_that_the_tree_holds_twice_is_one() -> None:
    shared = nn.Linear(6, 6)
    compressed = Compressed(nn.Sequential(shared, nn.ReLU(), shared), chunk=6, chunk_features=2)
    plain = compressed.expand()
    x = torch.randn(4, 6)
    assert plain[0] is plain[2] and torch.equal(plain(x), compressed(x))


def test_weights_stay_in_full_precision() -> None:
    compressed = Compressed(nn.Linear(8, 8), chunk=8, chunk_features=2)
    with torch.autocast("cpu", torch.bfloat16):
        assert compressed.weights()["weight"].dtype == torch.float32


def test_errors_say_what_to_try() -> None:
    with pytest.raises(InputError, match="got none; give patterns"):
        Compressed(nn.LayerNorm(4))
    with pytest.raises(InputError, match="matches no parameter"):
        Compressed(nn.Linear(2, 2), patterns=["head.*"])
    with pytest.raises(InputError, match="chunk_features must be at least 1, got 0"):
        Compressed(nn.Linear(2, 2), chunk_features=0)


# The study


def test_images_are_divided_within_each_class(monkeypatch: pytest.MonkeyPatch) -> None:
    sets = []
    for first, classes in ((0, 3), (3, 2)):
        numbers = torch.arange(600 * classes)
        pixels = torch.stack([first + numbers // 600, numbers % 600 // 256, numbers % 256], 1).byte()
        members = list(numbers.view(classes, 600).numpy())
        sets.append(ImageSet(pixels.view(-1, 3, 1, 1), [f"class {first + c}" for c in range(classes)], members))
    monkeypatch.setattr(images, "CIFARFS", SimpleNamespace(read=lambda root: sets))
    found = images.cifar100(torch.device("cpu"))
    assert found.classes == 5 and len(found.y) == 2500 and len(found.test_y) == 500
    for x, y in ((found.x, found.y), (found.test_x, found.test_y)):
        assert torch.equal(x[:, 0, 0, 0].long(), y)
    assert len(torch.cat([found.x, found.test_x]).flatten(1).unique(dim=0)) == 3000
    held_out = found.validation()
    assert len(held_out.y) == 2250 and len(held_out.test_y) == 250
    assert len(torch.cat([held_out.x, held_out.test_x]).flatten(1).unique(dim=0)) == 2500
    assert images.cifar100(torch.device("cpu"), 2).classes == 2


def test_stored_bits_are_counted() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 40))
    rounded, bits = study.in_8_bits(model)
    assert bits == 8 * (72 + 160) + 32 * (4 + 4) + 32 * (4 + 4 + 4 + 40)  # 4 kernels, 4 columns; vectors
    for p, q, dim in ((model[0].weight, rounded[0].weight, (1, 2, 3)), (model[3].weight, rounded[3].weight, 0)):
        step = p.abs().amax(dim, keepdim=True) / 127
        assert ((p - q).abs() <= step * 0.5001).all() and not torch.equal(p, q)
    pruned, bits = study.pruned(model, 100, lambda m: m)
    before, after = (torch.cat([m[0].weight.flatten(), m[3].weight.flatten()]).abs() for m in (model, pruned))
    kept = int((after > 0).sum())
    assert bits <= 32 * 100 < bits + 32 + 8 and bits == 32 * (52 + kept) + min(232, 8 * kept)
    assert torch.equal(after.sort().values[-kept:], before.sort().values[-kept:])


def test_controls_exchange_the_embeddings_and_put_them_back(monkeypatch: pytest.MonkeyPatch) -> None:
    small = Compressed(nn.Linear(4, 8, bias=False), chunk=8, chunk_features=2)
    own, seen = small.hyper.generator.chunks.detach().clone(), []
    monkeypatch.setattr(study, "accuracy", lambda model, images: seen.append(model.weights()["weight"].detach()) or 0.5)
    before = small.weights()["weight"].detach()
    found = study.of_controls(small, None)
    assert found == dict.fromkeys(["another chunk's z", "mean z", "random z"], 0.5)
    assert torch.equal(seen[0], before.view(4, 8).roll(1, 0).view(8, 4))  # all chunks of one layer, of one scale
    assert (seen[1].view(4, 8) == seen[1].view(4, 8)[0]).all() and not torch.equal(seen[2], before)
    assert torch.equal(small.hyper.generator.chunks, own) and torch.equal(small.weights()["weight"], before)


@pytest.mark.parametrize("network", ["conv4", "residual"])
def test_study_runs(network: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    labels = torch.arange(2).repeat_interleave(30)
    pixels = torch.randint(256, (60, 3, 32, 32), dtype=torch.uint8)
    monkeypatch.setattr(study, "cifar100", lambda *_: images.Images(pixels, labels, pixels, labels, 2))
    settings = study.Settings(
        **{
            "network": network,
            "channels": 8,
            "blocks": 1,
            "budgets": (900,),
            "ratios": (2.0,),
            "chunk": 36,
            "rates": (0.01,),
        },
        **{"rate_epochs": 1, "epochs": 1, "tuning_epochs": 1, "batch": 4, "classes": 2},
    )
    result = study.run(settings, 0, torch.device("cpu"))
    assert [point["method"] for point in result["points"]] == [
        *("narrower", "narrower, 8 bits") * 2,
        *("generated, 2 to 1", "generated, 2 to 1, 8 bits", "pruned"),
    ]
    assert all(0 <= point["accuracy"] <= 1 for point in result["points"])
    names = ("another chunk's z", "mean z", "random z")
    assert [point["method"] for point in result["controls"]] == [f"generated, 2 to 1, {name}" for name in names]
    assert all(point["bytes"] <= 4 * 900 for point in result["points"][2:])
    study.report([{"result": result}] * 2, tmp_path)
    assert (tmp_path / "results.md").read_text().count("±") == 7 + 3
    assert (tmp_path / "accuracy.png").stat().st_size > 10000


def test_tables_of_the_page_are_those_of_the_records() -> None:
    root = Path(__file__).parents[1]

    def rows(text: str) -> set[tuple[str, ...]]:
        return {
            tuple(c.strip() for c in t.split("|")) for t in text.splitlines() if t.startswith("|") and "--" not in t
        }

    results = root / "benchmarks" / "results" / "compression"
    recorded = set[tuple[str, ...]]()
    for name in ("residual", "small"):
        recorded |= rows((results / name / "results.md").read_text(encoding="utf-8"))
    page = rows((root / "docs" / "uses" / "compression.md").read_text(encoding="utf-8"))
    assert len(page) > 20 and page <= recorded
