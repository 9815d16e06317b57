"""Description to weights: targets, encoders, generators, closed-form starts and their initialization."""

from .encoders import ClassAttention, DeepSets, Given, Mean, SetAttention
from .generators import Chunked, FeatureWise, Full, Generator, LowRank, Sum
from .init import hyperfan_std
from .network import HyperNetwork
from .residual import BodyResidual, HeadResidual
from .starts import STARTS, BaseStart, GaussianStart, GradientStart, PrototypeStart, RidgeStart, Start
from .support import Support
from .target import Target

__all__ = [
    "STARTS",
    "BaseStart",
    "BodyResidual",
    "Chunked",
    "ClassAttention",
    "DeepSets",
    "FeatureWise",
    "Full",
    "GaussianStart",
    "Generator",
    "Given",
    "GradientStart",
    "HeadResidual",
    "HyperNetwork",
    "LowRank",
    "Mean",
    "PrototypeStart",
    "RidgeStart",
    "SetAttention",
    "Start",
    "Sum",
    "Support",
    "Target",
    "hyperfan_std",
]
