"""Trained learners: loaded from checkpoints, tested on other tasksets, and used on files."""

from __future__ import annotations

import csv
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_hub import pretend_hub
from huggingface_hub import ModelCard
from PIL import Image

import l2l_hyper
from l2l_hyper import cli
from l2l_hyper.backbones import BACKBONES
from l2l_hyper.data import TASKSETS, get_tasksets
from l2l_hyper.data.glyphs import glyph_images
from l2l_hyper.errors import InputError
from l2l_hyper.experiment import TrainedLearner
from l2l_hyper.experiment.checkpoint import load_checkpoint, save_checkpoint
from l2l_hyper.experiment.parts import Parts
from l2l_hyper.experiment.plan import from_flags
from l2l_hyper.experiment.prediction import predict
from l2l_hyper.experiment.provenance import collect
from l2l_hyper.experiment.records import read_record, read_records
from l2l_hyper.experiment.transfer import record_of, transfer_plan

SMALL: dict[str, Any] = {
    **{"ways": 3, "queries": 2, "backbone": "mlp", "backbone_options": {"sizes": [6]}, "iterations": 2},
    **{"meta_batch": 2, "validation_episodes": 2, "test_episodes": 6},
}
METHODS = ["protonet", "hyper-adapter", "maml", "gidaris"]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out")
    l2l_hyper.compare("glyphs", METHODS, out=out, class_batch=4, **SMALL)
    return out


@pytest.fixture(scope="module")
def drawings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four glyphs in ink on paper, and as those that `glyphs` has."""
    folder, glyphs = tmp_path_factory.mktemp("drawings"), glyph_images()
    for c in range(4):
        (folder / f"class {c}").mkdir()
        for k in range(4):
            pixels = 255 - glyphs.images[glyphs.classes[c][k], 0].numpy()
            Image.fromarray(pixels).save(folder / f"class {c}" / f"{k}.png")
    return folder


def checkpoint(out: Path, method: str = "protonet") -> Path:
    return out / "checkpoints" / f"{method}-seed0.safetensors"


@pytest.mark.parametrize("method", METHODS)
def test_a_loaded_learner_reaches_the_scores_of_its_record(out: Path, method: str) -> None:
    learner = l2l_hyper.load(checkpoint(out, method))
    assert not learner.training and learner.sample_shape == (1, 28, 28)
    scores = l2l_hyper.evaluate(learner, "glyphs", ways=3, queries=2, test_episodes=6)
    (record,) = [r for r in read_records(out) if r.run.method == method]
    np.testing.assert_array_equal(scores, record.scores)
    x, y = torch.rand(6, 1, 28, 28), torch.arange(3).repeat(2)
    clone = learner.clone()
    clone.adapt(support=(x, y))
    adapted = learner.adapt_tasks(x[None], y[None])
    torch.testing.assert_close(clone(x), learner.predict_tasks(adapted, x[None])[0])
    assert type(clone) is type(learner) and clone.run == record.run


def test_the_model_card_has_what_the_record_has(out: Path) -> None:
    (record,) = [r for r in read_records(out) if r.run.method == "protonet"]
    card = checkpoint(out).with_suffix(".md").read_text(encoding="utf-8")
    for text in (
        "# ProtoNet, glyphs 3-way 1-shot",
        f"accuracy {100 * record.scores.mean():.2f} ± ",
        "6 episodes",
        f"commit {record.provenance.commit}",
        '"meta_batch": 2,',
    ):
        assert text in card
    checkpoint(out).with_suffix(".md").unlink()  # as where a process was killed after it had written the record
    l2l_hyper.compare("glyphs", METHODS, out=out, class_batch=4, **SMALL)
    assert checkpoint(out).with_suffix(".md").read_text(encoding="utf-8") == card


def test_what_cannot_be_loaded_is_told(out: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none.safetensors cannot be read .*; try one in the folder checkpoints"):
        l2l_hyper.load(tmp_path / "none.safetensors")
    path = tmp_path / "x.safetensors"
    path.write_bytes(checkpoint(out).read_bytes()[:-1])
    with pytest.raises(InputError, match="x.safetensors is damaged"):
        l2l_hyper.load(path)
    saved = load_checkpoint(checkpoint(out))
    longer = replace(saved.run.experiment, iterations=3)
    save_checkpoint(path, replace(saved, run=replace(saved.run, experiment=longer)))
    with pytest.raises(InputError, match="iteration 2 of 3; train it to its end"):
        l2l_hyper.load(path)
    save_checkpoint(path, replace(saved, run=replace(saved.run, method="simpleshot", options={})))
    with pytest.raises(InputError, match="expected the weights of simpleshot in .*, got others"):
        l2l_hyper.load(path)


def test_code_that_a_checkpoint_names_runs_only_where_it_is_trusted(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "named.py").write_text(f"from {BACKBONES['mlp'].make.__module__} import mlp\n")
    monkeypatch.syspath_prepend(tmp_path)
    saved, path = load_checkpoint(checkpoint(out)), tmp_path / "x.safetensors"
    named = replace(saved.run.experiment, backbone="named:mlp")
    save_checkpoint(path, replace(saved, run=replace(saved.run, experiment=named)))
    with pytest.raises(InputError, match="names code to run, named:mlp"):
        l2l_hyper.load(path)
    beside = path.with_name("hyper-adapter-seed0.safetensors")
    reader = load_checkpoint(checkpoint(out, "hyper-adapter"))
    options = {**reader.run.options, "encoder": str(path)}
    save_checkpoint(beside, replace(reader, run=replace(reader.run, options=options)))
    with pytest.raises(InputError, match="names code to run, named:mlp"):
        l2l_hyper.load(beside)
    assert "named" not in sys.modules
    assert l2l_hyper.load(path, trust=True).run.experiment.backbone == "named:mlp"
    del sys.modules["named"]


def test_a_learner_reads_files_as_its_tasksets_have_them(out: Path, drawings: Path) -> None:
    learner, glyphs = l2l_hyper.load(checkpoint(out)), glyph_images()
    x = learner.read([drawings / "class 2" / "1.png", drawings / "class 0" / "3.png"])
    torch.testing.assert_close(x, glyphs.images[[glyphs.classes[2][1], glyphs.classes[0][3]]] / 255)


def test_predictions_are_those_of_the_learner(
    out: Path, drawings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("l2l_hyper.experiment.prediction._AT_ONCE", 3)
    monkeypatch.setattr("l2l_hyper.report.predictions.render", lambda figure, form: form.encode())  # drawing takes long
    line = ["predict", checkpoint(out), "--support", drawings, "--query", drawings / "class 3", "--out", tmp_path]
    with pytest.raises(SystemExit) as end:
        cli.main(map(str, line))
    assert not end.value.code
    rows = list(csv.reader((tmp_path / "predictions.csv").read_text(encoding="utf-8").splitlines()))
    assert rows[0] == ["file", "predicted", *(f"class {c}" for c in range(4))]
    learner = l2l_hyper.load(checkpoint(out))
    files = [path for c in range(4) for path in sorted((drawings / f"class {c}").iterdir())]
    learner.adapt(support=(learner.read(files), torch.arange(4).repeat_interleave(4)), ways=4)
    expected = learner(learner.read(files[12:])).softmax(-1)
    np.testing.assert_allclose(np.array([row[2:] for row in rows[1:]], float), expected.detach(), rtol=1e-5)
    assert [row[:2] for row in rows[1:]] == [[f"{k}.png", f"class {expected[k].argmax()}"] for k in range(4)]
    assert [(tmp_path / f"episode.{form}").read_text() for form in ("png", "pdf")] == ["png", "pdf"]
    assert "3.png" in capsys.readouterr().out


@pytest.mark.parametrize(("transductive", "expected"), [(False, [3, 1]), (True, [4])])
def test_a_transductive_method_predicts_all_queries_together(
    transductive: bool, expected: list[int], out: Path, drawings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("l2l_hyper.experiment.prediction._AT_ONCE", 3)
    learner = l2l_hyper.load(checkpoint(out))
    monkeypatch.setattr(type(learner.method), "transductive", transductive)
    sizes, predict_tasks = [], learner.predict_tasks

    def noted(adapted: object, queries: torch.Tensor) -> torch.Tensor:
        sizes.append(queries.shape[1])
        return predict_tasks(adapted, queries)

    monkeypatch.setattr(learner, "predict_tasks", noted)
    predict(learner, drawings, drawings / "class 3")
    assert sizes == expected


def test_what_cannot_be_predicted_is_told(out: Path, drawings: Path, tmp_path: Path) -> None:
    learner = l2l_hyper.load(checkpoint(out))
    (tmp_path / "one" / "class").mkdir(parents=True)
    with pytest.raises(InputError, match="expected files .* in .*class, got none"):
        predict(learner, tmp_path / "one", drawings / "class 0")
    (tmp_path / "one" / "class" / "0.png").write_bytes((drawings / "class 0" / "0.png").read_bytes())
    for support, query, message in (
        (tmp_path / "one", drawings / "class 0", "for two classes or more, got 1"),
        (drawings / "class 0", drawings / "class 0", "expected one sub-folder per class in .*, got 0.png"),
        (drawings, drawings, "expected files .*, got .*class 0; move it elsewhere"),
        (tmp_path / "none", drawings, "expected a folder of files, got .*none"),
    ):
        with pytest.raises(InputError, match=message):
            predict(learner, support, query)
    with pytest.raises(InputError, match="3 outputs, got a task of 4 ways"):
        predict(l2l_hyper.load(checkpoint(out, "maml")), drawings, drawings / "class 0")


def run(*line: object) -> int:
    with pytest.raises(SystemExit) as end:
        cli.main([str(word) for word in line])
    return int(end.value.code or 0)


def test_evaluate_tests_on_own_images_and_keeps_a_record(
    out: Path, drawings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("l2l_hyper.report.write.render", lambda figure, form: b"")  # drawing takes long
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "test").symlink_to(drawings)
    options = [f"--tasksets-option={option}" for option in ("image_size=28", "color=gray", "inverted=true")]
    tested = f"folder:{folder}"
    line = ["evaluate", checkpoint(out), "--tasksets", tested, "--test-episodes", 4, "--out", tmp_path / "e"]
    assert run(*line) == 2
    message = f"was trained on samples of shape (1, 28, 28), those of {tested} have (3, 84, 84)"
    assert message in capsys.readouterr().err
    assert run(*line, *options) == 0
    assert "ProtoNet, trained on glyphs" in capsys.readouterr().out
    record = read_record(tmp_path / "e" / "records" / "protonet_glyphs-seed0.json")
    assert record.result.trained_on == "glyphs" and len(record.scores) == 4 and record.run.experiment.train_ways == 3
    assert record.result.episodes > 0 and record.result.validation == record.result.training == []
    again = l2l_hyper.evaluate(
        l2l_hyper.load(checkpoint(out)), tested, ways=3, queries=2, test_episodes=4,
        tasksets_options={"image_size": 28, "color": "gray", "inverted": True},
    )  # fmt: skip
    np.testing.assert_array_equal(again, record.scores)


def test_weights_of_tasksets_without_a_name_are_tested_on_others(
    out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = get_tasksets("glyphs", 3, 3, 3, 3)
    for taskset in given:
        taskset.name = "mine"  # type: ignore[attr-defined]
    l2l_hyper.compare(given, ["protonet"], out=tmp_path, **SMALL)
    assert run("evaluate", checkpoint(tmp_path), "--tasksets", "glyphs", "--test-episodes", "2") == 0
    assert "ProtoNet, trained on mine, mine, mine" in capsys.readouterr().out


def test_evaluate_takes_from_the_training_what_is_not_given(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("evaluate", checkpoint(out), "--shots", "2") == 0
    screen = capsys.readouterr().out
    assert "glyphs, 3-way 2-shot, 2 queries per class; 6 test episodes" in screen and "trained on" not in screen


def test_a_record_of_evaluate_stands_beside_those_of_the_training(out: Path, tmp_path: Path) -> None:
    assert run("evaluate", checkpoint(out), "--out", tmp_path) == 0
    (again,) = read_records(tmp_path)
    others = [record for record in read_records(out) if record.run.method != "protonet"]
    labels = [row.label for row in l2l_hyper.report.summarize([again, *others]).rows]
    assert labels == [row.label for row in l2l_hyper.report.summarize(read_records(out)).rows]


def test_pixels_are_scaled_as_in_the_training(out: Path) -> None:
    trained = load_checkpoint(checkpoint(out))
    other = replace(trained.run.experiment, tasksets="mini-imagenet")
    trained = replace(trained, run=replace(trained.run, experiment=other))
    parts = Parts(transfer_plan(trained, from_flags({"tasksets": "glyphs", "test_episodes": "2"})), trains=False)
    record_of(trained, checkpoint(out), parts, collect("test", "cpu"))
    assert parts.tasksets.test.scale == TASKSETS["mini-imagenet"].scale({}) == 1.0  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def with_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a row whose encoder is a row with an encoder."""
    out = tmp_path_factory.mktemp("with_encoder")
    encoders = {"hyper-adapter@one": "protonet", "hyper-adapter@two": "hyper-adapter@one"}
    options = {row: {"encoder": encoder, "generator": "linear"} for row, encoder in encoders.items()}
    l2l_hyper.compare("glyphs", ["protonet", *encoders], options=options, out=out, **SMALL)
    return checkpoint(out, "hyper-adapter_two")


def test_a_folder_for_the_hub_has_all_that_a_learner_is(with_encoder: Path, tmp_path: Path) -> None:
    """Nothing is read from where it came from; and what was read can be saved again."""
    learner, elsewhere = l2l_hyper.load(with_encoder), tmp_path / "elsewhere"
    learner.save_pretrained(tmp_path / "saved")
    (tmp_path / "saved").rename(elsewhere)
    assert (elsewhere / "model.safetensors").read_bytes() == with_encoder.read_bytes()
    for name in ("hyper-adapter_one-seed0.safetensors", "protonet-seed0.safetensors"):
        assert (elsewhere / name).read_bytes() == with_encoder.with_name(name).read_bytes()
    read = TrainedLearner.from_pretrained(elsewhere)
    (x, y), clones = (torch.rand(6, 1, 28, 28), torch.arange(3).repeat(2)), [learner.clone(), read.clone()]
    for clone in clones:
        clone.adapt(support=(x, y))
    torch.testing.assert_close(clones[0](x), clones[1](x), rtol=0, atol=0)
    card = ModelCard.load(elsewhere / "README.md")
    about = card.data.to_dict()
    assert (about["library_name"], about["tags"][1]) == ("l2l_hyper", "meta-learning")
    assert (
        'l2l_hyper.load("model.safetensors")' in card.text and "# HyperAdapter, two, glyphs 3-way 1-shot" in card.text
    )
    read.save_pretrained(tmp_path / "again")
    for path in elsewhere.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()


def test_a_repository_of_the_hub_is_sent_and_fetched(
    with_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = l2l_hyper.load(with_encoder)
    pretend_hub(monkeypatch, tmp_path / "hub")
    assert learner.push_to_hub("owner/name", private=True) == "commit of owner/name"
    for read in (l2l_hyper.load("hf://owner/name"), TrainedLearner.from_pretrained("owner/name", revision="v1")):
        torch.testing.assert_close(read.state_dict(), learner.state_dict(), rtol=0, atol=0)
    with pytest.raises(TypeError, match="revisio"):
        TrainedLearner.from_pretrained("owner/name", revisio="v1")
    assert run("evaluate", "hf://owner/name", "--test-episodes", "2", "--out", tmp_path / "e") == 0
    assert [path.stem for path in (tmp_path / "e" / "records").iterdir()] == [with_encoder.stem]


def test_what_cannot_be_saved_for_or_read_from_the_hub_is_told(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="expected a folder of save_pretrained or .*, got no/such/folder"):
        TrainedLearner.from_pretrained("no/such/folder")
    alone = tmp_path / "alone.safetensors"
    alone.write_bytes(checkpoint(out).read_bytes())
    (tmp_path / "README.md").write_text("of something else", encoding="utf-8")
    with pytest.raises(InputError, match="expected the model card .*alone.md, got none"):
        l2l_hyper.load(alone).save_pretrained(tmp_path / "x")
    learner = l2l_hyper.load(checkpoint(out))
    with torch.no_grad():
        next(learner.parameters()).add_(1)
    with pytest.raises(InputError, match="got others: the learner has adapted or was trained further"):
        learner.save_pretrained(tmp_path / "x")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.delitem(sys.modules, "l2l_hyper.experiment.hub")
    for call in (lambda: learner.save_pretrained(tmp_path / "x"), lambda: l2l_hyper.load("hf://owner/name")):
        with pytest.raises(InputError, match=r"pip install 'l2l_hyper\[hub\]'"):
            call()
