"""Bad command lines and calls: each ends in one line that says what to try, and what cannot mean anything is refused.

The long form of the two campaigns: ``pytest tests/faults/test_bad_input.py -m campaign``.
"""

from __future__ import annotations

import dataclasses
import errno
import functools
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bad_values import ZERO_IS_FINE, calls, command_lines
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from l2l_hyper import HyperAdapter, InputError, cli, compare, memory
from l2l_hyper.backbones import BACKBONES
from l2l_hyper.data import ACCURACY, TensorTaskset
from l2l_hyper.data.episode import SupportSet, squared_error
from l2l_hyper.data.episode import cross_entropy as loss_of_tasks
from l2l_hyper.experiment import distributed
from l2l_hyper.experiment.config import Experiment
from l2l_hyper.experiment.evaluation import evaluate_on
from l2l_hyper.experiment.parts import Parts
from l2l_hyper.experiment.plan import from_flags, make_plan, read_preset
from l2l_hyper.experiment.sweep import grid_points
from l2l_hyper.methods import METHODS, Method
from l2l_hyper.methods.hyper_adapter import HyperAdapterOptions
from l2l_hyper.settings import defaults

TINY = {"iterations": "1", "validation-episodes": "2", "test-episodes": "2", "queries": "1", "meta-batch": "1"}
QUICK = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
BASE_LEARNERS = ("gaussian", "prototype", "cosine", "ridge", "gradient", "own")
CLOSED = BASE_LEARNERS[:3]  # which need every class


def refusal(capsys: Any, out: Path, line: list[str]) -> str | None:
    """The one line with which a command line is refused; ``None`` where it is not, or in another way."""
    given = {text.split("=")[0].removeprefix("--") for text in line}
    tiny = {name: value for name, value in TINY.items() if name not in given}
    if "train-seconds" in given:
        del tiny["iterations"]
    known = [] if {"--methods", "--preset"} & set(line) else ["--methods", "protonet"]
    where = [] if "--out" in line else ["--out", str(out)]
    with pytest.raises(SystemExit) as exit:
        cli.main(["compare", *where, *known, *(f"--{name}={value}" for name, value in tiny.items()), *line])
    screen, log = capsys.readouterr()
    refused = exit.value.code == 2 and not screen and re.fullmatch(r"l2l-hyper: error: [^\n]+\n", log)
    return log if refused else None


# The command line


@pytest.mark.campaign
def test_every_bad_command_line_is_refused(capsys: Any, tmp_path: Path) -> None:
    lines = list(command_lines())
    with capsys.disabled():
        print(f"{len(lines)} bad command lines")
    assert len(lines) > 400
    assert [line for line in lines if refusal(capsys, tmp_path / "out", line) is None] == []


def test_some_bad_command_lines_are_refused(capsys: Any, tmp_path: Path) -> None:
    for line in list(command_lines())[::29]:
        assert refusal(capsys, tmp_path / "out", line) is not None, line


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["--methods", "maml", "--train-ways", "7"], "last layer has 5 outputs, got a task of 7 ways"),
        (
            ["--methods", "maml", "--option", "maml.steps=0"],
            "maml.steps must be greater than or equal to 1, got 0; try 1",
        ),
        (
            ["--methods", "maml", "--option", "maml.steps=1_000_000_000"],
            "maml.steps must be less than or equal to 10000",
        ),
        (["--methods", "maml", "--option", "maml.lr=-1"], "maml.lr must be greater than 0, got -1; try 0.003"),
        (["--option", "protonet.lr=" + "[" * 20_000], "protonet.lr must be a valid number"),
        (["--option", "protonet.lr=" + "9" * 5_000], "protonet.lr must be a valid number"),
        (["--option", "protonet.lr={a=1}"], "protonet.lr must be a valid number"),
        (["--backbone", "wrn28", "--backbone-option", "width=0"], "wrn28.width must be greater than or equal to 1"),
        (["--backbone", "resnet12", "--backbone-option", "dropout=2"], "resnet12.dropout must be less than 1"),
        (["--train-seconds", "inf"], "train_seconds must be a finite number, got inf"),
        (["--train-seconds", "nan"], "train_seconds must be a finite number, got nan"),
        (["--seeds", "4294967296"], "seeds must be less than 4294967296"),
        (["--seeds=-1"], "seeds must be greater than or equal to 0"),
        (["--baseline", ""], "baseline must have at least 1 character"),
        (["--metric", ""], "metric must have at least 1 character"),
        (["--device", "meta"], "expected a device that is there, got 'meta'; try cpu"),
        (["--device", ""], "device must have at least 1 character"),
        (["--out", ""], "expected the name of a folder, got an empty one"),
        (["--out", "a" * 256], "File name too long"),
        (["--tasksets", "a\udcff"], "tasksets must be a valid string"),
        (["--memory-limit", "1e308"], "memory_limit must be less than or equal to"),
        (["--test-episodes", "1_000_000_000"], "1,000,000,000 test_episodes to fit"),
        (["--validation-episodes", "1_000_000_000"], "lower validation_episodes"),
        (["--meta-batch", "1_000_000_000"], "as with a smaller meta_batch"),
        (["--class-batch", "1_000_000_000"], "as with a smaller class_batch"),
        (["--channels", "1_000_000_000"], "lower channels"),
        (["--methods", "hypermaml", "--option", "hypermaml.width=1_000_000_000"], "lower width"),
        (["--methods", "frn", "--option", "frn.layer=nothing"], "layer='nothing' is no layer of the network"),
        (["--shots", "1_000_000_000"], "lower shots"),
        (["--ways", "1_000_000_000"], "lower ways"),
    ],
    ids=lambda part: " ".join(part)[:60] if isinstance(part, list) else "",
)
def test_what_was_a_traceback_or_nonsense_is_one_line(
    capsys: Any, tmp_path: Path, line: list[str], message: str
) -> None:
    refused = refusal(capsys, tmp_path / "out", line)
    assert refused is not None and message in refused


def test_a_folder_below_an_unreadable_one_is_refused(capsys: Any, tmp_path: Path, monkeypatch: Any) -> None:
    def unreadable(path: Path) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "exists", unreadable)
    assert "Permission denied): try another --out" in str(refusal(capsys, tmp_path / "out", []))


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORLD_SIZE": ""}, "expected WORLD_SIZE in the environment as a number, as torchrun gives it, got ''"),
        ({"WORLD_SIZE": "two"}, "got 'two': start the processes with torchrun, or unset WORLD_SIZE"),
        ({"WORLD_SIZE": "2"}, "expected RANK in the environment"),
        ({"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_PORT": ""}, "expected MASTER_PORT"),
        ({"WORLD_SIZE": "2", "RANK": "2", "LOCAL_RANK": "0", "MASTER_PORT": "1"}, "expected RANK below WORLD_SIZE"),
        ({"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_PORT": "1"}, "and a MASTER_ADDR"),
    ],
    ids=str,
)
def test_half_an_environment_of_torchrun_is_refused(
    monkeypatch: Any, environment: dict[str, str], message: str
) -> None:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_PORT", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=message), distributed.process_group("cpu"):
        pass


# Python


@pytest.mark.campaign
def test_every_bad_call_is_refused() -> None:
    made = list(calls())
    print(f"{len(made)} bad calls")
    assert len(made) > 360
    assert [name for name, call in made if not is_refused(call)] == []


def test_some_bad_calls_are_refused() -> None:
    for name, call in list(calls())[::29]:
        assert is_refused(call), name


def is_refused(call: Callable[[], object]) -> bool:
    try:
        call()
    except InputError as error:
        return len(str(error).splitlines()) == 1
    return False


def network(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).to(dtype)


X, Y, QUERY = torch.randn(9, 4), torch.arange(3).repeat_interleave(3), torch.randn(5, 4)
TASKS, LABELS, QUERIES = torch.randn(3, 9, 4), Y.repeat(3, 1), torch.randn(3, 5, 4)
NAN = torch.where(torch.arange(9)[:, None] == 4, torch.nan, X)


def adapter(base_learner: str, dtype: torch.dtype = torch.float32) -> HyperAdapter:
    return HyperAdapter(network(dtype), width=8, base_learner=base_learner)


def answers(base_learner: str, x: Tensor = X, y: Any = Y, **options: Any) -> Tensor:
    learner = adapter(base_learner, x.dtype).clone()
    learner.adapt(support=(x, y), **options)
    return learner(QUERY.to(x.dtype))


def answers_to_tasks(base_learner: str, x: Tensor = TASKS, y: Tensor = LABELS, query: Tensor = QUERIES) -> Tensor:
    hyper = adapter(base_learner)
    return hyper.predict_tasks(hyper.adapt_tasks(x, y), query)


@pytest.mark.parametrize("base_learner", BASE_LEARNERS)
def test_a_support_set_that_cannot_be_read_is_refused(base_learner: str) -> None:
    for change, message in (
        ({"x": NAN}, "samples that are not finite"),
        ({"x": X[:0], "y": Y[:0]}, r"one or more support samples as a tensor \(N, \*\), got shape \(0, 4\)"),
        ({"x": X[:, :3]}, r"expected samples that the network reads, got torch.float32 of shape \(9, 3\)"),
        ({"y": None}, "expected labels as a tensor, array or list of numbers, got NoneType"),
        ({"y": ["a"] * 9}, "expected labels as a tensor, array or list of numbers, got list"),
        ({"y": 1}, "expected one label per sample"),
        ({"y": Y[:5]}, "label"),
        ({"y": Y + 1}, "labels must lie in 0 … 2"),
        ({"ways": 2.5}, "ways must be a valid integer, got 2.5"),
        ({"ways": 0}, "ways must be greater than or equal to 1, got 0"),
        ({"ways": 2_000_000_000}, "ways"),
    ):
        with pytest.raises(InputError, match=message):
            answers(base_learner, **change)
    with pytest.raises(InputError, match="samples and their labels, got Tensor"):
        adapter(base_learner).clone().adapt(support=X)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="mat1 and mat2 must have the same dtype"):
        adapter(base_learner, torch.float64).clone().adapt(support=(X, Y))


@pytest.mark.parametrize("base_learner", BASE_LEARNERS)
def test_tasks_that_cannot_be_read_are_refused(base_learner: str) -> None:
    for change, message in (
        ({"x": NAN.expand(3, 9, 4)}, "samples that are not finite"),
        ({"x": TASKS[:0], "y": LABELS[:0]}, "at least one sample in each"),
        ({"x": TASKS[:, :0], "y": LABELS[:, :0]}, "at least one sample in each"),
        ({"y": LABELS[:2]}, "of as many tasks"),
        ({"y": LABELS[0]}, r"labels \(T, N\)"),
        ({"y": LABELS[:, :5]}, "one label per sample, got 9 samples and 5"),
        ({"y": LABELS - 1}, "labels must lie in 0 … 2 for 3 ways, got -1 … 1"),
        ({"query": QUERIES[:1]}, "of the 3 tasks adapted to, got 1"),
        ({"query": QUERIES[:2]}, "of the 3 tasks adapted to, got 2"),
        ({"query": QUERIES[0]}, "of the 3 tasks adapted to, got 5"),
        ({"x": TASKS[:1], "y": LABELS[:1]}, "of the 1 tasks adapted to, got 3"),
    ):
        with pytest.raises(InputError, match=message):
            answers_to_tasks(base_learner, **change)
    if base_learner in CLOSED:
        with pytest.raises(InputError, match="every class needs a support sample in each task"):
            answers_to_tasks(base_learner, y=LABELS.clamp(max=1))


@pytest.mark.parametrize("base_learner", BASE_LEARNERS)
def test_labels_of_any_integer_type_are_labels(base_learner: str) -> None:
    expected, of_tasks = answers(base_learner), answers_to_tasks(base_learner)
    for kind in (torch.int32, torch.uint8):
        assert torch.equal(answers(base_learner, y=Y.to(kind)), expected)
        assert torch.equal(answers_to_tasks(base_learner, y=LABELS.to(kind)), of_tasks)


@pytest.mark.parametrize("base_learner", BASE_LEARNERS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_models_of_other_precision_work_in_value_and_gradient(base_learner: str, dtype: torch.dtype) -> None:
    hyper = adapter(base_learner, dtype)
    learner = hyper.clone()
    learner.adapt(cross_entropy(learner(X.to(dtype)), Y))
    outputs = learner(QUERY.to(dtype))
    cross_entropy(outputs, Y[:5]).backward()
    assert outputs.dtype == dtype
    assert all(p.grad is not None and p.grad.isfinite().all() for p in hyper.parameters())
    torch.testing.assert_close(answers(base_learner, X.to(dtype)).float(), answers(base_learner), atol=0.2, rtol=0.1)


@pytest.mark.parametrize("base_learner", BASE_LEARNERS)
def test_inference_mode_works_or_says_what_does(base_learner: str) -> None:
    hyper = adapter(base_learner)
    if base_learner == "gradient":
        for adapt in (lambda: hyper.clone().adapt(support=(X, Y)), lambda: hyper.adapt_tasks(TASKS, LABELS)):
            with torch.inference_mode(), pytest.raises(InputError, match="use torch.no_grad()"):
                adapt()
        return
    expected = answers(base_learner)
    with torch.inference_mode():
        learner = hyper.clone()
        learner.adapt(support=(X, Y))
        torch.testing.assert_close(learner(QUERY), expected)
        made = X.clone()
    assert torch.equal(answers(base_learner, made), expected)


def test_sizes_are_checked_before_memory_is_taken() -> None:
    with pytest.raises(InputError, match="lower width or blocks"):
        HyperAdapter(network(), width=1_000_000_000, blocks=3)
    with pytest.raises(InputError, match="backbone 'conv4' and what training keeps of it to fit .* lower channels"):
        BACKBONES["conv4"].build(5, (1, 28, 28), {"channels": 1_000_000_000})
    tasks = TensorTaskset(torch.zeros(8, 3), torch.arange(8) % 2, ways=2, samples=2)
    with pytest.raises(InputError, match="1,000,000,000,000 episodes to fit"):
        tasks.batch(range(10**12), shots=1, queries=1)
    with pytest.raises(InputError, match="1,000,000,000,000 episodes to fit"):
        tasks.fingerprint(10**12, shots=1, queries=1)


def test_a_graph_that_outgrows_memory_is_refused(monkeypatch: Any) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda *_: 2**22)
    with pytest.raises(InputError, match="the graph of one task of maml to fit .* lower its steps"):
        compare("glyphs", ["maml"], options={"maml": {"steps": 500}}, channels=2, iterations=1, queries=1)


def test_outputs_that_are_not_finite_are_no_right_answers() -> None:
    class Diverged(Method):
        def adapt(self, support: SupportSet) -> None:
            return None

        def predict(self, adapted: None, query: Tensor) -> Tensor:
            return torch.full((*query.shape[:2], 2), torch.nan)

    tasks = TensorTaskset(torch.zeros(8, 3), torch.arange(8) % 2, ways=2, samples=2)
    form, device = {"ways": 2, "shots": 1, "queries": 1}, torch.device("cpu")
    method = Diverged()
    measured = evaluate_on(method, tasks, range(4), ACCURACY, form=form, device=device, batch_size=2)
    assert measured.scores.isnan().all()
    outputs, labels = torch.tensor([[[torch.nan, 0.0], [1.0, 0.0]]]), torch.tensor([[0, 0]])
    assert ACCURACY.of(outputs, labels).tolist() == [0.5]


def test_values_of_another_shape_are_refused() -> None:
    with pytest.raises(InputError, match=r"shape of the outputs, \(2, 3, 1\), got \(2, 3\)"):
        squared_error(torch.zeros(2, 3, 1), torch.zeros(2, 3))
    assert loss_of_tasks(torch.zeros(1, 2, 3), torch.zeros(1, 2, dtype=torch.long)).shape == (1,)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ([[0.0, 1.0], [2.0, 3.0]], "row of integers, got float64"),
        ([0, 1], "row of integers"),
        ([[[0]]], "row of integers"),
    ],
)
def test_sample_indices_are_integers(classes: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        TensorTaskset(torch.zeros(8, 3), classes, ways=1, samples=1)


# One mechanism, whatever way a value comes in

NUMBERS = st.one_of(st.integers(-3, 12), st.integers(), st.floats(-2, 3), st.floats())
VALUES = st.one_of(NUMBERS, st.booleans(), st.text("abgx-", max_size=4), st.lists(st.integers(-1, 3), max_size=2))
OPTIONS = [(method, name) for method in METHODS for name in defaults(METHODS[method].options) if "backbone" not in name]


def toml(value: Any) -> str:
    if isinstance(value, float) and math.isinf(value):
        return "inf" if value > 0 else "-inf"
    return str(value).lower() if isinstance(value, bool) else repr(value)


def outcome(read: Callable[[], Any]) -> Any:
    """The value, or the class of the error in its place."""
    try:
        return repr(read())
    except InputError:
        return InputError


@QUICK
@given(st.sampled_from(OPTIONS), VALUES)
def test_flags_presets_and_python_accept_the_same_options(
    tmp_path_factory: Any, option: tuple[str, str], value: Any
) -> None:
    method, name = option
    options = METHODS[method].options
    in_python = outcome(lambda: getattr(options(**{name: value}), name))
    table = {"methods": [method], "options": {method: {name: value}}}
    assert outcome(lambda: Parts(make_plan(table)).options[method][name]) == in_python
    assert outcome(lambda: getattr(METHODS[method].complete({name: value}), name)) == in_python
    grids = {"methods": [method], "grids": {method: {name: [value]}}}
    assert outcome(lambda: grid_points(Parts(make_plan(grids)).grids[method])[0][name]) == in_python
    preset = tmp_path_factory.getbasetemp() / "preset.toml"
    preset.write_text(f"methods = ['{method}']\n[options.{method}]\n{name} = {toml(value)}\n")
    assert outcome(lambda: Parts(make_plan(read_preset(preset))).options[method][name]) == in_python
    if not isinstance(value, str):  # a text on the command line may spell a number
        flags = {"methods": method, "options": [f"{method}.{name}={toml(value)}"]}
        assert outcome(lambda: Parts(make_plan(from_flags(flags))).options[method][name]) == in_python


@QUICK
@given(st.sampled_from(OPTIONS), NUMBERS)
def test_an_accepted_number_is_finite_and_stays(option: tuple[str, str], value: float) -> None:
    options = METHODS[option[0]].options
    try:
        made = options(**{option[1]: value})
    except InputError as error:
        assert option[1] in str(error) and "got" in str(error)
        return
    kept = getattr(made, option[1])
    assert math.isfinite(kept) and kept >= 0
    assert kept > 0 or {option[1], f"{option[1]} of {options.__name__}"} & ZERO_IS_FINE
    assert options(**dataclasses.asdict(made)) == made


@QUICK
@given(st.sampled_from(sorted(defaults(Experiment))), VALUES)
def test_a_setting_is_refused_or_stays(name: str, value: Any) -> None:
    try:
        made = Experiment(**{name: value})
    except InputError as error:
        assert name in str(error) or "test_shots" in str(error)
        return
    assert Experiment(**dataclasses.asdict(made)) == made
    assert getattr(made, name) == (tuple(value) if isinstance(value, list) else value)


@functools.cache
def pieces() -> list[str]:
    presets = Path(__file__).resolve().parents[2] / "benchmarks" / "presets"
    return sorted({line for path in presets.glob("*.toml") for line in path.read_text().splitlines()})


@QUICK
@given(st.data())
def test_any_file_is_a_preset_or_refused(tmp_path_factory: Any, data: st.DataObject) -> None:
    lines = data.draw(st.lists(st.one_of(st.sampled_from(pieces()), st.text(max_size=12)), max_size=6))
    preset = tmp_path_factory.getbasetemp() / "any.toml"
    preset.write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))
    try:
        read = read_preset(preset)
    except InputError as error:
        assert str(preset) in str(error)
        return
    assert make_plan(read) == make_plan(read)


@pytest.mark.parametrize("text", ["a = " + "[" * 20_000, "a = " + "9" * 5_000, "a = 1\n" * 2, "\ud800", "\x00"])
def test_presets_that_are_no_toml_are_refused(tmp_path: Path, text: str) -> None:
    preset = tmp_path / "preset.toml"
    preset.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(InputError, match="expected a preset in TOML"):
        read_preset(preset)


def test_a_grid_holds_nothing_that_is_not_finite() -> None:
    with pytest.raises(InputError, match="maml.inner_lr must be a finite number, got nan"):
        Parts(make_plan({"grids": {"maml": {"inner_lr": [0.1, math.nan]}}}))


def test_options_made_in_python_are_checked() -> None:
    with pytest.raises(InputError, match="steps must be greater than or equal to 1, got 0; try 1"):
        HyperAdapterOptions(steps=0)
    with pytest.raises(InputError, match="unknown option of HyperAdapter: 'steps'"):
        HyperAdapter(network(), steps=-5)
