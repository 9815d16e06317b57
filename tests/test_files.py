"""Files are whole or not there, whatever happens while they are written."""

from __future__ import annotations

import errno
import fcntl
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from l2l_hyper.errors import InputError
from l2l_hyper.files import create_once, replacing, write_atomically
from l2l_hyper.locks import Held, alone, open_shared, open_temporary, remove_leftovers, take


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


def test_leftovers_go_and_files_of_living_processes_stay(tmp_path: Path) -> None:
    names = [f".{name}.{'0' * 32}.tmp" for name in "ab"] + [".run.held", ".mine.tmp", "mine.held"]
    for name in names:
        (tmp_path / name).touch()
    with open_temporary(tmp_path / "new") as (_, temporary), alone(tmp_path / "other"):
        remove_leftovers(tmp_path)
        assert sorted(os.listdir(tmp_path)) == sorted([temporary.name, ".other.held", ".mine.tmp", "mine.held"])
    assert sorted(os.listdir(tmp_path)) == [".mine.tmp", "mine.held"]
    remove_leftovers(tmp_path / "not there")


def test_a_temporary_file_that_is_removed_at_once_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock, removed = fcntl.flock, []

    def slow(file: Any, operation: int) -> None:
        if not removed:  # by a process that looks for leftovers before the lock is there
            (left,) = tmp_path.iterdir()
            left.unlink()
            removed.append(left)
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", slow)
    with replacing(tmp_path / "file") as file:
        file.write(b"content")
    assert removed and (tmp_path / "file").read_bytes() == b"content"


def test_one_at_a_time(tmp_path: Path) -> None:
    with alone(tmp_path / "run"):
        with pytest.raises(Held, match=f"process {os.getpid()} on "), alone(tmp_path / "run"):
            pass
        with alone(tmp_path / "another run"):
            pass
    assert not list(tmp_path.iterdir())
    with alone(tmp_path / "run"):
        pass


def test_what_others_have_opened_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "pin").touch()
    with open_shared(tmp_path / "pin") as first:
        with open_shared(tmp_path / "pin"):
            assert not take(first)
        assert take(first)
        (tmp_path / "pin").unlink()
        assert not take(first)
    with pytest.raises(FileNotFoundError):
        open_shared(tmp_path / "pin")


def test_without_locks_files_are_written_and_nothing_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    (tmp_path / ".run.held").touch()
    remove_leftovers(tmp_path)
    write_atomically(tmp_path / "file", "content")
    with alone(tmp_path / "other"), open_shared(tmp_path / "file") as file:
        assert not take(file)
    assert sorted(os.listdir(tmp_path)) == [".run.held", "file"]
