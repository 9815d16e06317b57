"""Weights from a description: given, inferred or found by steps; frozen; and the studies of descriptions."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn
from torch.func import functional_call
from uses import described as study
from uses import families
from uses.study import controls

from l2l_hyper import InputError
from l2l_hyper.data import SupportSet
from l2l_hyper.data.episode import squared_error
from l2l_hyper.functional import Generated
from l2l_hyper.hypernet import DeepSets, Target
from l2l_hyper.methods.contract import as_method
from l2l_hyper.uses import DescribedNetwork


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))


def network(model: nn.Module | None = None, **options: object) -> DescribedNetwork:
    torch.manual_seed(0)
    return DescribedNetwork(model or mlp(), 3, width=5, **options).double()  # type: ignore[arg-type]


def support(tasks: int = 4) -> SupportSet:
    return SupportSet(torch.randn(tasks, 6, 2).double(), torch.randn(tasks, 6, 1).double(), None, squared_error)


# Generated networks


@pytest.mark.parametrize(
    "model",
    [
        lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)),
        lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)),
        lambda: nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)),
        lambda: nn.Sequential(nn.Unflatten(1, (1, 3)), nn.Conv1d(1, 4, 2), nn.GroupNorm(2, 4), nn.Flatten()),
    ],
    ids=["plain", "batch norm", "layer norm", "group norm"],
)
@pytest.mark.parametrize("training", [True, False])
def test_many_weights_at_once_are_each_alone_in_second_order(model: Callable[[], nn.Module], training: bool) -> None:
    torch.manual_seed(0)
    net = model().double().train(training)
    generated = Generated(net)
    vectors = torch.randn(3, generated.target.numel).double().requires_grad_()
    x = torch.randn(3, 5, 3).double()
    alone = [functional_call(net, generated.target.unflatten(v), (one,)) for v, one in zip(vectors, x, strict=True)]
    together = generated.each(generated.target.unflatten(vectors), x)
    torch.testing.assert_close(together, torch.stack(alone))

    def second_order(outputs: Tensor) -> Tensor:
        (gradient,) = torch.autograd.grad(outputs.square().sum(), vectors, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), vectors)[0]

    torch.testing.assert_close(second_order(together), second_order(torch.stack(alone)))


def test_a_generated_network_holds_only_what_is_not_generated() -> None:
    model = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    generated = Generated(model, ["0.*", "1.weight"])
    names = [name.removeprefix("module.") for name, _ in generated.named_parameters()]
    assert names == ["1.bias", "2.weight", "2.bias"] and generated.module[2].weight is model[2].weight
    assert len(list(model.parameters())) == 6
    with pytest.raises(InputError, match="pattern 'head' matches no parameter"):
        Generated(model, ["head"])


# Ways to adapt


def test_one_description_serves_all_samples_and_one_per_sample_gives_each_its_own_weights() -> None:
    net = network()
    x, z = torch.randn(4, 2).double(), torch.randn(4, 3).double()
    per_sample = net(x.unsqueeze(1), z).squeeze(1)
    torch.testing.assert_close(per_sample, torch.cat([net(x[i : i + 1], z[i]) for i in range(4)]))
    with pytest.raises(InputError, match=r"as many as there are tasks, of shape \(4, 3\), got \(1, 3\); try z.expand"):
        net(x, z[:1])
    with pytest.raises(InputError, match=r"expected a description of shape \(\*, 3\)"):
        net(x, torch.zeros(2).double())


def slow_steps(net: DescribedNetwork, one: SupportSet, z: Tensor) -> Tensor:
    for _ in range(net.steps):
        weights = net.hyper(z)
        loss = (functional_call(mlp().double(), weights, (one.x[0],)) - one.y[0]).square().mean()
        z = z - net.lr * torch.autograd.grad(loss, z, create_graph=True)[0]
    return z


def test_steps_on_a_description_are_those_of_slow_code() -> None:
    net, tasks = network(infer=DeepSets(3, 3, width=4), steps=3, lr=0.2), support()
    fast = net.adapt(tasks)
    started = [net.infer(torch.cat([one.x[0], one.y[0]], 1)) for one in tasks]
    slow = torch.stack([slow_steps(net, one, z) for one, z in zip(tasks, started, strict=True)])
    torch.testing.assert_close(fast, slow)
    parameters = list(net.parameters())
    for ours, theirs in zip(*(torch.autograd.grad(z.sin().sum(), parameters) for z in (fast, slow)), strict=True):
        torch.testing.assert_close(ours, theirs)
    with torch.no_grad():
        evaluated = net.adapt(tasks)
    assert not evaluated.requires_grad
    torch.testing.assert_close(evaluated, fast.detach())


def test_steps_begin_at_the_mean_or_where_they_are_told() -> None:
    net, tasks = network(steps=2), support()
    zero = torch.zeros(3, requires_grad=True).double()
    torch.testing.assert_close(net.adapt(tasks), torch.stack([slow_steps(net, one, zero) for one in tasks]))
    first = net.adapt(tasks)
    net.steps = 4
    torch.testing.assert_close(net.adapt(tasks), network(steps=2).adapt(tasks, first))


def test_classes_are_read_as_one_hot_vectors() -> None:
    net = network(nn.Linear(2, 5), infer=DeepSets(2 + 5, 3))
    x, y = torch.randn(4, 10, 2).double(), torch.arange(5).repeat(4, 2)
    z = net.adapt(SupportSet(x, y, ways=5))
    torch.testing.assert_close(z, net.infer(torch.cat([x, nn.functional.one_hot(y).double()], -1)))


def test_it_is_a_method_and_refuses_to_adapt_by_nothing() -> None:
    method = as_method(network(steps=1), "support")
    tasks = support()
    assert method.predict(method.adapt(tasks), tasks.x).shape == (4, 6, 1)
    with pytest.raises(InputError, match="give infer= or steps="):
        network().adapt(tasks)


# Frozen networks


def test_a_frozen_network_is_plain_and_gives_the_same_outputs(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 1)).double()
    net = network(model, generate=["0.*", "1.*", "3.bias"])
    net(torch.randn(3, 8, 2).double(), torch.randn(3, 3).double())  # moves running averages
    net.eval()
    z, x = torch.randn(3).double(), torch.randn(9, 2).double()
    frozen, before = net.freeze(z), net(x, z)
    assert type(frozen) is nn.Sequential and list(frozen.state_dict()) == list(model.state_dict())
    torch.testing.assert_close(frozen(x), before, rtol=0, atol=1e-12)
    model.load_state_dict(frozen.state_dict())
    torch.testing.assert_close(model.eval()(x), before, rtol=0, atol=1e-12)
    exported = torch.export.export(frozen, (x,)).module()
    torch.testing.assert_close(exported(x), before, rtol=0, atol=1e-12)
    frozen.requires_grad_(True)(x).sum().backward()
    assert all(p.grad is None for p in net.parameters())
    with pytest.raises(InputError, match="expected one description"):
        net.freeze(z.expand(2, 3))


@pytest.mark.filterwarnings("ignore")  # of the exporter
def test_a_frozen_network_is_exported_to_onnx(tmp_path: Path) -> None:
    net = network(nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 1))).float()
    net(torch.randn(3, 8, 2), torch.randn(3, 3))  # moves running averages
    frozen, x = net.eval().freeze(torch.randn(3)), torch.randn(9, 2)
    torch.onnx.export(frozen, (x,), dynamo=True).save(tmp_path / "frozen.onnx")
    reference = ReferenceEvaluator(str(tmp_path / "frozen.onnx"))
    (outputs,) = reference.run(None, {reference.input_names[0]: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(outputs), frozen(x).detach(), rtol=1e-5, atol=1e-6)


# The study


def test_tasks_are_what_their_descriptions_say() -> None:
    tasks = families.mixture("test", 2000, 4, torch.Generator().manual_seed(0))
    assert tasks.z.mean(0).abs().max() < 0.1 and (tasks.z.std(0) - 1).abs().max() < 0.1
    kind, (a, b) = tasks.z[:, :3].argmax(1), (tasks.z[:, 3:] / 3**0.5).T
    amplitude, phase = 2.55 + 2.45 * a, torch.pi * (b + 1) / 2
    x = tasks.x[..., 0].T
    values = torch.stack([amplitude * torch.sin(x + phase), a * x + 2 * b, 0.2 * a * x**2 + 2 * b])
    torch.testing.assert_close(tasks.y[..., 0], values[:, :, torch.arange(2000)][kind, :, torch.arange(2000)])


def test_characters_are_described_by_drawings_that_are_no_samples() -> None:
    family = families.FAMILIES["glyphs"]
    tasks = family.draw("test", 20, 10, torch.Generator().manual_seed(0))
    embeddings, images = families.characters("glyphs")["test"]
    for z, x, y in zip(*tasks, strict=True):
        for way, embedding in enumerate(z.view(5, -1)):
            (of_class,) = images[(embeddings == embedding).all(1)]
            assert sorted(x[y == way].tolist()) == sorted(of_class.tolist())  # all but those of the embedding
    support, (queries, labels) = family.support(tasks, 2), family.queries_of(tasks, 5)
    assert support.x.shape == (20, 10, 196) and queries.shape == (20, 25, 196)
    assert support.y[3].bincount().tolist() == [2] * 5 and labels[3].bincount().tolist() == [5] * 5
    (train, _), (test, _) = (families.characters("glyphs")[split] for split in ("train", "test"))
    torch.testing.assert_close(train.mT @ train / len(train), torch.eye(16), atol=1e-4, rtol=0)
    assert not (test.unsqueeze(1) == train).all(2).any()
    taskset = families.get_tasksets("glyphs")[0]
    drawn = taskset.episode(0, shots=10, queries=10, ways=taskset.num_classes)
    errors = []
    for x in (drawn.support, drawn.query):  # embeddings are a linear map of the means of the first ten, not of others
        means = nn.functional.avg_pool2d(x[0], 2).view(-1, 10, 196).mean(1)
        means = torch.cat([means, torch.ones(len(means), 1)], 1).double()
        errors.append((means @ torch.linalg.lstsq(means, train.double()).solution - train).abs().max())
    assert errors[0] < 1e-3 < 0.1 < errors[1]


def test_controls_of_conditioning() -> None:
    z = torch.randn(500, 2) * torch.tensor([1.0, 5.0]) + 3
    made = controls(z, torch.Generator().manual_seed(0))
    assert torch.equal(made["another task's z"][1:], z[:-1]) and torch.equal(made["mean z"][7], z.mean(0))
    torch.testing.assert_close(made["random z"].std(0), z.std(0), rtol=0.2, atol=0)


TINY = ["--iterations", "2", "--rate-iterations", "1", "--test-tasks", "3", "--scratch-steps", "2", "--test-steps", "1"]
TINY += ["--shots", "[1, 2]", "--rates", "[0.002]", "--maml-rates", "[0.01]", "--cavia-rates", "[0.01]"]


def test_the_study_of_characters(tmp_path: Path) -> None:
    arguments = ["--family", "glyphs", "--out", str(tmp_path), *TINY]
    study.main(study.Settings, study.run, study.report, arguments)
    table = (tmp_path / "results.md").read_text()
    assert table.startswith("| error, %") and "| 2-shot" in table
    errors = json.loads((tmp_path / "seed0.json").read_text())["result"]["errors"]
    assert all(0 <= error <= 100 for of_shots in errors.values() for error in of_shots)


def test_a_study_goes_on_and_never_mixes_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    preset, out = tmp_path / "p.toml", tmp_path / "out"
    preset.write_text('family = "mixture"\niterations = 9\n')

    def run(*arguments: str) -> str:
        study.main(study.Settings, study.run, study.report, ["--preset", str(preset), "--out", str(out), *arguments])
        return capsys.readouterr().err

    assert run(*TINY, "--seeds", "0").startswith(
        "out, seed 0\nDescribedNetwork, Rates(outer=0.002, inner=None), 1 iterations: "
    )
    assert run(*TINY, "--seeds", "0", "1").startswith("out, seed 1\n")
    record = json.loads((out / "seed1.json").read_text())
    assert record["settings"]["family"] == "mixture" and record["settings"]["iterations"] == 2
    assert record["provenance"]["command"].startswith("python -m benchmarks.uses.described --preset p.toml --out out")
    assert record["provenance"]["seconds"] > 0
    table = (out / "results.md").read_text()
    assert table.count("±") == 2 * 10 + 1 and "| given z" in table and "| MAML" in table
    assert (out / "error.png").stat().st_size > 10000
    for bad, message in (
        (["--seeds", "2"], "has other settings than this study"),
        (["--iterations", "many"], "iterations must be a valid integer"),
    ):
        with pytest.raises(SystemExit):
            run(*bad)
        assert message in capsys.readouterr().err
    assert [path.name for path in sorted(out.glob("*.json"))] == ["seed0.json", "seed1.json"]


def test_training_outlives_an_inner_loop_that_diverges() -> None:
    settings = study.Settings(shots=(5,))
    maml = study.MAML(study.network(settings), study.MAMLOptions(inner_lr=1e12, steps=5))
    before = [p.clone() for p in maml.parameters()]
    study.fit(maml, settings, 0, 0.01, 2)
    assert all(torch.equal(p, q) for p, q in zip(maml.parameters(), before, strict=True))


def test_each_method_is_trained_at_the_rates_that_validate_best(monkeypatch: pytest.MonkeyPatch) -> None:
    trained, settings = [], study.Settings(rates=(0.0, 0.01), rate_iterations=150, iterations=3, shots=(10,))

    def fit(method: study.Method, settings: study.Settings, seed: int, lr: float, iterations: int) -> study.Method:
        trained.append((lr, iterations))
        return actual(method, settings, seed, lr, iterations)

    actual = study.fit
    monkeypatch.setattr(study, "fit", fit)
    maml = lambda lr: study.MAML(study.network(settings), study.MAMLOptions(inner_lr=lr))  # noqa: E731
    torch.manual_seed(0)
    method, rates = study.tuned(maml, (0.01, 1e6), settings, 0)
    assert rates == (0.01, 0.01) and method.options.inner_lr == 0.01
    assert trained == [(0.0, 150), (0.0, 150), (0.01, 150), (0.01, 150), (0.01, 3)]
    with pytest.raises(InputError, match="no finite error on validation tasks"):
        study.tuned(maml, (1e6,), settings, 0)


@pytest.mark.parametrize("family", ["sinusoids", "mixture", "omniglot"])
def test_tables_of_the_page_are_those_of_the_records(family: str) -> None:
    root = Path(__file__).parents[1]
    page = (root / "docs" / "uses" / "described.md").read_text(encoding="utf-8").splitlines()
    table = (root / "benchmarks" / "results" / "described" / family / "results.md").read_text(encoding="utf-8")
    rows = [re.sub(" +", " ", row) for row in table.splitlines() if row.startswith("| ")]
    assert len(rows) == 11 and set(rows) <= set(page) and "Seeds: 3;" in table


def test_networks_from_scratch_are_trained_one_by_one() -> None:
    settings = study.Settings(scratch_steps=200, hidden=16)
    tasks = families.sinusoids("test", 3, 5, torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    fitted = study.from_scratch(settings, families.FAMILIES["sinusoids"].support(tasks, 5), tasks.x)
    assert squared_error(fitted, tasks.y).max() < 0.2 * tasks.y.square().mean()


def test_targets_of_a_described_network_are_those_asked_for() -> None:
    assert network(generate=["2.*"]).hyper.target == Target({"2.weight": (1, 4), "2.bias": (1,)})
