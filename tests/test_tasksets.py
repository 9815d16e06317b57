"""Tasksets and metrics by name: of the user's own, refused where they cannot be used, and what is recorded of them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from helpers_data import small_taskset
from torch import Tensor

from l2l_hyper.data import (
    ACCURACY,
    METRICS,
    SQUARED_ERROR,
    TASKSETS,
    BenchmarkTasksets,
    Episodes,
    get_tasksets,
    list_tasksets,
    manifest,
    register_metric,
    register_tasksets,
)
from l2l_hyper.data.episode import squared_error
from l2l_hyper.errors import InputError


@pytest.fixture(autouse=True)
def _registries() -> Iterator[None]:
    """What a test registers is forgotten after it."""
    with mock.patch.dict(TASKSETS._entries), mock.patch.dict(METRICS._entries):
        yield


class Sinusoids:
    """Regression: a sine of another phase per task, with values where labels would be."""

    def __init__(self, amplitude: float = 1.0) -> None:
        self.amplitude = amplitude

    def batch(
        self, indices: Any, *, shots: int, queries: int, ways: int | None = None, seed: int | None = None
    ) -> Episodes:
        phase = torch.tensor([[[float(i + 100 * (seed or 0))]] for i in indices])
        x = torch.linspace(-3, 3, shots + queries).view(1, -1, 1).expand(len(phase), -1, 1)
        (x, q), (y, r) = (part.split([shots, queries], 1) for part in (x, self.amplitude * torch.sin(x + phase)))
        return Episodes(x, y, q, r, None, squared_error, SQUARED_ERROR)


class Table:
    """Classification of rows, without a seed of its own."""

    def batch(self, indices: Any, **task: Any) -> Episodes:
        ways = task["ways"] or 2
        rows = torch.arange(ways, dtype=torch.float64).view(1, -1, 1).repeat(len(indices), 1, 7)
        support, query = (rows.repeat_interleave(task[each], 1) for each in ("shots", "queries"))
        return Episodes(support, support[..., 0].long(), query, query[..., 0].long(), ways)


def own_manifest(name: str, **options: Any) -> dict[str, Any]:
    what: dict[str, Any] = {"ways": 3, "shots": 2, "queries": 5, "split_seed": 0, "episodes": 40, **options}
    return manifest(get_tasksets(name), name=name, **what)


def test_tasksets_of_the_users_own() -> None:
    three = [Sinusoids(), Table(), small_taskset()]
    register_tasksets("mine", three, summary="of my own")
    tasksets = get_tasksets("mine", root="/nowhere", device="cpu")
    assert isinstance(tasksets, BenchmarkTasksets) and list(tasksets) == three
    episodes = tasksets.train.batch(range(4), shots=2, queries=5)
    assert episodes.ways is None and episodes.query.shape == (4, 5, 1) and episodes.metric is SQUARED_ERROR
    assert episodes.loss(episodes.query_labels + 2, episodes.query_labels).tolist() == pytest.approx([4.0] * 4)
    assert list_tasksets()["mine"] == "of my own"


def test_a_maker_is_given_the_arguments_that_it_takes() -> None:
    def three(test_ways: int, split_seed: int = 1, root: Any = None) -> Iterator[Any]:
        """Three of them.

        More.
        """
        return iter([small_taskset(ways=test_ways, seed=split_seed, name=str(root))] * 3)

    register_tasksets("three", three)
    tasksets = get_tasksets("three", test_ways=4, split_seed=7, root="here", num_tasks=9)
    assert (tasksets.test.ways, tasksets.test.seed, tasksets.test.name) == (4, 7, "here")  # type: ignore[attr-defined]
    assert list_tasksets()["three"] == "Three of them."
    with pytest.raises(InputError, match="the tasksets 'three' take no rotations, got 'class'; leave it out"):
        get_tasksets("three", rotations="class")


def test_tasksets_by_module_and_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_tasksets.py").write_text(
        "import torch\nfrom l2l_hyper.data import TensorTaskset\n"
        "def waves(test_ways):\n"
        "    x, y = torch.randn(30, 50), torch.arange(6).repeat_interleave(5)\n"
        "    return [TensorTaskset(x, y, ways=test_ways, samples=2, name=n) for n in ('a', 'b', 'c')]\n"
        "THREE = waves(2)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    try:
        tasksets = get_tasksets("own_tasksets:waves", test_ways=3)
        assert tasksets.validation.batch([0], shots=1, queries=4).query.shape == (1, 12, 50)
        assert get_tasksets("own_tasksets:THREE").test.batch([0], shots=1, queries=1).ways == 2
        for wrong, message in (("own_tasksets:none", "could not import"), ("own_tasksets:torch", "got module")):
            with pytest.raises(InputError, match=message):
                get_tasksets(wrong)
    finally:
        sys.modules.pop("own_tasksets", None)


def test_what_is_no_taskset_is_refused() -> None:
    for wrong, got in (
        ([Table(), Table()], "got Table, Table;"),
        ([Table(), torch.zeros(3), object()], "got Table, Tensor, object;"),
        (7, "got int;"),
        ((), "got none;"),
    ):
        for make in (wrong, lambda wrong=wrong: wrong):
            with pytest.raises(InputError, match=rf"three tasksets of 'wrong' .*batch\(indices.*{got}"):
                register_tasksets("wrong", make)  # type: ignore[arg-type]
                get_tasksets("wrong")
    register_tasksets("demanding", lambda flavor: [Table()] * 3)
    with pytest.raises(InputError, match=r"makes the tasksets 'demanding', got demanding\(flavor\) \(missing"):
        get_tasksets("demanding")
    for name in ("glyphs", "two words", "module:name"):
        with pytest.raises(InputError, match="register yours|without spaces"):
            register_tasksets(name, [Table()] * 3)
    with pytest.raises(InputError, match="unknown taskset: 'glyfs'; did you mean glyphs"):
        get_tasksets("glyfs")


def test_manifest_of_tasksets_that_know_nothing_of_themselves() -> None:
    register_tasksets("my-sinusoids", [Sinusoids(), Sinusoids(), Sinusoids()])
    register_tasksets("table", [Table()] * 3)
    first = own_manifest("my-sinusoids")
    assert first == own_manifest("my-sinusoids") and first["splits"]["test"]["classes"] is None
    hashes = {own_manifest("my-sinusoids", **{key: 4})["hash"] for key in ("shots", "queries", "split_seed")}
    fingerprints = {
        own_manifest("my-sinusoids", **{key: 4})["splits"]["test"]["fingerprint"]
        for key in ("shots", "queries", "split_seed")
    }
    assert len(hashes | {first["hash"]}) == len(fingerprints | {first["splits"]["test"]["fingerprint"]}) == 4
    register_tasksets("my-sinusoids", [Sinusoids(), Sinusoids(), Sinusoids(2.0)])
    louder = own_manifest("my-sinusoids")["splits"]
    assert louder["train"] == first["splits"]["train"] and louder["test"] != first["splits"]["test"]
    assert own_manifest("table")["splits"]["train"] != own_manifest("table", ways=2)["splits"]["train"]


def test_a_taskset_that_gives_no_episodes() -> None:
    class Pairs:
        def batch(self, indices: Any, **_: Any) -> tuple[Tensor, Tensor]:
            return torch.zeros(3), torch.zeros(3)

    register_tasksets("pairs", [Pairs()] * 3)  # type: ignore[list-item]
    with pytest.raises(InputError, match=r"batch\(\) of Pairs to give Episodes, got tuple"):
        own_manifest("pairs")


def test_metrics() -> None:
    assert METRICS["accuracy"] is ACCURACY and METRICS["squared-error"] is SQUARED_ERROR
    register_metric("absolute-error", lambda outputs, y: (outputs - y).abs().flatten(1).mean(1), higher_is_better=False)
    metric = METRICS["absolute-error"]
    assert (metric.name, metric.higher_is_better, metric.percent) == ("absolute-error", False, False)
    assert metric.of(torch.zeros(2, 3, 1), torch.ones(2, 3, 1)).tolist() == [1.0, 1.0]
    assert METRICS["l2l_hyper.data.episode:squared_error"].of is squared_error
    with pytest.raises(InputError, match="unknown metric: 'acuracy'; did you mean accuracy"):
        METRICS["acuracy"]
    with pytest.raises(InputError, match="function of outputs and labels for the metric 'seven', got int"):
        register_metric("seven", 7)  # type: ignore[arg-type]
