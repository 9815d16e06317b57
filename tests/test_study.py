"""Studies: commands of a file, several at a time, each with a log."""

from __future__ import annotations

from pathlib import Path

import pytest
from study import main, read_study


def test_a_study_is_read_as_stages_of_commands() -> None:
    text = (
        "# first\nl2l-hyper compare --seeds {0,1} --methods {a,b@c} --pretrained x{seed}\n\nwait\nl2l-hyper list # all"
    )
    first, second = read_study(text)
    assert second == [["list"]]
    assert [(command[2], command[4]) for command in first] == [("0", "a"), ("0", "b@c"), ("1", "a"), ("1", "b@c")]
    assert all(command[-1] == "x{seed}" for command in first)
    with pytest.raises(SystemExit, match="expected 'l2l-hyper"):
        read_study("rm -r x")


def test_a_stage_begins_when_all_before_it_have_succeeded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = tmp_path / "study.txt"
    study.write_text("l2l-hyper {--version,--mistyped}\nwait\nl2l-hyper --help\n")
    arguments = [str(study), "--jobs", "2", "--logs", str(tmp_path / "logs")]
    assert main(arguments) == 1
    logs = sorted(path.read_text() for path in (tmp_path / "logs").iterdir())
    assert len(logs) == 2 and logs[0].startswith("$ l2l-hyper --mistyped") and "\nl2l-hyper 0" in logs[1]
    assert "FAILED with code 2" in capsys.readouterr().out
    study.write_text("l2l-hyper --version\nwait\nl2l-hyper\n")
    assert main([*arguments, "--", "--help"]) == 0
    assert main([*arguments, "--seconds", "0"]) == 1
    assert "STOPPED, no time left" in capsys.readouterr().out
