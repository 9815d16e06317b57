"""Checkpoints that are either whole or not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..errors import InputError
from ..files import replacing
from .config import Run

__all__ = ["checkpoint_path", "load_checkpoint", "save_checkpoint"]


def checkpoint_path(folder: Path, run: Run) -> Path:
    """Where the checkpoint of a run lies in the folder of its comparison."""
    return folder / "checkpoints" / f"{run.name}.pt"


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` in one step, so a kill leaves the old checkpoint or the new one.

    Raises:
        InputError: when the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            torch.save(state, file)
    except OSError as error:
        raise InputError(f"cannot write {path} ({error.strerror}): make room or try another --out") from error


def load_checkpoint(path: Path, device: torch.device) -> dict[str, Any]:
    """Read what :func:`save_checkpoint` wrote.

    Raises:
        InputError: if the file is damaged.
    """
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises several kinds for a damaged file
        raise InputError(
            f"expected a checkpoint in {path}, got a damaged file ({type(error).__name__}); "
            "remove it to train this run from the start"
        ) from error
