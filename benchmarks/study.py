"""Run the l2l-hyper commands of a file, several at a time, each with a log; given again, each goes on where it was.

    python benchmarks/study.py benchmarks/studies/cifarfs.txt --jobs 6 --logs runs/logs -- --device cuda

One command per line, as it would be typed: `l2l-hyper compare --preset ... --out ...`.  `{a,b}` stands for one command
with a and one with b.  A line `wait` lets what follows begin when all before it have succeeded.  What stands after `--`
is added to every command.  Blank lines and what follows a `#` are left out.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import shlex
import subprocess
import sys
import time
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

__all__ = ["main", "read_study", "run_stage"]


def read_study(text: str) -> list[list[list[str]]]:
    """Stages of commands, each the arguments of l2l-hyper.

    >>> read_study("l2l-hyper compare --seeds {0,1}  # two\\nwait\\nl2l-hyper list")
    [[['compare', '--seeds', '0'], ['compare', '--seeds', '1']], [['list']]]
    """
    stages: list[list[list[str]]] = [[]]
    for line in text.splitlines():
        words = shlex.split(line, comments=True)
        if words == ["wait"]:
            stages.append([])
        elif words:
            if words[0] != "l2l-hyper":
                raise SystemExit(f"expected 'l2l-hyper ...' or 'wait' in a study, got {line!r}")
            stages[-1] += [list(command) for command in itertools.product(*map(_alternatives, words[1:]))]
    return stages


def _alternatives(word: str) -> list[str]:
    """The words that ``{a,b}`` in a word stands for; ``{seed}``, without a comma, stays."""
    found = re.search(r"\{([^{}]*,[^{}]*)\}", word)
    if found is None:
        return [word]
    return [
        w for part in found[1].split(",") for w in _alternatives(word[: found.start()] + part + word[found.end() :])
    ]


def run_stage(commands: Sequence[Sequence[str]], jobs: int, logs: Path, deadline: float | None = None) -> list[str]:
    """Run commands of l2l-hyper, at most ``jobs`` at a time, and return the names of those that did not succeed.

    What still runs at the deadline, in the seconds of ``time.monotonic``, is killed; its last checkpoint stays.
    """
    logs.mkdir(parents=True, exist_ok=True)
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    environment = {"OMP_NUM_THREADS": threads, "PYTHONUNBUFFERED": "1", **os.environ}

    def run(command: Sequence[str]) -> str | None:
        name, begin = _name(command), time.monotonic()
        with open(logs / f"{name}.log", "a", encoding="utf-8") as log:
            print("$ l2l-hyper", shlex.join(command), file=log, flush=True)
            arguments = [sys.executable, "-m", "l2l_hyper", *command]
            left = None if deadline is None else max(0.0, deadline - begin)
            try:
                code = subprocess.run(arguments, stdout=log, stderr=log, env=environment, timeout=left).returncode
                outcome = "done" if code == 0 else f"FAILED with code {code}, see {log.name}"
            except subprocess.TimeoutExpired:
                outcome = "STOPPED, no time left"
        print(f"{name}: {outcome} after {time.monotonic() - begin:.0f} s", flush=True)
        return None if outcome == "done" else name

    with ThreadPoolExecutor(jobs) as pool:
        return [name for name in pool.map(run, commands) if name is not None]


def _name(command: Sequence[str]) -> str:
    """A name for the log: what a command is about, and a number that tells it from others."""
    values = [
        Path(value).stem for flag, value in itertools.pairwise(command) if flag in ("--out", "--methods", "--seeds")
    ]
    return re.sub(r"[^\w.,=+@-]", "_", "-".join([*values, f"{zlib.crc32(shlex.join(command).encode()):08x}"]))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a study; 1 if a command of it failed."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    at = given.index("--") if "--" in given else len(given)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="file of commands")
    parser.add_argument("--jobs", type=int, default=1, help="commands at a time (1)")
    parser.add_argument("--logs", type=Path, default=Path("runs/logs"), help="folder of logs (runs/logs)")
    parser.add_argument("--seconds", type=float, help="kill what still runs after so many")
    options = parser.parse_args(given[:at])
    deadline = None if options.seconds is None else time.monotonic() + options.seconds
    for stage in read_study(options.study.read_text(encoding="utf-8")):
        failed = run_stage([[*command, *given[at + 1 :]] for command in stage], options.jobs, options.logs, deadline)
        if failed:
            print(f"not done: {', '.join(failed)}; give the same command again", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
