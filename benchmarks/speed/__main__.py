"""Speed side by side: learn2learn's loops, higher, and this package, on the same cores in one run.

    python benchmarks/speed --data-root ~/data --out benchmarks/results/speed

Every way of running has a process of its own; they take turns, one measuring while the others wait, and each number
is the median of the turns.  An interrupted run goes on: what ``measurements.json`` holds is not measured again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cases import ALGORITHMS, GROWTH, SETTINGS, Setting
from peers import PEERS, PRODUCT
from tables import write_tables
from tqdm import tqdm

from l2l_hyper.experiment.provenance import collect
from l2l_hyper.files import write_atomically

HERE = Path(__file__).resolve().parent
MOST = 30  # iterations per turn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path, required=True, help="the data sets of learn2learn's loaders")
    parser.add_argument("--out", type=Path, default=HERE.parent / "results" / "speed")
    parser.add_argument("--setting", action="append", choices=SETTINGS, help="only this; may be repeated")
    parser.add_argument("--turns", type=int, default=3, help="that everyone takes")
    parser.add_argument("--seconds", type=float, default=1.0, help="that a turn aims to measure")
    args = parser.parse_args()
    settings = args.setting or [name for name in SETTINGS if not name.startswith("glyphs")]
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "measurements.json"
    done = json.loads(file.read_text()) if file.exists() else {"provenance": [], "measurements": []}
    provenance = asdict(collect("", "cpu"))
    only = "".join(f" --setting '{name}'" for name in args.setting or [])
    provenance["command"] = f"python benchmarks/speed{only} --turns {args.turns} --seconds {args.seconds}"
    provenance["load"] = os.getloadavg()[0]
    done["provenance"].append(provenance)
    known = {json.dumps(m["cell"]) for m in done["measurements"]}
    cells = [cell for cell in all_cells(settings) if json.dumps(cell) not in known]
    workers: dict[str, Worker] = {}
    try:
        for group in tqdm(list(grouped(cells)), desc="measuring", unit="cell"):
            for cell, measured in take_turns(group, args, workers):
                done["measurements"].append({"cell": cell, **measured})
            write_atomically(file, json.dumps(done))
    finally:
        for worker in workers.values():
            worker.close()
    write_tables(done, args.out)


def all_cells(settings: list[str]) -> Iterator[dict[str, Any]]:
    """Everything to measure; cells that differ in the contender alone follow each other, and take turns."""
    for setting in settings:
        few = {"omniglot 20-way 5-shot": 4, "mini-imagenet 5-way 5-shot": 2, "glyphs 5-way 1-shot": 2}.get(setting)
        for contender in ("learn2learn", "engine"):
            yield {"measure": "open", "setting": setting, "contender": contender}
        shots = Setting.of(setting).shots
        draws = {shots: ("learn2learn", "learn2learn, our sampler", "engine")}
        if shots == 1:
            draws = {15: ("learn2learn", "engine"), **draws}
        for queries, contenders in draws.items():
            for contender in contenders:
                draw = {"episodes": 32, "queries": queries}
                yield {"measure": "draw", "setting": setting, "contender": contender, **draw}
        for contender in ("learn2learn", "engine", "engine, kernels", "engine, kernels, compiled"):
            yield {"measure": "adapt", "setting": setting, "contender": contender}
        for algorithm in ("HyperAdapter, head", "MAML, 5 steps"):
            yield {"measure": "breakdown", "setting": setting, "algorithm": algorithm, "meta_batch": few or 32}
        for meta_batch in (few,) if few else (1, 4, 16, 64):
            for algorithm in ALGORITHMS.values():
                for contender in contenders_of(algorithm.method, meta_batch):
                    yield {
                        "measure": "train",
                        "setting": setting,
                        "algorithm": algorithm.name,
                        "meta_batch": meta_batch,
                        "contender": contender,
                    }
    for width, descriptions in [(100, 1), *((25 * 2**i, 64) for i in range(5))]:
        for peer in PEERS if width == 100 else ("l2l_hyper", PRODUCT):
            yield {"measure": "generate", "width": width, "descriptions": descriptions, "contender": peer}
    for setting in (name for names in GROWTH.values() for name in names if "omniglot 5-way 1-shot" in settings):
        yield {
            "measure": "train",
            "setting": setting,
            "algorithm": "HyperAdapter, head",
            "meta_batch": 16,
            "contender": "engine",
            "growth": True,
        }


def contenders_of(method: str, meta_batch: int) -> list[str]:
    ours = ["engine", "engine, kernels", *(["engine, kernels, 2 processes"] if meta_batch > 1 else [])]
    if method == "hyper-adapter":  # learn2learn's script here is MAML's of one step, to compare with within the turn
        return ["learn2learn", "script", *ours]
    return ["learn2learn", "learn2learn, our sampler", *(["higher"] if method == "maml" else []), *ours]


def grouped(cells: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Cells that differ in the contender alone."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for cell in cells:
        groups.setdefault(json.dumps({k: v for k, v in cell.items() if k != "contender"}), []).append(cell)
    yield from groups.values()


def take_turns(
    group: list[dict[str, Any]], args: argparse.Namespace, workers: dict[str, Worker]
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Every cell of a group in turn, several times, in an order of its own each time."""
    answers: dict[int, list[dict[str, Any]]] = {i: [] for i in range(len(group))}
    for turn in range(1 if group[0]["measure"] == "breakdown" else args.turns):
        order = list(answers)
        random.Random(turn).shuffle(order)
        for i in order:
            cell = group[i]
            name = cell.get("contender", "engine")
            opening = cell["measure"] == "open"
            # learn2learn keeps gigabytes of images: processes with them cannot all wait for their turns.
            fresh = opening or "mini-imagenet" in cell.get("setting", "")
            while fresh and workers:
                workers.popitem()[1].close()
            if fresh or name not in workers:
                worker = Worker(args.data_root, processes=2 if "2 processes" in name else 1)
                if not fresh:
                    workers[name] = worker
            else:
                worker = workers[name]
            request = {key: value for key, value in cell.items() if key != "growth"}
            if opening and turn == 0:  # not the first time that anyone opens these files
                first = Worker(args.data_root, processes=1)
                first.ask(request)
                first.close()
            if cell["measure"] == "train":
                one = answers[i][-1]["seconds"] if answers[i] else worker.ask({**request, "iterations": 1})["seconds"]
                request["iterations"] = max(1, min(MOST, round(args.seconds / min(one))))
            answers[i].append(worker.ask(request))
            if fresh:
                worker.close()
    for i, cell in enumerate(group):
        merged = {key: [a[key] for a in answers[i]] for key in answers[i][0] if key != "seconds"}
        yield cell, {"seconds": [a["seconds"] for a in answers[i]], **merged}


class Worker:
    """One process, or several that talk to each other as under torchrun."""

    def __init__(self, data_root: Path, *, processes: int) -> None:
        threads = max(1, (os.cpu_count() or 1) // processes)
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "WORLD_SIZE": str(processes)}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(random.randrange(20000, 60000))}
        root = str(data_root.expanduser().resolve())
        self.processes = [
            subprocess.Popen(
                [sys.executable, str(HERE / "worker.py"), root],
                env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in range(processes)
        ]

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        with contextlib.suppress(BrokenPipeError):
            for process in self.processes:
                print(json.dumps(request), file=process.stdin, flush=True)
        answer = self.processes[0].stdout.readline()
        if not answer:
            sys.exit(f"the process that measures stopped at {request}; try it alone: python benchmarks/speed/worker.py")
        return json.loads(answer)

    def close(self) -> None:
        for process in self.processes:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
        for process in self.processes:
            process.wait()


if __name__ == "__main__":
    main()
