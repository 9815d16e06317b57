"""The same methods through learn2learn's and higher's own classes, one task after the other."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from torch import nn

from ...errors import InputError

__all__ = ["reference"]

_REFERENCES = {
    ("maml", "learn2learn"): "maml:Learn2learnMAML",
    ("maml", "higher"): "maml_higher:HigherMAML",
    ("anil", "learn2learn"): "anil:Learn2learnANIL",
    ("protonet", "learn2learn"): "protonet:Learn2learnProtoNet",
}


def reference(method: str, implementation: str) -> Callable[..., nn.Module]:
    """The class of an implementation; called with the backbone and the method's options it gives a method.

    Raises:
        InputError: for an implementation that the method does not have.
    """
    if (method, implementation) not in _REFERENCES:
        known = ["batched", *(name for of, name in _REFERENCES if of == method)]
        raise InputError(f"implementation of {method} must be one of {', '.join(known)}, got {implementation!r}")
    module, _, name = _REFERENCES[method, implementation].partition(":")
    return getattr(importlib.import_module(f".{module}", __name__), name)
