"""The package as a user meets it: what importing it costs, what it declares, what ``make install`` says."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import l2l_hyper

ROOT = Path(__file__).resolve().parents[1]


def python(code: str) -> subprocess.CompletedProcess[str]:
    # -W default: a library's warning would be seen on stderr, as it may be by a user.
    command = [sys.executable, "-W", "default", "-c", code]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_import_is_quiet_light_and_quick() -> None:
    """Nothing is printed, nothing is imported but torch, what torch imports, and the standard library.

    And beside importing torch, which takes seconds, importing the package and its learners is not noticed.
    """
    done = python(
        "import sys, time; start = time.perf_counter(); import torch; before = set(sys.modules)\n"
        "middle = time.perf_counter(); import l2l_hyper; new = set(sys.modules) - before\n"
        "l2l_hyper.HyperAdapter; end = time.perf_counter()\n"
        "roots = {name.split('.')[0] for name in new} - sys.stdlib_module_names\n"
        "if roots != {'l2l_hyper'}:\n    sys.exit(f'also imported: {sorted(roots)}')\n"
        "if end - middle > 0.25 * (middle - start):\n    sys.exit(f'takes {end - middle} s')"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    done = python("import sys, l2l_hyper; print(*sys.modules)")
    heavy = {
        "torch",
        "gym",
        "higher",
        "huggingface_hub",
        "learn2learn",
        "matplotlib",
        "pytorch_lightning",
        "rich",
        "scipy",
        "torchvision",
        "typer",
    }
    assert heavy.isdisjoint(done.stdout.split())
    assert done.stderr == ""


def test_public_names_are_there_when_asked_for() -> None:
    assert set(l2l_hyper.__all__) <= set(dir(l2l_hyper))
    assert all(getattr(l2l_hyper, name) is not None for name in l2l_hyper.__all__)
    for name in ("backbones", "bridge", "data", "experiment", "functional", "hypernet", "kernels", "methods", "report"):
        module = getattr(l2l_hyper, name)
        assert module.__name__ == f"l2l_hyper.{name}"
        assert all(hasattr(module, public) for public in module.__all__)
    with pytest.raises(AttributeError, match="module 'l2l_hyper' has no attribute 'HyperAdaptor'"):
        _ = l2l_hyper.HyperAdaptor  # type: ignore[attr-defined]


def test_old_names_warn_and_work(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.warns(DeprecationWarning, match="TaskNorm is the old name of EpisodicBatchNorm"):
        assert l2l_hyper.TaskNorm is l2l_hyper.EpisodicBatchNorm
    places = {
        "tasks": ["Episodes", "TensorTaskset", "get_tasksets", "manifest", "convert", "register", "SampledTaskset"],
        "optim": ["HyperTransform"],
        "lightning": ["LightningHyperAdapter", "TrackTestAccuracyCallback"],
    }
    for old, names in places.items():
        monkeypatch.delitem(sys.modules, f"l2l_hyper.{old}", raising=False)
        monkeypatch.delitem(vars(l2l_hyper), old, raising=False)
        with pytest.warns(DeprecationWarning, match=f"l2l_hyper.{old} is the old name of l2l_hyper"):
            module = getattr(l2l_hyper, old)
        assert all(hasattr(module, name) for name in names)
    model = torch.nn.Linear(3, 2)
    with pytest.warns(DeprecationWarning, match=r"HyperAdapter\(start=\) is the old name of base_learner="):
        assert l2l_hyper.HyperAdapter(model, start="base").method.options.base_learner == "own"
    with pytest.warns(DeprecationWarning, match=r"HyperAdapter\(change=\) is the old name of modulation="):
        assert l2l_hyper.HyperAdapter(model, change="both").method.options.modulation == "both"


def test_version_is_told_the_same_everywhere() -> None:
    version = l2l_hyper.__version__
    assert importlib.metadata.version("l2l-hyper") == version
    cited = re.search(
        rf"\nversion: {version}\ndate-released: (\S+)\n", (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    )
    assert cited is not None
    assert f"version = {{{version}}}" in (ROOT / "docs" / "citation.md").read_text(encoding="utf-8")
    assert f"\n## [{version}] - {cited[1]}\n" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_command_line_is_declared() -> None:
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="l2l-hyper")
    assert script.value == "l2l_hyper.__main__:main"
    assert callable(script.load())


def test_files_beside_the_code_are_packaged() -> None:
    """Every file in the package that is not Python is one of the kinds that setup.cfg ships."""
    declared = re.search(r"\[options\.package_data\]\n\* = (.*)\n", (ROOT / "setup.cfg").read_text(encoding="utf-8"))
    assert declared is not None
    patterns = declared[1].split(", ")
    files = [path for path in (ROOT / "l2l_hyper").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert ROOT / "l2l_hyper" / "py.typed" in files
    assert [p.name for p in files if p.suffix != ".py" and not any(p.match(pattern) for pattern in patterns)] == []


needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def make(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a copy of the Makefile in ``folder``, free of the make that may be running these tests."""
    for name in ("Makefile", "setup.cfg", "pyproject.toml"):
        if not (folder / name).exists():
            shutil.copy2(ROOT / name, folder)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    command = [shutil.which("make") or "make", *arguments]
    return subprocess.run(
        command, cwd=folder, env=inherited | environment, capture_output=True, text=True, timeout=60, check=False
    )


def script(path: Path, body: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def pretend(path: Path, *statements: str) -> Path:
    """A Python 3.12 with pip, but for what ``statements`` change; it runs what ``-c`` gives it, and nothing else."""
    usual = ["import sys, sysconfig", "sys.version_info = (3, 12, 0)", "sys.modules['pip'] = sys"]
    prelude = "; ".join([*usual, *statements])
    return script(path, f'[ "$1" = -c ] || exit 9\nexec {sys.executable} -c "{prelude}\n$2"')


@needs_make
@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        (
            "sys.version_info = (3, 9, 18)",
            r"needs Python 3\.10 to 3\.13, \S+ is 3\.9; name another: make install PYTHON=",
        ),
        (
            "sys.version_info = (3, 14, 0)",
            r"needs Python 3\.10 to 3\.13, \S+ is 3\.14; name another: make install PYTHON=",
        ),
        ("sys.modules['pip'] = None", r"lacks pip or venv; install them"),
        ("sysconfig.get_paths = lambda: {'include': '/nowhere'}", r"no /nowhere/Python\.h.*; install the headers"),
    ],
)
def test_install_says_what_is_missing(tmp_path: Path, statement: str, expected: str) -> None:
    """One line says what was expected, what arrived and what to try; nothing is left behind."""
    done = make(tmp_path, "install", f"PYTHON={pretend(tmp_path / 'bin' / 'python', statement)}")
    said, of_make = done.stderr.strip().splitlines()
    assert re.search(expected, said)
    assert of_make.startswith("make: ***")
    assert done.returncode != 0
    assert not (tmp_path / ".venv").exists()


@needs_make
def test_install_without_python_or_compiler(tmp_path: Path) -> None:
    done = make(tmp_path, "install", "PYTHON=python-that-is-not-there")
    assert "no python-that-is-not-there found; name a Python 3.10 to 3.13" in done.stderr
    done = make(tmp_path, "install", f"PYTHON={pretend(tmp_path / 'bin' / 'python')}", PATH=str(tmp_path / "empty"))
    assert "no C compiler found" in done.stderr
    assert not (tmp_path / ".venv").exists()


@needs_make
def test_install_is_reused_until_what_it_reads_changes(tmp_path: Path) -> None:
    """A second run installs nothing; one after setup.cfg has changed installs again, into the same environment."""
    log = tmp_path / "log"
    script(tmp_path / ".venv" / "bin" / "uv", f'echo "$@" >> {log}')
    script(tmp_path / ".venv" / "bin" / "python", "echo Python 3.12.0")
    for _ in range(2):
        done = make(tmp_path, "install")
        assert done.returncode == 0, done.stderr
        assert "installed: .venv is ready (Python 3.12.0)" in done.stdout
    assert log.read_text(encoding="utf-8") == "pip install --python .venv/bin/python --editable .[dev]\n"
    os.utime(tmp_path / ".venv" / ".installed", (0, 0))
    make(tmp_path, "install")
    assert len(log.read_text(encoding="utf-8").splitlines()) == 2


@needs_make
def test_a_failed_install_is_tried_again(tmp_path: Path) -> None:
    script(tmp_path / ".venv" / "bin" / "uv", "exit 3")
    script(tmp_path / ".venv" / "bin" / "python", "echo Python 3.12.0")
    assert make(tmp_path, "install").returncode != 0
    assert not (tmp_path / ".venv" / ".installed").exists()
