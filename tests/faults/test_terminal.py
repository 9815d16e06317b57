"""Terminals and signals: any encoding, closed streams, Ctrl-C, SIGTERM and SIGHUP at any time."""

from __future__ import annotations

import io
import os
import pwd
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers_records import records
from helpers_training import train, without_times
from rich.console import Console

from l2l_hyper import cli, report, stopping
from l2l_hyper.data.cache import user_cache
from l2l_hyper.experiment import testing
from l2l_hyper.experiment.config import Experiment, Run
from l2l_hyper.experiment.progress import RunProgress
from l2l_hyper.experiment.provenance import public_command
from l2l_hyper.experiment.recipe.objective import Objective
from l2l_hyper.experiment.result import MetricInfo
from l2l_hyper.experiment.training import Step
from l2l_hyper.files import expanded
from l2l_hyper.stopping import Stopped, catch_signals, held, raised
from l2l_hyper.terminal import spelled

EXPERIMENT = Experiment(
    ways=3, queries=2, iterations=5, meta_batch=2, validate_every=2, validation_episodes=4, test_episodes=5, channels=4
)
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
LINE = "; the same command continues from the last checkpoint, if there is one"


def python(script: str, **options: object) -> subprocess.CompletedProcess[str]:
    """What a new Python makes of a script."""
    given = {"capture_output": True, "text": True, "check": False, "timeout": 60, **options}
    return subprocess.run([sys.executable, "-c", script], **given)  # type: ignore[call-overload, no-any-return]


# terminals


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437"])
def test_a_table_in_any_encoding_is_aligned(encoding):
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    report.print_summary(report.summarize(records()), Console(width=200, file=file))
    file.seek(0)
    table = [line for line in file.read().splitlines() if re.match("method|HyperAdapter|MAML|ProtoNet", line)]
    assert len(table) == 4 and len({len(line) for line in table}) == 1
    assert spelled("72.98 ± 1.33", encoding) in table[-1] and spelled("−4.99", encoding) in table[-1]


@pytest.mark.parametrize("width", [1, 20, 60])
def test_nothing_is_cut_off_on_a_narrow_screen(width):
    file = io.StringIO()
    report.print_summary(report.summarize(records()), Console(width=width, file=file))
    text = "".join(file.getvalue().split())  # without where lines are broken
    assert "…" not in text and all(part in text for part in ("HyperAdapter", "72.98±1.33", "adaptms", "12,345"))


def test_streams_that_are_closed_or_poor(tmp_path):
    script = (
        "import os, sys\n"
        "from l2l_hyper.terminal import open_streams\n"
        "open_streams()\n"
        "print('printed')\n"
        "file = open('file', 'w')\n"
        "print(file.fileno() > 2, os.environ.get('COLUMNS'), '± – × ü 中', file=sys.stderr)\n"
    )
    done = python(
        f"import os\nos.execvpe('sh', ['sh', '-c', 'exec \"$0\" -c \"$1\" <&- >&-', {sys.executable!r}, {script!r}], "
        "{**os.environ, 'PYTHONIOENCODING': 'ascii', 'COLUMNS': '0'})",
        cwd=tmp_path,
    )
    assert (done.returncode, done.stderr) == (0, "True None +/- - x u ?\n")
    assert (tmp_path / "file").read_text() == ""


def test_a_full_disk_behind_the_output_is_one_line(capsys, monkeypatch):
    def full(**_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cli, "app", full)
    with pytest.raises(SystemExit) as exit:
        cli.main([])
    assert exit.value.code == 1
    assert capsys.readouterr().err.startswith("l2l-hyper: error: cannot use the output (No space left on device)")


def test_without_a_home_folder(monkeypatch):
    def nobody(number: int) -> pwd.struct_passwd:
        raise KeyError(number)

    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    assert expanded("~/data") == Path("~/data") and user_cache() == []


def test_a_path_of_any_bytes_is_text_in_a_record():
    assert public_command(["report", os.fsdecode(b"runs/\xff")]) == "l2l-hyper report 'runs/\ufffd'"


def test_progress_shows_names_as_they_are_and_gives_the_cursor_back():
    file = io.StringIO()
    with (
        pytest.raises(Stopped),
        RunProgress(Console(file=file, force_terminal=True, width=120), "[/x]\x1b[2J seed 0") as show,
    ):
        show(Step(1, 2, 0.5, 1.0, 0.5, MetricInfo(name="[/y]\n")))
        raise Stopped(signal.SIGHUP)
    assert "[/x]\ufffd[2J seed 0" in file.getvalue() and "[/y] 50.00 %" in file.getvalue()
    assert file.getvalue().rindex("\x1b[?25h") > file.getvalue().rindex("\x1b[?25l")


def test_a_terminal_that_is_gone_does_not_hide_what_stopped_the_run():
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(5, "Input/output error")

    console = Console(file=io.StringIO(), force_terminal=True)
    with pytest.raises(Stopped), RunProgress(console, "protonet seed 0"):
        console.file = Gone()
        raise Stopped(signal.SIGHUP)


# signals


@pytest.fixture
def caught(monkeypatch) -> Iterator[None]:
    """Signals as the command line catches them."""
    before = {number: signal.getsignal(number) for number in CODES}
    monkeypatch.setattr(stopping, "_signals", stopping._Signals())
    catch_signals()
    with raised():
        yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", CODES, ids=lambda number: number.name)
def test_the_command_line_tells_which_signal_stopped_it(capsys, monkeypatch, number):
    def stopped(**_: object) -> None:
        raise Stopped(number)

    monkeypatch.setattr(cli, "app", stopped)
    with pytest.raises(SystemExit) as exit:
        cli.main([])
    assert exit.value.code == CODES[number]
    name = {signal.SIGINT: "Ctrl-C"}.get(number, number.name)
    assert capsys.readouterr().err == f"\nl2l-hyper: stopped by {name}{LINE}\n"


def test_a_signal_waits_for_what_is_done_as_a_whole(caught):
    done = []
    with pytest.raises(Stopped) as stopped, held():
        os.kill(os.getpid(), signal.SIGTERM)
        done.append("the block")
    assert done == ["the block"] and stopped.value.code == 143


@pytest.mark.parametrize("number", CODES, ids=lambda number: number.name)
@pytest.mark.parametrize("block", ["", "with raised(), held(): os.kill(os.getpid(), number); "])
def test_at_the_start_and_a_second_time_a_signal_ends_the_process_at_once(number, block):
    done = python(
        f"import os, signal\nfrom l2l_hyper.stopping import *\nnumber = {int(number)}\n"
        "signal.signal(number, signal.SIG_DFL)\ncatch_signals()\n"
        f"{block}os.kill(os.getpid(), number); print('went on')"
    )
    assert (done.returncode, done.stdout) == (CODES[number], "")
    assert re.fullmatch(f"\nl2l-hyper: stopped by .*{LINE}\n", done.stderr)


def test_a_signal_that_is_ignored_stays_so():
    script = "import os, signal\nfrom l2l_hyper.stopping import *\ncatch_signals()\nos.kill(os.getpid(), signal.SIGHUP)"
    assert python(f"import signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\n{script}").returncode == 0


@pytest.mark.parametrize("where", ["iteration", "validation"])
def test_a_stopped_training_is_saved_and_goes_on_to_the_identical_result(tmp_path, monkeypatch, caught, where):
    run = Run(experiment=EXPERIMENT, method="protonet")
    whole = train(run, tmp_path / "whole")
    owner, name = (Objective, "backward") if where == "iteration" else (testing, "evaluate_on")
    original, calls = getattr(owner, name), []

    def signalled(*args: object, **options: object) -> object:
        calls.append(name)
        if len(calls) == {"iteration": 3, "validation": 2}[where]:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(owner, name, signalled)
        with pytest.raises(Stopped) as stopped:
            train(run, tmp_path / "stopped")
    kept = {"iteration": 3, "validation": 4}[where]
    assert str(stopped.value) == f"stopped by SIGTERM, protonet-seed0 saved at iteration {kept}{LINE}"
    steps = []
    resumed = train(run, tmp_path / "stopped", progress=steps.append)
    assert [step.iteration for step in steps if not step.validation] == list(range(kept + 1, 6))
    assert without_times(resumed) == without_times(whole)


@pytest.mark.parametrize("arguments", [["--version"], ["compare", "--help"]])
def test_what_loads_nothing_heavy(arguments):
    script = (
        "import sys\nfrom l2l_hyper.__main__ import main\n"
        f"sys.argv[1:] = {arguments}\n"
        "try:\n    main()\nfinally:\n"
        "    print({'torch', 'learn2learn', 'scipy', 'matplotlib'} & sys.modules.keys(), file=sys.stderr)\n"
    )
    done = python(script)
    assert (done.returncode, done.stderr) == (0, "set()\n")


@pytest.mark.campaign
def test_forty_times_ctrl_c_in_the_first_two_seconds(tmp_path):
    times, told, outside = random.Random(0), 0, 0
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a process would inherit that it is ignored
    command = [sys.executable, "-m", "l2l_hyper", "compare", "--out", str(tmp_path), "--methods", "protonet"]
    for _ in range(40):
        process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        time.sleep(times.uniform(0, 2))
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=300)
        if process.returncode == 130 and err.endswith(f"l2l-hyper: stopped by Ctrl-C{LINE}\n") and "Trace" not in err:
            told += 1
        elif "l2l_hyper" not in err:
            outside += 1  # Python itself was still starting
        else:
            raise AssertionError(err)
    signal.signal(signal.SIGINT, before)
    print(f"{told} of 40 ended with the line and exit code 130, {outside} before the package was reached")
    assert told + outside == 40
