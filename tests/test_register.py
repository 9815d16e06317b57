"""Registering tasksets with learn2learn: its own get_tasksets gives them, drawn as ours are."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from helpers_data import Recognizer, same_distribution, small_images, small_taskset, statistics

from l2l_hyper._learn2learn import learn2learn
from l2l_hyper.bridge import register
from l2l_hyper.data import TASKSETS, Episodes, TensorTaskset, get_tasksets, list_tasksets, register_tasksets
from l2l_hyper.data.cache import ImageSet
from l2l_hyper.errors import InputError

theirs = learn2learn().vision.benchmarks


@pytest.fixture(autouse=True)
def _registries(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test registers is forgotten after it, as is that the glyphs are a hundred images of noise."""
    glyphs = ImageSet(small_images(100), [str(c) for c in range(25)], list(np.arange(100).reshape(25, 4)))
    monkeypatch.setattr("l2l_hyper.data.glyphs.glyph_images", lambda: glyphs)
    with mock.patch.dict(theirs._TASKSETS), mock.patch.dict(TASKSETS._entries):
        yield


def small(**options: Any) -> list[TensorTaskset]:
    ways = options.get("train_ways", 5), options.get("test_ways", 5), options.get("test_ways", 5)
    return [small_taskset(ways=n, rotations=options.get("rotations") or False) for n in ways]


def test_glyphs_by_learn2learn() -> None:
    register()
    register("glyphs")
    assert list(theirs.list_tasksets()).count("glyphs") == 1
    options: dict[str, Any] = {"train_ways": 3, "train_samples": 4, "test_ways": 2, "test_samples": 3, "num_tasks": 6}
    names: list[set[str]] = []
    recognize = Recognizer(small_images(100))
    for ours, got, ways, samples in zip(
        get_tasksets("glyphs", **options), theirs.get_tasksets("glyphs", **options), (3, 2, 2), (4, 3, 3), strict=True
    ):
        assert type(got) is learn2learn().data.Taskset
        assert (len(got), got.num_tasks) == (6, 6)
        tasks = [*got, got.sample()]
        assert len(tasks) == 7
        classes = set()
        for x, y in tasks:
            assert x.shape == (ways * samples, 1, 6, 6) and x.dtype == torch.float32 and y.dtype == torch.int64
            numbers, turns = zip(*recognize(x), strict=True)
            drawn = {(label, number // 4) for label, number in zip(y.tolist(), numbers, strict=True)}
            assert len(set(numbers)) == len(numbers) and sorted(label for label, _ in drawn) == list(range(ways))
            assert set(turns) == {0}
            classes |= {str(c) for _, c in drawn}
        assert classes <= set(ours.class_names or [])
        assert torch.equal(tasks[0][0], got[0][0]), "a fixed number of tasks"
        names.append(classes)
    assert not names[0] & names[1] and not names[1] & names[2]


@pytest.mark.parametrize("rotations", [False, "task", "class"])
def test_registered_tasks_are_distributed_as_ours(rotations: Any) -> None:
    register("small", small)
    random.seed(3)
    got = statistics(theirs.get_tasksets("small", train_ways=3, rotations=rotations).train)
    # In learn2learn 0.2.0 the rotation of a class is the whole task's.
    expected = statistics(small_taskset(rotations=rotations and "task"))
    assert len(got["rotation"]) == (4 if rotations else 1)
    for key in expected:
        assert same_distribution(got[key], expected[key]) > 1e-3, key


def test_registered_images_are_ours() -> None:
    sizes, scale = [3, 7, 4], ([120.0, 115.0, 104.0], [70.0, 68.0, 72.0])
    images = torch.randint(256, (14, 3, 4, 4), dtype=torch.uint8)
    classes = np.split(np.random.default_rng(0).permutation(14), np.cumsum(sizes)[:-1])
    taskset = TensorTaskset(images, classes, ways=2, samples=3, scale=scale, rotations=True)
    register("scaled", lambda **_: [taskset] * 3)
    dataset = theirs.get_tasksets("scaled").validation.dataset
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in scale)
    assert len(dataset) == 14 and [len(m) for m in dataset.labels_to_indices.values()] == sizes
    for label, members in dataset.labels_to_indices.items():
        assert torch.equal(torch.stack([dataset[i][0] for i in members]), (images[classes[label]] - mean) / std)
        assert {dataset[i][1] for i in members} == {label}


def test_a_maker_gets_what_the_script_gave(tmp_path: Path) -> None:
    given: list[dict[str, Any]] = []

    def maker(**options: Any) -> list[TensorTaskset]:
        given.append(options)
        return small(**options)

    register("mine", maker)
    theirs.get_tasksets("mine", train_ways=3, test_samples=2, num_tasks=7, root=str(tmp_path), flavor="sour")
    tasksets = get_tasksets("mine", train_ways=3, test_samples=2, num_tasks=7, root=str(tmp_path), split_seed=4)
    assert tasksets.train.ways == 3 and tasksets.validation.ways == 5
    shared = {"train_ways": 3, "train_samples": 10, "test_ways": 5, "test_samples": 2, "root": str(tmp_path)}
    assert given[0] == shared | {"device": None, "flavor": "sour"}
    assert given[1] == shared | {
        "num_tasks": 7,
        "device": None,
        "split_seed": 4,
        "data_augmentation": None,
        "rotations": None,
    }
    assert "mine" in theirs.list_tasksets() and {"glyphs", *theirs.list_tasksets()} <= set(list_tasksets())


def test_registering_what_is_there() -> None:
    register("mine", small)
    register("mine", small)
    for name, maker in (("mine", lambda **_: small()), ("omniglot", small), ("glyphs", small)):
        with pytest.raises(InputError, match=f"'{name}', which is another benchmark's"):
            register(name, maker)
    register()
    with pytest.raises(InputError, match="another benchmark's"):
        register("glyphs", small)
    assert theirs._TASKSETS["omniglot"] is theirs.omniglot_tasksets


def test_wrong_makers() -> None:
    with pytest.raises(InputError, match="called 'mine', got None"):
        register("mine")
    with pytest.raises(InputError, match="got list"):
        register("mine", small())  # type: ignore[arg-type]
    register("two", lambda **_: small()[:2])
    register("none", lambda **_: [])
    register("other", lambda **_: [*small()[:2], torch.zeros(3)])
    for name, got in (("two", "got TensorTaskset, TensorTaskset;"), ("none", "got none"), ("other", "Tensor;")):
        with pytest.raises(InputError, match=f"three tasksets of '{name}'.*{got}"):
            theirs.get_tasksets(name)
    register("mine", lambda: [*small()[:2], Zeros()])
    assert isinstance(get_tasksets("mine").test, Zeros)
    with pytest.raises(InputError, match="three TensorTasksets from the maker of 'mine'.*got .*Zeros; .*convert"):
        theirs.get_tasksets("mine")
    with pytest.raises(InputError, match="unknown taskset: 'three'"):
        get_tasksets("three")


class Zeros:
    def batch(self, indices: Any, *, shots: int, queries: int, ways: int | None = None, seed: Any = None) -> Episodes:
        x, y = torch.zeros(2, len(indices), 4, 3)
        return Episodes(x, y, x, y, None)


def test_registered_samples_of_any_kind() -> None:
    tokens = torch.randint(1000, (40, 7), generator=torch.Generator().manual_seed(0))
    taskset = TensorTaskset(tokens, torch.arange(10).repeat_interleave(4), ways=3, samples=2)
    register_tasksets("tokens", [taskset] * 3)
    register("tokens")
    x, y = theirs.get_tasksets("tokens").test.sample()
    assert x.shape == (6, 7) and x.dtype == torch.int64 and sorted(y.tolist()) == [0, 0, 1, 1, 2, 2]
    assert {tuple(row) for row in x.tolist()} <= {tuple(row) for row in tokens.tolist()}
