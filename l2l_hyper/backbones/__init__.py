"""Networks by name, for samples of any size; each has ``features`` and a last layer ``classifier``."""

from .registry import BACKBONES, BackboneEntry, register_backbone

__all__ = ["BACKBONES", "BackboneEntry", "register_backbone"]
