"""Methods by name: what each is called, its options, and how it is built around a backbone."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..errors import InputError
from ..memory import weights_fit
from ..registry import Registry
from ..settings import checked
from .contract import Method, Options, as_method
from .reference import reference

__all__ = ["METHODS", "MethodEntry", "register_method"]


@dataclass(frozen=True)
class MethodEntry:
    """A method of a comparison.

    Attributes:
        name: as ``--methods`` takes it.
        label: as tables print it.
        summary: one line for ``l2l-hyper list``.
        options: the dataclass of its options.
        make: backbone and options, to the method.
    """

    name: str
    label: str
    summary: str
    options: type[Any]
    make: Callable[..., nn.Module]

    def build(
        self,
        model: nn.Module,
        options: Mapping[str, Any],
        normalization: str,
        encoder: nn.Module | None = None,
        bank: Tensor | None = None,
    ) -> Method:
        """The method around a network; raises :class:`InputError` for options that it does not have.

        Args:
            model: the network.
            options: of the method.
            normalization: see :func:`~l2l_hyper.methods.contract.as_method`; an option of that name comes first.
            encoder: for methods with an option ``encoder``, the network that it names.
            bank: for methods with an option ``bank``, as many training samples.
        """
        completed = self.complete(options)
        implementation = getattr(completed, "implementation", "batched")
        make = self.make if implementation == "batched" else reference(self.name.partition("@")[0], implementation)
        with weights_fit(f"method {self.name!r}", vars(completed)):
            given = {"encoder": encoder, "bank": bank}
            made = make(model, completed, **{name: value for name, value in given.items() if value is not None})
        return as_method(made, self.normalization(options) or normalization)

    def normalization(self, options: Mapping[str, Any]) -> str | None:
        """The statistics that the method's own option names, if it has one."""
        return getattr(self.complete(options), "normalization", None)

    def complete(self, options: Mapping[str, Any]) -> Any:
        """The given options over the defaults, in the method's dataclass."""
        return self.options(**checked(self.options, options, f"option of {self.name}", f"{self.name}."))


def register_method(
    name: str, make: Callable[..., nn.Module] | None = None, *, label: str = "", summary: str = ""
) -> Any:
    """Add a method of your own, so that ``compare`` and the command line take it by name.

    Args:
        name: as ``--methods`` takes it.
        make: a class or function of the backbone and the options that gives the method: a
            :class:`~l2l_hyper.methods.contract.Method`, or any ``nn.Module`` with ``adapt(support)`` and
            ``predict(adapted, query)``.  Its attribute ``Options``, if it has one, is the dataclass of its options;
            without one it is called with the backbone alone.  Left out, the result is a decorator.
        label: as tables print it; the attribute ``label`` of ``make``, or the name, if left out.
        summary: one line for ``l2l-hyper list``; the first line of the docstring if left out.

    Raises:
        InputError: for a name that is taken, and for what cannot make a method.

    Example:
        >>> @register_method("own-mean", label="Class means")
        ... class ClassMeans(nn.Module):
        ...     def __init__(self, backbone):
        ...         super().__init__()
        ...         self.backbone = backbone
        ...
        ...     def adapt(self, support):  # samples (T, N, *), labels (T, N); here T = 1
        ...         h = self.backbone(support.x[0])
        ...         return torch.stack([h[support.y[0] == c].mean(0) for c in range(support.ways)])
        ...
        ...     def predict(self, means, query):
        ...         return -torch.cdist(self.backbone(query[0]), means)[None]
        >>> METHODS["own-mean"].label
        'Class means'
    """

    def add(make: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        METHODS.register(name, _entry(name, make, label, summary))
        return make

    return add if make is None else add(make)


def _entry(name: str, made_by: object, label: str = "", summary: str = "") -> MethodEntry:
    """The entry of a class or function; an object that is an entry already stays."""
    if isinstance(made_by, MethodEntry):
        return made_by
    if not callable(made_by):
        raise InputError(f"expected a class or function that makes the method {name!r}, got {type(made_by).__name__}")
    options: Any = getattr(made_by, "Options", None)
    if options is not None and not dataclasses.is_dataclass(options):
        raise InputError(f"Options of the method {name!r} must be a dataclass, got {options!r}")
    takes_options = options is not None
    # A module of this package holds one method, and its first line is the paper.
    ours = str(getattr(made_by, "__module__", "")).startswith(f"{__package__}.")
    described = inspect.getmodule(made_by) if ours else made_by
    docstring = (inspect.getdoc(described) or "").partition("\n")[0]

    def make(model: nn.Module, options: Any, **given: Any) -> nn.Module:
        return made_by(model, options, **given) if takes_options else made_by(model)

    label = label or getattr(made_by, "label", name)
    known: Any = options or Options
    return MethodEntry(name, label, summary or docstring, known, make)


class _Methods(Registry[MethodEntry]):
    """Methods by name; ``NAME@VARIANT`` is the same method under another name and label, for options of its own."""

    def __getitem__(self, name: str) -> MethodEntry:
        method, at, variant = name.partition("@")
        entry = super().__getitem__(method)
        return dataclasses.replace(entry, name=name, label=f"{entry.label}, {variant}") if at else entry


METHODS = _Methods(
    "method",
    "l2l_hyper.methods",
    {
        "hyper-adapter": "l2l_hyper.methods.hyper_adapter:HyperAdapter",
        "hyper-adapter-transductive": "l2l_hyper.methods.transductive:TransductiveHyperAdapter",
        "maml": "l2l_hyper.methods.maml:MAML",
        "anil": "l2l_hyper.methods.anil:ANIL",
        "protonet": "l2l_hyper.methods.protonet:ProtoNet",
        "protonet-distilled": "l2l_hyper.methods.distilled_protonet:DistilledProtoNet",
        "r2d2": "l2l_hyper.methods.r2d2:R2D2",
        "soft-kmeans": "l2l_hyper.methods.soft_kmeans:SoftKMeans",
        "metaoptnet": "l2l_hyper.methods.metaoptnet:MetaOptNet",
        "baseline-plus-plus": "l2l_hyper.methods.baseline_plus_plus:BaselinePlusPlus",
        "simpleshot": "l2l_hyper.methods.simpleshot:SimpleShot",
        "feat": "l2l_hyper.methods.feat:FEAT",
        "frn": "l2l_hyper.methods.frn:FRN",
        "simple-cnaps": "l2l_hyper.methods.simple_cnaps:SimpleCNAPs",
        "gidaris": "l2l_hyper.methods.gidaris:DynamicFewShot",
        "hypershot": "l2l_hyper.methods.hypershot:HyperShot",
        "hypermaml": "l2l_hyper.methods.hypermaml:HyperMAML",
        "hypertransformer": "l2l_hyper.methods.hypertransformer:HyperTransformer",
    },
    _entry,
)
"""Methods by the name that ``--methods`` takes; others through the entry-point group ``l2l_hyper.methods``.

One method with two sets of options is two rows of a table under names such as ``protonet@cosine``.
"""
