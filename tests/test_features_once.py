"""A test on features that were made once of each sample is the test on the samples."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers_methods import larger
from torch import nn

from l2l_hyper.backbones import BACKBONES
from l2l_hyper.data import ACCURACY, TensorTaskset
from l2l_hyper.errors import InputError
from l2l_hyper.experiment.evaluation import Measured, evaluate_on
from l2l_hyper.experiment.features_once import features_made_once
from l2l_hyper.methods import METHODS, Method

CPU = torch.device("cpu")
FORM = {"ways": 4, "shots": 2, "queries": 3}
EPISODES = 8
ROWS: dict[str, dict[str, Any]] = {
    "protonet": {},
    "protonet@map": {"distance": "cosine", "linear_map": True},
    "protonet-distilled": {"distance": "cosine"},
    "soft-kmeans": {},
    "r2d2": {},
    "simpleshot": {},
    "gidaris": {},
    "feat": {},
    "hypershot": {},
    "metaoptnet": {},
    "baseline-plus-plus": {},
    "anil": {},
    "hyper-adapter": {},
    "hyper-adapter@encoder": {"generator": "linear", "encoder_layers": "0"},
    "hyper-adapter@ridge": {"base_learner": "ridge"},
    "hyper-adapter-transductive": {},
    "hyper-adapter@gradient": {"base_learner": "gradient"},
}
OTHERS: dict[str, dict[str, Any]] = {
    "maml": {},
    "frn": {},
    "hypertransformer": {},
    "hypermaml": {},
    "hyper-adapter@generate": {"generate": "features.*"},
}


def images(**options: Any) -> TensorTaskset:
    x = torch.rand(6 * 9, 1, 8, 8, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    return TensorTaskset(x, torch.arange(6).repeat_interleave(9).flip(0), ways=4, samples=5, scale=2.0, **options)


def built(name: str, options: dict[str, Any], normalization: str = "running") -> Method:
    torch.manual_seed(0)
    model = BACKBONES["conv4"].build(4, (1, 8, 8), {"channels": 6, "layers": 2})
    method, kind = name.partition("@")[0], name.partition("@")[2]
    encoder = larger().requires_grad_(False) if kind == "encoder" or method == "protonet-distilled" else None
    made = METHODS[method].build(model, options, normalization, encoder).double().train()
    for norm in (m for m in made.network.modules() if hasattr(m, "running_mean")):
        norm.running_mean.uniform_(-1, 1)
        norm.running_var.uniform_(0.5, 2)
    for parameter in made.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return made


def measured(method: Method, taskset: Any) -> Measured:
    return evaluate_on(
        method, taskset, range(EPISODES), ACCURACY, form=FORM, device=CPU, batch_size=4, controls=method.controls
    )


@pytest.mark.parametrize("name", ROWS)
def test_the_same_is_measured_with_one_pass_of_each_sample(name: str) -> None:
    method, taskset = built(name, ROWS[name]), images()
    passed: list[int] = []
    method.network.module.features.register_forward_hook(lambda _, x, y: passed.append(len(y)))
    expected = measured(method, taskset)
    passed.clear()
    with features_made_once(method, taskset, EPISODES * 20, CPU) as shown:
        assert method.training
        torch.testing.assert_close(measured(method, shown), expected)
    assert sum(passed) == len(taskset.x)
    torch.testing.assert_close(measured(method, taskset), expected)


@pytest.mark.parametrize("name", OTHERS)
def test_methods_that_read_more_are_tested_on_samples(name: str) -> None:
    method, taskset = built(name, OTHERS[name]), images()
    with features_made_once(method, taskset, EPISODES * 20, CPU) as shown:
        assert shown is taskset


def test_where_nothing_is_gained_or_known_samples_stay() -> None:
    class Own(type(built("protonet", {}))):  # type: ignore[misc]
        """Reads images where its base class reads features."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features, self.classifier = nn.Flatten(), nn.Linear(64, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.classifier(2 * self.features(x))

    taskset, method = images(), built("protonet", {})
    cases = [
        (method, taskset, len(taskset.x)),
        (method, images(rotations="class"), 500),
        (method, object(), 500),
        (built("protonet", {}, "support"), taskset, 500),
        (METHODS["protonet"].build(Model(), {}, "running"), taskset, 500),
        (Own(BACKBONES["conv4"].build(4, (1, 8, 8), {"layers": 2})), taskset, 500),
    ]
    for method, given, samples in cases:
        with features_made_once(method, given, samples, CPU) as shown:
            assert shown is given


def test_the_network_is_whole_again_after_an_error() -> None:
    method, taskset = built("protonet", {}), images()
    body = method.network.module.features
    with pytest.raises(KeyError), features_made_once(method, taskset, 500, CPU):
        assert method.network.module.features is not body
        raise KeyError
    assert method.network.module.features is body


def test_other_samples_in_the_place_of_these() -> None:
    taskset = images()
    changed = taskset.with_samples(taskset.x.flatten(1)[:, :3])
    a, b = (t.batch(range(3), shots=2, queries=1) for t in (taskset, changed))
    torch.testing.assert_close(2 * b.query, a.query.flatten(2)[..., :3])
    with pytest.raises(InputError, match="expected 54 samples in the place of those .* got 5 and rotations=False"):
        taskset.with_samples(taskset.x[:5])
    with pytest.raises(InputError, match="got 54 and rotations='class'"):
        images(rotations="class").with_samples(taskset.x)
