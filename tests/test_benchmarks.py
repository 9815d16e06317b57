"""Benchmark tasksets: learn2learn's pixels, the pinned class split, and data that are missing or damaged."""

from __future__ import annotations

import functools
import io
import json
import random
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_data import (
    SHARED,
    SOME_OMNIGLOT,
    global_states,
    lay_out_some_omniglot,
    layout_module,
    seed_everything,
)
from ondisk import SMALL, make_fc100
from PIL import Image

from l2l_hyper._learn2learn import learn2learn
from l2l_hyper.bridge.benchmarks import CIFARFS, read
from l2l_hyper.bridge.loaders import omniglot_loader
from l2l_hyper.data import BenchmarkTasksets, get_tasksets, list_tasksets, manifest
from l2l_hyper.data.image_benchmark import ImageBenchmark
from l2l_hyper.errors import InputError


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("something tried to use the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def user_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user-cache"))
    return tmp_path / "user-cache"


def make_real_mini_imagenet(root: Path) -> None:
    """The first classes of the real *mini*-ImageNet, twelve images each, laid out as learn2learn reads them."""
    module, folder = layout_module(), SHARED / "mini_imagenet"

    def some_images(split: str) -> tuple[Any, Any, list[str]]:
        archive = np.load(folder / f"{split}.npz", allow_pickle=False)
        classes = {"train": 7, "validation": 5, "test": 6}[split]
        chosen = np.concatenate([np.flatnonzero(archive["labels"] == k)[:12] for k in range(classes)])
        jpeg, offsets = archive["jpeg"], archive["offsets"]
        files = [io.BytesIO(jpeg[offsets[i] : offsets[i + 1]].tobytes()) for i in chosen]
        images = np.stack([np.asarray(Image.open(file)) for file in files])
        return images, archive["labels"][chosen], [str(wnid) for wnid in archive["wnids"][:classes]]

    module.mini_imagenet_images = some_images
    module.lay_out_mini_imagenet(root)


@pytest.mark.usefixtures("user_cache")
@pytest.mark.parametrize(
    ("make", "name", "options"),
    [
        *((make, name, {}) for name, make in SMALL.items()),
        (SMALL["mini-imagenet"], "mini-imagenet", {"data_augmentation": "normalize"}),
        (make_real_mini_imagenet, "mini-imagenet", {}),
    ],
)
def test_benchmarks_hold_learn2learns_pixels(
    make: Callable[[Path], None], name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    make(tmp_path)
    state = random.getstate()
    tasksets = get_tasksets(name, root=tmp_path, **options)
    assert random.getstate() == state
    theirs = learn2learn().vision.benchmarks.get_tasksets(name, root=str(tmp_path), **options)
    train, validation, test = tasksets
    assert [t.num_classes for t in (train, validation, test)] == [7, 5, 6]
    for ours, their_taskset in zip(tasksets, theirs, strict=True):
        dataset = their_taskset.dataset
        for label, members in enumerate(sorted(dataset.labels_to_indices.items())):
            expected = torch.stack([dataset[index][0] for index in members[1]])
            got = ours.x[ours._members[ours._starts[label] :][: len(expected)]]
            got = got if name == "mini-imagenet" and not options else got / 255
            torch.testing.assert_close(got.float(), expected, rtol=0, atol=1e-6)
        (x, y), (their_x, their_y) = ours.sample(), their_taskset.sample()
        assert (x.shape, x.dtype, y.shape, y.dtype) == (their_x.shape, their_x.dtype, their_y.shape, their_y.dtype)
        assert x.max() > 1 if name == "mini-imagenet" and not options else x.max() <= 1


@pytest.mark.usefixtures("user_cache")
def test_benchmarks_are_read_once(tmp_path: Path) -> None:
    make_fc100(tmp_path)
    first = get_tasksets("fc100", root=tmp_path).train.episode(0, shots=1, queries=1)
    for path in tmp_path.glob("*.pickle"):
        path.unlink()
    again = get_tasksets("fc100", root=tmp_path).train.episode(0, shots=1, queries=1)
    assert torch.equal(first.support, again.support)


def test_cifarfs_is_read_beside_a_process_of_learn2learn_that_copies_it(tmp_path: Path) -> None:
    SMALL["cifarfs"](tmp_path)
    archive, processed = (tmp_path / "cifarfs" / name for name in ("cifar100", "processed"))

    def images(root: Path) -> list[torch.Tensor]:
        return [taskset.x for taskset in CIFARFS(5, 2, 5, 2, root=root)]

    expected = images(tmp_path)
    assert not processed.exists()
    shutil.rmtree(tmp_path / "l2l_hyper")
    shutil.copytree(archive / "data" / "train_1", processed / "train" / "train_1")  # the first class so far
    for _ in range(2):
        for ours, whole in zip(images(tmp_path), expected, strict=True):
            assert torch.equal(ours, whole)
        if archive.exists():
            shutil.rmtree(processed)
            learn2learn().vision.datasets.CIFARFS(str(tmp_path))
            archive.rename(tmp_path / "elsewhere")  # so what learn2learn has made is read


@pytest.mark.parametrize("name", ["omniglot", *SMALL])
def test_missing_data(name: str, tmp_path: Path, user_cache: Path) -> None:
    for root, got in ((tmp_path / "nowhere", "no such folder"), (tmp_path, "FileNotFoundError")):
        with pytest.raises(InputError, match=got) as raised:
            get_tasksets(name, root=root)
        assert "expected" in str(raised.value) and str(root) in str(raised.value)
        assert "\n" not in str(raised.value)
    assert not user_cache.exists() and not list(tmp_path.rglob("*.npy"))


@pytest.mark.usefixtures("user_cache")
@pytest.mark.parametrize("name", SMALL)
def test_damaged_data(name: str, tmp_path: Path) -> None:
    SMALL[name](tmp_path)
    victim = sorted(path for path in tmp_path.rglob("*test*") if path.is_file() and path.suffix != ".txt")
    victim = victim or sorted(tmp_path.rglob("test_0/*.png"))
    victim[0].write_bytes(victim[0].read_bytes()[:50])
    with pytest.raises(InputError, match="could not read it") as raised:
        get_tasksets(name, root=tmp_path)
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.usefixtures("user_cache")
def test_wrong_benchmarks(tmp_path: Path) -> None:
    make_fc100(tmp_path)
    defaults: dict[str, Any] = {"name": "fc100", "root": tmp_path}
    for options, message in (
        ({"name": "omniglott"}, "unknown taskset: 'omniglott'; did you mean omniglot"),
        ({"data_augmentation": "normalize"}, "fc100 takes no data_augmentation"),
        ({"name": "mini-imagenet", "data_augmentation": "lee2019"}, "random"),
        ({"name": "tiered-imagenet", "data_augmentation": "x"}, "None or 'normalize'"),
        ({"split_seed": -1}, "split_seed"),
        ({"train_ways": 8}, "fc100/train has 7 classes, got ways=8"),
        ({"test_samples": 13}, "fc100/validation has 12 samples per class, got 13"),
        ({"device": "cuda:99"}, "try 'cpu'"),
        ({"device": "abacus"}, "try 'cpu'"),
        ({"root": tmp_path / "FC100_train.pickle"}, "got a file"),
    ):
        with pytest.raises(InputError, match=message):
            get_tasksets(**(defaults | options))


def test_list_of_tasksets() -> None:
    own = {"glyphs", "sinusoids", "mixture", "speech", "folder", "wav-folder"}
    assert set(list_tasksets()) == own | set(learn2learn().vision.benchmarks.list_tasksets())
    assert all(len(line) < 120 for line in list_tasksets().values())


@pytest.mark.usefixtures("user_cache")
def test_manifest(tmp_path: Path) -> None:
    make_fc100(tmp_path)
    tasksets = get_tasksets("fc100", root=tmp_path)
    what: dict[str, Any] = {"name": "fc100", "ways": 3, "shots": 1, "queries": 5, "split_seed": 0, "episodes": 40}
    first = manifest(tasksets, **what)
    assert json.loads(json.dumps(first)) == first
    assert first == manifest(get_tasksets("fc100", root=tmp_path), **what)
    assert first["splits"]["test"]["fingerprint"] == tasksets.test.fingerprint(40, ways=3, shots=1, queries=5, seed=0)
    hashes = {manifest(tasksets, **(what | {key: 2}))["hash"] for key in ("ways", "shots", "queries", "split_seed")}
    assert len(hashes | {first["hash"]}) == 5


@pytest.fixture(scope="module")
def omniglot_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some characters of the real Omniglot, laid out as learn2learn reads them."""
    root = tmp_path_factory.mktemp("omniglot")
    lay_out_some_omniglot(root)
    return root


def some_omniglot(
    root: Path, split_seed: int = 0, characters: dict[str, int] = SOME_OMNIGLOT, drawings: int = 20
) -> BenchmarkTasksets:
    """What ``get_tasksets("omniglot")`` gives, of fewer characters."""
    images = functools.partial(read, "omniglot", omniglot_loader(characters, drawings))
    benchmark = ImageBenchmark(name="omniglot", summary="", read=images, split=(25, 8), rotations="class")
    return BenchmarkTasksets(*benchmark(root=root, split_seed=split_seed))


@pytest.mark.usefixtures("user_cache")
def test_omniglot_holds_learn2learns_pixels(omniglot_root: Path) -> None:
    from PIL.Image import Resampling
    from torchvision import transforms

    tasksets = some_omniglot(omniglot_root)
    steps = [transforms.Resize(28, interpolation=Resampling.LANCZOS), transforms.ToTensor(), lambda x: 1.0 - x]
    with layout_module().offline_omniglot(omniglot_root):
        theirs = learn2learn().vision.datasets.FullOmniglot(str(omniglot_root), transform=transforms.Compose(steps))
    expected = torch.stack([theirs[index][0] for index in range(len(theirs))])
    images = tasksets.train.x / 255
    assert images.shape == expected.shape == (43 * 20, 1, 28, 28)
    order, their_order = (np.lexsort(x.reshape(len(x), -1).numpy().T) for x in (images, expected))
    torch.testing.assert_close(images[order], expected[their_order], rtol=0, atol=1e-6)
    # Classes: each of ours is one of theirs.
    label = {expected[i].mul(255).round().numpy().tobytes(): theirs[i][1] for i in range(len(theirs))}
    for members in np.arange(43 * 20).reshape(43, 20):
        assert len({label[images[i].mul(255).round().numpy().tobytes()] for i in members}) == 1
    assert images.mean() < 0.3, "ink is 1 and paper 0"


@pytest.mark.usefixtures("user_cache")
def test_omniglot_split_is_pinned_by_its_seed(omniglot_root: Path) -> None:
    def split(split_seed: int) -> list[list[str] | None]:
        return [taskset.class_names for taskset in some_omniglot(omniglot_root, split_seed)]

    seed_everything(0)
    first = split(0)
    seed_everything(1)
    states = global_states()
    assert split(0) == first
    assert global_states() == states
    assert split(1) != first
    names = [name for part in first for name in part or []]
    assert [len(part or []) for part in first] == [25, 8, 10] and len(set(names)) == 43
    assert some_omniglot(omniglot_root).test.rotations == "class"


@pytest.mark.usefixtures("user_cache")
def test_omniglot_does_not_depend_on_the_order_of_the_file_system(
    omniglot_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.datasets import omniglot

    first = some_omniglot(omniglot_root).train
    (tmp_path / "omniglot-py").symlink_to(omniglot_root / "omniglot-py")
    for lister in ("list_dir", "list_files"):
        original = getattr(omniglot, lister)
        monkeypatch.setattr(omniglot, lister, lambda *a, list_=original, **k: sorted(list_(*a, **k), reverse=True))
    again = some_omniglot(tmp_path).train
    assert first.class_names == again.class_names and torch.equal(first.x, again.x)


@pytest.mark.usefixtures("user_cache")
def test_incomplete_omniglot(omniglot_root: Path, tmp_path: Path) -> None:
    (tmp_path / "omniglot-py").symlink_to(omniglot_root / "omniglot-py")
    with pytest.raises(InputError, match="has 26 characters, not 964"):
        get_tasksets("omniglot", root=tmp_path)
    with pytest.raises(InputError, match="has 20 drawings, not 21"):
        some_omniglot(tmp_path, drawings=21)
