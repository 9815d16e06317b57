"""Several processes: equal to one, in float64; a process that dies ends the run, which then goes on."""

from __future__ import annotations

import itertools
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_training import Doubled, Killed, Poisoned, kill_at, train, without_times

from l2l_hyper import InputError
from l2l_hyper.cli import main
from l2l_hyper.data import get_tasksets
from l2l_hyper.experiment.checkpoint import checkpoint_path, load_checkpoint
from l2l_hyper.experiment.config import Experiment, Run
from l2l_hyper.experiment.distributed import is_first, process_group, rank, seed_each, share
from l2l_hyper.experiment.records import read_records

EXPERIMENT = Experiment(
    tasksets="helpers_training:doubled",
    ways=3,
    queries=2,
    iterations=6,
    meta_batch=3,  # two episodes for one process, one for the other
    validate_every=2,
    validation_episodes=5,
    test_episodes=7,
    channels=4,
)
OPTIONS = {
    "hyper-adapter": {"width": 16, "blocks": 1},
    "maml": {},
    "maml, learn2learn": {"implementation": "learn2learn"},
    "protonet": {},
}
# A bias ahead of a normalization has no effect: its gradient is rounding, which Adam multiplies by up to lr / 1e-8.
RUNS = {
    name: Run(experiment=EXPERIMENT, method=name.split(",")[0], options={"lr": 1e-3, **options})
    for name, options in OPTIONS.items()
}
DROPOUT = replace(RUNS["hyper-adapter"], options={**RUNS["hyper-adapter"].options, "dropout": 0.3})
RUNNING = replace(RUNS["maml"], experiment=replace(EXPERIMENT, normalization="running"))
TOO_FEW = replace(RUNS["maml"], experiment=replace(EXPERIMENT, meta_batch=1))
BY_CLOCK = replace(RUNS["protonet"], experiment=replace(EXPERIMENT, iterations=1, train_seconds=0.1))
KEPT = Path("checkpoints", "protonet-seed0.safetensors")

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds the process to kill in /proc")


@pytest.fixture(scope="module", autouse=True)
def _float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def error_of(run: Run, folder: Path) -> str:
    with pytest.raises(InputError) as error:
        train(run, folder)
    return str(error.value)


def work(folder: Path) -> None:
    """What each of the two processes does; what it saw goes into a file."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    seen: dict[str, Any] = {}
    with process_group("cpu"):
        for name, run in RUNS.items():
            seen[name] = train(run, folder / name)
        seen["from a checkpoint of one"] = train(RUNS["maml"], folder / "begun")
        seen["dropout"] = train(DROPOUT, folder / "dropout", test=False)
        with pytest.raises(Killed):
            train(DROPOUT, folder / "killed", progress=kill_at(3))
        torch.rand(1 + rank())  # whatever else a process draws must not matter
        seen["dropout, resumed"] = train(DROPOUT, folder / "killed", test=False)
        seed_each(0)
        seen["random"] = torch.rand(1).item()
        seen["running"] = error_of(RUNNING, folder / "refused")
        seen["too few"] = error_of(TOO_FEW, folder / "refused")
        if is_first():
            (folder / "damaged" / "checkpoints").mkdir(parents=True)
            (folder / "damaged" / "checkpoints" / "maml-seed0.safetensors").write_bytes(b"half a checkpoint")
        seen["damaged"] = train(RUNS["maml"], folder / "damaged")
        with pytest.MonkeyPatch.context() as patch:
            if not is_first():
                patch.setattr(time, "perf_counter", lambda: 0.0)
            seen["by the clock"] = train(BY_CLOCK, folder / "clock", test=False)
        training, validation, tested = map(Doubled, get_tasksets("glyphs"))
        poisoned = [Poisoned(training, 1), validation, tested]
        with pytest.raises(InputError) as error:
            train(RUNS["protonet"], folder / "poisoned", tasksets=poisoned)
        seen["not finite"] = str(error.value)
        torch.save(seen, folder / f"seen-{rank()}.pt")
        sys.argv = ["l2l_hyper", *compare(folder / "compared")]
        runpy.run_module("l2l_hyper", run_name="__main__", alter_sys=True)  # as `torchrun -m l2l_hyper` does


def compare(out: Path) -> list[str]:
    values = {
        "tasksets": "helpers_training:doubled",
        "methods": "protonet",
        "ways": 3,
        "queries": 2,
        "channels": 4,
        "meta-batch": 3,
        "validate-every": 10,
        "validation-episodes": 5,
        "test-episodes": 7,
        "iterations": 60,
        "out": out,
    }
    return ["compare", *(f"--{name}={value}" for name, value in values.items())]


def of_rank(number: int, launcher: int) -> int:
    """Process id of a rank that torchrun started."""
    for child in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        if f"\0RANK={number}\0" in Path(f"/proc/{child}/environ").read_text():
            return int(child)
    raise AssertionError(f"no rank {number}")


@dataclass(frozen=True)
class Two:
    """Work of two processes: its folder, what each of them saw, and how it ended when the second was killed."""

    folder: Path
    seen: list[dict[str, Any]]
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Two:
    folder = tmp_path_factory.mktemp("two")
    with pytest.raises(Killed):
        train(RUNS["maml"], folder / "begun", progress=kill_at(3))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    launcher = subprocess.Popen(
        [*torchrun, __file__, folder],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 300
        while not (folder / "compared" / KEPT).exists() and launcher.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        if launcher.poll() is None:
            os.kill(of_rank(1, launcher.pid), signal.SIGKILL)
        stdout, stderr = launcher.communicate(timeout=60)
    finally:
        launcher.kill()
    assert (folder / "compared" / KEPT).exists(), stderr
    seen = [torch.load(folder / f"seen-{number}.pt") for number in (0, 1)]
    return Two(folder, seen, launcher.returncode, stdout, stderr)


def numbers(value: Any) -> list[float]:
    """Every number in a record or a checkpoint, by name."""
    if isinstance(value, torch.Tensor):
        return value.double().flatten().tolist()
    if isinstance(value, dict):
        return [number for name in sorted(value, key=str) for number in numbers(value[name])]
    if isinstance(value, list | tuple):
        return [number for entry in value for number in numbers(entry)]
    return [float(value)] if isinstance(value, int | float) else []


def largest_difference(a: Any, b: Any) -> float:
    a, b = numbers(a), numbers(b)
    assert len(a) == len(b) > 0
    return max(abs(x - y) for x, y in zip(a, b, strict=True))


def checkpoint(folder: Path, run: Run) -> dict[str, Any]:
    return load_checkpoint(checkpoint_path(folder, run)).tensors


def measured(result: dict[str, Any]) -> dict[str, Any]:
    values = {name: value for name, value in without_times(result).items() if name != "processes"}
    for point in values["training"]:
        point["score"] = round(point["score"], 4)  # summed in float32, as accuracies are
    return values


@pytest.mark.parametrize("name", list(RUNS))
def test_two_processes_come_to_what_one_does(two: Two, tmp_path: Path, name: str) -> None:
    folder, (first, second) = two.folder, two.seen
    alone = train(RUNS[name], tmp_path)
    assert (alone["processes"], first[name]["processes"]) == (1, 2)
    mine, theirs = (checkpoint(where, RUNS[name]) for where in (tmp_path, folder / name))
    # Normalization takes the biases of convolutions away; their gradient is rounding, which Adam makes large.
    kept = [name for name in mine["selected"] if not name.endswith("conv.bias")]
    assert kept and mine["selected"].keys() == theirs["selected"].keys()
    assert largest_difference(*({name: of["selected"][name] for name in kept} for of in (mine, theirs))) <= 1e-10
    assert measured(first[name]) == measured(second[name])
    alone, shared = measured(alone), measured(first[name])
    assert largest_difference(alone, shared) <= 1e-10


def test_training_goes_on_in_more_processes(two: Two) -> None:
    folder, first = two.folder, two.seen[0]
    assert largest_difference(measured(first["maml"]), measured(first["from a checkpoint of one"])) <= 1e-10
    whole, resumed = (checkpoint(folder / name, RUNS["maml"]) for name in ("maml", "begun"))
    assert largest_difference(whole["selected"], resumed["selected"]) <= 1e-10


def test_all_begin_again_where_the_checkpoint_is_damaged(two: Two) -> None:
    for seen in two.seen:
        assert measured(seen["damaged"]) == measured(two.seen[0]["maml"])


def test_each_process_draws_its_own_numbers_and_the_same_again(two: Two) -> None:
    first, second = two.seen
    assert measured(first["dropout"]) == measured(first["dropout, resumed"])
    assert largest_difference(first["dropout"]["training"], first["hyper-adapter"]["training"]) > 1e-6
    assert first["random"] != second["random"]


def test_the_first_clock_counts(two: Two) -> None:
    first, second = two.seen
    assert first["by the clock"]["seconds_to_train"] >= 0.1
    assert measured(first["by the clock"]) == measured(second["by the clock"])


def test_all_processes_tell_the_same_error(two: Two) -> None:
    first, second = two.seen
    for name, message in {
        "running": "normalization 'running' averages over tasks in the order in which one process meets them, got 2",
        "too few": "meta_batch must be at least the number of processes, 2, got 1",
        "not finite": "got nan at iteration 0 (the samples of episode 1 of the batch are not finite)",
    }.items():
        assert message in first[name] and first[name] == second[name]


def test_shares_are_all_the_indices_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    from l2l_hyper.experiment import distributed

    for processes, count in itertools.product((1, 2, 3, 8), (0, 1, 7, 16)):
        monkeypatch.setattr(distributed, "world_size", lambda processes=processes: processes)
        shares = []
        for number in range(processes):
            monkeypatch.setattr(distributed, "rank", lambda number=number: number)
            shares.append(share(range(10, 10 + count)))
        assert [index for part in shares for index in part] == list(range(10, 10 + count))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
    monkeypatch.undo()
    assert rank() == 0


def test_a_killed_process_ends_the_run_which_then_goes_on(
    two: Two, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = two.folder / "compared"
    told = [line for line in two.stderr.splitlines() if line.startswith("l2l-hyper: ")]
    assert len(told) == 1 and told[0].startswith("l2l-hyper: error: process 0 cannot go on: "), two.stderr
    assert told[0].endswith("; the same command continues from the last checkpoint")
    assert two.returncode == 1 and two.stdout == "" and not list((out / "records").iterdir())
    kept = load_checkpoint(out / KEPT).state.iteration
    assert 10 <= kept < 60
    monkeypatch.setattr(sys, "argv", ["l2l-hyper"])
    for folder in (out, tmp_path):  # goes on, here in one process; and from the start
        with pytest.raises(SystemExit) as exit:
            main(compare(folder))
        assert not exit.value.code
    resumed, whole = (read_records(folder)[0].result for folder in (out, tmp_path))
    assert resumed.iterations == 60
    for part in ("losses", "scores", "manifest"):
        assert largest_difference(getattr(resumed, part), getattr(whole, part)) <= 1e-10


if __name__ == "__main__":
    work(Path(sys.argv[1]))
