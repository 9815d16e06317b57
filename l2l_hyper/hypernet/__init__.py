"""Description to weights: targets, encoders, generators and their initialization; no task, no class, no learn2learn."""

from .encoders import Attention, DeepSets, Given, Mean, Perceptron, SetAttention
from .generators import Chunked, FeatureWise, Full, Generator, LowRank, Sum
from .init import hyperfan_std
from .network import HyperNetwork
from .target import Target

__all__ = [
    "Attention",
    "Chunked",
    "DeepSets",
    "FeatureWise",
    "Full",
    "Generator",
    "Given",
    "HyperNetwork",
    "LowRank",
    "Mean",
    "Perceptron",
    "SetAttention",
    "Sum",
    "Target",
    "hyperfan_std",
]
