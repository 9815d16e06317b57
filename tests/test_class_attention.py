"""Class attention: relabelling permutes the embeddings, the order of the samples does not matter."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from l2l_hyper.methods.class_attention import ClassAttention


def test_class_attention_is_equivariant_to_classes_and_invariant_to_samples() -> None:
    torch.manual_seed(0)
    encoder = ClassAttention(3, 6, width=16).double()
    nn.init.normal_(encoder.label_bias)
    rows, samples = torch.randn(2, 4, 3, dtype=torch.double), torch.randn(2, 9, 6, dtype=torch.double)
    targets = F.one_hot(torch.arange(9) % 4, 4).double().expand(2, -1, -1)
    predictions = torch.rand(2, 9, 4, dtype=torch.double)
    z = encoder(rows, samples, targets, predictions)
    classes, order = torch.tensor([2, 0, 3, 1]), torch.randperm(9)
    moved = encoder(
        rows[:, classes], samples[:, order], targets[:, order][..., classes], predictions[:, order][..., classes]
    )
    torch.testing.assert_close(moved, z[:, classes])
    assert not torch.allclose(z[:, 0], z[:, 1])
