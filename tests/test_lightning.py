"""LightningHyperAdapter: learn2learn's LightningMAML by another adapter, on the installed Lightning."""

from __future__ import annotations

import copy
import importlib
import re
import runpy
import sys
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from ondisk import make_cifarfs
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor, nn
from torch.nn import functional as F

from l2l_hyper import HyperAdapter, InputError
from l2l_hyper.bridge.lightning import LightningHyperAdapter, TrackTestAccuracyCallback

# isort: split
# After l2l_hyper.bridge.lightning, which imports learn2learn without what that prints.
from learn2learn.algorithms import LightningMAML
from learn2learn.utils import accuracy
from learn2learn.utils.lightning import EpisodicBatcher, NoLeaveProgressBar

# Lightning 2.6 looks at trees in a way that torch 2.15 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec:FutureWarning:pytorch_lightning")

WAYS, SHOTS, QUERIES, SIZE = 4, 2, 3, 10
EPISODIC = {
    f"{split}_{name}": n
    for split in ("train", "test")
    for name, n in zip(("ways", "shots", "queries"), (WAYS, SHOTS, QUERIES), strict=True)
}
OPTIONS = {"width": 16, "blocks": 1, "normalization": "support"}


class Tasks:
    """A cycle of tasks whose classes differ in two directions, the same in all, under noise in the others."""

    def __init__(self, seed: int, count: int = 4, ways: int = WAYS) -> None:
        generator = torch.Generator().manual_seed(seed)
        mixing = torch.linalg.qr(torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(0)))[0]
        labels = torch.arange(ways).repeat_interleave(SHOTS + QUERIES)
        self.tasks: list[tuple[Tensor, Tensor]] = []
        for _ in range(count):
            x = torch.randn(len(labels), SIZE, generator=generator)
            x[:, :2] = 2 * torch.randn(ways, 2, generator=generator)[labels] + 0.1 * x[:, :2]
            self.tasks.append((x @ mixing, labels))
        self.drawn = 0

    def sample(self) -> tuple[Tensor, Tensor]:
        self.drawn += 1
        return self.tasks[(self.drawn - 1) % len(self.tasks)]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(SIZE, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, WAYS))


def batches(count: int = 4) -> EpisodicBatcher:
    return EpisodicBatcher(*(Tasks(seed, count) for seed in (1, 2, 3)), epoch_length=count)


def trainer(folder: Path, **options: Any) -> pl.Trainer:
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "max_epochs": 2,
        "logger": CSVLogger(folder),
        "log_every_n_steps": 1,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    return pl.Trainer(**(defaults | options))


def logged(trainer: pl.Trainer) -> dict[str, float]:
    return {name: value.item() for name, value in trainer.callback_metrics.items()}


def fit_and_test(trainer: pl.Trainer, module: pl.LightningModule) -> dict[str, float]:
    data = batches()
    trainer.fit(module, datamodule=data)
    metrics = logged(trainer)
    trainer.test(module, data, verbose=False)
    return metrics | logged(trainer)


# What is trained


def test_loss_falls(tmp_path: Path) -> None:
    module = LightningHyperAdapter(network(), **EPISODIC, **OPTIONS, lr=0.05)
    data = batches(10)
    run = trainer(tmp_path, max_epochs=5)
    (before,) = run.validate(module, data, verbose=False)
    run.fit(module, datamodule=data)
    (after,) = run.validate(module, data, verbose=False)
    assert after["valid_loss"] < 0.6 * before["valid_loss"]
    assert after["valid_accuracy"] > before["valid_accuracy"] + 0.1


@pytest.mark.parametrize("base_learner", ["gaussian", "prototype", "ridge", "gradient", "own"])
def test_same_as_a_loop_by_hand(base_learner: str, tmp_path: Path) -> None:
    """Logged metrics and trained parameters, against learn2learn's protocol; Lightning keeps metrics in float32."""
    settings = {"lr": 0.03, "scheduler_step": 1, "scheduler_decay": 0.5, "adaptation_lr": 0.2, "adaptation_steps": 2}
    module = LightningHyperAdapter(network(), **EPISODIC, **settings, **OPTIONS, base_learner=base_learner)
    hyper = copy.deepcopy(module.model).double()
    assert isinstance(hyper, HyperAdapter)
    assert hyper.lr == 0.2
    epochs, size = 3, 4
    metrics = fit_and_test(trainer(tmp_path, max_epochs=epochs, accumulate_grad_batches=2, precision="64-true"), module)

    def query(task: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        x, y = task[0].double().unflatten(0, (WAYS, -1)), task[1].unflatten(0, (WAYS, -1))
        learner = hyper.clone()
        for _ in range(2):
            learner.adapt(F.cross_entropy(learner(x[:, :SHOTS].flatten(0, 1)), y[:, :SHOTS].flatten()))
        outputs = learner(x[:, SHOTS:].flatten(0, 1))
        return F.cross_entropy(outputs, y[:, SHOTS:].flatten()), accuracy(outputs, y[:, SHOTS:].flatten())

    def mean(name: str, results: list[tuple[Tensor, Tensor]]) -> dict[str, float]:
        losses, accuracies = zip(*results, strict=True)
        return {f"{name}_loss": sum(losses).item() / size, f"{name}_accuracy": sum(accuracies).item() / size}

    optimizer = torch.optim.Adam(hyper.parameters(), lr=0.03)
    for epoch in range(epochs):
        optimizer.param_groups[0]["lr"] = 0.03 * 0.5**epoch
        results = []
        for i, task in enumerate(Tasks(1).tasks):
            results.append(query(task))
            (results[-1][0] / 2).backward()
            if i % 2:
                optimizer.step()
                optimizer.zero_grad()
    for ours, by_hand in zip(module.model.parameters(), hyper.parameters(), strict=True):
        torch.testing.assert_close(ours, by_hand)
    expected = mean("train", results)
    expected |= mean("valid", [query(task) for task in Tasks(2).tasks])
    expected |= mean("test", [query(task) for task in Tasks(3).tasks])
    assert metrics == pytest.approx(expected, rel=1e-6)


def test_gradient_start_is_learn2learns_lightning_maml(tmp_path: Path) -> None:
    """Everything generated by gradient steps: the same metrics and the same parameters, trained and tested."""
    settings = {**EPISODIC, "lr": 0.03, "adaptation_lr": 0.2, "adaptation_steps": 2}
    runs = []
    for module, inference_mode in (
        (LightningHyperAdapter(network(), **settings, base_learner="gradient", generate="*", residual=False), True),
        (LightningMAML(network(), **settings), False),
    ):
        metrics = fit_and_test(trainer(tmp_path, precision="64-true", inference_mode=inference_mode), module)
        runs.append((metrics, dict(module.model.module.named_parameters())))
    (ours, parameters), (theirs, expected) = runs
    assert set(ours) == {f"{stage}_{m}" for stage in ("train", "valid", "test") for m in ("loss", "accuracy")}
    assert ours == pytest.approx(theirs, rel=1e-6)
    for name, value in expected.items():
        torch.testing.assert_close(parameters[name], value)


def test_running_averages_are_trained_and_tested_with(tmp_path: Path) -> None:
    """A query's prediction does not depend on the others, and validation moves nothing."""
    module = LightningHyperAdapter(network(), **EPISODIC, normalization="running")
    run, norm = trainer(tmp_path), module.model.module[1]
    run.fit(module, datamodule=batches())
    trained = norm.running_mean.clone()
    assert trained.any() and norm.num_batches_tracked > 0
    run.test(module, batches(), verbose=False)
    assert torch.equal(norm.running_mean, trained)
    learner = module.eval().model.clone()
    x, y = Tasks(3).sample()
    learner.adapt(support=(x, y))
    torch.testing.assert_close(learner(x[:1]), learner(x)[:1])


def test_mixed_precision(tmp_path: Path) -> None:
    """In bfloat16, nearly what float32 gives."""
    module = LightningHyperAdapter(network(), **EPISODIC, **OPTIONS, base_learner="prototype")
    full = trainer(tmp_path).validate(module, batches(), verbose=False)
    mixed = trainer(tmp_path, precision="bf16-mixed").validate(module, batches(), verbose=False)
    assert mixed[0]["valid_loss"] == pytest.approx(full[0]["valid_loss"], rel=0.05)


def test_other_ways_to_test_with(tmp_path: Path) -> None:
    module = LightningHyperAdapter(network(), **{**EPISODIC, "test_ways": 7}, **OPTIONS)
    data = EpisodicBatcher(Tasks(1), Tasks(2, ways=7), epoch_length=4)
    run = trainer(tmp_path)
    run.fit(module, datamodule=data)
    assert set(logged(run)) == {"train_loss", "train_accuracy", "valid_loss", "valid_accuracy"}


# Around it


def test_checkpoint_round_trip(tmp_path: Path) -> None:
    module = LightningHyperAdapter(
        network(), **EPISODIC, **OPTIONS, lr=0.02, base_learner="prototype", generate=["0.*"]
    )
    run = trainer(tmp_path, enable_checkpointing=True, callbacks=[ModelCheckpoint(tmp_path / "saved", "last")])
    run.fit(module, datamodule=batches())
    (expected,) = run.test(module, batches(), verbose=False)
    fresh = LightningHyperAdapter(network(), **EPISODIC, **OPTIONS, base_learner="prototype", generate=["0.*"])
    assert trainer(tmp_path).test(fresh, batches(), verbose=False) != [expected]
    loaded = LightningHyperAdapter.load_from_checkpoint(tmp_path / "saved" / "last.ckpt", model=network())
    assert loaded.hparams == module.hparams
    assert trainer(tmp_path).test(loaded, batches(), verbose=False) == [expected]
    assert run.test(datamodule=batches(), ckpt_path="best", verbose=False) == [expected]


def test_learn2learns_flags() -> None:
    parser = LightningHyperAdapter.add_model_specific_args(ArgumentParser(conflict_handler="resolve"))
    theirs = LightningMAML.add_model_specific_args(ArgumentParser(conflict_handler="resolve"))
    line = "--train_ways 3 --test_shots 7 --lr 0.2 --scheduler_decay 0.9 --adaptation_steps 4 --adaptation_lr 0.3"
    for arguments in ([], line.split(" ")):
        assert vars(parser.parse_args(arguments)) == vars(theirs.parse_args(arguments))
    # A script's whole namespace, as learn2learn's example passes it.
    arguments = vars(parser.parse_args(line.split(" ")))
    others = {"algorithm": "maml", "dataset": "fc100", "root": "~", "meta_batch_size": 2, "seed": 1, "max_epochs": 3}
    ours, learn2learns = (
        LightningHyperAdapter(network(), **arguments, **others),
        LightningMAML(network(), **arguments | {"test_ways": 3}),
    )
    assert ours.hparams == {**learn2learns.hparams, "test_ways": 5}
    assert ours.model.lr == 0.3
    assert LightningHyperAdapter(network()).hparams == LightningMAML(network()).hparams
    (optimizer,), (scheduler,) = ours.configure_optimizers()
    assert (type(optimizer), optimizer.defaults["lr"]) == (torch.optim.Adam, 0.2)
    assert (scheduler.step_size, scheduler.gamma) == (20, 0.9)


def test_test_accuracy_is_tracked(tmp_path: Path) -> None:
    """For learn2learn's module as well as ours; training goes on as if nobody had looked."""
    for build in (LightningHyperAdapter, LightningMAML):
        trained = []
        for callbacks in ([], [TrackTestAccuracyCallback()]):
            module = build(network(), **EPISODIC, lr=0.02)
            run = trainer(
                tmp_path, callbacks=callbacks, precision="64-true", inference_mode=False, num_sanity_val_steps=1
            )
            run.fit(module, datamodule=batches())
            trained.append(module)
        for a, b in zip(trained[0].parameters(), trained[1].parameters(), strict=True):
            assert torch.equal(a, b)
        tracked = {name: value for name, value in logged(run).items() if name.startswith("test_")}
        (expected,) = run.test(module, batches(), verbose=False)
        assert tracked == pytest.approx(expected, rel=1e-6)


def test_learn2learns_progress_bar_still_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = trainer(tmp_path, max_epochs=1, enable_progress_bar=True, callbacks=[NoLeaveProgressBar()])
    module = LightningHyperAdapter(network(), **EPISODIC, **OPTIONS)
    run.fit(module, datamodule=batches())
    run.test(module, batches(), verbose=False)
    assert "Testing" in capsys.readouterr().out


def test_script_in_the_documentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On files laid out for learn2learn, of every algorithm it offers."""
    text = (Path(__file__).parents[1] / "docs" / "lightning.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    script = tmp_path / "main.py"
    script.write_text(code, encoding="utf-8")
    make_cifarfs(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PL_GLOBAL_SEED", "")  # which the script's seed_everything sets, and nothing unsets
    for algorithm in ("hyper-adapter", "maml"):
        line = f"main.py --algorithm {algorithm} --root {tmp_path} --dataset cifarfs --max_epochs 1 --meta_batch_size 1"
        monkeypatch.setattr(sys, "argv", line.split())
        metrics = runpy.run_path(str(script), run_name="__main__")["metrics"]
        assert set(metrics[0]) == {"test_loss", "test_accuracy"}


# What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"penalyt": 0.0}, "try 'penalty'"),
        ({"train_way": 3}, "try 'train_ways'"),
        ({"data_parallel": True}, "strategy='ddp'"),
        ({"normalization": "batch"}, "normalization must be one of support"),
        ({"base_learner": "nothing"}, "base_learner must be 'gaussian', 'prototype'"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        LightningHyperAdapter(network(), **options)


def test_bad_tasks() -> None:
    module = LightningHyperAdapter(network(), **EPISODIC)
    x, y = Tasks(0).sample()
    with pytest.raises(InputError, match=r"4 ways · \(2 shots \+ 1 queries\) = 12 samples, got 20"):
        module.meta_learn((x, y), 0, WAYS, SHOTS, 1)
    with pytest.raises(InputError, match="class by class"):
        module.meta_learn((x, y.roll(1)), 0, WAYS, SHOTS, QUERIES)
    with pytest.raises(InputError, match=r"labels 0 … 3"):
        module.meta_learn((x, y + 1), 0, WAYS, SHOTS, QUERIES)


def test_missing_lightning_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "l2l_hyper.bridge.lightning")
    monkeypatch.setitem(sys.modules, "pytorch_lightning", None)
    with pytest.raises(InputError, match=r"pip install 'l2l_hyper\[lightning\]'"):
        importlib.import_module("l2l_hyper.bridge.lightning")
