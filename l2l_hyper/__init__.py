"""Hypernetwork adaptation for learn2learn: networks that read a task and write the weights for it."""

from ._version import __version__
from .errors import InputError
from .hypernet import HyperNetwork
from .learners import HyperAdapter, HyperSGD
from .nn import TaskNorm, convert_norm

__all__ = ["HyperAdapter", "HyperNetwork", "HyperSGD", "InputError", "TaskNorm", "__version__", "convert_norm"]
