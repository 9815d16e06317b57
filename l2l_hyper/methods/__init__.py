"""Methods: the contract, then one published method per file; many tasks in one pass; methods by name."""

from .anil import ANIL
from .base_learners import BASE_LEARNERS
from .contract import Method, OneByOne, Options, as_method
from .hyper_adapter import HyperAdapter
from .maml import MAML
from .protonet import ProtoNet
from .registry import METHODS, MethodEntry, register_method
from .taskwise import Adapted, Pass, TaskwiseNetwork

__all__ = [
    "ANIL",
    "BASE_LEARNERS",
    "MAML",
    "METHODS",
    "Adapted",
    "HyperAdapter",
    "Method",
    "MethodEntry",
    "OneByOne",
    "Options",
    "Pass",
    "ProtoNet",
    "TaskwiseNetwork",
    "as_method",
    "register_method",
]
