"""Baselines through learn2learn's own classes (and MAML through higher), on the same backbone and episodes."""

from .base import Episodic, OneByOne
from .batched import Batched
from .maml import ANIL, MAML
from .maml_higher import HigherMAML
from .protonet import ProtoNet

__all__ = ["ANIL", "MAML", "Batched", "Episodic", "HigherMAML", "OneByOne", "ProtoNet"]
