"""Predictions under controls are those of one adaptation after the other; the queries pass the network once."""

from __future__ import annotations

import pytest
import torch
from helpers_methods import larger, small_episodes, small_network
from torch import Tensor, nn

from l2l_hyper.data import Episodes
from l2l_hyper.methods import METHODS, Method


class TwiceLinear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def ending_in(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*list(small_network()), *layers)


def own_last_layer() -> nn.Module:
    layers = list(small_network())
    return nn.Sequential(*layers[:-1], TwiceLinear(36, 4))


def built(model: nn.Module, **options: object) -> Method:
    method = METHODS["hyper-adapter"].build(model.double(), options, "running", larger().requires_grad_(False)).double()
    torch.manual_seed(0)
    with torch.no_grad():
        for p in method.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return method.eval()


def each_by_itself(method: Method, episodes: Episodes) -> tuple[list[Tensor], list[Tensor], int]:
    """Predictions under all controls one after the other and together, and how often the latter ran the network."""
    ran: list[int] = []
    with torch.no_grad():
        adapted = method.adapt(episodes.support_set)
        each = [adapted, *(method.controlled(adapted, control) for control in method.controls)]
        expected = [method.predict(one, episodes.query) for one in each]
        hook = method.network.module[0].register_forward_hook(lambda *_: ran.append(1))  # type: ignore[index,operator,union-attr]
        together = method.predict_each(each, episodes.query)
        hook.remove()
    return expected, together, len(ran)


@pytest.mark.parametrize("generate", ["", "0.*"])
@pytest.mark.parametrize("base_learner", ["cosine", "prototype", "gaussian", "ridge", "own"])
def test_predictions_under_controls_are_those_of_each_by_itself(base_learner: str, generate: str) -> None:
    method = built(small_network(), base_learner=base_learner, generator="linear", generate=generate)
    expected, together, ran = each_by_itself(method, small_episodes())
    torch.testing.assert_close(together, expected)
    assert ran == 1 and len(expected) == 5
    assert all((expected[0] - other).abs().max() > 1e-3 for other in expected[1:])


@pytest.mark.parametrize(
    ("model", "options"),
    [
        (ending_in(nn.LogSoftmax(-1)), {}),
        (own_last_layer(), {"base_learner": "prototype"}),
    ],
    ids=["what follows the last layer", "a last layer of another kind"],
)
def test_where_more_than_the_last_layer_counts_each_passes_the_network(
    model: nn.Module, options: dict[str, object]
) -> None:
    expected, together, _ = each_by_itself(built(model, **options), small_episodes())
    torch.testing.assert_close(together, expected)
