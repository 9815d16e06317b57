"""What else hypernetworks are for; each module is one use, and all weights come from ``l2l_hyper.hypernet``."""

from .compression import Compressed
from .continual import ContinualNetwork
from .described import DescribedNetwork
from .graph_hypernetwork import GraphHyperNetwork, NetworkGraph
from .hyper_lstm import HyperLSTM
from .learned_optimizer import LearnedOptimizer, LearnedRule
from .tabular import TabularHyperNetwork

__all__ = [
    "Compressed",
    "ContinualNetwork",
    "DescribedNetwork",
    "GraphHyperNetwork",
    "HyperLSTM",
    "LearnedOptimizer",
    "LearnedRule",
    "NetworkGraph",
    "TabularHyperNetwork",
]
