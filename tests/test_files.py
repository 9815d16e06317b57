"""Files are whole or not there, whatever happens while they are written."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from l2l_hyper.errors import InputError
from l2l_hyper.files import create_once, replacing, write_atomically


def test_a_file_appears_whole(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    with replacing(path) as file:
        for piece in (b"one ", b"two"):
            file.write(piece)
            assert not path.exists() and not list(tmp_path.glob("*.json"))
    assert path.read_bytes() == b"one two"
    write_atomically(path, "three")
    assert os.listdir(tmp_path) == ["file.json"] and path.read_text() == "three"


def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")
    with pytest.raises(ZeroDivisionError), replacing(path) as file:
        file.write(b"new")
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == ["file"] and path.read_bytes() == b"old"


def test_a_file_is_created_once(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with ThreadPoolExecutor(8) as pool:
        created = list(pool.map(lambda n: create_once(path, str(n)), range(8)))
    assert sum(created) == 1 and path.read_text() == str(created.index(True))
    assert not create_once(path, "late") and os.listdir(tmp_path) == ["file"]


def test_without_hard_links_a_file_is_created_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: Path) -> None:
        raise PermissionError(1, "not permitted")

    monkeypatch.setattr(os, "link", no_links)
    assert create_once(tmp_path / "file", "content") and (tmp_path / "file").read_text() == "content"
    assert os.listdir(tmp_path) == ["file"]


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    for write in (create_once, write_atomically):
        with pytest.raises(InputError, match="cannot write .*make room"):
            write(tmp_path / "nowhere" / "file", "content")
