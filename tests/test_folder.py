"""Own images as tasksets: which are read, how, into which split, and what is refused."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import l2l_hyper
from l2l_hyper.data import get_tasksets
from l2l_hyper.data.image_file import read_image
from l2l_hyper.errors import InputError

RED, GREEN = (200, 10, 30), (10, 180, 90)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def picture(number: int) -> Image.Image:
    """A picture of one colour, which tells its number, and of its own size."""
    return Image.new("RGB", (5 + number % 3, 5), (number, 255 - number, 7))


def classes(folder: Path, count: int, images: int = 4, first: int = 0) -> Path:
    for c in range(count):
        (folder / f"class {first + c:02d}").mkdir(parents=True)
        for k in range(images):
            picture(10 * (first + c) + k).save(folder / f"class {first + c:02d}" / f"{k}.png")
    return folder


def tasksets(folder: Path, **options: Any) -> Any:
    return l2l_hyper.data.TASKSETS[f"folder:{folder}"].build(
        {"train_ways": 2, "train_samples": 3, "test_ways": 2, "test_samples": 4, "image_size": 4, **options}
    )


def numbers(taskset: Any) -> set[int]:
    """What the pictures of a taskset are, by the red of their pixels."""
    x, y = taskset.classified(range(200))
    assert x.shape[1:] == (3, 4, 4) and (x == x[:, :, :1, :1]).all()
    red, green, blue = (255 * x[:, :, 0, 0]).round().long().T
    assert (green == 255 - red).all() and (blue == 7).all()
    assert [taskset.class_names[k] for k in y] == [f"class {n // 10:02d}" for n in red]
    return set(red.tolist())


def test_classes_are_split_by_the_seed(tmp_path: Path) -> None:
    folder = classes(tmp_path / "photos", 12)
    for hidden in (folder, folder / "class 00"):  # as some systems leave beside files
        (hidden / "._0.png").touch()
    parts = tasksets(folder)
    assert [part.num_classes for part in parts] == [8, 2, 2]
    drawn = [numbers(part) for part in parts]
    assert sorted(n for part in drawn for n in part) == [10 * c + k for c in range(12) for k in range(4)]
    assert tasksets(folder, split_seed=1).test.class_names != parts.test.class_names
    os.rename(folder, tmp_path / "moved")
    assert tasksets(tmp_path / "moved").test.class_names == parts.test.class_names


def test_folders_of_the_splits_say_what_is_for_what(tmp_path: Path) -> None:
    for first, split in enumerate(("train", "validation", "test")):
        classes(tmp_path / "photos" / split, 3, first=3 * first)
    for first, part in enumerate(tasksets(tmp_path / "photos")):
        assert {n // 10 for n in numbers(part)} == {3 * first, 3 * first + 1, 3 * first + 2}
    os.rename(tmp_path / "photos" / "test" / "class 06", tmp_path / "photos" / "test" / "class 00")
    with pytest.raises(InputError, match="without a common class in .*, got class 00 in train and test"):
        tasksets(tmp_path / "photos")


def test_test_classes_alone_are_not_trained_on(tmp_path: Path) -> None:
    classes(tmp_path / "photos" / "test", 3)
    parts = tasksets(tmp_path / "photos")
    assert {n // 10 for n in numbers(parts.test)} == {0, 1, 2}
    for part in (parts.train, parts.validation):
        with pytest.raises(InputError, match="expected folders train and validation beside .*test to train with"):
            part.batch([0], shots=1, queries=1)


def test_images_are_kept_until_a_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = classes(tmp_path / "photos", 12)
    tasksets(folder)
    with monkeypatch.context() as patched:
        patched.setattr("l2l_hyper.data.folder.read_image", None)
        tasksets(folder)
    assert not (folder / "l2l_hyper").exists()
    picture(199).save(folder / "class 00" / "0.png")
    assert (tasksets(folder).test.x == 199).any()


def test_read_image_is_the_middle_square_resized(tmp_path: Path) -> None:
    wide = np.zeros((40, 100, 3), np.uint8)
    wide[:, :30], wide[:, 30:50], wide[:, 50:] = (255, 0, 0), RED, GREEN
    Image.fromarray(wide).save(tmp_path / "wide.png")
    levels = read_image(tmp_path / "wide.png", (3, 16, 16))
    assert levels.shape == (3, 16, 16) and levels.dtype == np.uint8
    inside = [4, 11]  # columns that Lanczos makes of one colour
    np.testing.assert_array_equal(levels[:, 4, inside].T, [RED, GREEN])
    gray = read_image(tmp_path / "wide.png", (1, 16, 16))
    expected = [round(0.299 * r + 0.587 * g + 0.114 * b) for r, g, b in (RED, GREEN)]
    np.testing.assert_array_equal(gray[0, 4, inside], expected)
    np.testing.assert_array_equal(read_image(tmp_path / "wide.png", (1, 16, 16), inverted=True), 255 - gray)
    turned = Image.Exif()
    turned[0x0112] = 6  # of a camera that was turned: what is up in the picture is left in the file
    Image.fromarray(np.rot90(wide).copy()).save(tmp_path / "turned.png", exif=turned)
    np.testing.assert_array_equal(read_image(tmp_path / "turned.png", (3, 16, 16)), levels)


def test_options_of_tasksets_go_through_a_comparison(tmp_path: Path) -> None:
    folder = classes(tmp_path / "photos", 12)
    settings: dict[str, Any] = {"ways": 2, "queries": 2, "backbone": "mlp", "iterations": 1, "meta_batch": 2}
    few = {"validation_episodes": 2, "test_episodes": 2}
    (record,) = l2l_hyper.compare(
        f"folder:{folder}", ["protonet"], tasksets_options={"image_size": 6, "color": "gray"}, **settings, **few
    )
    assert record.run.experiment.tasksets_options == {"image_size": 6, "color": "gray"}
    assert record.result.parameters["backbone"] > 0
    for options, message in (
        ({"image_sise": 6}, "take no image_sise, got 6"),
        ({"image_size": 0}, "image_size must be greater than or equal to 1, got 0; try 84"),
        ({"color": "red"}, "color must be 'rgb' or 'gray'|color input"),
        ({"split_seed": 3}, "tasksets_options has split_seed, which other settings decide"),
    ):
        with pytest.raises(InputError, match=message):
            l2l_hyper.compare(f"folder:{folder}", ["protonet"], tasksets_options=options, **settings, **few)


def saved(make: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda folder: make(folder / "class 00" / "x.png")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "a.jpg").touch(), "expected one sub-folder per class in .*photos, got a.jpg"),
        (lambda folder: (folder / "class 00" / "a.txt").touch(), r"expected files \(.bmp, .*\), got .*a.txt; move it"),
        (lambda folder: (folder / "class 00" / "b").mkdir(), "got .*class 00/b; move it"),
        (lambda folder: (folder / "none").mkdir(), "expected files .* in .*none, got none"),
        (lambda folder: (folder / "train").mkdir(), "expected folders train, validation and test in .*, got class 00"),
        (saved(lambda path: path.write_bytes(b"no image")), "could not read .*x.png .*; replace or remove it"),
        (saved(lambda path: path.write_bytes(picture_bytes()[:-40])), "could not read .*x.png"),
        (saved(Image.new("RGBA", (5, 5), (1, 2, 3, 200)).save), "expected an opaque image, .*x.png is transparent"),
        (saved(Image.new("I;16", (5, 5), 40_000).save), "expected one picture of 8 bits per channel in .*x.png, got 1"),
    ],
)
def test_what_cannot_be_read_is_told(tmp_path: Path, change: Callable[[Path], object], message: str) -> None:
    folder = classes(tmp_path / "photos", 12)
    change(folder)
    with pytest.raises(InputError, match=message):
        tasksets(folder)


def picture_bytes() -> bytes:
    from io import BytesIO

    stream = BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(255, size=(9, 9, 3), dtype=np.uint8)).save(stream, "png")
    return stream.getvalue()


def test_what_a_folder_cannot_give_is_told(tmp_path: Path) -> None:
    folder = classes(tmp_path / "photos", 6)
    for path, options, message in (
        (tmp_path / "none", {}, "expected a folder in folder:PATH, got '.*none'"),
        (folder, {}, "has 6 classes, 4 for train, 1 for validation, 1 for test, got tasks of 2 classes for train"),
        (
            folder,
            {"test_ways": 1, "train_samples": 5},
            r"has 4 samples per class, got 5 .*; ask for fewer, or add some to",
        ),
    ):
        with pytest.raises(InputError, match=message):
            tasksets(path, **options)
    with pytest.raises(InputError, match="got 'no PATH'; try folder:. for the present"):
        get_tasksets("folder")
