"""Joint classification among all training classes: single samples, a classifier on the method's features, its loss."""

from __future__ import annotations

import copy
import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...data.taskset import TensorTaskset
from ...errors import InputError
from ...functional import full_precision, share_copy
from ...methods.contract import Method
from ...methods.taskwise import Pass, TaskwiseNetwork

__all__ = ["WholeClassifier", "add_classifier", "attach_classifier", "class_pass", "with_rotation_classes"]


class WholeClassifier(nn.Module):
    r"""Classifies features among all training classes, by cosine or by a linear layer.

    .. math:: o_c(h) = \tau \cos(h - m, w_c) \quad\text{or}\quad w_c \cdot h + b_c

    with a learned centre m and scale τ.  A method finds it as ``method.whole_classifier`` and may read ``weight``, one
    vector per training class, as attention to stored base-class weights does.

    Args:
        features: D, the number of features.
        classes: how many.
        kind: "cosine" or "linear".

    Shape: features ``(N, D)`` to logits ``(N, classes)``.
    """

    def __init__(self, features: int, classes: int, kind: Literal["cosine", "linear"] = "cosine") -> None:
        super().__init__()
        self.kind = kind
        self.weight = nn.Parameter(torch.randn(classes, features) / math.sqrt(features))
        if kind == "cosine":
            self.centre = nn.Parameter(torch.zeros(features))
            self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        else:
            self.bias = nn.Parameter(torch.zeros(classes))

    def forward(self, features: Tensor) -> Tensor:
        """Logits."""
        with full_precision(features.device):
            h = features.to(self.weight.dtype)
            if self.kind == "linear":
                return F.linear(h, self.weight, self.bias)
            return self.log_scale.exp() * F.linear(
                F.normalize(h - self.centre, dim=-1), F.normalize(self.weight, dim=-1)
            )


def attach_classifier(method: Method, taskset: Any, kind: Literal["cosine", "linear"]) -> WholeClassifier:
    """Give a method a classifier of all classes of the training taskset, as its submodule ``whole_classifier``.

    There it is trained, averaged, saved and loaded with everything else that the method learns.

    Raises:
        InputError: for a method whose features cannot be read, and a taskset that cannot draw single samples.
    """
    network = getattr(method, "network", None)
    if not isinstance(network, TaskwiseNetwork):
        raise InputError(
            f"class_batch needs a method whose attribute network is a TaskwiseNetwork, of whose features images are "
            f"classified, {type(method).__name__} has none; use class_batch=0"
        )
    if not isinstance(taskset, TensorTaskset):
        raise InputError(
            f"class_batch needs a training taskset that knows the class of each sample, a TensorTaskset, "
            f"got {type(taskset).__name__}; use class_batch=0"
        )
    classes = taskset.num_classes * (4 if taskset.rotations else 1)
    return add_classifier(method, classes, kind)


def add_classifier(method: Method, classes: int, kind: Literal["cosine", "linear"]) -> WholeClassifier:
    """Give a method, whose attribute network is a TaskwiseNetwork, a classifier of so many classes."""
    head = method.network.head  # type: ignore[union-attr]
    classifier = WholeClassifier(head.in_features, classes, kind).to(head.weight.device)  # type: ignore[arg-type, union-attr]
    method.add_module("whole_classifier", classifier)
    return classifier


def class_pass(method: Method, x: Tensor, labels: Tensor, label_smoothing: float) -> tuple[Tensor, Pass]:
    """Cross-entropy of samples ``(N, *)`` among all training classes, and their pass through the method's network.

    What is classified is what the network's last layer is given, the same for every method.
    """
    network: TaskwiseNetwork = share_copy(method.network)  # type: ignore[type-var, assignment]
    given: list[Tensor] = []
    network.head.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    seen = network(x[None])
    logits = method.whole_classifier(given[0])  # type: ignore[operator]
    return F.cross_entropy(logits, labels, label_smoothing=label_smoothing), seen


def with_rotation_classes(taskset: Any) -> TensorTaskset:
    """The taskset with each class turned by 90, 180 and 270 degrees as three further classes.

    An episode holds a class in one of its rotations only.

    Raises:
        InputError: for anything but a TensorTaskset of square images.
    """
    shape = taskset.sample_shape if isinstance(taskset, TensorTaskset) else None
    if shape is None or len(shape) != 3 or shape[1] != shape[2]:
        raise InputError(
            f"rotation_classes needs a TensorTaskset of square images (C, H, W), got {type(taskset).__name__}"
            f"{'' if shape is None else f' of samples of shape {shape}'}; use rotation_classes=false"
        )
    turned = copy.copy(taskset)
    turned.rotations = "class"
    return turned
