"""Episodes that have other numbers of queries per class."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers_training import LITTLE, train

from l2l_hyper.data import TensorTaskset
from l2l_hyper.data.unbalanced import UnbalancedTaskset
from l2l_hyper.errors import InputError
from l2l_hyper.experiment.config import Run

FORM = {"ways": 4, "shots": 2, "queries": 5}


def numbered() -> TensorTaskset:
    """7 classes of 25 samples, each of which is its number."""
    return TensorTaskset(torch.arange(175.0)[:, None], torch.arange(175) // 25, ways=4, samples=7, name="test")


def test_an_episode_is_whole_and_its_own() -> None:
    tasks = UnbalancedTaskset(numbered().with_encoded(-torch.arange(175.0)[:, None]), 2)
    drawn = tasks.batch(range(300), **FORM)
    assert drawn.query.shape == (300, 20, 1) and drawn.support.shape == (300, 8, 1)
    assert (drawn.query_labels.diff() >= 0).all()  # the queries of a class are consecutive
    classes = (drawn.support[:, ::2, 0] // 25).long()
    assert torch.equal(classes.gather(1, drawn.query_labels), (drawn.query[..., 0] // 25).long())
    together = torch.cat([drawn.support, drawn.query], 1)[..., 0]
    assert all(len(episode.unique()) == 28 for episode in together)  # no sample comes twice
    assert drawn.query_encoded is not None and torch.equal(drawn.query_encoded, -drawn.query)
    again = tasks.batch([7, 3], **FORM)
    assert torch.equal(again.query, drawn.query[[7, 3]]) and torch.equal(again.support, drawn.support[[7, 3]])
    assert not torch.equal(tasks.batch([3], **FORM, seed=1).query, again.query[1:])


@pytest.mark.parametrize("alpha", [1, 2, 8])
def test_numbers_of_queries_are_those_of_a_dirichlet_distribution(alpha: int) -> None:
    labels = UnbalancedTaskset(numbered(), alpha).batch(range(8000), **FORM).query_labels
    shares = torch.stack([(labels == c).double().mean(1) for c in range(4)], 1)
    expected = torch.distributions.Dirichlet(torch.full((4,), float(alpha)).double())
    torch.testing.assert_close(shares.mean(0), expected.mean, rtol=0, atol=0.01)
    of_rounding = 1 / 12 / 20**2
    torch.testing.assert_close(shares.var(0), expected.variance + of_rounding, rtol=0.06, atol=0)


def test_a_fingerprint_tells_the_numbers_apart() -> None:
    prints = {UnbalancedTaskset(numbered(), alpha).fingerprint(9, **FORM) for alpha in (1, 2)}
    assert len({*prints, numbered().fingerprint(9, **FORM), numbered().fingerprint(9, **{**FORM, "queries": 20})}) == 4


def test_too_few_samples_are_refused() -> None:
    with pytest.raises(InputError, match=r"25 samples per class, and unbalanced queries need .* 26"):
        UnbalancedTaskset(numbered(), 2).batch([0], ways=4, shots=2, queries=6)
    with pytest.raises(InputError, match="alpha"):
        UnbalancedTaskset(numbered(), 0)


def test_only_the_test_of_a_comparison_is_unbalanced(tmp_path: Path) -> None:
    experiment = replace(LITTLE, ways=2, unbalanced_queries=1)
    one = train(Run(experiment=experiment, method="protonet"), tmp_path / "one")
    other = train(Run(experiment=replace(experiment, unbalanced_queries=0), method="protonet"), tmp_path / "other")
    curves = [[[p["score"] for p in record[name]] for name in ("training", "validation")] for record in (one, other)]
    assert curves[0] == curves[1] and one["losses"] != other["losses"]
    assert one["manifest"]["hash"] != other["manifest"]["hash"]
