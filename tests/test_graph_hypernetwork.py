"""Weights for any network from its graph: the graph, the formula, all kinds of layers, and what is refused."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from uses import architectures as study
from uses.images import Images
from uses.search_space import OPERATIONS, Architecture, build, draw

from l2l_hyper import InputError
from l2l_hyper.functional import call, slots
from l2l_hyper.uses import GraphHyperNetwork, NetworkGraph


class Branches(nn.Module):
    """A shortcut, a pool and a shared layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6)
        self.shared, self.head = nn.Conv2d(6, 6, 3, padding=1, groups=3), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.stem(x)).relu()
        return self.head((h + self.shared(self.shared(h))).mean((2, 3)))


SMALL = {"features": 6, "rounds": 2, "width": 5, "tile": 4, "kernel": 3}
NETWORKS = {
    "image": (Branches(), torch.randn(4, 3, 8, 8)),
    "sound": (nn.Sequential(nn.Conv1d(2, 9, 3), nn.GroupNorm(3, 9), nn.GELU(), nn.Flatten(), nn.Linear(54, 5)),
              torch.randn(4, 2, 8)),
    "text": (nn.Sequential(nn.Embedding(11, 7), nn.LayerNorm(7), nn.Flatten(), nn.Linear(35, 3)),
             torch.randint(11, (4, 5))),
}  # fmt: skip


def test_graph_has_the_operations_and_the_shortest_paths() -> None:
    graph = NetworkGraph.of(Branches())
    # x, stem, norm, relu, shared, shared, add, mean, head, output
    assert len(graph.kinds) == 10 and graph.kinds[4] == graph.kinds[5] == graph.kinds[1] != graph.kinds[2]
    assert graph.sizes[1].exp2().tolist() == pytest.approx([6, 3, 3, 2, 1])
    assert graph.sizes[4].exp2().tolist() == pytest.approx([6, 2, 3, 1, 3])
    assert graph.paths[1, 0] == 1 and graph.paths[4, 0] == pytest.approx(1 / 4) and graph.paths[0, 4] == 0
    assert graph.paths[6, 3] == 1 and graph.paths[6, 0] == pytest.approx(1 / 4)  # the shortcut is shorter
    assert graph.nodes["shared.weight"] == 4 and graph.nodes["head.bias"] == 8
    assert graph.vectors == {
        **{"stem.weight": None, "stem.bias": 0, "norm.weight": 1, "norm.bias": 0},
        **{"shared.weight": None, "shared.bias": 0, "head.weight": None, "head.bias": 0},
    }


def slow_embeddings(hyper: GraphHyperNetwork, graph: NetworkGraph) -> Tensor:
    """One operation after the other."""
    encoder = hyper.encoder
    h = [encoder.kind.weight[k] + encoder.size(s.double()) for k, s in zip(graph.kinds, graph.sizes, strict=True)]
    for _ in range(encoder.rounds):
        messages = [
            sum(graph.paths[i, j].double() * encoder.messages[0](h[j]) for j in range(len(h)))
            + sum(graph.paths[j, i].double() * encoder.messages[1](h[j]) for j in range(len(h)))
            for i in range(len(h))
        ]
        h = [encoder.cell(m[None], v[None])[0] for m, v in zip(messages, h, strict=True)]
    return torch.stack([encoder.norm(v) for v in h])


def slow_weights(hyper: GraphHyperNetwork, graph: NetworkGraph, z: Tensor) -> dict[str, Tensor]:
    """One number after the other."""
    decoder, weights = hyper.decoder, {}
    for name, shape in graph.target.shapes.items():
        row, vector, values = z[graph.nodes[name]], graph.vectors[name], []
        numbers = decoder.vectors(row)
        for index in torch.cartesian_prod(*map(torch.arange, shape)).view(-1, len(shape)).tolist():
            if vector is not None:
                i = torch.tensor(index).dot(torch.tensor([math.prod(shape[d + 1 :]) for d in range(len(shape))])).item()
                number = numbers[vector * decoder.tile + i % decoder.tile]
                values.append(2 * torch.sigmoid(number / 2) if vector else 0.2 * torch.tanh(number))
                continue
            pixels = [1, 1, *shape[2:]][-2:]
            at = [p + (decoder.kernel - size) // 2 for p, size in zip([0, 0, *index[2:]][-2:], pixels, strict=True)]
            hidden = (decoder.hidden(row) + decoder.position[at[0], at[1]]).relu()
            cell = index[0] % decoder.tile * decoder.tile + index[1] % decoder.tile
            values.append(decoder.kernels(hidden)[cell] * math.sqrt(2 / math.prod(shape[1:])))
        weights[name] = torch.stack(values).view(shape)
    return weights


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_are_those_of_slow_code(name: str) -> None:
    torch.manual_seed(0)
    graph, hyper = NetworkGraph.of(NETWORKS[name][0]), GraphHyperNetwork(**SMALL).double()
    fast, z = hyper(graph), slow_embeddings(hyper, graph)
    torch.testing.assert_close(hyper.encoder(graph), z)
    slow = slow_weights(hyper, graph, z)
    assert {n: w.shape for n, w in fast.items()} == {n: p.shape for n, p in NETWORKS[name][0].named_parameters()}
    torch.testing.assert_close(fast, slow)
    parameters, directions = list(hyper.parameters()), {n: torch.randn_like(w) for n, w in fast.items()}
    ours, theirs = (
        torch.autograd.grad(sum((w[n] * d).sum() for n, d in directions.items()), parameters, materialize_grads=True)
        for w in (fast, slow)
    )
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_train_from_generated_weights(name: str) -> None:
    torch.manual_seed(0)
    network, x = NETWORKS[name]
    hyper, graph = GraphHyperNetwork(features=8, tile=8, width=16), NetworkGraph.of(network)
    outputs = call(network, slots(network), hyper(graph), x)
    outputs.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in hyper.parameters())
    network.load_state_dict(hyper(graph), strict=False)
    torch.testing.assert_close(network(x), outputs)


def test_a_batch_of_embeddings_gives_a_batch_of_weights() -> None:
    torch.manual_seed(0)
    graph, hyper = NetworkGraph.of(Branches()), GraphHyperNetwork(**SMALL)
    z = torch.randn(2, 3, len(graph.kinds), 6)
    for name, weights in hyper(graph, z=z).items():
        assert weights.shape == (2, 3, *graph.target.shapes[name])
        torch.testing.assert_close(weights[1, 2], hyper(graph, z=z[1, 2])[name])


def test_what_cannot_be_generated_is_refused() -> None:
    class Depends(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    class Free(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.position = nn.Parameter(torch.zeros(3))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.position

    with pytest.raises(InputError, match="torch.fx can trace, got Depends"):
        NetworkGraph.of(Depends())
    with pytest.raises(InputError, match="got position; try layers"):
        NetworkGraph.of(Free())
    with pytest.raises(InputError, match="got 0.weight_ih_l0"):
        NetworkGraph.of(nn.Sequential(nn.LSTM(2, 2)))
    graph = NetworkGraph.of(nn.Sequential(nn.Conv2d(1, 1, 7)))
    with pytest.raises(InputError, match="try a larger kernel="):
        GraphHyperNetwork(**SMALL)(graph)
    with pytest.raises(InputError, match="embeddings of 3 operations"):
        GraphHyperNetwork(**SMALL)(graph, z=torch.zeros(2, 6))
    with pytest.raises(InputError, match="tile must be at least 1"):
        GraphHyperNetwork(tile=0)


# The study


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_operation_of_the_space_is_generated(operation: str) -> None:
    torch.manual_seed(0)
    network = build(Architecture(8, (((operation, True), (operation, False)),) * 3), 5)
    weights = GraphHyperNetwork(features=8, width=8, tile=16)(NetworkGraph.of(network))
    assert call(network, slots(network), weights, torch.randn(2, 3, 32, 32)).shape == (2, 5)
    assert all(w.std() > 0 for w in weights.values())


def test_architectures_are_drawn_within_bounds() -> None:
    rng = random.Random(0)
    drawn = [draw(rng, channels=(4, 8), blocks=(2, 3)) for _ in range(20)]
    assert len(set(drawn)) == 20 and {a.channels for a in drawn} == {4, 8}
    assert {len(stage) for a in drawn for stage in a.stages} == {2, 3}


def test_study_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    labels = torch.arange(2).repeat_interleave(40)
    pixels = torch.randint(256, (80, 3, 8, 8), dtype=torch.uint8)
    monkeypatch.setattr(study, "cifar100", lambda *_: Images(pixels, labels, pixels, labels, 2))
    monkeypatch.setattr(study, "draw", lambda rng, **_: draw(rng, (4,), (1, 1)))
    options = {
        "ranked": 2,
        "outside": 1,
        "pool": 2,
        "steps": 2,
        "images": 3,
        "epochs": 1,
        "tuning": (1,),
        "candidates": 2,
    }
    for part in (1, 2):
        settings = study.Settings(task="train", part=part, parts=2, batch=6, classes=2, **options)
        result = study.run(settings, 0, torch.device("cpu"))
        assert [row["number"] for row in result["rows"]] == list(range(part - 1, 4, 2))
        (tmp_path / f"train-{part}").mkdir()
        (tmp_path / f"train-{part}" / "seed0.json").write_text(json.dumps({"result": result}))
    result = study.run(study.Settings(batch=6, classes=2, **options), 0, torch.device("cpu"))
    assert len(result["rows"]) == 4 and len(result["tuned"]) == 4
    study.report([{"settings": {"task": "generate"}, "result": json.loads(json.dumps(result))}] * 2, tmp_path)
    text = (tmp_path / "results.md").read_text()
    assert text.count("| generated ") == 4 and text.count("| short training ") == 4
    assert (tmp_path / "ranking.png").stat().st_size > 10000


def test_scores_that_are_all_the_same_rank_nothing() -> None:
    agreement = study.agreement
    assert agreement(study.kendalltau, [1, 2, 3], [1, 3, 2]) == pytest.approx(1 / 3)
    assert agreement(study.spearmanr, [2, 2, 2], [1, 3, 2]) == 0


def test_tables_of_the_page_are_those_of_the_records() -> None:
    def rows(path: str) -> set[tuple[str, ...]]:
        lines = (Path(__file__).parents[1] / path).read_text(encoding="utf-8").splitlines()
        return {
            tuple(c.strip() for c in line.split("|")) for line in lines if line.startswith("|") and "--" not in line
        }

    assert len(rows("docs/uses/architectures.md")) > 20
    assert rows("docs/uses/architectures.md") <= rows("benchmarks/results/architectures/results.md")
