"""Run a script of learn2learn as it is and with its line swapped, and plot both learning curves.

    python benchmarks/swapped_scripts.py vision/maml_omniglot.py --data-root ~/data num_iterations=300

The script is one of those that `make test` downloads into .venv; its ``main`` gets the arguments that follow.  What it
prints about the validation tasks is the record, one file for each of the two runs; a run with a record is not repeated.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import re
import sys
import tempfile
import time
import types
import warnings
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.ndimage import uniform_filter1d

from l2l_hyper._learn2learn import learn2learn
from l2l_hyper.compare.provenance import collect

ROOT = Path(__file__).resolve().parents[1]
LABELS = {"MAML": "as it is: l2l.algorithms.MAML", "HyperAdapter": "swapped: l2l_hyper.HyperAdapter"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("script", help="below examples/, such as vision/maml_omniglot.py")
    parser.add_argument("arguments", nargs="*", help="of the script's main, NAME=NUMBER")
    parser.add_argument("--examples", type=Path, default=ROOT / ".venv" / "learn2learn-0.2.0" / "examples")
    parser.add_argument("--data-root", type=Path, required=True, help="what the script's ~/data is")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "swapped-scripts")
    args = parser.parse_intermixed_args()
    arguments = {name: json.loads(value) for name, _, value in (pair.partition("=") for pair in args.arguments)}
    args.out.mkdir(parents=True, exist_ok=True)
    records = {name: run(name, args, arguments) for name in LABELS}
    plot(args.script, records).savefig(args.out / f"{Path(args.script).stem}.png", dpi=150)
    for name, record in records.items():
        print(f"{LABELS[name]}: test accuracy {100 * record['test_accuracy']:.2f} %, {record['seconds']:.0f} s")


def run(algorithm: str, args: argparse.Namespace, arguments: dict[str, float]) -> dict[str, object]:
    file = args.out / f"{Path(args.script).stem}-{algorithm}.json"
    if file.exists():
        record = json.loads(file.read_text())
        if (record["script"], record["arguments"]) != (args.script, arguments):
            sys.exit(f"expected the record of these arguments in {file}, got others; name another --out")
        return record
    provenance = asdict(collect(sys.argv[1:], "cpu"))
    provenance["command"] = "python benchmarks/swapped_scripts.py " + " ".join([args.script, *args.arguments])
    source = (args.examples / args.script).read_text()
    if algorithm == "HyperAdapter":
        source, swaps = re.subn(r"l2l\.algorithms\.MAML\(", "l2l_hyper.HyperAdapter(", source)
        assert swaps == 1
        source = source.replace("import learn2learn as l2l\n", "import learn2learn as l2l\nimport l2l_hyper\n")
    begin = time.perf_counter()
    printed = execute(source, args.script, arguments, args.data_root)
    record = {
        "script": args.script,
        "arguments": arguments,
        "algorithm": algorithm,
        **provenance,
        "seconds": time.perf_counter() - begin,
        "validation_accuracy": [float(a) for a in re.findall(r"Meta Valid Accuracy (\S+)", printed)],
        "test_accuracy": float(re.findall(r"Meta Test Accuracy (\S+)", printed)[-1]),
    }
    file.write_text(json.dumps(record) + "\n")
    return record


def execute(source: str, script: str, arguments: dict[str, float], data_root: Path) -> str:
    """What the script prints, with its home a folder whose data/ is ``data_root``; shown on the screen meanwhile."""
    learn2learn()
    module = types.ModuleType(Path(script).stem)
    printed = Tee()
    home = os.environ.get("HOME", "")
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), contextlib.redirect_stdout(printed):
        warnings.simplefilter("ignore")
        os.environ["HOME"] = folder
        Path(folder, "data").symlink_to(data_root.expanduser().resolve())
        accept_omniglot_as_it_lies(data_root)
        try:
            exec(compile(source, script, "exec"), module.__dict__)
            module.main(**arguments)
        finally:
            os.environ["HOME"] = home
    return printed.getvalue()


class Tee(io.StringIO):
    """Keeps what is printed, and prints it."""

    def write(self, text: str) -> int:
        sys.__stdout__.write(text)
        sys.__stdout__.flush()
        return super().write(text)


def accept_omniglot_as_it_lies(data_root: Path) -> None:
    """torchvision downloads Omniglot again if the bytes of its archives differ, even where the images do not."""
    from torchvision.datasets import Omniglot

    archives = {part: data_root.expanduser() / "omniglot-py" / f"{part}.zip" for part in Omniglot.zips_md5}
    if all(archive.exists() for archive in archives.values()):
        Omniglot.zips_md5 = {part: hashlib.md5(a.read_bytes()).hexdigest() for part, a in archives.items()}


def plot(script: str, records: dict[str, dict[str, object]]) -> Figure:
    """Validation accuracy of every iteration, faint, and its running mean."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for (name, record), color in zip(records.items(), ("#777777", "#c1440e"), strict=True):
        accuracy = 100 * np.array(record["validation_accuracy"])
        iterations = 1 + np.arange(len(accuracy))
        axes.plot(iterations, accuracy, color=color, alpha=0.2, linewidth=1)
        axes.plot(iterations, uniform_filter1d(accuracy, 15), color=color, linewidth=2, label=LABELS[name])
    given = ", ".join(f"{name}={value}" for name, value in records["MAML"]["arguments"].items())
    axes.set(xlabel="iterations", ylabel="validation accuracy in %", xlim=(0, None))
    axes.set_title(f"{script}, {given}", fontsize=10)
    axes.legend(frameon=False, loc="lower right")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
