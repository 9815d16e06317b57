"""More classes for training episodes: each class is divided into subclasses by what a trained network sees in it.

A class is divided by k-means of its samples' features, scaled to unit length.  The smallest subclass is dissolved, and
its samples join the nearest of the others, until each has samples enough for an episode.  An episode draws subclasses
as it would draw classes, two of the same class among them; validation, test and the classification among all training
classes keep to the classes.
"""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.vq import kmeans2
from torch import Tensor
from torch.nn import functional as F

from ...data.taskset import TensorTaskset

__all__ = ["divided", "with_subclasses"]


def with_subclasses(taskset: TensorTaskset, features: Tensor, count: int, *, samples: int) -> TensorTaskset:
    """The taskset with up to ``count`` subclasses in place of each class.

    Args:
        taskset: of training.
        features: of all its samples, ``(N, D)``.
        count: subclasses per class before small ones are dissolved.
        samples: samples per class of an episode, which each subclass has at least.
    """
    of_unit_length = F.normalize(features, dim=-1).cpu().numpy()
    subclasses = []
    for members in map(taskset.members, range(taskset.num_classes)):
        labels = divided(of_unit_length[members], count, samples=samples)
        subclasses += [members[labels == label] for label in range(labels.max() + 1)]
    return TensorTaskset(
        taskset.x,
        subclasses,
        ways=taskset.ways,
        samples=samples,
        rotations=taskset.rotations,
        scale=taskset.scale,
        seed=taskset.seed,
        name=taskset.name,
        loss=taskset.loss,
        metric=taskset.metric,
    )


def divided(features: NDArray[np.float32], count: int, *, samples: int) -> NDArray[np.int64]:
    """Numbers of the subclasses, from 0 on, of the samples of one class.

    Args:
        features: of its samples, ``(N, D)``.
        count: subclasses before small ones are dissolved.
        samples: what each subclass has at least; a class of fewer than twice as many is left whole.
    """
    count = min(count, len(features) // samples)
    if count < 2:
        return np.zeros(len(features), np.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of equal samples, and of empty subclasses, which are dissolved below
        centres, _ = kmeans2(features, count, minit="++", seed=0)
    while True:
        labels = np.square(features[:, None] - centres).sum(-1).argmin(1)
        sizes = np.bincount(labels, minlength=len(centres))
        if sizes.min() >= samples:
            return labels
        centres = np.delete(centres, sizes.argmin(), axis=0)
