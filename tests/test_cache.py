"""The image cache: built once, checked, rebuilt when damaged, and safe to build twice at once."""

from __future__ import annotations

import json
import logging
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from l2l_hyper.data.cache import Contents, ImageSet, stored


def tiny_contents() -> Contents:
    # 70,000 bytes: one whole 64 KiB block and a rest.
    images = np.random.default_rng(0).integers(0, 256, (700, 1, 10, 10), dtype=np.uint8)
    return Contents((1, 10, 10), ["a", "b"], [300, 400], np.array_split(images, 3))


def open_tiny(folder: Path, signature: str | None = "s") -> tuple[ImageSet, bool]:
    """The stored images, and whether they had to be built."""
    built = []

    def build() -> Contents:
        built.append(True)
        return tiny_contents()

    return stored("tiny", [folder], lambda: signature, build), bool(built)


def check_tiny(image_set: ImageSet) -> None:
    expected = np.concatenate(list(tiny_contents().chunks))
    assert np.array_equal(image_set.images.numpy(), expected)
    assert image_set.names == ["a", "b"]
    assert np.array_equal(image_set.classes[1], np.arange(300, 700))


def test_cache_is_built_once_and_memory_mapped(tmp_path: Path) -> None:
    image_set, built = open_tiny(tmp_path / "new" / "folder")
    assert built
    check_tiny(image_set)
    image_set, built = open_tiny(tmp_path / "new" / "folder")
    assert not built
    check_tiny(image_set)
    assert sorted(os.listdir(tmp_path / "new" / "folder")) == ["tiny-v2.json", "tiny-v2.npy"]
    assert "tiny-v2.npy" in Path("/proc/self/maps").read_text()


def flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data, header: flip(data, 40_000),
        lambda data, header: flip(data, -1),
        lambda data, header: flip(data, 20),
        lambda data, header: data.write_bytes(data.read_bytes()[:-1000]),
        lambda data, header: data.write_bytes(b""),
        lambda data, header: data.unlink(),
        lambda data, header: header.write_text(header.read_text()[:-20]),
        lambda data, header: header.write_text("[]"),
        lambda data, header: header.write_text(json.dumps({**json.loads(header.read_text()), "names": ["b", "a"]})),
    ],
)
def test_damaged_cache_is_rebuilt(damage: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    open_tiny(tmp_path)
    damage(tmp_path / "tiny-v2.npy", tmp_path / "tiny-v2.json")
    with caplog.at_level(logging.WARNING, "l2l_hyper"):
        image_set, built = open_tiny(tmp_path)
    assert built and "damaged" in caplog.text and "building it again" in caplog.text
    check_tiny(image_set)
    assert not open_tiny(tmp_path)[1]


def test_only_a_file_that_was_touched_is_read_again(tmp_path: Path) -> None:
    open_tiny(tmp_path)
    data = tmp_path / "tiny-v2.npy"
    status = data.stat()
    data.write_bytes(data.read_bytes())  # at once: a file system's clock need not have moved on
    assert data.stat().st_mtime_ns > status.st_mtime_ns
    assert not open_tiny(tmp_path)[1], "touched, and still right"
    flip(data, 40_000)
    os.utime(data, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert not open_tiny(tmp_path)[1], "the same size and time: not read to open it"
    os.utime(data)
    assert open_tiny(tmp_path)[1], "touched, and damaged"


def test_cache_follows_the_data_it_was_made_from(tmp_path: Path) -> None:
    open_tiny(tmp_path, "old")
    assert open_tiny(tmp_path, "new")[1]
    assert not open_tiny(tmp_path, "new")[1]
    assert not open_tiny(tmp_path, None)[1], "the data are gone: the cache is all there is"


def test_cache_goes_where_it_can_be_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    blocked = tmp_path / "file" / "folder"
    for _ in range(2):
        check_tiny(stored("tiny", [blocked, tmp_path / "free"], lambda: "s", tiny_contents))
    assert (tmp_path / "free" / "tiny-v2.npy").exists()
    check_tiny(stored("tiny", [blocked], lambda: "s", tiny_contents))
    assert "cannot keep an image cache" in caplog.text


def test_failed_build_leaves_nothing_behind(tmp_path: Path) -> None:
    def build() -> Contents:
        return Contents((1, 10, 10), ["a"], [5], (1 // 0 for _ in range(1)))  # type: ignore[misc]

    with pytest.raises(ZeroDivisionError):
        stored("tiny", [tmp_path / "new"], lambda: "s", build)
    assert os.listdir(tmp_path) == []


def test_two_can_build_at_once(tmp_path: Path) -> None:
    barrier = threading.Barrier(2)

    def build() -> Contents:
        barrier.wait(30)  # both have found no cache, and now write it at the same time
        return tiny_contents()

    with ThreadPoolExecutor() as pool:
        for image_set in pool.map(lambda _: stored("tiny", [tmp_path], lambda: "s", build), range(2)):
            check_tiny(image_set)
    assert sorted(os.listdir(tmp_path)) == ["tiny-v2.json", "tiny-v2.npy"]
    assert not open_tiny(tmp_path)[1]


def test_what_a_killed_process_left_goes_when_the_cache_is_opened(tmp_path: Path) -> None:
    open_tiny(tmp_path)
    (tmp_path / f".tiny-v2.npy.{'0' * 32}.tmp").write_bytes(b"half")
    assert not open_tiny(tmp_path)[1]
    assert sorted(os.listdir(tmp_path)) == ["tiny-v2.json", "tiny-v2.npy"]
