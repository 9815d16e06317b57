"""A campaign of faults against `l2l-hyper compare`: ``python campaign_files.py FOLDER '{"kills": 24, "pairs": 2}'``.

Each command runs in a process that is forked from this one, so that torch is loaded once; ``--without-report`` leaves
out tables and figures, which take longer than all the rest.  What comes of each kind of fault is printed as JSON, one
entry per fault: what was wrong afterwards, and an empty list where nothing was.
"""

from __future__ import annotations

import builtins
import errno
import fcntl
import gc
import json
import os
import random
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

SETTINGS = {
    "tasksets": "campaign_files:vectors",
    "backbone": "campaign_files:linear",
    "methods": "protonet",
    "seeds": "0,1",
    "ways": "3",
    "queries": "2",
    "iterations": "4",
    "validate-every": "2",
    "meta-batch": "2",
    "validation-episodes": "4",
    "test-episodes": "5",
}
TIMES = {"finished", "seconds_to_train", "adaptation_ms", "peak_memory_mb", "seconds"}
HOOKED = [(os, name) for name in ("replace", "fsync", "link", "unlink", "mkdir", "write")] + [(fcntl, "flock")]
Fault = Callable[[], object]

seen = 0  # calls of hooked functions, before and after each
hook: Callable[[str], object] = str  # what is done at each of them


def vectors(**options: Any) -> list[Any]:
    """Three tasksets of points on a plane."""
    import torch

    from l2l_hyper.data import TensorTaskset

    x = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(6).repeat_interleave(10)
    form = {"ways": options["test_ways"], "samples": options["test_samples"], "seed": options["split_seed"]}
    return [TensorTaskset(x, labels, **form, name=name) for name in ("train", "validation", "test")]


def linear(ways: int, sample_shape: tuple[int, ...]) -> Any:
    """A small network."""
    from torch import nn

    return nn.Sequential(nn.Linear(*sample_shape, 8), nn.ReLU(), nn.Linear(8, ways))


def watch(original: Callable[..., Any], name: str) -> Callable[..., Any]:
    """The function, with the fault that is to come before or after it."""

    def watched(*arguments: Any, **keywords: Any) -> Any:
        hook(name)
        value = original(*arguments, **keywords)
        hook(f"after {name}")
        return value

    return watched


def killed_at(call: int) -> Fault:
    """The process is killed at a call."""

    def count(name: str) -> None:
        global seen
        seen += 1
        if seen == call:
            os.kill(os.getpid(), signal.SIGKILL)

    return lambda: globals().update(hook=count)


def full_at(call: int) -> Fault:
    """The disk is full from a call of fsync on."""

    def count(name: str) -> None:
        global seen
        seen += name == "fsync"
        if name == "fsync" and seen >= call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return lambda: globals().update(hook=count)


def limited_to(size: int) -> Fault:
    """No file grows beyond a size, as ``ulimit -f`` has it."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def denied() -> None:
    """No file can be opened for writing among the checkpoints."""
    original = builtins.open

    def opened(file: Any, mode: str = "r", *arguments: Any, **keywords: Any) -> Any:
        if "checkpoints" in str(file) and mode not in ("r", "rb"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(file))
        return original(file, mode, *arguments, **keywords)

    builtins.open = opened  # type: ignore[assignment]


def start(out: Path, fault: Fault = lambda: None, **changed: str) -> int:
    """Process id of ``compare``, which writes what it says to ``out.log``."""
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in {**SETTINGS, **changed, "out": out}.items()]
    pid = os.fork()
    if pid:
        return pid
    code: Any = 99
    gc.freeze()  # what is shared with the parent: going through it would copy it
    try:
        os.dup2(os.open(out.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
        os.dup2(1, 2)
        fault()
        cli.main(["compare", *arguments])
    except SystemExit as stop:
        code = stop.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        hook("end")
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(pid: int) -> int:
    """Its exit code, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def log(out: Path) -> list[str]:
    return out.with_suffix(".log").read_text().splitlines()


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_times(entry) for name, entry in value.items() if name not in TIMES}
    return [without_times(entry) for entry in value] if isinstance(value, list) else value


def state(out: Path) -> tuple[list[str], list[Any]]:
    """Which files there are, and what the records say."""
    files = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    return files, [without_times(json.loads((out / name).read_text())) for name in files if name.startswith("records")]


def wrong(out: Path, reference: tuple[list[str], list[Any]]) -> list[str]:
    """What is not as it should be once the same command has been given again."""
    found = []
    code = wait(start(out))
    if code:
        found.append(f"exit code {code}: {log(out)[-1:]}")
    files, records = state(out)
    if files != reference[0]:
        found.append(f"files {sorted(set(files) ^ set(reference[0]))}")
    if records != reference[1]:
        found.append("other records")
    return found


def untidy(out: Path, code: int) -> list[str]:
    """What is wrong with a command that could not write: it says so in one line, and leaves no piece of a file."""
    told = [line for line in log(out) if not line.startswith("protonet seed")]
    as_expected = code == 2 and len(told) == 1 and told[0].startswith("l2l-hyper: error: cannot write ")
    found = [] if as_expected else [f"exit code {code}: {told}"]
    return found + [f"left {path.name}" for path in out.rglob(".*")]


def kills(folder: Path, count: int, reference: Any) -> list[list[str]]:
    """Killed at calls of the functions by which files come and go, then at random times."""
    begin = time.monotonic()
    total = folder / "calls"

    def counted(name: str) -> None:
        global seen
        seen += 1
        if name == "end":
            total.write_text(str(seen))

    wait(start(folder / "counted", lambda: globals().update(hook=counted)))
    seconds, calls = time.monotonic() - begin, int(total.read_text()) - 1
    results = []
    for number in range(count):
        out = folder / f"kill{number}"
        if count <= calls or number < calls:
            pid = start(out, killed_at(1 + number * calls // count if count <= calls else 1 + number))
        else:
            pid = start(out)
            time.sleep(random.Random(number).uniform(0, seconds))
            os.kill(pid, signal.SIGKILL)
        ended = wait(pid)
        found = [f"ended with {ended}"] if count <= calls and ended != -signal.SIGKILL else []
        results.append(found + wrong(out, reference))
    return results


def pairs(folder: Path, count: int, reference: Any) -> list[list[str]]:
    """The same command twice at once."""
    results = []
    for number in range(count):
        out = folder / f"pair{number}"
        codes = [wait(pid) for pid in (start(out), start(out))]
        results.append(([f"exit codes {codes}: {log(out)[-1:]}"] if any(codes) else []) + wrong(out, reference))
    return results


def stopped_at(call: int, function: str) -> Fault:
    """The process stops and lives on, at a call of a function."""

    def count(name: str) -> None:
        global seen
        seen += name == function
        if name == function and seen == call:
            os.kill(os.getpid(), signal.SIGSTOP)

    return lambda: globals().update(hook=count)


def holders(folder: Path, count: int, reference: Any) -> list[list[str]]:
    """A second command says which process it waits for, and takes over when that one is killed."""
    results = []
    for number in range(count):
        out = folder / f"held{number}"
        first = start(out, stopped_at(2, "fsync"))  # at its first checkpoint
        os.waitpid(first, os.WUNTRACED)
        second = start(out)
        deadline, line = time.monotonic() + 60, f"protonet seed 0: process {first} on {os.uname().nodename} trains it"
        while time.monotonic() < deadline and not any(said.startswith(line) for said in log(out)):
            time.sleep(0.01)
        found = [] if time.monotonic() < deadline else [f"it is not said who holds the run: {log(out)}"]
        os.kill(first, signal.SIGKILL)
        os.waitpid(first, 0)
        code = wait(second)
        results.append(found + ([f"exit code {code}"] if code else []) + wrong(out, reference))
    return results


def pins(folder: Path, count: int, reference: Any) -> list[list[str]]:
    """A folder is another experiment's while a process lives that has pinned it, and not once that is killed."""
    results = []
    for number in range(count):
        out = folder / f"pin{number}"
        first = start(out, stopped_at(2, "after flock"))  # that of the pin, after that of its temporary file
        os.waitpid(first, os.WUNTRACED)
        refused = wait(start(out, ways="2"))
        os.kill(first, signal.SIGKILL)
        os.waitpid(first, 0)
        code = wait(start(out, ways="2"))
        results.append([] if (refused, code) == (2, 0) else [f"exit codes {refused} and {code}: {log(out)[-1:]}"])
    return results


def disks(folder: Path, count: int, reference: Any) -> list[list[str]]:
    """The disk is full from some call on; files may not grow; checkpoints may not be written, or are a file."""
    faults = [
        *(full_at(1 + number) for number in range(count)),
        limited_to(100),
        limited_to(1500),
        denied,
        lambda: None,
    ]
    results = []
    for number, fault in enumerate(faults):
        out = folder / f"disk{number}"
        if number == len(faults) - 1:
            out.mkdir()
            (out / "checkpoints").touch()
        found = untidy(out, wait(start(out, fault)))
        if number == len(faults) - 1:
            (out / "checkpoints").unlink()
        results.append(found + wrong(out, reference))
    return results


def flips(folder: Path, count: int, reference: Any) -> list[list[str]]:
    """A bit of the checkpoint from which training goes on is another one."""
    results = []
    for number in range(count):
        out = folder / f"flip{number}"
        wait(start(out, stopping_after_the_first_checkpoint))
        kept = out / "checkpoints" / "protonet-seed0.safetensors"
        content, draw = bytearray(kept.read_bytes()), random.Random(number)
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        kept.write_bytes(content)
        found = wrong(out, reference)
        noticed = any(line.endswith("it is trained from the beginning") for line in log(out))
        results.append(found + ([] if noticed else ["nothing is said of it"]))
    return results


def stopping_after_the_first_checkpoint() -> None:
    """Killed once the first checkpoint is there."""

    def count(name: str) -> None:
        global seen
        seen += name == "after replace"
        if seen == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    globals().update(hook=count)


def main() -> None:
    """Print what was wrong after each fault, by kind."""
    folder, counts = Path(sys.argv[1]), json.loads(sys.argv[2])
    if wait(start(folder / "reference")):
        sys.exit((folder / "reference.log").read_text())
    reference = state(folder / "reference")
    report.write_report(folder / "reference")  # loads what the forked processes need for it
    kinds = {"kills": kills, "pairs": pairs, "holders": holders, "pins": pins, "disks": disks, "flips": flips}
    print(json.dumps({kind: kinds[kind](folder, count, reference) for kind, count in counts.items()}))


if __name__ == "__main__":
    for module, name in HOOKED:
        setattr(module, name, watch(getattr(module, name), name))
    import torch._dynamo  # noqa: F401 - which the first optimizer of a process loads

    import l2l_hyper.experiment.runner  # noqa: F401 - likewise the first command
    from l2l_hyper import cli, report
    from l2l_hyper.experiment import provenance

    provenance._git_state = lambda package: (None, None)  # somebody may commit in the meantime
    if "--without-report" in sys.argv:
        report.write_report = lambda *arguments, **keywords: None
    main()
