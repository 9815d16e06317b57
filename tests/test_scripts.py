"""learn2learn's own scripts with the line that builds the algorithm swapped, and no other line changed.

The scripts are those of learn2learn's source package, which ``make test`` downloads; nothing is fetched here.  Drawn
data lie on disk in the forms that the scripts read, see ``ondisk.py``.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import json
import math
import os
import random
import re
import socket
import subprocess
import sys
import traceback
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import ondisk
import pytest
import torch
from swapped_scripts import (
    CHERRY,
    EXAMPLES,
    FORMS,
    NEEDS_CHERRY,
    RESULTS,
    ROOT,
    SWAPS,
    on_two_ranks,
    pretend_torchmeta,
    restore_lstsq,
    source,
    summary,
)
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from l2l_hyper._learn2learn import learn2learn

pytestmark = pytest.mark.skipif(
    not EXAMPLES.is_dir() or not CHERRY.is_dir(), reason="no learn2learn scripts; run `make test`, which downloads them"
)


@pytest.mark.parametrize("script", SWAPS)
def test_one_line_changes(script: str) -> None:
    before = (EXAMPLES / script).read_bytes().splitlines(keepends=True)
    after = source(script, "swapped").encode().splitlines(keepends=True)
    changes = [line for line in difflib.diff_bytes(difflib.unified_diff, before, after, n=0) if line[:2] != b"@@"][2:]
    assert [line[:1] for line in changes if line != b"+import l2l_hyper\n"] == [b"-", b"+"]


def test_docs_list_every_script_and_its_line() -> None:
    docs = (ROOT / "docs" / "scripts.md").read_text(encoding="utf-8")
    names = {str(path.relative_to(EXAMPLES)) for path in EXAMPLES.rglob("*.py")}
    assert [name for name in sorted(names) if f"`{name}`" not in docs] == []
    for script in SWAPS:
        (line,) = (line.strip() for line in source(script, "swapped").splitlines() if "l2l_hyper." in line)
        (row,) = (row for row in docs.splitlines() if row.startswith(f"| `{script}`"))
        assert f"`{line}`" in row


@pytest.mark.parametrize("script", SWAPS)
def test_docs_say_what_was_recorded(script: str) -> None:
    docs = (ROOT / "docs" / "scripts.md").read_text(encoding="utf-8")
    (row,) = (row for row in docs.splitlines() if row.startswith(f"| `{script}`"))
    records = [json.loads((RESULTS / f"{Path(script).stem}-{form}.json").read_text()) for form in FORMS]
    assert row.endswith(f"| {summary(records[0])} | {summary(records[1])} |")
    assert records[0]["arguments"] == records[1]["arguments"] and len(records[0]["curve"]) == len(records[1]["curve"])


class Watch:
    """Sees every optimizer step: the gradients are finite, and at the end no parameter has been left without one."""

    def __init__(self) -> None:
        self.steps = 0
        self.without: dict[torch.Tensor, bool] = {}

    def __call__(self, optimizer: Optimizer, *_: Any) -> None:
        self.steps += 1
        for group in optimizer.param_groups:
            for p in group["params"]:
                if p.requires_grad:
                    assert p.grad is None or p.grad.isfinite().all()
                    self.without[p] = self.without.get(p, True) and (p.grad is None or not p.grad.any().item())


VISION = {"ways": 5, "meta_batch_size": 2, "num_iterations": 2, "shots": 1, "cuda": False}
RL = {"num_iterations": 2, "meta_bsz": 2, "adapt_bsz": 2, "num_workers": 2}

# What main() is called with, and what is put in the place of the script's constants, so that it takes seconds.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "vision/maml_omniglot.py": VISION,
    "vision/maml_miniimagenet.py": VISION,
    "vision/anil_fc100.py": {"shots": 1, "adapt_steps": 2, "meta_bsz": 2, "iters": 3, "cuda": 0},
    "vision/meta_mnist.py": {"iterations": 3, "tps": 2, "fas": 2},
    "vision/distributed_maml.py": VISION | {"meta_batch_size": 1},
    "vision/anilkfo_cifarfs.py": VISION | {"adaptation_steps": 2},
    "vision/metacurvature_fc100.py": VISION | {"adaptation_steps": 2},
    "maml_sine.py": {"num_tasks": 12, "tasks_per_batch": 4},
    "rl/maml_dice.py": RL,
    "rl/promp.py": RL | {"env_name": "Particles2D-v1", "adapt_steps": 1, "ppo_steps": 2},
    "rl/metasgd_a2c.py": RL,
}
CONSTANTS: dict[str, dict[str, Any]] = {"maml_toy.py": {"TIMESTEPS": 3, "TASKS_PER_STEP": 4}}

# maml_toy.py takes its outer loss from a proposal made before adapt, so what adapts gets no gradient, whoever wrote it:
# here the hypernetworks of the updates of its two parameters.
WITHOUT_GRADIENT = {"maml_toy.py": 10}


@contextlib.contextmanager
def no_network() -> Iterator[None]:
    def refuse(*_: Any) -> None:
        raise AssertionError("something tried to use the network")

    connect = socket.socket.connect
    socket.socket.connect = refuse  # type: ignore[method-assign]
    try:
        yield
    finally:
        socket.socket.connect = connect  # type: ignore[method-assign]


def run(script: str, **arguments: Any) -> None:
    """Call the swapped script's ``main``, with everything it prints and every step of its optimizers watched."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
    watch = Watch()
    hook = register_optimizer_step_pre_hook(watch)
    module = types.ModuleType(Path(script).stem)
    printed = io.StringIO()
    try:
        # The warnings are about the scripts' age.
        with (
            warnings.catch_warnings(),
            no_network(),
            contextlib.redirect_stdout(printed),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            exec(compile(source(script, "swapped"), script, "exec"), module.__dict__)
            module.__dict__.update(CONSTANTS.get(script, {}))
            module.main(**ARGUMENTS.get(script, {}), **arguments)
    finally:
        hook.remove()
    said = printed.getvalue()
    numbers = [float(n) for n in re.findall(r"(?<![\w.])-?(?:\d+\.\d+(?:e[-+]?\d+)?|nan|inf)\b", said)]
    assert numbers and all(map(math.isfinite, numbers)), said
    assert watch.steps > 1
    without = [tuple(p.shape) for p, missing in watch.without.items() if missing]
    assert len(without) == WITHOUT_GRADIENT.get(script, 0), f"parameters without a gradient, by shape: {without}"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home with the data in ~/data, where the scripts look for them."""
    folder = tmp_path_factory.mktemp("home")
    data = folder / "data"
    data.mkdir()
    for make in (
        ondisk.make_mini_imagenet,
        ondisk.make_fc100,
        ondisk.make_cifarfs,
        ondisk.make_mnist,
        ondisk.make_omniglot,
    ):
        make(data)
    with pytest.MonkeyPatch.context() as patch, ondisk.offline_omniglot(data):
        patch.setenv("HOME", str(folder))
        yield folder


@pytest.mark.parametrize("script", [script for script in SWAPS if script not in NEEDS_CHERRY])
def test_script_runs(script: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if script == "maml_sine.py":
        for name, module in pretend_torchmeta().items():
            monkeypatch.setitem(sys.modules, name, module)
    run(script)


@pytest.fixture(scope="module")
def with_cherry(home: Path) -> dict[str, str]:
    """What went wrong in each script that needs cherry-rl, all run in one process of another gym; nothing, if well."""
    folders = [str(folder) for folder in (CHERRY, EXAMPLES / "rl", Path(__file__).parent, ROOT / "benchmarks", ROOT)]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", "import test_scripts; test_scripts.run_with_cherry()"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(folders)},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    wrong: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return wrong


def run_with_cherry() -> None:
    torch.set_num_threads(1)
    restore_lstsq()
    wrong = dict.fromkeys(NEEDS_CHERRY, "")
    learn2learn()
    for script in NEEDS_CHERRY:
        try:
            if script == "vision/distributed_maml.py":
                on_two_ranks(lambda rank, script=script: run(script, rank=rank, seed=rank))
            else:
                run(script)
        except BaseException:
            wrong[script] = traceback.format_exc()
    print(json.dumps(wrong))


@pytest.mark.parametrize("script", NEEDS_CHERRY)
def test_script_with_cherry_runs(script: str, with_cherry: dict[str, str]) -> None:
    assert with_cherry[script] == "", with_cherry[script]
