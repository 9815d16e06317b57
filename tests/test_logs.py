"""Logs of long runs: the file beside the records, TensorBoard, Weights & Biases, and one's own."""

from __future__ import annotations

import sys
import types
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import l2l_hyper
from l2l_hyper.errors import InputError
from l2l_hyper.experiment.logs import LOGS
from l2l_hyper.experiment.records import Record

SMALL: dict[str, Any] = {
    **{"ways": 3, "queries": 2, "backbone": "mlp", "backbone_options": {"sizes": [6]}, "iterations": 4},
    **{"meta_batch": 2, "validation_episodes": 2, "test_episodes": 6, "validate_every": 2},
}


def compare(out: Path | None, **options: Any) -> Record:
    (record,) = l2l_hyper.compare("glyphs", ["protonet"], out=out, **SMALL, **options)
    return record


def test_the_file_has_a_line_for_each_look_at_the_validation_episodes(tmp_path: Path) -> None:
    record = compare(tmp_path)
    lines = (tmp_path / "progress.log").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 2
    for line, share, point in zip(lines, (50, 100), record.result.validation, strict=True):
        assert f" protonet seed 0: iteration {point.iteration}, {share} % of training, " in line
        assert (" left, " in line) == (share < 100)
        assert f"validation accuracy {100 * point.score:.2f} ± " in line


def test_tensorboard_shows_every_iteration(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    record = compare(tmp_path, log=["tensorboard"])
    events = EventAccumulator(str(tmp_path / "tensorboard" / "protonet-seed0")).Reload()
    assert [event.step for event in events.Scalars("training/loss")] == [1, 2, 3, 4]
    mean = sum(event.value for event in events.Scalars("training/accuracy")[2:]) / 2
    assert mean == pytest.approx(record.result.training[1].score)
    shown = [(event.step, event.value) for event in events.Scalars("validation/loss")]
    assert shown == [(p.iteration, pytest.approx(p.loss)) for p in record.result.validation]


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What Weights & Biases is given."""
    given: dict[str, Any] = {"logged": []}

    def init(**options: Any) -> Any:
        given.update(options)
        return types.SimpleNamespace(
            log=lambda values, step: given["logged"].append((step, sorted(values))),
            finish=lambda exit_code: given.update(exit_code=exit_code),
        )

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init, Settings=dict))  # type: ignore[arg-type]
    return given


def test_weights_and_biases_is_told_that_a_run_failed(
    tmp_path: Path, given: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match="samples per class"):
        compare(tmp_path, log=["wandb"], shots=1000)
    assert given["exit_code"] == 1
    assert "Traceback" not in capsys.readouterr().err


def test_weights_and_biases_is_offline_and_is_given_the_configuration(tmp_path: Path, given: dict[str, Any]) -> None:
    record = compare(tmp_path, log=["wandb"])
    assert given["mode"] == "offline" and given["dir"] == str(tmp_path) and given["exit_code"] == 0
    assert given["config"] == record.run.to_dict()
    training, validation = ([f"{part}/accuracy", f"{part}/loss"] for part in ("training", "validation"))
    steps = [(1, training), (2, training), (2, validation), (3, training), (4, training), (4, validation)]
    assert given["logged"] == steps


def test_a_log_of_ones_own_is_told_and_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []

    @contextmanager
    def mine(run: Any, out: Path) -> Any:
        yield lambda step: told.append((run.name, step.iteration, step.validation is not None))
        told.append(out)

    monkeypatch.setitem(LOGS._entries, "mine", mine)
    compare(tmp_path, log=["mine"])
    name = "protonet-seed0"
    assert told == [
        *((name, iteration, look) for iteration, look in ((1, False), (2, False), (2, True), (3, False), (4, False))),
        (name, 4, True),
        tmp_path,
    ]


def test_what_cannot_be_logged_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="unknown log: 'tensorbord'; did you mean tensorboard"):
        compare(tmp_path, log=["tensorbord"])
    with pytest.raises(InputError, match="log=wandb needs a folder to write into, got none; give out="):
        compare(None, log=["wandb"])
    monkeypatch.setitem(sys.modules, "wandb", None)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"pip install 'l2l_hyper\[wandb\]'"):
        compare(tmp_path, log=["wandb"])
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == []


def test_a_log_alone_does_not_hold_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def failing(run: Any, out: Path) -> Any:
        (out / "progress.log").write_text("a line\n")
        raise InputError("stopped")
        yield

    monkeypatch.setitem(LOGS._entries, "failing", failing)
    with pytest.raises(InputError, match="stopped"):
        compare(tmp_path, log=["failing"])
    compare(tmp_path, split_seed=1)
