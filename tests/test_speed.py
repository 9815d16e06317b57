"""The speed benchmark runs: every way of running on small tasks, and the tables that come of it."""

from __future__ import annotations

import importlib
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks" / "speed"
SETTING = "glyphs 5-way 1-shot"


@pytest.fixture
def speed(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    monkeypatch.syspath_prepend(str(FOLDER))
    names = ("cases", "scripts", "breakdown", "peers", "worker", "tables")
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    return {name: importlib.import_module(name) for name in names}


def measurements(speed: dict[str, ModuleType], root: Path) -> list[dict]:
    worker = speed["worker"].Worker(root)
    cells = [
        {"measure": "train", "setting": SETTING, "algorithm": algorithm, "meta_batch": 2, "contender": contender}
        for algorithm, contenders in {
            "MAML, 1 step": ("learn2learn", "learn2learn, our sampler", "higher", "engine", "engine, kernels"),
            "MAML, 5 steps": ("learn2learn", "engine"),
            "ANIL, 5 steps": ("learn2learn", "engine"),
            "ProtoNet": ("learn2learn", "engine"),
            "HyperAdapter, head": ("learn2learn", "script", "engine"),
            "HyperAdapter, head + affine": ("script", "engine"),
            "HyperAdapter, head + affine + low-rank": ("script", "engine"),
        }.items()
        for contender in contenders
    ]
    cells += [{"measure": "open", "setting": SETTING, "contender": c} for c in ("learn2learn", "engine")]
    cells += [
        {"measure": "draw", "setting": SETTING, "contender": c, "episodes": 4, "queries": queries}
        for queries in (1, 15)
        for c in ("learn2learn", "learn2learn, our sampler", "engine")
    ]
    cells += [
        {"measure": "breakdown", "setting": SETTING, "algorithm": algorithm, "meta_batch": 2}
        for algorithm in ("HyperAdapter, head", "MAML, 1 step")
    ]
    cells += [
        {"measure": "adapt", "setting": SETTING, "contender": c} for c in ("learn2learn", "engine", "engine, kernels")
    ]
    cells += [{"measure": "generate", "width": 100, "descriptions": n, "contender": "l2l_hyper"} for n in (1, 64)]
    found = []
    for cell in cells:
        request = dict(cell)
        if cell["measure"] == "train":
            request["iterations"] = 2
        answer = getattr(worker, request.pop("measure"))(**request)
        found.append({"cell": cell, **{key: [value] for key, value in answer.items()}})
    return found


def test_everyone_is_measured_and_the_tables_say_so(speed: dict[str, ModuleType], tmp_path: Path) -> None:
    cells = measurements(speed, tmp_path)
    trained = [m for m in cells if m["cell"]["measure"] == "train"]
    assert all(len(m["seconds"][0]) == 2 and min(m["seconds"][0]) > 0 for m in trained)
    assert all(m["adapt_ms"][0] > 0 and m["peak_mb"][0] > 0 for m in trained)
    environment = {"cpu": "some", "cpu_count": 2, "torch": "2", "learn2learn": "0.2.0"}
    provenance = {"command": "python benchmarks/speed", "commit": "0" * 40, "environment": environment}
    speed["tables"].write_tables({"provenance": [provenance], "measurements": cells}, tmp_path)
    table = (tmp_path / "speed.md").read_text()
    for name in speed["cases"].ALGORITHMS:
        assert table.count(f"| {name} ") >= 2
    assert "drawing 32 episodes" in table and "ms per episode" in table
    assert "GFLOP/s" in table and "million per second" in table and (tmp_path / "speed.png").stat().st_size > 1000


def test_numbers_are_those_of_the_measurements(speed: dict[str, ModuleType]) -> None:
    tables = speed["tables"]
    cell = {"measure": "train", "setting": SETTING, "meta_batch": 4}
    cells = [
        {
            "cell": {**cell, "algorithm": "HyperAdapter, head", "contender": "learn2learn"},
            "seconds": [[4.0, 8, 9], [6.0, 6]],
        },
        {"cell": {**cell, "algorithm": "HyperAdapter, head", "contender": "engine"}, "seconds": [[0.5]]},
    ]
    assert tables.an_episode(cells, setting=SETTING, algorithm="HyperAdapter, head", contender="learn2learn") == 7 / 4
    assert math.isnan(tables.an_episode(cells, setting=SETTING, algorithm="ProtoNet"))
    (row,) = tables.ratios(cells)
    assert row["what"].startswith(f"{SETTING}: HyperAdapter, head / MAML, 1 step") and row["engine"] == "14×"
    assert row["engine, kernels, 2 processes"] == ""


def test_a_loop_of_a_script_trains_what_it_should(speed: dict[str, ModuleType], tmp_path: Path) -> None:
    cases, scripts = speed["cases"], speed["scripts"]
    setting = cases.Setting.of(SETTING)
    sample = scripts.our_tasksets(setting, 2, tmp_path).train.sample
    for name, swapped in (("MAML, 1 step", False), ("ANIL, 5 steps", False), ("ProtoNet", False), ("ProtoNet", True)):
        algorithm = cases.ALGORITHMS["HyperAdapter, head" if swapped else name]
        loop = scripts.ScriptLoop(setting, algorithm, sample, swapped=swapped)
        before = [p.detach().clone() for p in loop.parameters]
        loop.iteration(2)
        assert all(p.grad is not None for p in loop.parameters)
        assert any(not p.equal(b) for p, b in zip(loop.parameters, before, strict=True))
