"""The Python blocks of the README and of docs/, run page by page from top to bottom; and the formulas of methods.md."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from l2l_hyper._learn2learn import learn2learn
from l2l_hyper.backbones import BACKBONES
from l2l_hyper.data import METRICS, TASKSETS, SupportSet
from l2l_hyper.experiment.records import read_records
from l2l_hyper.methods import METHODS, HyperAdapter, Options
from l2l_hyper.report import summarize

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
CIFARFS = ROOT / "benchmarks" / "results" / "cifarfs"
RUN_ELSEWHERE = {"lightning.md": "test_lightning.py"}  # scripts with arguments, and the test that runs each page's


def blocks(page: Path) -> list[tuple[int, str]]:
    """Line number and source of each block."""
    text = page.read_text(encoding="utf-8")
    return [(text.count("\n", 0, m.start(1)), m[1]) for m in re.finditer(r"^```python\n(.*?)^```$", text, re.M | re.S)]


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p) and p.name not in RUN_ELSEWHERE], ids=lambda p: p.name)
def test_code_blocks_run(page: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    learn2learn()  # whose import prints and warns
    monkeypatch.chdir(tmp_path)
    for registry in (METHODS, BACKBONES, TASKSETS, METRICS):  # what a page registers is forgotten after it
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    namespace: dict[str, object] = {"__name__": "__main__"}
    for line, source in blocks(page):
        exec(compile("\n" * line + source, str(page), "exec"), namespace)


@pytest.mark.parametrize(("page", "test"), RUN_ELSEWHERE.items())
def test_other_blocks_have_a_test_of_their_own(page: str, test: str) -> None:
    assert blocks(ROOT / "docs" / page) and page in (ROOT / "tests" / test).read_text(encoding="utf-8")


def test_every_method_is_in_the_table_of_methods() -> None:
    text = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    builtin = [
        name
        for name in METHODS
        if METHODS[name].options is not Options and METHODS[name].options.__module__.startswith("l2l_hyper.methods.")
    ]
    assert [name for name in builtin if f"| `{name}` |" not in text] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []


def interval(mean: float, half_width: float, sign: str = "") -> str:
    return f"{mean:{sign}.2f} ± {half_width:.2f}".replace("-", "−")


def table_rows(page: str) -> set[str]:
    """Rows of a page's tables, without the marks of significance."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return {line.replace(r" \*", "") for line in text.splitlines() if line.startswith("|")}


def test_table_of_methods_is_that_of_the_records() -> None:
    """Of the CSV files, which another test holds equal to the records."""
    results, readme = table_rows("docs/results.md"), table_rows("README.md")
    ones, fives = (
        {row["label"]: row for row in csv.DictReader((CIFARFS / "rows" / name).read_text("utf-8").splitlines())}
        for name in ("results.csv", "results-5-shot.csv")
    )
    for label, one in ones.items():
        pair = (one, fives[label])
        first, second = (interval(float(row["accuracy"]), float(row["accuracy_half_width"])) for row in pair)
        differences = [
            interval(float(row["difference"]), float(row["difference_half_width"]), "+") if row["difference"] else "–"
            for row in pair
        ]
        assert f"| {label} | {first} | {differences[0]} | {second} | {differences[1]} |" in results
        if any(line.startswith(f"| {label} |") for line in readme):
            assert f"| {label} | {first} | {second} | {' / '.join(dict.fromkeys(differences))} |" in readme


@pytest.mark.parametrize("channels", [8, 16])
def test_tables_of_small_networks_are_those_of_the_records(channels: int) -> None:
    results = table_rows("docs/results.md")
    records = [r for r in read_records(CIFARFS / f"small-{channels}") if r.run.seed in (0, 1)]  # which every row has
    one, five = (summarize([r.at(shots) for r in records], "protonet@map") for shots in (1, 5))
    for row in one.rows:
        pair = (row, next(other for other in five.rows if other.label == row.label))
        cells = []
        for shots, of_shots in zip((1, 5), pair, strict=True):
            d, score = of_shots.difference, f"{100 * of_shots.score.mean:.2f}"
            cells += [score, "–" if d is None else interval(100 * d.mean, 100 * d.half_width, "+")]
            controls = {
                name: np.mean(
                    [c.scores for r in row.records for c in r.result.controls if (c.control, c.shots) == (name, shots)]
                )
                for name in ("no residual", "mean", "another task's")
                if row.records[0].result.controls and row.method != "hyper-adapter@alone"
            }
            shown = " | ".join(f"{100 * mean:.2f}" for mean in controls.values())
            assert not controls or f"| {channels} | {row.label} | {shots} | {score} | {shown} |" in results
        assert f"| {channels} | {row.label} | {' | '.join(cells)} |" in results


def rms(x: Tensor) -> Tensor:
    return x.square().mean().sqrt()


def attention(module: nn.Module, z: Tensor, t: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    """Of one task, with a bias (heads, C, N), one head after the other."""
    width, heads = z.shape[-1], module.heads
    q, (k, v) = module.query(z), module.key_value(t).split(width, -1)
    parts = [slice(j * width // heads, (j + 1) * width // heads) for j in range(heads)]
    logits = torch.stack([q[:, part] @ k[:, part].T / (width / heads) ** 0.5 for part in parts]) + bias
    return module.out(torch.cat([w @ v[:, part] for w, part in zip(logits.softmax(-1), parts, strict=True)], -1))


@pytest.mark.parametrize("labels", [[0, 0, 1, 1, 2, 2], [0, 0, 0, 1, 1, 2]], ids=["equal shots", "unequal shots"])
def test_hyper_adapter_is_what_the_page_says(labels: list[int]) -> None:
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Linear(4, 7), nn.Softplus(), nn.Linear(7, 3)).double()
    method = HyperAdapter(backbone).double()
    with torch.no_grad():
        for p in method.parameters():
            p.add_(0.1 * torch.randn_like(p))  # so that nothing is at its zero
    x, y, query = torch.randn(6, 4).double(), torch.tensor(labels), torch.randn(5, 4).double()
    body, base, residual = backbone[:2], method.base_learner, method.residual
    read, generator = residual.encoder, residual.generator.linear

    h, one_hot = body(x), F.one_hot(y, 3).double()
    shots = one_hot.sum(0).unsqueeze(1)
    mean = torch.stack([h[y == k].mean(0) for k in range(3)])
    m, lam, psi = base.mean, base.log_precision.exp(), base.log_ratio.exp()
    r = shots * psi / (shots * psi + 1)
    v, c = 1 + r / shots, m + r * (mean - m)
    w, b, quadratic = 2 * lam * c / v, -(lam * c**2 / v).sum(1), torch.zeros(3, 7).double()
    if len(set(shots.flatten().tolist())) > 1:
        alpha = (lam * (h - mean[y]) ** 2).sum() / (7 * (6 - 3))
        size, precision = alpha * v.log().sum(1), lam / v
        b, quadratic = b - (size - size.mean()), -(precision - precision.mean(0))
    p = (h @ w.T + b + h**2 @ quadratic.T).softmax(1)

    unit_w, unit_h = rms(w), rms(h)
    unit_b = unit_w * unit_h * 7**0.5
    u = torch.cat([w / unit_w, (b / unit_b).unsqueeze(1)], 1)
    average = u.mean(0).expand_as(u)
    z, t = read.rows(torch.cat([u - average, average], 1)), read.sample_norm(read.samples(h / unit_h))
    for i in range(2):
        a_j, b_j = (numbers.view(-1, 1, 1) for numbers in read.label_bias[i])
        z = z + attention(read.reads[i], read.norms[2 * i](z), t, a_j * one_hot.T + b_j * p.T)
        normed = read.norms[2 * i + 1](z)
        z = z + attention(read.mixes[i], normed, normed)
        z = z + read.mlps[i](z)
    delta = generator(read.norm(z))
    outputs = (
        body(query) @ (w + 0.2 * unit_w * delta[:, :7]).T
        + b
        + 0.2 * unit_b * delta[:, 7]
        + body(query) ** 2 @ quadratic.T
    )
    penalty = (0.2 * delta[:, :7]).square().mean() + (0.2 * delta[:, 7]).square().mean()

    adapted = method.adapt(SupportSet(x[None], y[None], 3))
    torch.testing.assert_close(method.predict(adapted, query[None])[0], outputs)
    torch.testing.assert_close(torch.as_tensor(method.penalty(adapted)).squeeze(), penalty)
    assert penalty > 1e-3
