"""The embedded typeset glyphs: their number, that no two look alike, and that they come out the same again."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from l2l_hyper.data import BenchmarkTasksets, get_tasksets
from l2l_hyper.data.glyphs import draw_glyphs


@pytest.fixture(scope="module")
def tasksets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BenchmarkTasksets]:
    """Drawn once for these tests, as a user does, into a cache folder of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        get_tasksets("glyphs", root="/nowhere")
        patch.setattr("l2l_hyper.data.glyphs.draw_glyphs", None)  # the second time they come from the cache
        yield get_tasksets("glyphs", root="/nowhere")


@pytest.fixture(scope="module")
def images(tasksets: BenchmarkTasksets) -> torch.Tensor:
    """All the images, with shape (classes, 20, 28, 28)."""
    return tasksets.train.x.view(-1, 20, 28, 28)


def test_counts(tasksets: BenchmarkTasksets, images: torch.Tensor) -> None:
    assert len(images) >= 300
    sizes = [taskset.num_classes for taskset in tasksets]
    assert sum(sizes) == len(images)
    np.testing.assert_allclose(np.array(sizes) / len(images), [0.64, 0.16, 0.20], atol=0.01)
    names = [name for taskset in tasksets for name in taskset.class_names or []]
    assert len(set(names)) == len(names)
    assert {taskset.samples_per_class for taskset in tasksets} == {20}
    assert {taskset.rotations for taskset in tasksets} == {False}


def test_many_scripts(tasksets: BenchmarkTasksets) -> None:
    scripts = {name.split()[1] for taskset in tasksets for name in taskset.class_names or []}
    assert scripts >= {"DIGIT", "LATIN", "GREEK", "CYRILLIC", "ARMENIAN", "GEORGIAN", "HEBREW", "ARABIC", "LAO"}


def test_ink_is_bright_and_inside(images: torch.Tensor) -> None:
    share = (images > 127).float().mean(dim=(2, 3))
    assert share.min() > 0.005 and share.max() < 0.65
    assert (images.flatten(2).max(dim=2).values > 200).all()
    border = torch.cat([images[..., 0], images[..., -1], images[..., 0, :], images[..., -1, :]], dim=-1)
    assert (border > 0).float().mean() < 0.02


def test_no_two_images_are_equal(images: torch.Tensor) -> None:
    assert len(images.reshape(-1, 784).unique(dim=0)) == images.shape[0] * 20


def test_no_look_alikes(tasksets: BenchmarkTasksets, images: torch.Tensor) -> None:
    names = {name.split(maxsplit=1)[1] for taskset in tasksets for name in taskset.class_names or []}
    for first, second in (
        ("LATIN CAPITAL LETTER A", "GREEK CAPITAL LETTER ALPHA"),
        ("LATIN CAPITAL LETTER A", "CYRILLIC CAPITAL LETTER A"),
        ("LATIN CAPITAL LETTER H", "CYRILLIC CAPITAL LETTER EN"),
        ("LATIN SMALL LETTER C", "LATIN CAPITAL LETTER C"),
        ("LATIN SMALL LETTER O", "DIGIT ZERO"),
        ("LATIN SMALL LETTER L", "LATIN CAPITAL LETTER I"),
    ):
        assert not {first, second} <= names
    # Measured on what was drawn: the average image of a class is no other class's.
    means = images.float().mean(dim=1).flatten(1)
    means = torch.nn.functional.normalize(means - means.mean(dim=1, keepdim=True), dim=1)
    assert (means @ means.T - 2 * torch.eye(len(means))).max() < 0.97


def test_the_same_images_come_out_again(images: torch.Tensor) -> None:
    contents = draw_glyphs()
    assert len(contents.names) == len(images)
    for drawn, kept in itertools.islice(zip(contents.chunks, images, strict=True), 60):
        assert np.array_equal(drawn[:, 0], kept.numpy())


def test_split_is_pinned_by_its_seed(tasksets: BenchmarkTasksets) -> None:
    first, again, other = (
        [taskset.class_names for taskset in get_tasksets("glyphs", split_seed=seed)] for seed in (0, 0, 1)
    )
    assert first == again != other
    assert first == [taskset.class_names for taskset in tasksets]


def test_raw_pixels_do_not_solve_it(tasksets: BenchmarkTasksets) -> None:
    episodes = tasksets.test.batch(range(600), shots=1, queries=5, ways=5)
    distances = torch.cdist(episodes.query.flatten(2), episodes.support.flatten(2))
    accuracy = (distances.argmin(dim=2) == episodes.query_labels).float().mean().item()
    assert 0.5 < accuracy < 0.75
