"""HyperLSTM on text: bits per character beside a layer-normalized LSTM, at equal parameters and at equal time.

python -m benchmarks.uses.hyper_lstm --preset benchmarks/presets/uses/hyper_lstm.toml --out runs/text --seeds 0 1 2
"""

from __future__ import annotations

import itertools
import lzma
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F

from l2l_hyper import InputError
from l2l_hyper.report.style import WIDTH
from l2l_hyper.uses.hyper_lstm import HyperLSTM, LayerNormLSTM

from .study import Record, controls, lines, main, markdown, save, spread

HYPER, SAME_STEPS, SAME_TIME, PLAIN = (
    "HyperLSTM",
    "layer-norm LSTM, equal steps",
    "layer-norm LSTM, equal time",
    "nn.LSTM, equal steps",
)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of the study.

    Attributes:
        text: file of the text, plain or compressed by xz; the last twentieth is tested, the one before gives curves.
        hidden: hidden size of the HyperLSTM; the others get the one with which they have as many parameters.
        hyper: hidden size of its smaller LSTM.
        embedding: numbers in the description that the smaller LSTM makes at each step.
        characters: features of a character.
        batch: places of the text that are read at the same time.
        length: steps that are differentiated through.
        steps: of training.
        seconds: after which the training of the HyperLSTM ends even if it has fewer steps.
        lr: largest learning rate of Adam, reached after a twentieth of the training; it falls to zero by a cosine.
        clip: largest norm of the gradient.
        points: of a learning curve.
        cuda_graphs: whether the kernels of a forward and a backward pass are launched as one graph on a GPU.
    """

    text: str = "kjv.txt"
    hidden: int = 512
    hyper: int = 128
    embedding: int = 16
    characters: int = 64
    batch: int = 128
    length: int = 64
    steps: int = 3000
    seconds: float = 100.0
    lr: float = 3e-3
    clip: float = 1.0
    points: int = 10
    cuda_graphs: bool = True


class Model(nn.Module):
    """Characters to logits of the next ones, with the final state."""

    def __init__(self, characters: int, settings: Settings, make: Callable[..., nn.Module], hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, settings.characters)
        self.lstm = make(settings.characters, hidden)
        self.out = nn.Linear(hidden, characters)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        outputs, state = self.lstm(self.embedding(x), state)
        return self.out(outputs), state

    def start(self, batch: int) -> tuple[Tensor, Tensor]:
        size = getattr(self.lstm, "state_size", self.lstm.hidden_size)
        h, c = torch.zeros(2, 1, batch, size, device=self.out.weight.device)
        return h, c


def read(settings: Settings, device: torch.device) -> tuple[Tensor, Tensor, Tensor, int]:
    """Training, validation and test part, each as columns ``(time, batch)``, and the number of different characters."""
    path = Path(settings.text)
    if not path.exists():
        raise InputError(
            f"expected a text at {path}, found none; try, after 'apt install bible-kjv', "
            "bible -f gen1:1-rev22:21 | sed 's/^[^ ]* //' > kjv.txt"
        )
    text = lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()
    known, ids = torch.tensor(list(text), dtype=torch.uint8).unique(return_inverse=True)
    parts = ids.to(device).split([len(ids) - 2 * (len(ids) // 20), len(ids) // 20, len(ids) // 20])
    train, validation, test = (
        part[: len(part) // settings.batch * settings.batch].view(settings.batch, -1).T for part in parts
    )
    return train, validation, test, len(known)


@torch.no_grad()
def bits(model: Model, text: Tensor, settings: Settings) -> float:
    """Bits per character of columns of text, each read from its beginning to its end."""
    model.eval()
    state, total = model.start(text.shape[1]), 0.0
    for x, y in zip(text[:-1].split(settings.length), text[1:].split(settings.length), strict=True):
        logits, state = model(x, state)
        total += F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="sum").item()
    model.train()
    return total / text[1:].numel() / math.log(2)


def fit(model: Model, train: Tensor, validation: Tensor, settings: Settings, steps: float, seconds: float) -> Record:
    """Train for so many steps or seconds, whichever ends first."""
    if settings.cuda_graphs and train.is_cuda and not isinstance(model.lstm, nn.LSTM):
        x = torch.zeros(settings.length, settings.batch, settings.characters, device=train.device, requires_grad=True)
        model.lstm = torch.cuda.make_graphed_callables(model.lstm, (x, model.start(settings.batch)))
    optimizer = torch.optim.Adam(model.parameters())
    windows = [
        (train[at : at + settings.length], train[at + 1 : at + 1 + settings.length])
        for at in range(0, len(train) - settings.length, settings.length)
    ]
    curve, spent, begin = [], 0.0, time.perf_counter()
    for step in itertools.count():
        if step % len(windows) == 0:
            state = model.start(settings.batch)
        progress = max(step / steps, spent / seconds)
        if progress >= len(curve) / settings.points:
            curve.append([step, spent, bits(model, validation, settings)])
            begin = time.perf_counter() - spent  # what the evaluation took is not counted
        if progress >= 1:
            return {"steps": step, "seconds": spent, "curve": curve}
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * min(20 * progress + 0.01, (1 + math.cos(math.pi * progress)) / 2)
        x, y = windows[step % len(windows)]
        logits, (h, c) = model(x, state)
        state = h.detach(), c.detach()
        loss = F.cross_entropy(logits.flatten(0, 1), y.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        optimizer.step()
        if not math.isfinite(loss.item()):  # which waits for the device, so that seconds are what they say
            raise RuntimeError(f"the loss of step {step} is {loss.item()}; try a smaller lr")
        spent = time.perf_counter() - begin


def size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def run(settings: Settings, seed: int, device: torch.device) -> dict[str, Any]:
    """Train the four networks of a seed."""
    torch.set_float32_matmul_precision("high")
    train, validation, test, characters = read(settings, device)

    def hyper_lstm(inputs: int, hidden: int) -> nn.Module:
        return HyperLSTM(inputs, hidden, hyper_size=settings.hyper, embedding_size=settings.embedding)

    def as_large(make: Callable[..., nn.Module], parameters: int) -> int:
        with torch.device("meta"):
            sizes = ((h, size(Model(characters, settings, make, h))) for h in itertools.count(settings.hidden))
            return next(h for h, n in sizes if n >= parameters)

    models: dict[str, Model] = {}  # kept to the end: CUDA graphs must not be freed while another one is captured
    results: dict[str, Any] = {}

    def result(name: str, make: Callable[..., nn.Module], hidden: int, steps: float, seconds: float) -> None:
        torch.manual_seed(seed)
        model = models[name] = Model(characters, settings, make, hidden).to(device)
        trained = fit(model, train, validation, settings, steps, seconds)
        results[name] = {"hidden": hidden, "parameters": size(model), "bits": bits(model, test, settings), **trained}

    result(HYPER, hyper_lstm, settings.hidden, settings.steps, settings.seconds)
    of = results[HYPER]
    of["controls"] = {}
    for name in controls(torch.zeros(2, 1)):
        hook = (
            models[HYPER]
            .lstm.cells[0]
            .weights.generator.register_forward_pre_hook(
                lambda _, given, name=name: (controls(given[0])[name], *given[1:])
            )
        )
        of["controls"][name] = bits(models[HYPER], test, settings)
        hook.remove()
    hidden = as_large(LayerNormLSTM, of["parameters"])
    result(SAME_STEPS, LayerNormLSTM, hidden, of["steps"], math.inf)
    result(SAME_TIME, LayerNormLSTM, hidden, math.inf, of["seconds"])
    result(PLAIN, nn.LSTM, as_large(nn.LSTM, of["parameters"]), of["steps"], math.inf)
    return {"models": results, "characters": characters, "text": len(train) * settings.batch}


def report(records: list[Record], out: Path) -> None:
    """The table, the controls and the learning curves."""
    models = [record["result"]["models"] for record in records]
    columns = ("test bits per character", "parameters", "hidden units", "steps", "seconds of training")
    rows = []
    for name in (HYPER, SAME_STEPS, SAME_TIME, PLAIN):
        of = [seed[name] for seed in models]
        counts = [spread([one[key] for one in of], 0) for key in ("steps", "seconds")]
        rows.append(
            [name, spread([one["bits"] for one in of]), str(of[0]["parameters"]), str(of[0]["hidden"]), *counts]
        )
        if name == HYPER:
            for control in of[0]["controls"]:
                value = spread([one["controls"][control] for one in of])
                rows.append([f"{HYPER} with {control}", value, *[""] * 4])
    (out / "results.md").write_text(markdown(["network", *columns], rows), encoding="utf-8")

    figure, looks = Figure(figsize=(WIDTH, 3)), lines(list(models[0]))
    for column, (axes, label) in enumerate(zip(figure.subplots(1, 2, sharey=True), columns[-2:], strict=True)):
        for name in models[0]:
            for seed in models:
                curve = list(zip(*seed[name]["curve"], strict=True))
                look = {**looks[name], "marker": "", "label": name if seed is models[0] else None}
                axes.plot(curve[column][1:], curve[2][1:], **look)
        axes.set_xlabel(label)
        axes.set_ylim(top=3.0)
    figure.axes[0].set_ylabel("validation bits per character")
    save(figure, out / "curves")


if __name__ == "__main__":
    main(Settings, run, report)
