"""A process that measures what it is asked to: one request per line on its input, one answer per line on its output."""

from __future__ import annotations

import itertools
import json
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from breakdown import breakdown, engine_method
from cases import ALGORITHMS, Algorithm, Setting
from scripts import ScriptLoop, our_tasksets, their_tasksets

from l2l_hyper import kernels
from l2l_hyper.experiment.distributed import is_first, process_group
from l2l_hyper.experiment.evaluation import adaptation_milliseconds
from l2l_hyper.experiment.memory import peak_memory_mb, reset_peak_memory
from l2l_hyper.experiment.parts import Parts
from l2l_hyper.experiment.plan import make_plan
from l2l_hyper.experiment.training import train_and_test

CPU = torch.device("cpu")
WARM_UP = 1  # iteration


def main() -> None:
    warnings.simplefilter("ignore")
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever a library prints must not stand among the answers
    kernels.keep_memory()  # for everyone alike, else a process is fast or slow by chance
    worker = Worker(Path(sys.argv[1]))
    with process_group("cpu"):
        for line in sys.stdin:
            request = json.loads(line)
            answer = getattr(worker, request.pop("measure"))(**request)
            if is_first():
                print(json.dumps(answer), file=answers, flush=True)


class Worker:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.theirs: dict[Setting, Any] = {}
        self.loops: dict[tuple[Setting, str, str], ScriptLoop] = {}

    def train(self, setting: str, algorithm: str, contender: str, meta_batch: int, iterations: int) -> dict[str, Any]:
        """Seconds of each of some iterations, after a warm-up; milliseconds to adapt to a task; peak memory."""
        case = Setting.of(setting), ALGORITHMS[algorithm]
        if contender in ("learn2learn", "script"):
            return self._train_script(*case, contender, meta_batch, iterations)
        return self._train_engine(*case, contender, meta_batch, iterations)

    def _train_script(
        self, setting: Setting, algorithm: Algorithm, contender: str, meta_batch: int, iterations: int
    ) -> dict[str, Any]:
        loop = self._loop(setting, algorithm, contender)
        reset_peak_memory(CPU)
        loop.iteration(1)
        seconds = [_seconds(lambda: loop.iteration(meta_batch)) for _ in range(iterations)]
        peak = peak_memory_mb(CPU)
        x, y = loop.sample()
        adapting = [_seconds(lambda: loop.adapt(x[loop.support], y[loop.support])) for _ in range(8)]
        return {"seconds": seconds, "adapt_ms": 1000 * statistics.median(adapting), "peak_mb": peak}

    def _loop(self, setting: Setting, algorithm: Algorithm, contender: str) -> ScriptLoop:
        key = (setting, algorithm.name, contender)
        if key not in self.loops:
            samples = 2 * setting.shots
            if contender == "learn2learn":
                if setting not in self.theirs:
                    self.theirs = {
                        setting: their_tasksets(setting, samples, self.root)
                    }  # one at a time: they are large
                train = self.theirs[setting].train
            else:
                train = our_tasksets(setting, samples, self.root).train
            self.loops = {key: ScriptLoop(setting, algorithm, train.sample, swapped=contender == "script")}
        return self.loops[key]

    def _train_engine(
        self, setting: Setting, algorithm: Algorithm, contender: str, meta_batch: int, iterations: int
    ) -> dict[str, Any]:
        theirs = {"learn2learn, our sampler": "learn2learn", "higher": "higher"}.get(contender)
        plan = make_plan(
            {
                "tasksets": setting.tasksets,
                "ways": setting.ways,
                "shots": setting.shots,
                "queries": setting.shots,
                "iterations": WARM_UP + iterations,
                "validate_every": WARM_UP + iterations,
                "validation_episodes": 2,
                "test_episodes": 2,
                "meta_batch": meta_batch,
                "backbone": setting.backbone,
                "channels": setting.channels,
                "normalization": "transductive",  # as learn2learn's scripts
                "methods": [algorithm.method],
                "options": {algorithm.method: {**algorithm.options, **({"implementation": theirs} if theirs else {})}},
                "data_root": str(self.root),
            }
        )
        parts = Parts(plan)
        (run,) = plan.runs(parts.options)
        clock = [0.0]
        with kernels.enable("kernels" in contender):
            _, result = train_and_test(
                run,
                parts,
                folder=None,
                test=False,
                progress=lambda step: None if step.validation else clock.append(step.seconds),
            )
        seconds = [after - before for before, after in itertools.pairwise(clock)][WARM_UP:]
        return {"seconds": seconds, "adapt_ms": result.adaptation_ms, "peak_mb": result.peak_memory_mb}

    def adapt(self, setting: str, contender: str) -> dict[str, Any]:
        """Seconds to adapt to one task: of MAML with five steps in learn2learn, or of HyperAdapter in the engine."""
        case = Setting.of(setting)
        if contender == "learn2learn":
            loop = self._loop(case, ALGORITHMS["MAML, 5 steps"], contender)
            x, y = loop.sample()
            return {"seconds": [_seconds(lambda: loop.adapt(x[loop.support], y[loop.support])) for _ in range(25)][5:]}
        train = our_tasksets(case, 2 * case.shots, self.root).train
        method = engine_method(case, ALGORITHMS["HyperAdapter, head"])
        if "compiled" in contender:
            method.compile(options={"cpp_wrapper": True})
        episode = train.batch([0], shots=case.shots, queries=case.shots)
        with kernels.enable("kernels" in contender):
            return {"seconds": [adaptation_milliseconds(method, episode) / 1000 for _ in range(10)]}

    def draw(self, setting: str, contender: str, episodes: int, queries: int) -> dict[str, Any]:
        """Seconds to draw some episodes: at once in the engine, else one after the other from the script's taskset."""
        case = Setting.of(setting)
        get = their_tasksets if contender == "learn2learn" else our_tasksets
        train = get(case, case.shots + queries, self.root).train

        def draw(i: int) -> Any:
            if contender == "engine":
                return train.batch(range(i, i + episodes), shots=case.shots, queries=queries)
            return [train.sample() for _ in range(episodes)]

        times = [_seconds(lambda i=i: draw(i)) for i in range(40 if contender == "engine" else 3)]
        return {"seconds": times[5:] if contender == "engine" else times}

    def open(self, setting: str, contender: str) -> dict[str, Any]:
        """Seconds and peak memory to open a benchmark, in a process that has not opened it yet."""
        case = Setting.of(setting)
        get = their_tasksets if contender == "learn2learn" else our_tasksets
        reset_peak_memory(CPU)
        before = peak_memory_mb(CPU)
        seconds = _seconds(lambda: get(case, 2 * case.shots, self.root))
        return {"seconds": [seconds], "peak_mb": peak_memory_mb(CPU) - before}

    def breakdown(self, setting: str, algorithm: str, meta_batch: int) -> dict[str, Any]:
        """Where the time of an iteration in the engine goes."""
        return breakdown(Setting.of(setting), ALGORITHMS[algorithm], self.root, meta_batch)

    def generate(self, contender: str, width: int, descriptions: int) -> dict[str, Any]:
        """Seconds to generate the weights of a network, for a number of descriptions at once."""
        from peers import generate

        return generate(contender, width, descriptions)


def _seconds(run: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    main()
