"""Run a script of learn2learn as it is and with its line swapped, record what it prints, and plot all that is recorded.

    python benchmarks/swapped_scripts.py vision/maml_omniglot.py --data-root ~/data num_iterations=300 cuda=0

Nothing is downloaded.  The scripts are those that `make test` downloads into .venv; the ``main`` of one gets the
arguments that follow.  A run with a record is not repeated.  Where no data set is to be had,
`python tests/ondisk.py DIR` draws small ones.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import math
import multiprocessing
import os
import random
import re
import subprocess
import sys
import tempfile
import textwrap
import time
import types
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.ndimage import uniform_filter1d

from l2l_hyper._learn2learn import learn2learn
from l2l_hyper.experiment.provenance import collect
from l2l_hyper.report.style import WIDTH, draw_legend, render, styled

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / ".venv" / "learn2learn-0.2.0"
EXAMPLES = PACKAGE / "examples"
CHERRY = PACKAGE / "cherry"  # cherry-rl, and the last gym that it works with
RESULTS = ROOT / "benchmarks" / "results" / "swapped-scripts"

MAML = (r"l2l\.algorithms\.MAML\(", "l2l_hyper.HyperAdapter(")
MAML_SGD = (r"l2l\.algorithms\.MAML\(", "l2l_hyper.HyperSGD(")

SWAPS = {
    "vision/maml_omniglot.py": MAML,
    "vision/maml_miniimagenet.py": MAML,
    "vision/anil_fc100.py": MAML,
    "vision/meta_mnist.py": MAML,
    "vision/distributed_maml.py": MAML,
    "vision/anilkfo_cifarfs.py": (
        r"l2l\.optim\.transforms\.KroneckerTransform\(l2l\.nn\.KroneckerLinear\)",
        "l2l_hyper.bridge.HyperTransform",
    ),
    "vision/metacurvature_fc100.py": (r"=MetaCurvatureTransform", "=l2l_hyper.bridge.HyperTransform"),
    "optimization/hypergrad_mnist.py": (r"=HypergradTransform", "=l2l_hyper.bridge.HyperTransform"),
    "maml_sine.py": (r"l2l\.algorithms\.MAML\((.*)\)", r'l2l_hyper.HyperAdapter(\1, base_learner="ridge")'),
    "maml_toy.py": MAML_SGD,
    "rl/maml_dice.py": MAML_SGD,
    "rl/promp.py": MAML_SGD,
    "rl/metasgd_a2c.py": (r"l2l\.algorithms\.MetaSGD\(", "l2l_hyper.HyperSGD("),
}
NEEDS_CHERRY = [script for script in SWAPS if script.startswith("rl/") or script == "vision/distributed_maml.py"]

FORMS = {"as-it-is": "#777777", "swapped": "#c1440e"}  # and their colours
VALIDATION = ("validation accuracy", r"Meta Valid Accuracy (\S+)")
REWARD = ("reward", r"adaptation_reward (\S+)")
CURVES = dict.fromkeys(SWAPS, VALIDATION) | {
    "vision/meta_mnist.py": ("query accuracy", r"Acc : (\S+)"),
    "optimization/hypergrad_mnist.py": ("test accuracy", r"Accuracy: (\S+)"),
    "maml_sine.py": ("query loss", r"Meta Train Loss (\S+)"),
    "maml_toy.py": ("loss", r"(?m)^\d+ (\S+)$"),
    "rl/maml_dice.py": REWARD,
    "rl/promp.py": REWARD,
    "rl/metasgd_a2c.py": REWARD,
}


def source(script: str, form: str) -> str:
    """The script's text; swapped, with ``import l2l_hyper`` put below the import of learn2learn."""
    if not EXAMPLES.is_dir():
        sys.exit(f"expected learn2learn's scripts in {EXAMPLES}: `make test` downloads them, once")
    text = (EXAMPLES / script).read_text(encoding="utf-8")
    if form == "swapped":
        pattern, replacement = SWAPS[script]
        text, algorithms = re.subn(pattern, replacement, text)
        text, imports = re.subn(r"^import learn2learn as l2l\n", r"\g<0>import l2l_hyper\n", text, flags=re.M)
        assert (algorithms, imports) == (1, 1)
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("script", choices=SWAPS, metavar="SCRIPT", help="below examples/: vision/maml_omniglot.py")
    parser.add_argument("arguments", nargs="*", help="of the script's main, NAME=VALUE")
    parser.add_argument("--data-root", type=Path, required=True, help="what the script's ~/data is")
    parser.add_argument("--form", choices=FORMS, help="only this one; both without")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_intermixed_args()
    arguments = {name: number_or_text(value) for name, _, value in (pair.partition("=") for pair in args.arguments)}
    args.out.mkdir(parents=True, exist_ok=True)
    for form in [args.form] if args.form else FORMS:
        record = run(args.script, form, arguments, args.data_root, args.out)
        print(f"{form}: {summary(record)}, {record['seconds']:.0f} s")
    for form in ("png", "pdf"):
        (args.out / f"curves.{form}").write_bytes(render(plot(args.out), form))


def number_or_text(value: str) -> Any:
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value


def run(script: str, form: str, arguments: dict[str, Any], data_root: Path, out: Path) -> dict[str, Any]:
    file = out / f"{Path(script).stem}-{form}.json"
    if file.exists():
        record: dict[str, Any] = json.loads(file.read_text())
        if (record["script"], record["arguments"]) != (script, arguments):
            sys.exit(f"expected the record of these arguments in {file}, got others; name another --out")
        return record
    given = [f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in arguments.items()]
    command = " ".join(["python benchmarks/swapped_scripts.py", script, *given])
    provenance = asdict(collect(command, "cpu"))
    begin = time.perf_counter()
    printed = show(script, form, arguments, data_root)
    _, pattern = CURVES[script]
    record = {"script": script, "form": form, "arguments": arguments, **provenance}
    record |= {"seconds": time.perf_counter() - begin, "curve": [float(n) for n in re.findall(pattern, printed)]}
    file.write_text(json.dumps(record) + "\n")
    return record


def show(script: str, form: str, arguments: dict[str, Any], data_root: Path) -> str:
    """What the script prints, in a process whose home is a folder with ``data_root`` as data/; shown meanwhile."""
    folders = [CHERRY] * (script in NEEDS_CHERRY) + [EXAMPLES / "rl", Path(__file__).parent, ROOT]
    call = f"import swapped_scripts as s; s.execute({script!r}, {form!r}, {arguments!r})"
    printed = []
    with tempfile.TemporaryDirectory() as home, tempfile.TemporaryFile("w+") as errors:
        Path(home, "data").symlink_to(data_root.expanduser().resolve())
        env = os.environ | {"HOME": home, "PYTHONPATH": os.pathsep.join(map(str, folders))}
        command = [sys.executable, "-u", "-W", "ignore", "-c", call]
        with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=errors, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                printed.append(line)
                print(line, end="", flush=True)
        errors.seek(0)
        reason = (errors.read().splitlines() or ["no message"])[-1]
    if process.returncode:
        sys.exit(f"expected {script} to end well, got exit status {process.returncode} ({reason})")
    return "".join(printed)


def execute(script: str, form: str, arguments: dict[str, Any]) -> None:
    """Call the script's ``main``, in this process or, where it asks for ranks, in two."""
    torch.set_num_threads(1)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
    learn2learn()
    restore_lstsq()
    accept_omniglot_as_it_lies()
    sys.modules.update(pretend_torchmeta())
    module = types.ModuleType(Path(script).stem)
    exec(compile(source(script, form), script, "exec"), module.__dict__)
    if script == "vision/distributed_maml.py":
        on_two_ranks(lambda rank: module.main(**arguments, rank=rank, seed=rank))
    else:
        module.main(**arguments)
    sys.stdout.flush()
    for process in multiprocessing.active_children():  # environments of rl/, which its scripts never end
        process.kill()
    os._exit(0)


def restore_lstsq() -> None:
    """cherry-rl 0.1.4 calls what PyTorch has dropped since; cherry-rl 0.2.0 has dropped what the scripts call."""
    setattr(torch, "lstsq", lambda b, a: (torch.linalg.lstsq(a, b).solution, None))  # noqa: B010


def accept_omniglot_as_it_lies() -> None:
    """torchvision downloads Omniglot again if the bytes of its archives differ, even where the images do not."""
    from torchvision.datasets import Omniglot

    archives = {part: Path.home() / "data" / "omniglot-py" / f"{part}.zip" for part in Omniglot.zips_md5}
    if all(archive.exists() for archive in archives.values()):
        Omniglot.zips_md5 = {part: hashlib.md5(a.read_bytes()).hexdigest() for part, a in archives.items()}


def pretend_torchmeta() -> dict[str, types.ModuleType]:
    """The two names that maml_sine.py takes from torchmeta, which asks for a torch of 2021 and does not import now."""

    class Sinusoid:
        def __init__(self, num_samples_per_task: int, num_tasks: int) -> None:
            self.samples, self.tasks = num_samples_per_task, num_tasks

    def loader(data: Sinusoid, batch_size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for _ in range(data.tasks // batch_size):
            amplitude = torch.empty(batch_size, 1, 1, dtype=torch.double).uniform_(0.1, 5.0)
            phase = torch.empty(batch_size, 1, 1, dtype=torch.double).uniform_(0, math.pi)
            x = torch.empty(batch_size, data.samples, 1, dtype=torch.double).uniform_(-5.0, 5.0)
            yield x, amplitude * torch.sin(x - phase)

    names: dict[str, dict[str, Any]] = {
        "torchmeta": {},
        "torchmeta.toy": {"Sinusoid": Sinusoid},
        "torchmeta.utils": {},
        "torchmeta.utils.data": {"BatchMetaDataLoader": loader},
    }
    modules = {name: types.ModuleType(name) for name in names}
    for name, module in modules.items():
        module.__dict__.update(names[name])
    return modules


def on_two_ranks(call: Callable[[int], None]) -> None:
    """Two processes with one rank each; the script's own meeting place is a file in its author's home."""
    with tempfile.TemporaryDirectory() as folder:
        processes = torch.multiprocessing.get_context("fork")
        ranks = [processes.Process(target=on_rank, args=(call, Path(folder, "meet"), rank)) for rank in range(2)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
    assert [process.exitcode for process in ranks] == [0, 0]


def on_rank(call: Callable[[int], None], meet: Path, rank: int) -> None:
    torch.distributed.init_process_group("gloo", init_method=meet.as_uri(), rank=rank, world_size=2)
    call(rank)
    torch.distributed.destroy_process_group()


def summary(record: dict[str, Any]) -> str:
    """``validation accuracy 0.54 → 0.71``: means over the first and the last tenth of what the script printed."""
    name, _ = CURVES[record["script"]]
    tenth = max(1, len(record["curve"]) // 10)
    first, last = np.mean(record["curve"][:tenth]), np.mean(record["curve"][-tenth:])
    return f"{name} {first:.3g} → {last:.3g}"


@styled
def plot(out: Path) -> Figure:
    """A panel for each script with records: what every iteration printed, faint, and its running mean."""
    stems = {Path(script).stem: script for script in SWAPS if any(out.glob(f"{Path(script).stem}-*.json"))}
    columns = min(3, len(stems))
    rows = math.ceil(len(stems) / columns)
    figure = Figure(figsize=(1.2 * WIDTH, 0.4 + 1.8 * rows))
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for stem, axes in zip(stems, panels, strict=False):
        for form, color in FORMS.items():
            with contextlib.suppress(FileNotFoundError):
                record = json.loads((out / f"{stem}-{form}.json").read_text())
                curve = np.array(record["curve"])
                iterations = 1 + np.arange(len(curve))
                axes.plot(iterations, curve, color=color, alpha=0.2, linewidth=0.7)
                smooth = uniform_filter1d(curve, max(1, len(curve) // 20), mode="nearest")
                axes.plot(iterations, smooth, color=color, label=form.replace("-", " "))
                given = ", ".join(f"{name}={value}" for name, value in record["arguments"].items())
                axes.set_title("\n".join([stems[stem], *textwrap.wrap(given, 34)]), fontsize=6)
        axes.set(xlabel="printed line", xlim=(0, None))
        axes.set_ylabel(CURVES[stems[stem]][0], fontsize=7)
    for axes in panels:
        axes.set_visible(False)
    draw_legend(figure)
    return figure


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
