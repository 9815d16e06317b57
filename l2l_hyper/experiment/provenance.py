"""Where a record comes from: the command, the commit and the environment, without a path of the machine."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from .._version import __version__

__all__ = ["Provenance", "collect", "public_command"]


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What a record says about how it was made."""

    command: str
    commit: str | None
    dirty: bool | None
    package_version: str
    environment: dict[str, Any]


def collect(command: str, device: str) -> Provenance:
    """Describe this process: call it when a command starts, before anyone can commit something else."""
    commit, dirty = _git_state(Path(__file__).resolve().parents[1])
    return Provenance(
        command=command,
        commit=commit,
        dirty=dirty,
        package_version=__version__,
        environment=_environment(device),
    )


def public_command(arguments: Sequence[str], *, program: str = "l2l-hyper") -> str:
    """The command line as anyone may repeat it: the data root and absolute paths only by their last name.

    >>> public_command(["compare", "--data-root", "/home/me/data", "--out", "runs/a"])
    'l2l-hyper compare --data-root data --out runs/a'
    """
    shown, after_data_root = shlex.split(program), False
    for argument in arguments:
        argument = os.fsencode(argument).decode(errors="replace")  # a file's name may be any bytes, a record is text
        flag, equals, value = argument.partition("=")
        value = value if equals else argument
        is_data_root = after_data_root or (flag == "--data-root" and equals)
        if is_data_root or value.startswith("~") or Path(value).is_absolute():
            value = Path(value).name or "."
        shown.append(f"{flag}={value}" if equals else value)
        after_data_root = argument == "--data-root"
    return shlex.join(shown)


def _git_state(package: Path) -> tuple[str | None, bool | None]:
    """Commit of the repository that tracks the package, and whether the package differs from it.

    Where only a copy of the files is, the environment variable ``L2L_HYPER_COMMIT`` may name the commit.
    """

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(package), *arguments], capture_output=True, text=True, check=True, timeout=30
        )
        return done.stdout.strip()

    try:
        # An installed copy may lie inside somebody else's repository; its commit would say nothing about us.
        git("ls-files", "--error-unmatch", "__init__.py")
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--", "."))
    except (OSError, subprocess.SubprocessError):
        return os.environ.get("L2L_HYPER_COMMIT"), None


def _environment(device: str) -> dict[str, Any]:
    import torch

    from .. import kernels

    on_gpu = device.startswith("cuda")
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "learn2learn": _installed("learn2learn"),
        "numpy": _installed("numpy"),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_model(),
        "cpu_count": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "kernels": kernels.enabled(),
        "device": device,
        "gpu": torch.cuda.get_device_name(torch.device(device)) if on_gpu else None,
        "cuda": torch.version.cuda if on_gpu else None,
    }


def _installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()
