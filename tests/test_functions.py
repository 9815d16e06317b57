"""Functions of one variable: what they are, how episodes are addressed, and what a comparison says of them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

import l2l_hyper
from l2l_hyper import InputError, report
from l2l_hyper.data import get_tasksets
from l2l_hyper.data.functions import FUNCTIONS, FunctionTaskset, mixed, sinusoids


def test_the_values_are_those_of_the_functions_that_the_numbers_name() -> None:
    torch.manual_seed(0)
    unit, x = torch.rand(60, 3).double(), 10 * torch.rand(60, 7, 1).double() - 5
    unit[0, 2] = 1.0  # the end of the range
    waves, others = sinusoids(unit[:, :2], x), mixed(unit, x)
    kinds = set()
    for t, (u, v, kind) in enumerate(unit.tolist()):
        a, b, which = 2 * u - 1, 2 * v - 1, min(int(3 * kind), 2)
        kinds.add(which)
        for n, point in enumerate(x[t, :, 0].tolist()):
            wave = (0.1 + 4.9 * u) * math.sin(point + math.pi * v)
            assert waves[t, n, 0].item() == pytest.approx(wave)
            assert others[t, n, 0].item() == pytest.approx([wave, a * point + 2 * b, 0.2 * a * point**2 + 2 * b][which])
    assert kinds == {0, 1, 2}


@pytest.mark.parametrize("family", sorted(FUNCTIONS))
def test_an_episode_depends_on_its_number_alone(family: str) -> None:
    tasks = get_tasksets(family)
    one, many = tasks.test.batch([7], shots=5, queries=9), tasks.test.batch(range(10), shots=20, queries=9)
    torch.testing.assert_close(one.query, many.query[7:8], rtol=0, atol=0)
    torch.testing.assert_close(one.query_labels, many.query_labels[7:8], rtol=0, atol=0)
    torch.testing.assert_close(one.support, many.support[7:8, :5], rtol=0, atol=0)
    assert one.support.dtype == torch.float32 and one.ways is None
    assert not torch.isin(one.support, one.query).any()
    others = [tasks.train, tasks.validation, FunctionTaskset(family, "test", seed=1)]
    assert all((one.query != other.batch([7], shots=5, queries=9).query).all() for other in others)
    again = FunctionTaskset(family, "test", seed=1).batch([7], shots=5, queries=9, seed=0)
    torch.testing.assert_close(again.query, one.query, rtol=0, atol=0)


def test_the_numbers_are_uniform() -> None:
    x = FunctionTaskset("sinusoids", "train").batch(range(2000), shots=2, queries=3)
    for points in (x.support, x.query):
        share, _ = np.histogram(points, bins=10, range=(-5, 5))
        assert abs(share / points.numel() - 0.1).max() < 0.02
    amplitudes = x.query_labels.abs().amax((1, 2))
    assert 4.5 < amplitudes.max() <= 5


@pytest.mark.parametrize("wrong", [{"shots": 0}, {"queries": -1}, {"shots": 1.5}])
def test_points_that_cannot_be_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        FunctionTaskset("sinusoids", "test").batch([0], **{"shots": 1, "queries": 1, **wrong})  # type: ignore[arg-type]


def test_a_comparison_speaks_of_points_and_not_of_ways(tmp_path: Path) -> None:
    l2l_hyper.compare(
        "sinusoids",
        ["r2d2", "maml"],
        backbone="mlp",
        shots=4,
        test_shots=[4, 8],
        queries=6,
        iterations=2,
        meta_batch=3,
        validate_every=2,
        validation_episodes=5,
        test_episodes=10,
        seeds=[0],
        out=tmp_path,
    )
    report.write_report(tmp_path)
    table = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert table.startswith("sinusoids, 4 support points, 6 queries; 10 test episodes")
    page = (tmp_path / "results.html").read_text(encoding="utf-8")
    assert "8 support points" in page and "-way" not in page and "per class" not in page
