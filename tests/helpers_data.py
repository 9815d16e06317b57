"""Small tasksets for the tests, learn2learn's own over the same images, and counts that describe their tasks."""

from __future__ import annotations

import importlib.util
import itertools
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from l2l_hyper._learn2learn import learn2learn
from l2l_hyper.data import TensorTaskset

__all__ = [
    "CLASSES",
    "EACH",
    "SHARED",
    "SIZE",
    "SOME_OMNIGLOT",
    "InMemory",
    "Recognizer",
    "global_states",
    "lay_out_some_omniglot",
    "layout_module",
    "same_distribution",
    "seed_everything",
    "small_images",
    "small_taskset",
    "statistics",
    "theirs",
]

CLASSES, EACH, SIZE = 12, 9, 6
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
SOME_OMNIGLOT = {"images_background": 26, "images_evaluation": 17}


def small_images(count: int = CLASSES * EACH) -> Tensor:
    """Images that are all different, and different in each of the four rotations."""
    return torch.randint(256, (count, 1, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def small_taskset(**options: Any) -> TensorTaskset:
    labels = torch.arange(CLASSES).repeat_interleave(EACH)
    defaults: dict[str, Any] = {"ways": 3, "samples": 4, "name": "small"}
    return TensorTaskset(small_images(), labels, **(defaults | options))


class Recognizer:
    """Finds the number and the rotation of an image by its pixels."""

    def __init__(self, images: Tensor) -> None:
        self.known = {
            torch.rot90(image, turns, (1, 2)).contiguous().numpy().tobytes(): (number, turns)
            for number, image in enumerate(images)
            for turns in range(4)
        }
        assert len(self.known) == 4 * len(images)

    def __call__(self, x: Tensor) -> list[tuple[int, int]]:
        pixels = (x * 255).round().to(torch.uint8)
        return [self.known[image.contiguous().numpy().tobytes()] for image in pixels]


class InMemory(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """The small images as floats, with their labels."""

    def __init__(self) -> None:
        self.x = small_images().float() / 255

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index >= len(self):
            raise IndexError(index)
        return self.x[index], index // EACH

    def __len__(self) -> int:
        return len(self.x)


def theirs(*, rotations: bool, remap_first: bool) -> Any:
    """learn2learn's taskset of the small images."""
    l2l = learn2learn()
    dataset, kinds = l2l.data.MetaDataset(InMemory()), l2l.data.transforms
    labels = [kinds.RemapLabels(dataset), kinds.ConsecutiveLabels(dataset)]
    transforms = [kinds.FusedNWaysKShots(dataset, n=3, k=4), kinds.LoadData(dataset)]
    transforms += labels if remap_first else labels[::-1]
    if rotations:
        transforms.append(l2l.vision.transforms.RandomClassRotation(dataset, [0.0, 90.0, 180.0, 270.0]))
    return l2l.data.Taskset(dataset, transforms)


def statistics(taskset: Any, count: int = 600) -> dict[str, Counter[Any]]:
    """Counts that describe the distribution of tasks, after checking what must hold for every task."""
    recognize = Recognizer(small_images())
    seen: dict[str, Counter[Any]] = {
        key: Counter() for key in ("class", "sample", "position and label", "rotation", "equal rotations", "first pair")
    }
    for _ in range(count):
        x, y = taskset.sample()
        assert x.shape == (12, 1, SIZE, SIZE) and x.dtype == torch.float32
        assert y.shape == (12,) and y.dtype == torch.int64
        numbers, turns = (np.array(v).reshape(3, 4) for v in zip(*recognize(x), strict=True))
        classes, labels = numbers // EACH, y.view(3, 4)
        assert (classes == classes[:, :1]).all() and (labels == labels[:, :1]).all() and (turns == turns[:, :1]).all()
        assert len(set(numbers.flat)) == 12, "a sample was drawn twice"
        assert (np.diff(classes[:, 0]) > 0).all(), "classes in the order of the dataset"
        assert sorted(labels[:, 0].tolist()) == [0, 1, 2]
        seen["class"].update(classes[:, 0].tolist())
        seen["sample"].update((numbers % EACH).reshape(-1).tolist())
        seen["position and label"].update(enumerate(labels[:, 0].tolist()))
        seen["rotation"].update(turns[:, 0].tolist())
        seen["equal rotations"].update([len(set(turns[:, 0].tolist()))])
        seen["first pair"].update([tuple((numbers[0, :2] % EACH).tolist())])
    return seen


def same_distribution(ours: Counter[Any], others: Counter[Any]) -> float:
    """The p-value of a test whether two counts are of the same distribution."""
    keys = sorted(set(ours) | set(others))
    if len(keys) == 1:
        return 1.0
    return float(stats.chi2_contingency([[counts[key] for key in keys] for counts in (ours, others)]).pvalue)


def seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)


def global_states() -> list[Any]:
    return [random.getstate(), np.random.get_state(legacy=False)["state"]["pos"], torch.get_rng_state().tolist()]  # noqa: NPY002


def layout_module() -> Any:
    """The script that lays the real data out as learn2learn reads them; skips the test where it is missing."""
    if not (SHARED / "layout.py").exists():
        pytest.skip("the real data are not in ../shared/data")
    spec = importlib.util.spec_from_file_location("layout", SHARED / "layout.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def lay_out_some_omniglot(root: Path) -> Any:
    """Lay the first characters of the real Omniglot out as learn2learn reads them; gives the layout script."""
    layout = layout_module()
    every = layout.omniglot_images
    layout.omniglot_images = lambda part: itertools.islice(every(part), SOME_OMNIGLOT[part])
    layout.lay_out_omniglot(root)
    return layout
