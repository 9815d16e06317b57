"""What a user keeps in a folder of their own: a method, a backbone and tasksets, none of them of this package."""

from __future__ import annotations

SOURCE = '''
"""A method, a backbone and a taskset that know nothing of each other."""

import torch
from torch import nn

from l2l_hyper.data import Episodes


class NearestMean(nn.Module):
    """The class whose mean feature is nearest."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone

    def adapt(self, support):
        h = self.backbone(support.x[0])
        return torch.stack([h[support.y[0] == c].mean(0) for c in range(support.ways)])

    def predict(self, means, query):
        return -torch.cdist(self.backbone(query[0]), means)[None]


def waves_net(ways, sample_shape, *, channels=8, depth=1):
    """Linear layers over a waveform."""
    size, layers = sample_shape[-1], []
    for _ in range(depth):
        layers += [nn.Linear(size, channels), nn.ReLU()]
        size = channels
    return nn.Sequential(*layers, nn.Linear(size, ways))


class Waves:
    """Waveforms of 32 values; a class is a frequency."""

    def __init__(self, seed):
        self.seed = seed

    def batch(self, indices, *, shots, queries, ways=None, seed=None):
        episodes = [self.episode(index, shots, queries, ways or 5, seed or 0) for index in indices]
        support, support_labels, query, query_labels = map(torch.stack, zip(*episodes))
        return Episodes(support, support_labels, query, query_labels, ways or 5)

    def episode(self, index, shots, queries, ways, seed):
        generator = torch.Generator().manual_seed(10_000 * self.seed + 1_000_000 * seed + index)
        frequencies = 1 + torch.randperm(20, generator=generator)[:ways]
        time = torch.linspace(0, 1, 32)

        def draw(each):
            labels = torch.arange(ways).repeat_interleave(each)
            phase = torch.rand(len(labels), 1, generator=generator)
            return torch.sin(6.28 * (frequencies[labels][:, None] * time + 0.1 * phase)), labels

        return *draw(shots), *draw(queries)


def waves():
    """Waveforms, made up."""
    return Waves(1), Waves(2), Waves(3)


def errors(outputs, labels):
    return (outputs.argmax(-1) != labels).float().mean(1)
'''
"""Text of the module."""
