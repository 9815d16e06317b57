"""What all uses of hypernetworks promise: shapes, gradients, exact values, save and load, many weights at once."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from l2l_hyper.hypernet import Chunked
from l2l_hyper.uses import (
    Compressed,
    ContinualNetwork,
    DescribedNetwork,
    GraphHyperNetwork,
    HyperLSTM,
    LearnedRule,
    NetworkGraph,
    TabularHyperNetwork,
)
from l2l_hyper.uses.tabular import scaled


@dataclass(frozen=True)
class Case:
    """One use on a small problem.

    Attributes:
        name: of the case.
        make: the module, with random parameters; the tests turn it to float64.
        inputs: what ``call`` is given, for B different weights on the same samples, so outputs differ by weights alone.
        call: outputs ``(B, *)`` of the module, in one call.
        slow: those of entry b alone, by obvious code.
        shape: of the outputs.
    """

    name: str
    make: Callable[[], nn.Module]
    inputs: Callable[[], tuple[Any, ...]]
    call: Callable[..., Tensor]
    slow: Callable[..., Tensor]
    shape: tuple[int, ...]


def described() -> Case:
    def slow(network: Any, b: int, x: Tensor, z: Tensor) -> Tensor:
        encoder, generator = network.hyper.encoder, network.hyper.generator
        vector = generator.linear(encoder.linear(encoder.hidden(z[b]).relu())) * generator.std
        w1, b1, w2, b2 = vector.split([4, 4, 8, 2])
        return (x[b] @ w1.view(4, 1).T + b1).tanh() @ w2.view(2, 4).T + b2

    return Case(
        name="described",
        make=lambda: DescribedNetwork(nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 2)), 3, width=5),
        inputs=lambda: (torch.randn(6, 1).double().expand(4, 6, 1), torch.randn(4, 3).double()),
        call=lambda network, x, z: network(x, z),
        slow=slow,
        shape=(4, 6, 2),
    )


def continual() -> Case:
    def make() -> nn.Module:
        model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2))
        network = ContinualNetwork(model, 3, features=4, generator=partial(Chunked, chunk=7, chunk_features=2, width=8))
        for task in range(3):
            network.begin(task)
        return network

    def slow(network: Any, b: int, x: Tensor) -> Tensor:
        generator, e = network.hyper.generator, network.embeddings[b]
        pieces = [generator.linear(generator.hidden(torch.cat([e, c])).relu()) for c in generator.chunks]
        w1, b1, w2, b2 = (torch.cat(pieces)[:17] * generator.std).split([6, 3, 6, 2])
        return (x @ w1.view(3, 2).T + b1).tanh() @ w2.view(2, 3).T + b2

    return Case(
        name="continual",
        make=make,
        inputs=lambda: (torch.randn(6, 2).double(),),
        call=lambda network, x: network.of_all_tasks(x),
        slow=slow,
        shape=(3, 6, 2),
    )


def noisy(module: nn.Module) -> nn.Module:
    """With noise on what is constant at the start."""
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return module


def hyper_lstm() -> Case:
    """The states of the smaller LSTM differ at the start, and with them the weights of every sample and step."""

    def cell(lstm: Any, product: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        i, f, o, g = (
            nn.functional.layer_norm(gate, [len(c)], gain, shift)
            for gate, gain, shift in zip(product.split(len(c)), lstm.gates.gain, lstm.gates.shift, strict=True)
        )
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * lstm.gates.norm(c).tanh(), c

    def slow(lstm: Any, b: int, x: Tensor, h_hyper: Tensor) -> Tensor:
        main, hyper, weights = lstm.cells[0].main, lstm.cells[0].hyper, lstm.cells[0].weights
        (h, c), (h_hyper, c_hyper) = torch.zeros(2, 5).double(), torch.stack([h_hyper[b], torch.zeros(4).double()])
        outputs = []
        for x_t in x[:, b]:
            read = hyper.input(x_t) + hyper.recurrent(torch.cat([h, h_hyper]))
            h_hyper, c_hyper = cell(hyper, read, c_hyper)
            generated = weights.generator.linear(weights.encoder(h_hyper))
            d_x, d_h, bias = generated.split(20)
            h, c = cell(main, d_x.diag() @ main.input.weight @ x_t + d_h.diag() @ main.recurrent.weight @ h + bias, c)
            outputs.append(h)
        return torch.stack(outputs)

    def call(lstm: Any, x: Tensor, h_hyper: Tensor) -> Tensor:
        h = torch.cat([torch.zeros(4, 5).double(), h_hyper], 1).unsqueeze(0)
        return lstm(x, (h, torch.zeros_like(h)))[0].transpose(0, 1)

    return Case(
        name="hyper-lstm",
        make=lambda: noisy(HyperLSTM(3, 5, hyper_size=4, embedding_size=2)),
        inputs=lambda: (torch.randn(6, 1, 3).double().expand(6, 4, 3), torch.randn(4, 4).double()),
        call=call,
        slow=slow,
        shape=(4, 6, 5),
    )


def learned_rule() -> Case:
    """Each gradient is a description, and its rule another one."""

    def slow(rule: Any, b: int, gradients: Tensor) -> Tensor:
        g = gradients[b].flatten()
        size, peak = g.square().mean().sqrt().log(), g.abs().max().log()
        shape = g.new_tensor([math.log(6), math.log(2), math.log(3), 0])  # and not a vector
        z = torch.cat([shape, torch.stack([size, peak])]) / 10
        b1, b2, w3, b3 = rule.hyper.generator.linear(rule.hyper.encoder(z)).split([16, 16, 4, 1])
        m, x, zero = rule.recurrent, torch.stack([g.abs().log() / 10, g.sign()], 1), g.new_zeros(6, 4)
        for layer, bias in ((m.first, m.bias[0] + b1), (m.second, m.bias[1] + b2)):
            i, _, o, new = (torch.cat([x, zero], 1) @ layer.weight.T + bias).split(4, 1)
            x = o.sigmoid() * (i.sigmoid() * new.tanh()).tanh()
        return 0.1 * (x @ (m.out + w3) + m.out_bias + b3).view(2, 3)

    return Case(
        name="learned-rule",
        make=lambda: noisy(LearnedRule(hidden_size=4, conditioned=True)),
        inputs=lambda: (torch.randn(4, 2, 3).double(),),
        call=lambda rule, gradients: rule([gradients], batch_dims=1)[0][0],
        slow=slow,
        shape=(4, 2, 3),
    )


def compressed() -> Case:
    """It has no description, so one set of weights."""
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 2, bias=False))

    def slow(network: Any, b: int, x: Tensor) -> Tensor:
        generator = network.hyper.generator
        pieces = [generator.linear(z) for z in generator.chunks]
        w1, w2 = torch.cat(pieces).split([12, 8])  # whole chunks
        h = nn.functional.layer_norm(
            x @ w1.view(4, 3).T * (2 / 3) ** 0.5, [4], network.model[1].weight, network.model[1].bias
        )
        return h.tanh() @ w2.view(2, 4).T * 0.5**0.5

    return Case(
        name="compressed",
        make=lambda: Compressed(model, chunk=4, chunk_features=2),
        inputs=lambda: (torch.randn(6, 3).double(),),
        call=lambda network, x: network(x).unsqueeze(0),
        slow=slow,
        shape=(1, 6, 2),
    )


def graph_hypernetwork() -> Case:
    """Weights of a batch come from embeddings that the encoder gives and a factor that differs."""
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 2))
    graph = NetworkGraph.of(model)

    def call(hyper: Any, x: Tensor, factors: Tensor) -> Tensor:
        weights = hyper(graph, z=factors * hyper.encoder(graph))
        return torch.func.vmap(lambda w: torch.func.functional_call(model, w, (x,)))(weights)

    def slow(hyper: Any, b: int, x: Tensor, factors: Tensor) -> Tensor:
        z, decoder = factors[b] * hyper.encoder(graph), hyper.decoder

        def matrix(z: Tensor, made: int, read: int) -> Tensor:
            tile = decoder.kernels((decoder.hidden(z) + decoder.position[0, 0]).relu()).view(2, 2)
            return tile.repeat(2, 2)[:made, :read] * (2 / read) ** 0.5

        shift, gain = decoder.vectors(z).view(-1, 2, 2).repeat(1, 1, 2).unbind(1)
        shift, gain = 0.2 * shift.tanh(), 2 * (gain / 2).sigmoid()
        h = x @ matrix(z[1], 4, 3).T + shift[1]
        return nn.functional.layer_norm(h, [4], gain[2], shift[2]).tanh() @ matrix(z[4], 2, 4).T + shift[4, :2]

    return Case(
        name="graph hypernetwork",
        make=lambda: GraphHyperNetwork(features=4, rounds=2, width=5, tile=2, kernel=1),
        inputs=lambda: (torch.randn(6, 3).double(), torch.rand(3, 1, 1).double() + 0.5),
        call=call,
        slow=slow,
        shape=(3, 6, 2),
    )


def tabular() -> Case:
    """Members read the same rows through two scalings, and each has random numbers of its own."""

    def slow(network: Any, b: int, x: Tensor, y: Tensor, queries: Tensor) -> Tensor:
        one, (rows, asked) = torch.ones(1).double(), (scaled(samples, x)[b % 2] for samples in (x, queries))
        targets = nn.functional.one_hot(y, 3).double()
        z = network.columns.encoder(torch.cat([rows, one.expand(len(rows), 1)], 1), targets)
        random = network.random_columns(2, torch.Generator().manual_seed(0))[b].double()
        changes = [network.columns.generator.linear(z_f).split(10) for z_f in z]
        columns = torch.stack([(1 + gain) * r + shift for (gain, shift), r in zip(changes, random, strict=True)])
        h = torch.stack([(torch.cat([row, one]) @ columns).relu() for row in rows])
        inputs = torch.cat([h, one.expand(len(h), 1)], 1)
        gram = inputs.T @ inputs + network.ridge.log_penalty.exp() * torch.eye(11).double()
        solved = (network.ridge.log_scale.exp() * gram.inverse() @ inputs.T @ targets).T
        weight, bias = solved[None, :, :-1], solved[None, :, -1]
        predictions = (inputs @ solved.T)[None]
        (change, of_bias), (unit, bias_unit) = network.residual(h[None], None, targets[None], predictions, weight, bias)
        last, last_bias = (weight + 0.2 * unit * change)[0], (bias + 0.2 * bias_unit * of_bias)[0]
        return torch.stack([last @ (torch.cat([query, one]) @ columns).relu() + last_bias for query in asked])

    return Case(
        name="tabular",
        make=lambda: noisy(TabularHyperNetwork(hidden=10, members=3, width=4)),
        inputs=lambda: (torch.randn(12, 2).double(), torch.arange(12) % 3, torch.randn(6, 2).double()),
        call=lambda network, x, y, queries: network(x, y, queries, 3),
        slow=slow,
        shape=(3, 6, 3),
    )


CASES = [described(), continual(), hyper_lstm(), learned_rule(), compressed(), graph_hypernetwork(), tabular()]
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def made(case: Case, seed: int = 0) -> tuple[nn.Module, tuple[Any, ...]]:
    torch.manual_seed(seed)
    return case.make().double(), case.inputs()


@each_case
def test_shape_and_a_gradient_for_every_parameter(case: Case) -> None:
    module, inputs = made(case)
    outputs = case.call(module, *inputs)
    assert outputs.shape == case.shape
    outputs.square().sum().backward()
    for name, p in module.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all() and p.grad.any(), name


@each_case
def test_outputs_and_gradients_are_those_of_slow_code(case: Case) -> None:
    module, inputs = made(case)
    parameters = list(module.parameters())
    fast = case.call(module, *inputs)
    slow = torch.stack([case.slow(module, b, *inputs) for b in range(len(fast))])
    torch.testing.assert_close(fast, slow)
    direction = torch.randn_like(fast)
    for ours, theirs in zip(
        *(torch.autograd.grad((y * direction).sum(), parameters) for y in (fast, slow)), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


@each_case
def test_weights_of_a_batch_differ(case: Case) -> None:
    module, inputs = made(case)
    outputs = case.call(module, *inputs)
    assert not any(torch.allclose(outputs[0], other) for other in outputs[1:])


@each_case
def test_save_and_load(case: Case) -> None:
    module, inputs = made(case)
    outputs, file = case.call(module, *inputs), io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    other, _ = made(case, seed=1)
    assert not torch.allclose(case.call(other, *inputs), outputs)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(case.call(other, *inputs), outputs)
