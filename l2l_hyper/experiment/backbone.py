"""Which backbone a row of a comparison has: that of the experiment, or one of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..backbones import BACKBONES, BackboneEntry
from ..errors import InputError
from .config import Experiment

__all__ = ["backbone_of"]


def backbone_of(
    e: Experiment, row: Mapping[str, Any], shared: BackboneEntry | None = None
) -> tuple[BackboneEntry, dict[str, Any]]:
    """The backbone of a row, and its options: those of the experiment where it has the same backbone, and its own.

    Args:
        e: the experiment.
        row: the options of the row's method.
        shared: the backbone of the experiment, where it is not known by name.

    Raises:
        InputError: for an option that the backbone does not have or that is of another type or out of range.
    """
    name = row.get("backbone") or e.backbone
    same = name == e.backbone
    entry = shared if same and shared is not None else BACKBONES[name]
    options = {**(e.backbone_options if same else {}), **row.get("backbone_options", {})}
    if "channels" in entry.options:
        options = {"channels": e.channels, **options}
    elif same and e.channels != Experiment().channels:
        raise InputError(f"backbone {name!r} has no option channels: leave --channels out")
    return entry, entry.checked(options)
