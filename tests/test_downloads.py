"""`l2l-hyper data`: what is there, what is fetched and kept, and what is to be done by hand."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import ondisk
import pytest

from l2l_hyper import cli
from l2l_hyper._learn2learn import learn2learn
from l2l_hyper.bridge.benchmarks import MINI_IMAGENET
from l2l_hyper.bridge.downloads import FROM, is_there
from l2l_hyper.bridge.loaders import LOADERS
from l2l_hyper.data import get_tasksets

FILES = [f"mini-imagenet-cache-{split}.pkl" for split in ("train", "validation", "test")]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*line: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            cli.main([str(word) for word in line])
        return (int(end.value.code or 0), *capsys.readouterr())

    return run


def serve(monkeypatch: pytest.MonkeyPatch, content: bytes) -> list[str]:
    """Stands for the network: every file has this content."""
    asked: list[str] = []

    def download(source: str, destination: str, size: int | None = None) -> None:
        asked.append(Path(destination).name)
        Path(destination).write_bytes(content)

    module = learn2learn().vision.datasets.mini_imagenet
    monkeypatch.setattr(module, "download_file", download)
    monkeypatch.setattr(module, "download_file_from_google_drive", download)
    return asked


def test_what_is_fetched_is_what_the_tasksets_read(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(256, size=(8, 84, 84, 3), dtype=np.uint8)
    content = {"image_data": pixels, "class_dict": {"cat": [0, 2, 4, 6], "dog": [1, 3, 5, 7]}}
    asked = serve(monkeypatch, pickle.dumps(content))
    code, out, err = run("data", "mini-imagenet", "--data-root", tmp_path / "root")
    assert (code, out) == (0, f"mini-imagenet is in {tmp_path / 'root'}\n") and FROM["mini-imagenet"] in err
    assert asked == FILES and sorted(path.name for path in (tmp_path / "root").iterdir()) == sorted(FILES)
    train = MINI_IMAGENET(2, 4, 2, 4, root=tmp_path / "root")[0]
    assert np.array_equal(train.x[train._members[:4]].numpy(), pixels[::2].transpose(0, 3, 1, 2))
    assert run("data", "mini-imagenet", "--data-root", tmp_path / "root")[0] == 0 and asked == FILES
    assert "mini-imagenet    yes" in run("data", "--data-root", tmp_path / "root")[1]


class Bomb:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("bomb"),)


def test_nothing_that_is_damaged_is_kept_and_no_pickle_is_run(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for content in (b"<html>not found</html>", pickle.dumps(Bomb())):
        serve(monkeypatch, content)
        code, _, err = run("data", "mini-imagenet", "--data-root", "root")
        assert code == 2 and "error: learn2learn could not download mini-imagenet" in err
        assert f"download it from {FROM['mini-imagenet']} and put {', '.join(FILES[:1])}" in err
        assert not list((tmp_path / "root").iterdir())
    assert [path.name for path in tmp_path.iterdir()] == ["root"]


@pytest.mark.parametrize("name", LOADERS)
def test_what_is_there_is_seen_before_it_is_read_and_after(
    name: str, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    make = ondisk.make_omniglot if name == "omniglot" else ondisk.SMALL[name]
    make(tmp_path)
    for _ in range(2):
        assert run("data", name, "--data-root", tmp_path) == (0, f"{name} is in {tmp_path}\n", "")
        if name != "omniglot":  # of which few characters are drawn
            get_tasksets(name, root=tmp_path)
    part = next(path for path in LOADERS[name].needs(tmp_path, LOADERS[name].parts[-1]))
    part.rename(part.with_name("moved"))
    assert not is_there(name, tmp_path)


def test_the_list_says_what_is_missing(run: Any, tmp_path: Path) -> None:
    code, out, _ = run("data", "--data-root", tmp_path)
    assert code == 0
    for name, loader in LOADERS.items():
        assert not is_there(name, tmp_path) and name in FROM
        (line,) = [line for line in out.splitlines() if line.startswith(f"{name} ")]
        assert line.split()[1] == "no" and loader.expects.split()[0] in out
    assert "glyphs           –" in out
    code, _, err = run("data", "glyphs")
    assert code == 2 and "glyphs is nothing to fetch: letters and digits" in err
