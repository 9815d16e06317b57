"""The network that reads support sets beside a smaller one: trained by an earlier run, and frozen."""

from __future__ import annotations

from torch import nn

from ..errors import InputError
from ..functional import convert_norm
from ..methods import TaskwiseNetwork
from .backbone import backbone_of
from .recipe.pretrained import read_pretrained

__all__ = ["read_encoder"]


def read_encoder(path: str, seed: int, sample_shape: tuple[int, ...]) -> nn.Module:
    """The backbone of a checkpoint, with its selected weights, frozen and in evaluation mode.

    Args:
        path: of the checkpoint that ``compare`` wrote; ``{seed}`` in it stands for the training seed.
        seed: of the run that begins.
        sample_shape: of the samples that it will read.

    Raises:
        InputError: when the file cannot be read, was not written by a run, or holds weights of another backbone.
    """
    pretrained = read_pretrained(path, seed)
    run = pretrained.run
    if run is None:
        raise InputError(
            f"expected a checkpoint of `l2l-hyper compare` in {pretrained.path}, which says what its backbone is, got "
            "a file without it; train the encoder with compare"
        )
    entry, options = backbone_of(run.experiment, run.options)
    model = entry.build(run.experiment.ways, sample_shape, options)
    pretrained.load_backbone(model)
    model = convert_norm(model, run.experiment.normalization)
    network = TaskwiseNetwork(model)
    if pretrained.centre is not None:
        network.read_unit_length()
        pretrained.load_centre(network)
    return network.module.requires_grad_(False).eval()
