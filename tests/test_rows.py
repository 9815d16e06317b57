"""Rows of a comparison with a backbone of their own, another row as encoder, and what a query costs."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import l2l_hyper
from l2l_hyper import InputError, cli
from l2l_hyper.backbones.conv4 import conv4
from l2l_hyper.backbones.mlp import mlp
from l2l_hyper.data import ACCURACY, Episodes, Metric, SupportSet, get_tasksets
from l2l_hyper.experiment.checkpoint import checkpoint_path, load_checkpoint
from l2l_hyper.experiment.evaluation import evaluate_on
from l2l_hyper.experiment.records import Record, read_records
from l2l_hyper.experiment.trial import multiply_adds_per_query
from l2l_hyper.methods import METHODS, Method

SMALL = {
    "backbone": "conv4",
    "backbone_options": {"halvings": 3},
    "channels": 4,
    "iterations": 2,
    "meta_batch": 2,
    "validation_episodes": 2,
    "test_episodes": 4,
}


def compared(tmp_path: Path, methods: list[str]) -> list[Record]:
    options = {
        "protonet@large": {"backbone_options": {"channels": 6}},
        "hyper-adapter": {"encoder": "protonet@large", "width": 8, "blocks": 1},
    }
    given = {name: table for name, table in options.items() if name in methods}
    return l2l_hyper.compare("glyphs", methods, options=given, out=tmp_path, **SMALL)


def test_a_row_reads_support_sets_with_the_network_of_another(tmp_path: Path) -> None:
    records = {r.run.method: r for r in compared(tmp_path, ["protonet@large", "hyper-adapter", "protonet"])}
    costs = {name: record.result.multiply_adds_per_query for name, record in records.items()}
    assert costs["hyper-adapter"] == costs["protonet"] < costs["protonet@large"]
    large = sum(p.numel() for p in conv4(5, (1, 28, 28), channels=6, halvings=3).parameters())
    assert records["protonet@large"].result.parameters["backbone"] == large


@pytest.mark.parametrize("normalization", ["support", "transductive", "running"])
def test_an_encoder_reads_as_it_did_in_its_own_row(tmp_path: Path, normalization: str) -> None:
    options = {"hyper-adapter": {"encoder": "protonet", "generator": "linear"}}
    settings = {**SMALL, "normalization": normalization}
    l2l_hyper.compare("glyphs", ["protonet", "hyper-adapter"], options=options, out=tmp_path, **settings)
    own, other = (
        l2l_hyper.load(tmp_path / f"checkpoints/{name}-seed0.safetensors") for name in ("protonet", "hyper-adapter")
    )
    support = get_tasksets("glyphs").test.batch([0, 1], shots=2, queries=1).support
    with torch.no_grad():
        features = [of(support).features for of in (own.method.network, other.method.encoder)]
    torch.testing.assert_close(*features)


def test_the_other_row_must_come_first(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="encoder='protonet@large', a row .*earlier among the methods"):
        compared(tmp_path, ["hyper-adapter", "protonet@large"])


def test_a_row_starts_from_the_network_of_another(tmp_path: Path) -> None:
    options = {"maml": {"pretrained": "protonet", "lr": 1e-12}}
    first, second = l2l_hyper.compare("glyphs", ["protonet", "maml"], options=options, out=tmp_path, **SMALL)
    weights = [load_checkpoint(checkpoint_path(tmp_path, record.run)).tensors["selected"] for record in (first, second)]
    names = [name for name in weights[0] if ".features." in name and weights[0][name].is_floating_point()]
    assert names
    for name in names:
        torch.testing.assert_close(weights[0][name], weights[1][name])
    file = checkpoint_path(tmp_path, first.run)
    assert second.result.pretrained == hashlib.sha256(file.read_bytes()).hexdigest()
    with pytest.raises(SystemExit):
        cli.main(["evaluate", str(checkpoint_path(tmp_path, second.run)), "--out", str(tmp_path / "again")])
    (again,) = read_records(tmp_path / "again")
    assert again.result.pretrained == second.result.pretrained and again.scores.tolist() == second.scores.tolist()


def test_an_unknown_option_of_a_rows_backbone_is_named() -> None:
    with pytest.raises(InputError, match="unknown option of backbone conv4: 'chanels'; did you mean channels"):
        l2l_hyper.compare("glyphs", ["protonet"], options={"protonet": {"backbone_options": {"chanels": 6}}}, **SMALL)


def test_a_row_of_another_kind_of_network_takes_none_of_the_options_of_the_others() -> None:
    row = {"backbone": "mlp", "backbone_options": {"sizes": [8]}}
    (record,) = l2l_hyper.compare("glyphs", ["protonet"], options={"protonet": row}, **SMALL)
    model = mlp(5, (1, 28, 28), sizes=[8])
    assert record.result.parameters["backbone"] == sum(p.numel() for p in model.parameters())


def test_multiply_adds_are_those_of_the_layers() -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.Flatten(), nn.Linear(3 * 36, 5))
    query = torch.randn(1, 10, 1, 6, 6)
    labels = torch.arange(5)[None]
    episode = Episodes(torch.randn(1, 5, 1, 6, 6), labels, query, labels.repeat(1, 2), 5)
    method = METHODS["hyper-adapter"].build(model, {}, "support")
    assert multiply_adds_per_query(method, episode) == 36 * 9 * 3 + 3 * 36 * 5


def test_the_calibration_error_is_that_of_its_definition() -> None:
    tasks = get_tasksets("glyphs", test_ways=3).test
    method = METHODS["protonet"].build(nn.Sequential(nn.Flatten(), nn.Linear(784, 3)), {}, "support")
    form = {"ways": 3, "shots": 1, "queries": 5}
    measured = evaluate_on(method, tasks, range(20), ACCURACY, form=form, device=torch.device("cpu"), batch_size=6)
    bins: dict[int, list[tuple[float, bool]]] = {}
    with torch.no_grad():
        for one in tasks.batch(range(20), **form):
            probabilities = method.eval().predict(method.adapt(one.support_set), one.query)[0].double().softmax(-1)
            for row, label in zip(probabilities.tolist(), one.query_labels[0].tolist(), strict=True):
                bins.setdefault(min(math.floor(15 * max(row)), 14), []).append((max(row), row.index(max(row)) == label))
    expected = sum(abs(sum(right for _, right in of) - sum(p for p, _ in of)) for of in bins.values()) / (20 * 15)
    assert measured.calibration_error == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("batch_size", [1, 2, 4, 6])
def test_controls_exchange_between_tasks_however_few_go_at_once(batch_size: int) -> None:
    class Told(Method):  # answers with what it was told of its task
        controls = ("another task's",)

        def adapt(self, support: SupportSet) -> Tensor:
            return support.x.flatten(1).sum(1)

        def controlled(self, adapted: Tensor, control: str) -> Tensor:
            return adapted.roll(1, 0)

        def predict(self, adapted: Tensor, query: Tensor) -> Tensor:
            return adapted[:, None, None].expand(-1, query.shape[1], 3)

    tasks = get_tasksets("glyphs", test_ways=3).test
    form = {"ways": 3, "shots": 1, "queries": 1}
    told = Metric("told", lambda outputs, labels: outputs[:, 0, 0])
    device, control = torch.device("cpu"), ("another task's",)
    with_controls = {"form": form, "device": device, "batch_size": batch_size, "controls": control}
    measured = evaluate_on(Told(), tasks, range(13), told, **with_controls)
    assert (measured.controls[0] != measured.scores).all()
    assert torch.isin(measured.controls[0], measured.scores).all()
