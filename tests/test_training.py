"""Training: resumed runs are identical, bad runs stop with a reason, records hold what was measured."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers_methods import small_episodes, small_method
from helpers_training import Killed, Poisoned, kill_at, train, without_times
from torch import nn

from l2l_hyper import InputError
from l2l_hyper.backbones import BACKBONES
from l2l_hyper.data import Episodes, get_tasksets
from l2l_hyper.experiment.checkpoint import load_checkpoint, save_checkpoint
from l2l_hyper.experiment.config import Experiment, Run
from l2l_hyper.experiment.memory import tasks_at_once
from l2l_hyper.experiment.trial import count_generated
from l2l_hyper.methods import METHODS, ProtoNet

EXPERIMENT = Experiment(
    tasksets="glyphs",
    ways=3,
    queries=2,
    iterations=6,
    meta_batch=2,
    validate_every=2,
    validation_episodes=4,
    test_episodes=5,
    channels=8,
)
OURS = ("hyper-adapter", "maml", "anil", "protonet")


@pytest.mark.parametrize("method", OURS)
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
    assert len(whole["scores"]) == 5 and whole["iterations"] == 6 and whole["episodes"] == 12
    assert whole["parameters"]["backbone"] > 0 and whole["parameters"]["generated"] > 0
    assert [point["iteration"] for point in whole["validation"]] == [2, 4, 6]
    other = train(replace(run, seed=2), tmp_path / "whole", test=False)
    assert other["validation"] != whole["validation"] and other["scores"] == []


def test_the_selected_weights_are_the_tested_ones(tmp_path: Path) -> None:
    record = train(Run(experiment=EXPERIMENT, method="protonet"), tmp_path)
    best = max(record["validation"], key=lambda point: point["score"])
    assert record["best_validation_score"] == best["score"]
    assert record["selected_iteration"] == best["iteration"]


def test_training_at_equal_time_stops_by_the_clock(tmp_path: Path) -> None:
    experiment = replace(EXPERIMENT, iterations=1, train_seconds=1.0, validate_every=1000)
    record = train(Run(experiment=experiment, method="protonet"), tmp_path)
    assert 1.0 <= record["seconds_to_train"] < 10
    assert record["iterations"] > 1


def test_a_loss_that_is_not_finite_stops_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    tasksets = get_tasksets("glyphs")
    poisoned = Poisoned(tasksets.train, 2 * 4 + 1)  # an episode of the fifth iteration
    with pytest.raises(
        InputError, match=r"got nan at iteration 4 \(the samples of episode 1 .*; the checkpoint of iteration 4"
    ):
        train(
            Run(experiment=EXPERIMENT, method="protonet"),
            tmp_path,
            tasksets=[poisoned, tasksets.validation, tasksets.test],
        )
    kept = load_checkpoint(tmp_path / "checkpoints" / "protonet-seed0.safetensors")
    assert kept.state.iteration == 4 and all(value.isfinite().all() for value in kept.tensors["method"].values())


def test_the_checkpoint_of_another_configuration_is_refused(tmp_path: Path) -> None:
    run = Run(experiment=EXPERIMENT, method="protonet")
    train(run, tmp_path)
    kept = (tmp_path / "checkpoints" / "protonet-seed0.safetensors").read_bytes()
    with pytest.raises(InputError, match="another configuration"):
        train(replace(run, experiment=replace(EXPERIMENT, channels=4)), tmp_path)
    assert (tmp_path / "checkpoints" / "protonet-seed0.safetensors").read_bytes() == kept


def test_an_option_that_came_later_than_a_checkpoint_has_its_default(tmp_path: Path) -> None:
    run = Run(experiment=EXPERIMENT, method="protonet")
    whole = train(run, tmp_path / "whole")
    with pytest.raises(Killed):
        train(run, tmp_path / "killed", progress=kill_at(3))
    path = tmp_path / "killed" / "checkpoints" / "protonet-seed0.safetensors"
    saved = load_checkpoint(path)
    earlier = {name: value for name, value in saved.run.options.items() if name != "linear_map"}
    assert len(earlier) == len(saved.run.options) - 1
    save_checkpoint(path, replace(saved, run=replace(saved.run, options=earlier)))
    assert without_times(train(run, tmp_path / "killed")) == without_times(whole)


def test_momentum_and_averaged_weights_go_on_identically(tmp_path: Path) -> None:
    run = Run(experiment=replace(EXPERIMENT, optimizer="sgd", average=0.9), method="protonet")
    whole = train(run, tmp_path / "whole")
    with pytest.raises(Killed):
        train(run, tmp_path / "killed", progress=kill_at(3))
    assert without_times(train(run, tmp_path / "killed")) == without_times(whole)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "mamml"}, "unknown method: 'mamml'; did you mean maml"),
        ({"experiment": replace(EXPERIMENT, backbone="resnet")}, "unknown backbone: 'resnet'; did you mean resnet12"),
        ({"experiment": replace(EXPERIMENT, backbone="conv4", backbone_options={"layers": 9})}, "conv4"),
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
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize(
    "bad", [{"ways": 1}, {"shots": 0}, {"train_ways": 1}, {"train_queries": 0}, {"train_seconds": 0.0}]
)
def test_settings_out_of_range_are_refused(bad: dict) -> None:
    with pytest.raises(InputError, match="must be"):
        replace(EXPERIMENT, **bad)


def test_a_memory_limit_changes_only_the_order_of_sums(tmp_path: Path) -> None:
    together_with: list[int] = []

    class Observed(ProtoNet):
        def adapt(self, support):
            together_with.append(len(support) if self.training else 0)
            return super().adapt(support)

    run = Run(experiment=replace(EXPERIMENT, meta_batch=5), method="observed")
    together = train(run, tmp_path / "together", methods={"observed": Observed})
    assert max(together_with) == 5
    together_with.clear()
    apart = train(run, tmp_path / "apart", memory_limit_mb=1e-6, methods={"observed": Observed})
    assert max(together_with) == 1
    for a, b in zip(together["training"], apart["training"], strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-3)


def test_tasks_at_once_counts_what_the_graph_of_a_task_keeps() -> None:
    tasks = get_tasksets("glyphs").train
    model = BACKBONES["omniglot-cnn"].build(5, (1, 28, 28), {"channels": 32})
    few, many = (METHODS["maml"].build(model, {"steps": steps}, "support") for steps in (1, 4))
    episode = tasks.batch([0], ways=5, shots=1, queries=5)
    assert tasks_at_once(few, episode, 100) > 1.5 * tasks_at_once(many, episode, 100) > 1.5
    assert tasks_at_once(few, episode, 1e-6) == 1
    one_by_one = METHODS["maml"].build(model, {"implementation": "learn2learn"}, "support")
    assert tasks_at_once(one_by_one, episode, 100) == 1
    smaller = tasks.batch([0], ways=5, shots=1, queries=1)
    assert tasks_at_once(few, smaller, 100) > tasks_at_once(few, episode, 100)


def test_large_images_go_task_by_task_where_each_task_has_layers_of_its_own() -> None:
    model = BACKBONES["conv4"].build(5, (1, 64, 64), {"channels": 4})
    maml, protonet = (METHODS[name].build(model, {}, "support") for name in ("maml", "protonet"))
    labels = torch.arange(5).repeat_interleave(9)[None]
    large = Episodes(torch.rand(1, 45, 1, 64, 64), labels, torch.rand(1, 45, 1, 64, 64), labels, 5)
    assert tasks_at_once(maml, large, 1e5) == 1 < tasks_at_once(protonet, large, 1e5)
    rows = nn.Sequential(nn.Linear(4096, 8), nn.ReLU(), nn.Linear(8, 5))
    vectors = Episodes(torch.rand(1, 45, 4096), labels, torch.rand(1, 45, 4096), labels, 5)
    assert tasks_at_once(METHODS["maml"].build(rows, {}, "support"), vectors, 1e5) > 1


@pytest.mark.parametrize("method", ["maml", "protonet"])
def test_counting_leaves_no_graph_behind(method: str) -> None:
    def graphs() -> int:
        gc.collect()
        return sum(issubclass(type(o), torch.Tensor) and o.grad_fn is not None for o in gc.get_objects())

    tasks = get_tasksets("glyphs").train
    model = BACKBONES["omniglot-cnn"].build(5, (1, 28, 28), {"channels": 8})
    before = graphs()
    built = METHODS[method].build(model, {}, "support")
    tasks_at_once(built, tasks.batch([0], ways=5, shots=1, queries=5), 100)
    assert graphs() == before


def test_a_loss_that_is_lower_when_better_selects_the_lowest(tmp_path: Path) -> None:
    run = Run(experiment=replace(EXPERIMENT, metric="helpers_training:wrong"), method="protonet")
    whole = train(run, tmp_path)
    assert whole["metric"] == {"name": "share of errors", "higher_is_better": False, "percent": True}
    assert whole["best_validation_score"] == min(point["score"] for point in whole["validation"])


def test_half_widths_are_those_of_student(tmp_path: Path) -> None:
    first = train(Run(experiment=EXPERIMENT, method="protonet"), tmp_path)["validation"][-1]
    assert first["half_width"] > 0
    one = replace(EXPERIMENT, validation_episodes=1)
    assert train(Run(experiment=one, method="protonet"), tmp_path / "one")["validation"][-1]["half_width"] is None


@pytest.mark.parametrize("name", ["hyper-adapter", "protonet", "maml"])
def test_counting_what_is_generated_moves_no_running_average(name: str) -> None:
    method = small_method(name, normalization="running").train()
    before = {key: value.clone() for key, value in method.state_dict().items()}
    count_generated(method, next(small_episodes().split(1)))
    assert method.training and all(torch.equal(value, before[key]) for key, value in method.state_dict().items())
