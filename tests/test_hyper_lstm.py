"""HyperLSTM and the layer-normalized LSTM under it: values, the interface of nn.LSTM, and the study."""

from __future__ import annotations

import json
import lzma
import math
import random
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence
from uses import hyper_lstm as study

from l2l_hyper import InputError
from l2l_hyper.functional import call, slots
from l2l_hyper.uses.hyper_lstm import HyperLSTM, LayerNormLSTM


def randomized(lstm: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    lstm.double()
    with torch.no_grad():
        for p in lstm.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return lstm


def step(cell: nn.Module, x: Tensor, h: Tensor, c: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """One step of a layer-normalized LSTM with one sample, gate by gate."""
    product = cell.input(x) + cell.recurrent(h)
    i, f, o, g = (
        F.layer_norm(gate, [size], gain, shift)
        for gate, gain, shift in zip(product.split(size), cell.gates.gain, cell.gates.shift, strict=True)
    )
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * cell.gates.norm(c).tanh(), c


def slow_layer_norm_lstm(lstm: nn.Module, x: Tensor) -> Tensor:
    """Outputs of one layer and direction for one sample ``(T, D)``."""
    h, c, outputs = x.new_zeros(lstm.hidden_size), x.new_zeros(lstm.hidden_size), []
    for x_t in x:
        h, c = step(lstm.cells[0], x_t, h, c, lstm.hidden_size)
        outputs.append(h)
    return torch.stack(outputs)


@pytest.mark.parametrize("batch_first", [False, True])
def test_layer_norm_lstm_is_its_formula(batch_first: bool) -> None:
    lstm = randomized(LayerNormLSTM(3, 5, batch_first=batch_first))
    x = torch.randn(2, 7, 3).double()
    output, _ = lstm(x if batch_first else x.transpose(0, 1))
    slow = torch.stack([slow_layer_norm_lstm(lstm, sample) for sample in x])
    torch.testing.assert_close(output if batch_first else output.transpose(0, 1), slow)


def test_untrained_it_is_the_layer_norm_lstm() -> None:
    torch.manual_seed(0)
    hyper, plain = HyperLSTM(3, 5, hyper_size=4).double(), LayerNormLSTM(3, 5).double()
    plain.cells[0].load_state_dict(hyper.cells[0].main.state_dict())
    x = torch.randn(7, 2, 3).double()
    torch.testing.assert_close(hyper(x)[0], plain(x)[0])


def test_rescaled_products_are_products_with_generated_matrices() -> None:
    """A step of a sample is the step of its main LSTM, called under a matrix of the sample's own."""
    lstm = randomized(HyperLSTM(3, 5, hyper_size=4))
    cell, x = lstm.cells[0], torch.randn(2, 3).double()
    h, c, h_hyper, c_hyper = (torch.randn(2, size).double() for size in (5, 5, 4, 4))
    fast = cell(*cell.read(x), h, c, h_hyper, c_hyper)
    for b in range(2):
        hyper = step(cell.hyper, x[b], torch.cat([h[b], h_hyper[b]]), c_hyper[b], 4)
        w = cell.weights(hyper[0])
        gates = nn.Linear(8, 20).double()
        rows = [w["input"].diag() @ cell.main.input.weight, w["recurrent"].diag() @ cell.main.recurrent.weight]
        own = {"weight": torch.cat(rows, 1), "bias": w["bias"]}
        product = call(gates, slots(gates), own, torch.cat([x[b], h[b]]))
        slow = [*cell.main.gates(product[None], c[b : b + 1]), *(part[None] for part in hyper)]
        torch.testing.assert_close([part[b : b + 1] for part in fast], slow)


@pytest.mark.parametrize("kind", [LayerNormLSTM, HyperLSTM])
def test_shapes_are_those_of_nn_lstm(kind: type[nn.Module]) -> None:
    theirs = nn.LSTM(3, 5, 2, bidirectional=True, batch_first=True, dropout=0.5)
    ours = kind(3, 5, 2, bidirectional=True, batch_first=True, dropout=0.5)
    output, (h, c) = ours(torch.randn(4, 7, 3))
    expected, (expected_h, _) = theirs(torch.randn(4, 7, 3))
    assert output.shape == expected.shape
    assert h.shape == c.shape == (*expected_h.shape[:2], ours.state_size)


@pytest.mark.parametrize("kind", [LayerNormLSTM, HyperLSTM])
def test_directions_and_layers(kind: type[nn.Module]) -> None:
    """The second direction is the first one of the sequence turned round; a second layer reads both."""
    lstm = randomized(kind(3, 5, 2, bidirectional=True)).eval()
    x = torch.randn(7, 2, 3).double()

    def alone(k: int, x: Tensor) -> Tensor:
        single = kind(x.shape[-1], 5).double()
        single.cells[0].load_state_dict(lstm.cells[k].state_dict())
        return single(x)[0]

    first = torch.cat([alone(0, x), alone(1, x.flip(0)).flip(0)], -1)
    second = torch.cat([alone(2, first), alone(3, first.flip(0)).flip(0)], -1)
    torch.testing.assert_close(lstm(x)[0], second)


@pytest.mark.parametrize("kind", [LayerNormLSTM, HyperLSTM])
def test_a_text_in_two_parts_is_the_text(kind: type[nn.Module]) -> None:
    lstm = randomized(kind(3, 5, 2))
    x = torch.randn(7, 2, 3).double()
    whole, final = lstm(x)
    first, state = lstm(x[:4])
    second, last = lstm(x[4:], state)
    torch.testing.assert_close(torch.cat([first, second]), whole)
    torch.testing.assert_close(last, final)


def test_what_it_does_not_take() -> None:
    lstm = HyperLSTM(3, 5, hyper_size=4)
    x = torch.randn(7, 2, 3)
    with pytest.raises(InputError, match="PackedSequence; try pad_packed_sequence"):
        lstm(pack_padded_sequence(x, torch.tensor([7, 5])))
    with pytest.raises(InputError, match=r"\(time, batch, 3\), got \(7, 2, 4\)"):
        lstm(torch.randn(7, 2, 4))
    with pytest.raises(InputError, match=r"states of shape \(1, 2, 9\), got \(1, 2, 5\)"):
        lstm(x, (torch.zeros(1, 2, 5), torch.zeros(1, 2, 5)))
    with pytest.raises(InputError, match="hyper_size and embedding_size"):
        HyperLSTM(3, 5, hyper_size=0)
    with pytest.raises(InputError, match="dropout"):
        LayerNormLSTM(3, 5, dropout=1.0)


def test_bits_per_character_count_every_character_once() -> None:
    """Of a network that says the same of every character, whatever the length of the windows."""
    text = torch.randint(4, (11, 3))
    for length in (3, 10, 20):
        settings = study.Settings(length=length, characters=2)
        model = study.Model(4, settings, LayerNormLSTM, 5)
        nn.init.zeros_(model.out.weight)
        bias = nn.init.normal_(model.out.bias).log_softmax(0)
        expected = -bias[text[1:]].mean().item() / math.log(2)
        assert study.bits(model, text, settings) == pytest.approx(expected)


def test_the_study(tmp_path: Path) -> None:
    text = bytes(random.Random(0).choices(b"abc ", k=4000))
    (tmp_path / "text.xz").write_bytes(lzma.compress(text))
    sizes = {"hidden": 6, "hyper": 3, "embedding": 2, "characters": 2, "batch": 4, "length": 5, "steps": 4, "points": 2}
    flags = [word for name, value in sizes.items() for word in (f"--{name}", str(value))]
    out = tmp_path / "out"
    study.main(
        study.Settings,
        study.run,
        study.report,
        ["--text", str(tmp_path / "text.xz"), "--out", str(out), "--seeds", "0", "1", *flags],
    )
    models = json.loads((out / "seed1.json").read_text())["result"]["models"]
    assert models[study.SAME_STEPS]["steps"] == models[study.HYPER]["steps"] == 4
    assert models[study.SAME_TIME]["seconds"] >= models[study.HYPER]["seconds"]
    assert 0 <= models[study.SAME_STEPS]["parameters"] - models[study.HYPER]["parameters"] < 300
    assert set(models[study.HYPER]["controls"]) == {"another task's z", "mean z", "random z"}
    assert "| layer-norm LSTM, equal time" in (out / "results.md").read_text()
    assert (out / "curves.png").exists()


def test_a_missing_text_says_where_one_is() -> None:
    with pytest.raises(InputError, match="apt install bible-kjv"):
        study.read(study.Settings(text="nowhere.txt"), torch.device("cpu"))


def test_the_page_says_what_the_records_say(tmp_path: Path) -> None:
    root = Path(__file__).parents[1]
    records = [json.loads(path.read_text()) for path in sorted((root / "benchmarks/results/hyper_lstm").glob("seed*"))]
    study.report(records, tmp_path)
    page = (root / "docs/uses/hyper_lstm.md").read_text()
    rows = [row.split("|") for row in (tmp_path / "results.md").read_text().splitlines()[2:]]
    assert len(rows) == 7 and all(row[2].strip() in page for row in rows)
