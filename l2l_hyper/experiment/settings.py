"""Where the settings of a comparison are read and checked: :mod:`l2l_hyper.settings`."""

from __future__ import annotations

from ..settings import checked, checked_value, defaults, described, hints, parse_pairs, parse_value, tomllib

__all__ = ["checked", "checked_value", "defaults", "described", "hints", "parse_pairs", "parse_value", "tomllib"]
