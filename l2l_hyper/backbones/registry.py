"""Backbones by name: what each is called, its options, and how it is built for some classes and a sample shape."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..errors import InputError
from ..memory import weights_fit
from ..registry import Registry, unknown_name
from ..settings import checked_value, hint, hints

__all__ = ["BACKBONES", "BackboneEntry", "register_backbone"]

Make = Callable[..., nn.Module]
"""Number of classes, shape of a sample, and options by keyword, to a network whose last layer is an nn.Linear."""


@dataclass(frozen=True)
class BackboneEntry:
    """A network by name.

    Attributes:
        name: as ``--backbone`` takes it.
        summary: one line for ``l2l-hyper list``.
        make: number of classes, shape of a sample, and options by keyword, to the network.
    """

    name: str
    summary: str
    make: Make

    @property
    def options(self) -> dict[str, Any]:
        """Options and their defaults, as the signature of ``make`` has them."""
        parameters = list(inspect.signature(self.make).parameters.values())[2:]
        return {p.name: p.default for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}

    def checked(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options, each of the type and within the range that the annotation of ``make`` declares.

        Raises:
            InputError: for an option that the backbone does not have, and for a value of another type or out of range.
        """
        known, types = self.options, hints(self.make)
        takes_any = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(self.make).parameters.values())
        for name in options:
            if name not in known and not takes_any:
                raise unknown_name(f"option of backbone {self.name}", name, known)
        return {
            name: checked_value(types.get(name, Any), value, f"{self.name}.{name}", hint(known, name))
            for name, value in options.items()
        }

    def build(self, ways: int, sample_shape: tuple[int, ...], options: Mapping[str, Any] | None = None) -> nn.Module:
        """The network.

        Args:
            ways: outputs of the last layer.
            sample_shape: shape of one sample, such as ``(channels, height, width)``.
            options: by name; ``hidden`` is accepted for ``channels``.

        Raises:
            InputError: as :meth:`checked`, and for samples that the backbone cannot read.
        """
        given = dict(options or {})
        if "hidden" in given and "hidden" not in self.options and "channels" in self.options:
            given["channels"] = given.pop("hidden")
        given = self.checked(given)
        with weights_fit(f"backbone {self.name!r}", {**self.options, **given}):
            model = self.make(ways, tuple(sample_shape), **given)
        if not isinstance(model, nn.Module):
            raise InputError(f"expected an nn.Module of backbone {self.name!r}, got {type(model).__name__}")
        return model


def register_backbone(name: str, make: Make | None = None, *, summary: str = "") -> Any:
    """Add a backbone of your own, so that ``compare`` and the command line take it by name.

    Args:
        name: as ``--backbone`` takes it.
        make: the function ``make(ways, sample_shape, **options)`` that gives an ``nn.Module`` whose last layer is an
            ``nn.Linear`` of ``ways`` outputs.  Options are its parameters after the first two, with their defaults.
            Left out, the result is a decorator.
        summary: one line for ``l2l-hyper list``; the first line of the docstring if left out.

    Raises:
        InputError: for a name that is taken, and for what cannot make a network.

    Example:
        >>> @register_backbone("own-linear")
        ... def linear(ways, sample_shape, bias=True):
        ...     return nn.Linear(sample_shape[0], ways, bias)
        >>> BACKBONES["own-linear"].build(5, (3,), {"bias": False})
        Linear(in_features=3, out_features=5, bias=False)
    """

    def add(make: Make) -> Make:
        BACKBONES.register(name, _entry(name, make, summary))
        return make

    return add if make is None else add(make)


def _entry(name: str, make: object, summary: str = "") -> BackboneEntry:
    """The entry of a function; an object that is an entry already stays."""
    if isinstance(make, BackboneEntry):
        return make
    try:
        inspect.signature(make).bind(5, (3, 84, 84))  # type: ignore[arg-type]
    except TypeError as error:
        raise InputError(
            f"a backbone is a function make(ways, sample_shape, **options) whose options have defaults, "
            f"{name!r} is not ({error})"
        ) from error
    return BackboneEntry(name, summary or (inspect.getdoc(make) or "").partition("\n")[0], make)  # type: ignore[arg-type]


BACKBONES: Registry[BackboneEntry] = Registry(
    "backbone",
    "l2l_hyper.backbones",
    {
        "conv4": "l2l_hyper.backbones.conv4:conv4",
        "omniglot-cnn": "l2l_hyper.backbones.cnn4:omniglot_cnn",
        "cnn4": "l2l_hyper.backbones.cnn4:cnn4",
        "resnet12": "l2l_hyper.backbones.residual:resnet12",
        "wrn28": "l2l_hyper.backbones.residual:wrn28",
        "mlp": "l2l_hyper.backbones.mlp:mlp",
        "ensemble": "l2l_hyper.backbones.ensemble:ensemble",
    },
    _entry,
)
"""Backbones by the name that ``--backbone`` takes; others through the entry-point group ``l2l_hyper.backbones``."""
