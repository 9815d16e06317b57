"""Training: resumed runs are identical, bad runs stop with a reason, records hold what was measured."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from l2l_hyper import InputError
from l2l_hyper.engine import BACKBONES, METHODS, Experiment, Run, memory, train_and_test
from l2l_hyper.engine import training as training_module
from l2l_hyper.engine.memory import tasks_at_once
from l2l_hyper.tasks import get_tasksets

EXPERIMENT = Experiment(
    tasksets="glyphs",
    ways=3,
    queries=2,
    iterations=6,
    meta_batch=2,
    validate_every=2,
    validation_episodes=4,
    test_episodes=5,
    hidden=8,
)
TIMES = ("seconds_to_train", "adaptation_ms", "peak_memory_mb")


class Killed(Exception):
    pass


def kill_at(iteration: int):
    def progress(now: int, total: int, seconds: float, loss: float, accuracy: float) -> None:
        if now == iteration:
            raise Killed

    return progress


def train(run: Run, folder: Path, **options: object) -> dict:
    return train_and_test(run, folder=folder, data_root=folder, **options)


def without_times(record: dict) -> dict:
    record = {key: value for key, value in record.items() if key not in TIMES}
    for curve in ("validation", "training"):
        record[curve] = [{k: v for k, v in point.items() if k != "seconds"} for point in record[curve]]
    return record


@pytest.mark.parametrize("method", list(METHODS))
def test_a_killed_run_goes_on_to_the_identical_result(tmp_path: Path, method: str) -> None:
    options = {"dropout": 0.3} if method == "hyper-adapter" else {}
    run = Run(experiment=EXPERIMENT, method=method, seed=1, options=options)
    whole = train(run, tmp_path / "whole")
    for iteration in (3, 5):  # after the first checkpoint, and again after the second
        with pytest.raises(Killed):
            train(run, tmp_path / "killed", progress=kill_at(iteration))
        torch.rand(3)  # whatever else the process draws must not matter
    resumed = train(run, tmp_path / "killed")
    assert without_times(resumed) == without_times(whole)
    assert len(whole["accuracies"]) == 5 and whole["iterations"] == 6 and whole["episodes"] == 12
    assert whole["parameters"]["backbone"] > 0 and whole["parameters"]["generated"] > 0
    assert [point["iteration"] for point in whole["validation"]] == [2, 4, 6]
    other = train(replace(run, seed=2), tmp_path / "whole", test=False)
    assert other["validation"] != whole["validation"] and "accuracies" not in other


def test_the_selected_weights_are_the_tested_ones(tmp_path: Path) -> None:
    record = train(Run(experiment=EXPERIMENT, method="protonet"), tmp_path)
    best = max(record["validation"], key=lambda point: point["accuracy"])
    assert record["best_validation_accuracy"] == best["accuracy"]
    assert record["selected_iteration"] == best["iteration"]


def test_training_at_equal_time_stops_by_the_clock(tmp_path: Path) -> None:
    experiment = replace(EXPERIMENT, iterations=1, train_seconds=1.0, validate_every=1000)
    record = train(Run(experiment=experiment, method="protonet"), tmp_path)
    assert 1.0 <= record["seconds_to_train"] < 10
    assert record["iterations"] > 1


def test_a_loss_that_is_not_finite_stops_and_keeps_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(experiment=EXPERIMENT, method="protonet")
    real = training_module.losses_and_accuracies
    calls = 0

    def poisoned(method, episodes):
        nonlocal calls
        calls += 1
        if calls == 2 * 5:  # an episode of the fifth iteration
            episodes.support[0, 0] = torch.nan
        return real(method, episodes)

    monkeypatch.setattr(training_module, "losses_and_accuracies", poisoned)
    with pytest.raises(
        InputError, match=r"got nan at iteration 4 \(the images of episode 1 .*; the checkpoint of iteration 4"
    ):
        train(run, tmp_path)
    kept = torch.load(tmp_path / "checkpoints" / "protonet-seed0.pt", weights_only=True)
    assert all(value.isfinite().all() for value in kept["method"].values())


def test_damaged_and_foreign_checkpoints_are_refused(tmp_path: Path) -> None:
    run = Run(experiment=EXPERIMENT, method="protonet")
    train(run, tmp_path)
    path = tmp_path / "checkpoints" / "protonet-seed0.pt"
    with pytest.raises(InputError, match="another configuration"):
        train(replace(run, experiment=replace(EXPERIMENT, hidden=4)), tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="got a damaged file"):
        train(run, tmp_path)
    assert path.read_bytes() == content[: len(content) // 2]
    assert train(run, tmp_path, resume=False)["iterations"] == 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "mamml"}, "method must be one of"),
        ({"experiment": replace(EXPERIMENT, backbone="resnet")}, "backbone must be one of"),
        ({"experiment": replace(EXPERIMENT, backbone="cnn4")}, r"reads images of shape \(3, 84, 84\)"),
        ({"experiment": replace(EXPERIMENT, ways=100000)}, "100000"),
        ({"experiment": replace(EXPERIMENT, queries=100)}, "10[01]"),
    ],
)
def test_runs_that_cannot_be_are_refused(tmp_path: Path, change: dict, message: str) -> None:
    run = replace(Run(experiment=EXPERIMENT, method="protonet"), **change)
    with pytest.raises(InputError, match=message):
        train(run, tmp_path)
    with pytest.raises(InputError, match="expected a device that is there"):
        train(Run(experiment=EXPERIMENT, method="protonet"), tmp_path, device="tpu9")
    assert not list(tmp_path.rglob("*.pt"))


@pytest.mark.parametrize(
    "bad", [{"ways": 1}, {"shots": 0}, {"train_ways": 1}, {"train_queries": 0}, {"train_seconds": 0.0}]
)
def test_settings_out_of_range_are_refused(bad: dict) -> None:
    with pytest.raises(InputError, match="must be"):
        replace(EXPERIMENT, **bad)


def test_a_memory_limit_changes_only_the_order_of_sums(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(
        experiment=replace(EXPERIMENT, meta_batch=5), method="maml", options={"implementation": "batched", "steps": 2}
    )
    parts: list[int] = []
    real = training_module.losses_and_accuracies
    monkeypatch.setattr(training_module, "losses_and_accuracies", lambda m, e: parts.append(len(e)) or real(m, e))
    together = train(run, tmp_path / "together")
    assert set(parts) == {5}
    parts.clear()
    apart = train(run, tmp_path / "apart", memory_limit_mb=1e-6)
    assert set(parts) == {1}
    for a, b in zip(together["training"], apart["training"], strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-3)


def test_tasks_at_once_counts_what_the_graph_of_a_task_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = get_tasksets("glyphs").train
    model = BACKBONES["omniglot-cnn"](5, 32, tasks.image_shape)
    few, many = (
        METHODS["maml"].build(model, {"implementation": "batched", "steps": steps}, "support") for steps in (1, 4)
    )
    protonet = METHODS["protonet"].build(model, {"implementation": "batched"}, "support")
    episode = tasks.episode(0, ways=5, shots=1, queries=5)
    assert tasks_at_once(few, episode, 100) > 1.5 * tasks_at_once(many, episode, 100) > 1.5
    assert tasks_at_once(few, episode, 1e-6) == 1
    assert tasks_at_once(METHODS["maml"].build(model, {}, "support"), episode, 100) == 1  # goes task by task
    monkeypatch.setattr(memory, "_LARGE", 40 * 28 * 28)
    large = tasks.episode(0, ways=5, shots=9, queries=1)
    assert tasks_at_once(few, large, 1000) == 1 < tasks_at_once(protonet, large, 1000)
    smaller = tasks.episode(0, ways=5, shots=1, queries=1)
    assert tasks_at_once(few, smaller, 100) > tasks_at_once(few, episode, 100)


@pytest.mark.parametrize("method", ["maml", "protonet"])
def test_counting_leaves_no_graph_behind(method: str) -> None:
    def graphs() -> int:
        gc.collect()
        return sum(issubclass(type(o), torch.Tensor) and o.grad_fn is not None for o in gc.get_objects())

    tasks = get_tasksets("glyphs").train
    model = BACKBONES["omniglot-cnn"](5, 8, tasks.image_shape)
    before = graphs()
    built = METHODS[method].build(model, {"implementation": "batched"}, "support")
    tasks_at_once(built, tasks.episode(0, ways=5, shots=1, queries=5), 100)
    assert graphs() == before
