"""From the command line, and from Python, to the formula of the default method it is a short way to read."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch

import l2l_hyper
from l2l_hyper.cli import main
from l2l_hyper.methods.base_learners import Cosine

PACKAGE = Path(l2l_hyper.__file__).parent
SETTINGS = {
    "channels": 8,
    "iterations": 1,
    "meta_batch": 2,
    "train_ways": 5,
    "queries": 2,
    "validation_episodes": 2,
    "test_episodes": 2,
}


def stacks_in_training(start: Callable[[], Any]) -> list[list[str]]:
    """The package's own frames, outermost first, each time that the base learner computes with gradients."""
    stacks: list[list[str]] = []

    def observe(frame: FrameType | None, event: str, argument: object) -> None:
        if event != "call" or frame is None or frame.f_code is not Cosine.forward.__code__:
            return
        if not torch.is_grad_enabled():  # the one iteration is done
            sys.setprofile(before)
            return
        stack: list[str] = []
        while frame is not None:
            path = Path(frame.f_code.co_filename)
            if path.is_relative_to(PACKAGE):
                stack.insert(0, f"{path.relative_to(PACKAGE).as_posix()}: {frame.f_code.co_name}")
            frame = frame.f_back
        stacks.append(stack)

    before = sys.getprofile()
    sys.setprofile(observe)
    try:
        start()
    finally:
        sys.setprofile(before)
    return stacks


def command_line(out: Path) -> None:
    """One iteration of the default method through ``l2l-hyper compare``."""
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in SETTINGS.items()]
    with pytest.raises(SystemExit) as exit:
        main(["compare", "--out", str(out), "--methods", "hyper-adapter", *flags])
    assert not exit.value.code


def python(out: Path) -> None:
    """The same through ``l2l_hyper.compare``."""
    l2l_hyper.compare(methods=["hyper-adapter"], out=out, **SETTINGS)


@pytest.mark.parametrize(("start", "first"), [(command_line, "cli.py: main"), (python, "experiment/api.py: compare")])
def test_at_most_eight_frames_to_the_formula(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: Callable[[Path], None], first: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["l2l-hyper"])
    stacks = stacks_in_training(lambda: start(tmp_path))
    assert len(stacks) >= 1
    for stack in stacks:
        assert stack[0] == first and stack[-1] == "methods/base_learners.py: forward"
        assert len(stack) <= 8, "\n".join(stack)
