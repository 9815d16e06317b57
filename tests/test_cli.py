"""The command line, with an engine that measures nothing: what is run, what is skipped, what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
import types
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from l2l_hyper import cli, methods
from l2l_hyper.errors import InputError
from l2l_hyper.experiment import plan, progress, runner, sweep
from l2l_hyper.experiment.config import Experiment
from l2l_hyper.experiment.parts import Parts
from l2l_hyper.experiment.records import read_records
from l2l_hyper.experiment.result import MetricInfo, Point, Result
from l2l_hyper.experiment.training import Step
from l2l_hyper.files import CannotWrite
from l2l_hyper.report import write

MAML = asdict(methods.METHODS["maml"].options())
METHODS = plan.Plan().methods
PRESETS = Path(__file__).resolve().parents[1] / "benchmarks" / "presets"


class FakeTraining:
    """Stands for training: it remembers the runs, and ``fail`` maps a run to the error to raise."""

    def __init__(self) -> None:
        self.calls: list[types.SimpleNamespace] = []
        self.fail = lambda run: None

    def __call__(self, run, parts, *, folder, test=True, progress=None):
        self.calls.append(types.SimpleNamespace(run=run, parts=parts, folder=folder, test=test))
        error = self.fail(run)
        if error is not None:
            raise error
        progress(Step(1, 2, 0.5, 1.0, 0.5, MetricInfo()))
        progress(Step(2, 2, 1.0, 0.5, 0.6, MetricInfo()))
        random = np.random.default_rng([run.seed, len(run.method)])
        # best at a learning rate of 0.01
        validation = 0.9 - 0.1 * abs(float(np.log10(run.options["lr"])) + 2)
        point = Point(iteration=2, seconds=1.0, score=validation, half_width=0.01, loss=0.5)
        result = Result(
            scores=random.uniform(0.7, 1.0, run.experiment.test_episodes).tolist() if test else [],
            validation=[point],
            training=[],
            selected_iteration=2,
            best_validation_score=validation,
            iterations=2,
            episodes=32,
            seconds_to_train=1.0,
            adaptation_ms=2.0,
            peak_memory_mb=None,
            parameters={"meta": 10, "backbone": 9, "generated": 1},
            manifest={"hash": "abcdef0123456789"},
            normalization=run.experiment.normalization,
        )
        return None, result

    @property
    def names(self) -> list[str]:
        return [call.run.name for call in self.calls]


@pytest.fixture
def fake(monkeypatch) -> FakeTraining:
    fake = FakeTraining()
    for module in (runner, sweep):
        monkeypatch.setattr(module, "train_and_test", fake)
    monkeypatch.setattr(write, "render", lambda figure, form: b"")  # drawing takes longer than all the rest
    monkeypatch.setenv("COLUMNS", "140")
    return fake


@pytest.fixture
def run(capsys, monkeypatch):
    """Runs a command line; returns the exit code, stdout and stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        line = [str(argument) for argument in arguments]
        monkeypatch.setattr(sys, "argv", ["l2l-hyper", *line])
        with pytest.raises(SystemExit) as exit:
            cli.main(line)
        return (exit.value.code or 0, *capsys.readouterr())

    return run


@pytest.fixture
def refused(run):
    """Runs a command line that must be refused with one line; returns the line."""

    def refused(*arguments: object) -> str:
        code, out, err = run(*arguments)
        assert (code, out) == (2, "")
        assert err.startswith("l2l-hyper: error: ") and err.count("\n") == 1 and err.endswith("\n"), err
        return err

    return refused


def record(out: Path, name: str) -> dict:
    return json.loads((out / "records" / f"{name}.json").read_text())


# compare


def test_compare_runs_every_method_and_seed_and_reports(fake, run, tmp_path):
    out = tmp_path / "out"
    code, screen, log = run("compare", "--out", out, "--seeds", "0,1", "--test-episodes", 20, "--iterations", 2)
    assert code == 0
    assert fake.names == [f"{method}-seed{seed}" for seed in (0, 1) for method in METHODS]
    expected = Experiment(tasksets="glyphs", iterations=2, test_episodes=20)
    assert all(call.run.experiment == expected for call in fake.calls)
    assert all(call.folder == out and call.test and call.parts.device.type == "cpu" for call in fake.calls)
    assert fake.calls[1].run.options == MAML
    assert "HyperAdapter" in screen and "difference" in screen
    assert log.count(" % on 20 test episodes") == 6
    assert (out / "results.md").exists() and (out / "accuracy.png").exists()
    assert record(out, "maml-seed1")["command"] == (
        "l2l-hyper compare --out out --seeds 0,1 --test-episodes 20 --iterations 2"
    )
    assert str(tmp_path) not in (out / "records" / "maml-seed1.json").read_text()


def test_compare_goes_on_where_it_was(fake, run, tmp_path):
    assert run("compare", "--out", tmp_path, "--methods", "protonet,maml")[0] == 0
    before = (tmp_path / "records" / "maml-seed0.json").read_bytes()
    fake.calls.clear()
    code, _, log = run("compare", "--out", tmp_path, "--methods", "maml,protonet", "--seeds", "0,1")
    assert code == 0
    assert fake.names == ["maml-seed1", "protonet-seed1"]
    assert "maml seed 0: its record is there, skipped" in log
    assert (tmp_path / "records" / "maml-seed0.json").read_bytes() == before


def test_compare_passes_every_flag_on(fake, run, tmp_path):
    (tmp_path / "data").mkdir()
    expected = Experiment(
        tasksets="omniglot", ways=20, shots=5, queries=3, train_ways=30, train_queries=6, train_seconds=1.5,
        meta_batch=2, validate_every=7, validation_episodes=8, test_episodes=9, split_seed=4,
        backbone="conv4", channels=32, normalization="transductive", metric="accuracy", precision="bfloat16",
        backbone_options={"layers": 2, "pooled": True}, tasksets_options={"rotations": False},
    )  # fmt: skip
    flags = [
        text
        for name, value in vars(expected).items()
        if value is not None and name not in ("iterations", "backbone_options", "tasksets_options")
        for text in (f"--{name.replace('_', '-')}", str(value).lower())
    ]
    options = ["--option", "maml.lr=1e-2", "--option", "maml.first_order=true", "--option", "maml.steps=10"]
    options += ["--backbone-option", "layers=2", "--backbone-option", "pooled=true"]
    options += ["--tasksets-option", "rotations=false"]
    more = ["--methods", "maml", "--data-root", tmp_path / "data", "--device", "cpu"]
    code, _, log = run("compare", "--out", tmp_path / "out", *flags, *options, *more)
    assert code == 0, log
    (call,) = fake.calls
    assert call.run.experiment == expected
    assert call.run.options == {**MAML, "lr": 0.01, "steps": 10, "first_order": True}
    assert call.parts.data_root == tmp_path / "data"


def test_flags_win_over_a_preset(fake, run, tmp_path):
    preset = tmp_path / "preset.toml"
    preset.write_text(
        'ways = 20\ntest-episodes = 30\niterations = 7\nmethods = ["maml", "protonet"]\nseeds = "3"\n'
        "[options.maml]\nlr = 1\nsteps = 5\n[options.hyper-adapter]\nlr = 0.1\n"
    )
    assert run("compare", "--out", tmp_path / "a", "--preset", preset)[0] == 0
    assert fake.names == ["maml-seed3", "protonet-seed3"]
    first = fake.calls[0].run
    assert (first.experiment.ways, first.experiment.test_episodes, first.experiment.iterations) == (20, 30, 7)
    assert (first.options["lr"], first.options["steps"], first.options["inner_lr"]) == (1.0, 5, 0.1)
    fake.calls.clear()
    flags = ("--ways", 5, "--train-seconds", 9, "--methods", "maml", "--option", "maml.lr=0.5", "--seeds", "1")
    assert run("compare", "--out", tmp_path / "b", "--preset", preset, *flags)[0] == 0
    (call,) = fake.calls
    experiment = call.run.experiment
    assert (experiment.ways, experiment.test_episodes, experiment.train_seconds) == (5, 30, 9)
    assert experiment.iterations == Experiment(tasksets="glyphs").iterations
    assert (call.run.options["lr"], call.run.options["steps"], call.run.seed) == (0.5, 5, 1)


def test_ctrl_c_says_how_to_go_on(fake, run, tmp_path):
    fake.fail = lambda run: KeyboardInterrupt() if run.method == "maml" else None
    code, out, err = run("compare", "--out", tmp_path)
    assert (code, out) == (130, "")
    assert "the same command continues from the last checkpoint" in err
    assert "Traceback" not in err
    fake.fail = lambda run: None
    assert run("compare", "--out", tmp_path)[0] == 0
    assert len(list((tmp_path / "records").iterdir())) == 3


def test_an_engine_error_is_one_line_and_frees_the_folder(fake, run, refused, tmp_path):
    fake.fail = lambda run: InputError("more ways than classes:\n  try fewer")
    assert "more ways than classes: try fewer" in refused("compare", "--out", tmp_path, "--ways", 900)
    fake.fail = lambda run: None
    assert run("compare", "--out", tmp_path, "--ways", 5)[0] == 0


def test_a_bug_keeps_its_traceback(fake, tmp_path):
    fake.fail = lambda run: ZeroDivisionError("a bug")
    with pytest.raises(ZeroDivisionError, match="a bug"):
        cli.main(["compare", "--out", str(tmp_path)])


def test_a_baseline_still_being_trained_elsewhere_is_no_error(fake, run, tmp_path):
    code, screen, log = run("compare", "--out", tmp_path, "--methods", "maml", "--baseline", "hyper-adapter")
    assert code == 0
    assert "hyper-adapter has no records" in log
    assert "difference" not in screen


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "protnet"], "unknown method: 'protnet'; did you mean protonet"),
        (["--methods", "maml,"], "methods must have at least 1 character, got ''"),
        (["--tasksets", "omniglott"], "unknown taskset: 'omniglott'; did you mean omniglot?"),
        (["--metric", "acuracy"], "unknown metric: 'acuracy'; did you mean accuracy?"),
        (["--backbone", "vit"], "unknown backbone: 'vit'; try one of conv4, omniglot-cnn"),
        (["--backbone", "own.module:cnn"], "expected a backbone in 'own.module:cnn', could not import it"),
        (["--backbone", "mlp", "--channels", "8"], "backbone 'mlp' has no option channels"),
        (["--backbone-option", "layer=3"], "unknown option of backbone omniglot-cnn: 'layer'; did you mean layers?"),
        (["--backbone-option", "layers"], "--backbone-option must be KEY=VALUE, got 'layers'"),
        (["--normalization", "batch"], "normalization must be 'support', 'transductive' or 'running', got 'batch'"),
        (["--precision", "half"], "precision must be 'float32' or 'bfloat16', got 'half'"),
        (["--baseline", "mamal"], "unknown method: 'mamal'; did you mean maml"),
        (["--option", "maml.lr"], "--option must be METHOD.KEY=VALUE, got 'maml.lr'"),
        (["--option", "maml=3"], "--option must be METHOD.KEY=VALUE"),
        (["--option", "maml.learning=3"], "unknown option of maml: 'learning'"),
        (["--option", "maml.inner_lrr=3"], "did you mean inner_lr"),
        (["--option", "mam.lr=3"], "unknown method: 'mam'"),
        (["--option", "maml.lr=fast"], "maml.lr must be a valid number, got 'fast'"),
        (["--option", "maml.lr=nan"], "maml.lr must be a finite number, got nan"),
        (["--option", "maml.steps=1.5"], "maml.steps must be a valid integer, got 1.5"),
        (["--option", "maml.steps=true"], "maml.steps must be a valid integer, got True"),
        (["--option", "maml.first_order=1"], "maml.first_order must be a valid boolean, got 1"),
        (["--option", "hyper-adapter.base_learner=3"], "hyper-adapter.base_learner must be 'gaussian', 'prototype'"),
        (["--methods", "maml", "--option", "protonet.lr=1"], "protonet, which is not among --methods maml"),
        (["--seeds", "0,a"], "seeds must be a valid integer, got 'a'"),
        (["--seeds", "-1"], "seeds must be greater than or equal to 0, got -1"),
        (["--seeds", "4294967296"], "seeds must be less than 4294967296"),
        (["--seeds", ""], "seeds must be a valid integer, got ''"),
        (["--ways", "1"], "ways must be greater than or equal to 2, got 1"),
        (["--ways", "five"], "ways must be a valid integer, got 'five'"),
        (["--train-seconds", "0"], "train_seconds must be greater than 0, got 0"),
        (["--train-seconds", "inf"], "train_seconds must be a finite number, got inf"),
        (["--memory-limit", "-1"], "memory_limit must be greater than 0"),
        (["--iterations", "5", "--train-seconds", "5"], "either --iterations or --train-seconds, got both"),
        (["--device", "cuda:99"], "expected a device that is there, got 'cuda:99'"),
        (["--device", "tpu9000"], "expected a device that is there, got 'tpu9000'"),
        (["--device", "meta"], "expected a device that is there, got 'meta'"),
        (["--data-root", "nowhere"], "--data-root must be an existing folder, got nowhere"),
        (["--preset", "nowhere.toml"], "expected a preset in TOML, but nowhere.toml cannot be read"),
        (["--wayz", "5"], "--wayz"),
    ],
)
def test_bad_input_is_one_line(fake, refused, tmp_path, arguments, message):
    assert message in refused("compare", "--out", tmp_path / "out", *arguments)
    assert fake.calls == []
    assert not (tmp_path / "out").exists()


def test_a_missing_out_is_told(refused):
    assert "--out" in refused("compare")


def test_out_that_is_a_file_is_left_alone(fake, refused, tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    assert "is a file" in refused("compare", "--out", file)
    assert "is a file" in refused("compare", "--out", file / "below")
    assert file.read_text() == "mine"


@pytest.mark.parametrize(
    ("change", "message"),
    [(["--ways", 20], "ways 5 there, 20 here"), (["--option", "maml.lr=1"], "lr 0.003 there, 1.0 here")],
)
def test_records_of_another_configuration_stay(fake, run, refused, tmp_path, change, message):
    assert run("compare", "--out", tmp_path, "--methods", "maml")[0] == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    fake.calls.clear()
    assert message in refused("compare", "--out", tmp_path, "--methods", "protonet,maml", "--seeds", 1, *change)
    assert fake.calls == []
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_damaged_record_is_named_before_training(fake, run, refused, tmp_path):
    assert run("compare", "--out", tmp_path, "--methods", "maml")[0] == 0
    (tmp_path / "records" / "maml-seed0.json").write_text("{")
    fake.calls.clear()
    assert "maml-seed0.json" in refused("compare", "--out", tmp_path, "--methods", "protonet")
    assert fake.calls == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ways = [", "cannot be read"),
        ("wais = 5", "unknown setting in preset.toml: 'wais'; did you mean ways?"),
        ('ways = "5"', "preset.toml: ways must be a valid integer, got '5'"),
        ("ways = true", "preset.toml: ways must be a valid integer, got True"),
        ("seeds = [0.5]", "preset.toml: seeds must be a valid integer, got 0.5"),
        ("methods = []", "preset.toml: methods must have at least 1 item"),
        ("iterations = 5\ntrain_seconds = 5", "both iterations and train_seconds"),
        ("[options]\nmaml = 3", "preset.toml: options must be an object, got 3"),
        ("[options.mamml]\nlr = 3", "unknown method: 'mamml'; did you mean maml"),
        ("[options.maml]\nlrr = 3", "unknown option of maml: 'lrr'"),
        ("[sweep.maml]\nlr = 3", "preset.toml: grids must be a valid array, got 3"),
    ],
)
def test_bad_presets_are_refused(fake, refused, tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    Path("preset.toml").write_text(text)
    assert message in refused("compare", "--preset", "preset.toml", "--out", "out")


@pytest.mark.parametrize("path", sorted(PRESETS.glob("*.toml")), ids=lambda path: path.stem)
def test_presets_of_the_benchmarks_can_be_run(path):
    planned = plan.make_plan(plan.read_preset(path))
    parts = Parts(planned)
    assert parts.grids if path.stem.startswith("sweep") else planned.runs(parts.options)


def test_a_record_is_the_preset_of_its_run():
    folder = PRESETS.parent / "results" / "omniglot-5way-1shot"
    for record in read_records(folder):
        planned = plan.make_plan(plan.read_preset(folder / "records" / f"{record.run.name}.json"))
        assert planned.experiment == record.run.experiment
        assert (planned.methods, planned.seeds) == ((record.run.method,), (record.run.seed,))
        assert planned.options == {record.run.method: dict(record.run.options)}


def test_help_tells_every_setting_with_its_default(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    code, screen, _ = run("compare", "--help")
    assert code == 0
    for setting in plan.SETTINGS.values():
        assert setting.flag in screen and setting.help.split()[0] in screen
        assert setting.default is None or setting.default in screen


def test_a_key_by_its_former_name_is_read(tmp_path):
    preset = tmp_path / "preset.toml"
    preset.write_text(
        'hidden = 8\n[options.hyper-adapter]\nstart = "base"\n[sweep.hyper-adapter]\nstart = ["base", "ridge"]\n'
    )
    planned = plan.make_plan(plan.read_preset(preset))
    assert planned.experiment.channels == 8
    assert planned.options == {"hyper-adapter": {"base_learner": "own"}}
    assert planned.grids == {"hyper-adapter": {"base_learner": ["own", "ridge"]}}


# report, list, version


def test_report(fake, run, refused, tmp_path):
    assert "expected a folder with records" in refused("report", tmp_path / "nothing")
    (tmp_path / "records").mkdir()
    assert "expected a folder with records" in refused("report", tmp_path)
    assert run("compare", "--out", tmp_path)[0] == 0
    code, screen, _ = run("report", tmp_path, "--baseline", "maml")
    assert code == 0
    assert "MAML" in screen and "difference" in screen
    assert "baseline" in refused("report", tmp_path, "--baseline", "anil")
    assert run("report", tmp_path, "--shots", "1")[0] == 0
    assert "tested with, 1, got 5" in refused("report", tmp_path, "--shots", "5")


def test_list(fake, run):
    code, screen, _ = run("list")
    assert code == 0
    for text in (
        "glyphs",
        "characters",
        "squared-error",
        "omniglot-cnn",
        "layers=4",
        "inner_lr=0.4",
        "base_learner=cosine",
    ):
        assert text in screen


def test_version_and_help(run):
    from l2l_hyper import __version__

    assert run("--version") == (0, f"l2l-hyper {__version__}\n", "")
    for arguments in ([], ["--help"]):
        code, screen, _ = run(*arguments)
        assert code == 0
        assert "compare" in screen and "report" in screen


def test_unknown_command(refused):
    assert "'comprae'" in refused("comprae")


def test_a_mistyped_flag_is_told_before_the_engine_is_loaded():
    script = (
        "import sys\n"
        "from l2l_hyper import cli\n"
        "try:\n"
        "    cli.main(['compare', '--out', 'nowhere', '--seeds', 'x'])\n"
        "finally:\n"
        "    heavy = ('torch', 'learn2learn', 'scipy', 'matplotlib')\n"
        "    print([name for name in heavy if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "[]\n")
    assert done.stderr.startswith("l2l-hyper: error: seeds must be")


# sweep

SWEEP = """
iterations = 2
seeds = [0, 1]
[options.maml]
steps = 3
[sweep.maml]
lr = [0.001, 0.01, 0.1]
inner_lr = [0.1, 0.5]
[sweep.protonet]
lr = [0.0001, 0.001]
"""


@pytest.fixture
def preset(tmp_path) -> Path:
    path = tmp_path / "sweep.toml"
    path.write_text(SWEEP)
    return path


def test_sweep_tries_every_point_and_chooses_by_validation(fake, run, preset, tmp_path):
    out = tmp_path / "out"
    code, screen, _ = run("sweep", preset, "--out", out)
    assert code == 0
    assert len(fake.calls) == 2 * (3 * 2 + 2)
    assert not any(call.test for call in fake.calls)
    assert len({call.folder / call.run.name for call in fake.calls}) == len(fake.calls)  # no two share a checkpoint
    assert fake.calls[0].run.options == {**MAML, "steps": 3, "lr": 0.001, "inner_lr": 0.1}
    sweep = json.loads((out / "sweep.json").read_text())
    maml, protonet = sweep["chosen"]
    assert (maml["values"]["lr"], protonet["values"]["lr"]) == (0.01, 0.001)
    assert "lr" not in maml["at_edge"] and protonet["at_edge"] == ["lr"]
    assert len(sweep["points"]) == 16
    assert {"validation_score", "seconds_to_train", "seed", "commit", "environment"} <= sweep["points"][0].keys()
    assert [point["chosen"] for point in sweep["points"] if point["values"] == maml["values"]] == [True, True]
    assert "protonet: best at the edge of lr, widen the grid" in screen
    assert (out / "sweep.md").read_text().count("**chosen**") == 2
    fake.calls.clear()
    assert run("sweep", preset, "--out", out)[0] == 0
    assert fake.calls == []
    assert json.loads((out / "sweep.json").read_text()) == sweep


def test_sweep_of_one_method_at_a_time_comes_to_the_same(fake, run, preset, tmp_path):
    for method in ("protonet", "maml"):
        assert run("sweep", preset, "--out", tmp_path / "out", "--methods", method)[0] == 0
    assert len(json.loads((tmp_path / "out" / "sweep.json").read_text())["points"]) == 16


def test_sweep_leaves_out_points_that_fail(fake, run, preset, tmp_path):
    fake.fail = lambda run: InputError("the loss is nan") if run.options["lr"] == 0.01 else None
    code, _, log = run("sweep", preset, "--out", tmp_path / "out")
    assert code == 0
    assert log.count("left out, the loss is nan") == 4
    chosen = json.loads((tmp_path / "out" / "sweep.json").read_text())["chosen"][0]
    assert chosen["values"]["lr"] in (0.001, 0.1)
    fake.fail = lambda run: InputError("no data")
    code, screen, log = run("sweep", preset, "--out", tmp_path / "other")
    assert (code, screen) == (2, "")
    assert log.endswith("\nl2l-hyper: error: no data\n")


def test_a_full_disk_stops_a_sweep(fake, run, preset, tmp_path):
    fake.fail = lambda run: CannotWrite("cannot write it") if run.options["lr"] == 0.01 else None
    code, screen, log = run("sweep", preset, "--out", tmp_path / "out")
    assert (code, screen) == (2, "") and "left out" not in log and log.endswith("\nl2l-hyper: error: cannot write it\n")
    assert not (tmp_path / "out" / "sweep.json").exists()


def test_bad_sweeps_are_refused(fake, refused, preset, tmp_path):
    out = tmp_path / "out"
    assert "has no [sweep.hyper-adapter]" in refused("sweep", preset, "--out", out, "--methods", "hyper-adapter")
    preset.write_text("ways = 5\n")
    assert "expected grids to sweep" in refused("sweep", preset, "--out", out)
    preset.write_text("[sweep.maml]\nlr = ['fast']\n")
    assert "maml.lr must be a valid number" in refused("sweep", preset, "--out", out)
    assert not out.exists()


# progress


def test_progress_away_from_a_terminal_is_a_line_now_and_then(monkeypatch):
    from io import StringIO

    from rich.console import Console

    now, validation = [0.0], Point(iteration=1, seconds=1.0, loss=0.1, score=0.1)
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    screen = StringIO()
    with progress.RunProgress(Console(file=screen, width=200), "maml seed 0", train_seconds=100.0, runs=3) as shown:
        for second in range(100):
            now[0] = float(second)
            shown(Step(second, 1, float(second), 0.5, 0.75, MetricInfo()))
            shown(Step(second, 1, float(second), 0.5, 0.75, MetricInfo(), validation))
    assert screen.getvalue().splitlines() == [
        "maml seed 0: about 100 s of training; 3 runs, if all take as long: 5 min",
        *(
            f"maml seed 0: iteration {i}, {i} % of training, {i} s, about {100 - i} s left, "
            "loss 0.500, accuracy 75.00 %"
            for i in (30, 60, 90)
        ),
    ]


def test_progress_on_a_terminal_is_a_bar():
    from io import StringIO

    from rich.console import Console

    screen = StringIO()
    with progress.RunProgress(Console(file=screen, force_terminal=True, width=100), "maml [0]") as shown:
        shown(Step(5, 10, 1.0, 0.5, 0.75, MetricInfo()))
        shown(Step(10, 10, 2.0, 0.5, 0.75, MetricInfo()))
    assert "maml [0]" in screen.getvalue() and "testing" in screen.getvalue()
