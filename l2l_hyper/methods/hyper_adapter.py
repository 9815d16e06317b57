r"""HyperAdapter: a hypernetwork reads the support set and generates the last layer, W = base learner + Δ.

For features :math:`H = (h_1 \dots h_N)` of the support samples and one-hot labels Y, the row of class k of the last
layer, with its bias, is

.. math:: (w_k, b_k) = B_k(H, Y) + s\,(\rho_w,\; \rho_w\,\rho_h \sqrt{D}) \odot \Delta_k, \qquad
          \Delta = G\,A\bigl([w/\rho_w,\; b/(\rho_w \rho_h \sqrt D)],\; H/\rho_h,\; Y,\; P\bigr)

- **B, the base learner.**  By default cosine similarity to class means,
  :class:`~l2l_hyper.methods.base_learners.Cosine`: with :math:`\bar x_k` the mean feature of class k,
  :math:`w_k = \tau \bar x_k / \lVert \bar x_k \rVert` and :math:`b_k = 0`, for features of unit length about a learned
  centre.
- **Δ, the residual.**  What it reads: the base learner's rows, the features, the labels, and the predictions P of the
  base learner on the support set, by the attention A of
  :class:`~l2l_hyper.methods.class_attention.ClassAttention`.  What it writes: one row per class, by a linear map G
  that is zero before training, so that an untrained learner *is* its base learner.
- **Units.**  :math:`\rho_w` and :math:`\rho_h` are the root mean squares of the base learner's weight and of the
  features of the task: whoever multiplies one or the other by a number changes nothing.
- **Length.**  For features of unit length, as those of "cosine", a row keeps the length that the base learner gives it:
  Δ turns it and nothing else.
- **Bank.**  With ``bank`` and a frozen encoder W gains, in a test, the last layer of
  :mod:`~l2l_hyper.methods.distillation` too, which repeats what the encoder says of stored samples.
- **Scale** s = 0.2, and **penalty**: the loss of each task gains :math:`\gamma\,\operatorname{mean}(s\Delta)^2`, the
  weight and the bias each for itself, with γ = 1.

Relabelling the classes permutes the rows and nothing else, the order of the support samples does not matter, and any
number of ways and shots will do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.nn import functional as F

from ..data.episode import Episodes, SupportSet
from ..errors import InputError
from ..functional import EpisodicBatchNorm, full_precision, in_float32
from ..settings import Count, Depth, Natural, NonNegative, Positive, Share
from .base_learners import BASE_LEARNERS, LastLayer
from .contract import Method, Options
from .distillation import Distillation
from .inner_loop import inner_loop, leaves
from .modulation import Kind, Modulation, below_head
from .residual import Generator, Residual
from .second_network import SecondNetwork, divergence
from .taskwise import Adapted, Head, Pass, TaskwiseNetwork, linear_map

__all__ = ["HyperAdapter", "HyperAdapterOptions", "Residual"]


def _random(own: Tensor) -> Tensor:
    """Normal numbers ``(T, *)``, the same in every call, with the mean and deviation of each entry over the T tasks."""
    noise = torch.randn(own.shape, generator=torch.Generator().manual_seed(0), dtype=own.dtype).to(own.device)
    return own.mean(0) + own.std(0, correction=0) * noise


_CONTROLS: dict[str, Callable[[Tensor], Tensor]] = {
    "no residual": lambda own: 0 * own,
    "another task's": lambda own: own.roll(1, 0),
    "mean": lambda own: own.mean(0, keepdim=True),
    "random": _random,
}

BaseLearnerName = Literal["gaussian", "prototype", "cosine", "ridge", "gradient", "own"]


@dataclass(frozen=True, kw_only=True)
class HyperAdapterOptions(Options):
    """Options of HyperAdapter.

    Attributes:
        base_learner: "cosine", "prototype", "gaussian" or "ridge", see :mod:`l2l_hyper.methods.base_learners`;
            "gradient" for gradient steps from the network's own weights, as MAML takes them; "own" for those weights.
        linear_map: whether the closed form reads the support features through a learned linear map, at first identity.
        residual: whether there is Δ at all.
        generator: what makes Δ: "attention"; "linear" for one linear map of the class means; or "mlp" for a perceptron
            with one hidden layer, which reads the class means and the base learner's rows.
        encoder: a network that reads the support set besides the network itself, see :class:`HyperAdapter`: an earlier
            row of the comparison, or a checkpoint, in whose path ``{seed}`` stands for the training seed.
        encoder_layers: names, separated by commas, of inner layers of the encoder whose outputs Δ reads besides its
            features, see :class:`~l2l_hyper.methods.second_network.SecondNetwork`.
        bank: how many training samples are stored; with any, what the encoder says of them is added in a test, see
            :mod:`~l2l_hyper.methods.distillation`.
        teacher: weight in the loss of the divergence of the predictions of training queries from the encoder's, as in
            :mod:`~l2l_hyper.methods.distilled_protonet`.
        scale: s, the size of Δ in units of the base learner's weights.
        penalty: γ, the weight of the mean square of sΔ in the loss.
        width: width of the attention, or of the hidden layer.
        blocks: blocks of attention.
        heads: attention heads.
        dropout: while training, on the sample tokens and in the blocks, or on the hidden layer.
        generate: shell patterns, separated by commas, of the weights that are the task's own besides the last layer.
        modulation: how the residual changes those: "feature-wise", "low-rank" or "both". It reads the encoder's
            features where there is one, else the network's own, by attention or, with another generator, as their mean.
        inner_lr: inner learning rate of ``base_learner="gradient"``.
        steps: its gradient steps.
    """

    base_learner: BaseLearnerName = "cosine"
    linear_map: bool = False
    residual: bool = True
    generator: Generator = "attention"
    encoder: str = ""
    encoder_layers: str = ""
    bank: Natural = 0
    teacher: NonNegative = 0.0
    scale: NonNegative = 0.2
    penalty: NonNegative = 1.0
    width: Count = 128
    blocks: Depth = 2
    heads: Count = 4
    dropout: Share = 0.0
    generate: str = ""
    modulation: Kind = "feature-wise"
    inner_lr: Positive = 0.5
    steps: Depth = 1


class HyperAdapter(Method):
    """HyperAdapter for T tasks at once.

    Args:
        model: the network; its last layer must be an ``nn.Linear``.
        options: see :class:`HyperAdapterOptions`.
        encoder: a network of any size whose features (the inputs of its last ``nn.Linear``) of the support set Δ reads
            besides those of ``model``; queries never pass through it, except in training for a teacher, so what is
            deployed stays as small as ``model``.
            If none of its parameters requires a gradient it is frozen and stays in evaluation mode; its BatchNorm
            layers then need running averages.
        bank: samples of training classes ``(B, *)``, their labels unknown, of which the frozen encoder says in a test
            what the last layer then repeats, see :mod:`~l2l_hyper.methods.distillation`.  A method whose weights are
            loaded and stay as they are can do without them.
        head: name of the last layer, see :class:`~l2l_hyper.methods.taskwise.TaskwiseNetwork`.
        first_order: whether gradients taken on the support set are constants.
        allow_unused: whether generated weights on which the outputs do not depend are accepted.

    Raises:
        InputError: if the model has no final linear layer, or BatchNorm layers of a frozen encoder no averages; for a
            bank without a frozen encoder, with weights below the last layer that are the task's own, or with statistics
            of a task's own; for a teacher without an encoder.
    """

    Options = HyperAdapterOptions
    label = "HyperAdapter"
    reads_features_only = True
    needs_every_class = False

    def __init__(
        self,
        model: nn.Module,
        options: HyperAdapterOptions = HyperAdapterOptions(),  # noqa: B008 - frozen
        *,
        encoder: nn.Module | None = None,
        bank: Tensor | None = None,
        head: str | None = None,
        first_order: bool = False,
        allow_unused: bool = False,
    ) -> None:
        super().__init__()
        o = options
        self.options, self.first_order, self.allow_unused = options, first_order, allow_unused
        self.network = TaskwiseNetwork(model, head)
        self.network.check_own_head()
        self.iterative = o.base_learner == "gradient"
        features = self.network.head.in_features
        self.base_learner = BASE_LEARNERS[o.base_learner](features) if o.base_learner in BASE_LEARNERS else None
        if self.base_learner is not None:
            self.network.release_head()
            if self.base_learner.unit_length:
                self.network.read_unit_length()
            self.needs_every_class = self.base_learner.needs_classes
        self.reads_labels = self.base_learner is not None or o.residual
        self.body = below_head(self.network, o.generate)
        self.adapts_features = bool(self.body)
        attention: dict[str, Any] = {"width": o.width, "blocks": o.blocks, "heads": o.heads, "dropout": o.dropout}
        self.linear_map = linear_map(features) if o.linear_map else nn.Identity()
        self.encoder = None
        if encoder is not None:
            self.encoder = SecondNetwork(encoder, o.encoder_layers)
            self.encoder_is_frozen = not any(p.requires_grad for p in self.encoder.parameters())
            self.encoder.train(not self.encoder_is_frozen)
        elif o.teacher or o.encoder_layers:
            asked = f"teacher={o.teacher}" if o.teacher else f"encoder_layers={o.encoder_layers!r}"
            raise InputError(f"expected an encoder for {asked}, got none; give encoder=")
        read = 0 if self.encoder is None else self.encoder.size
        self.residual = Residual(features, read, o.generator, **attention) if o.residual else None
        self.distillation = None
        if bank is not None or o.bank:
            self.distillation, self.needs_every_class = self._distillation(bank), True
        self.reads_features_only = (
            not self.body and self.distillation is None and (self.encoder is None or self.encoder_is_frozen)
        )
        self.controls = tuple(_CONTROLS) if o.residual or self.distillation is not None else ()
        shapes = {name: own.shape for name, own in self.network.module.named_parameters() if name in self.body}
        self.modulation = None
        if o.residual and shapes:
            by_attention = o.generator == "attention"
            self.modulation = Modulation(read or features, shapes, o.modulation, attention=by_attention, **attention)

    @property
    def reader(self) -> SecondNetwork | None:
        """The encoder, if it is frozen."""
        return None if self.encoder is None or not self.encoder_is_frozen else self.encoder

    def initial(self, tasks: int) -> Adapted:
        """The network's own values of what is generated and has such values, for T tasks."""
        head = [] if self.base_learner is not None else self.network.head_names
        return Adapted(self.network.own([*head, *self.body], tasks), steps=0)

    def adapt(self, support: SupportSet, adapted: Adapted | None = None) -> Adapted:
        """Generate the weights of T tasks.

        Args:
            support: their support sets.
            adapted: where to go on from: a gradient base learner takes further steps, any other changes nothing.
        """
        differentiable = torch.is_grad_enabled()
        if self.base_learner is None:
            self.network.check_ways(support)
        with torch.set_grad_enabled(differentiable or self.iterative):
            before = self.initial(len(support)) if adapted is None else adapted
            weights, sums, penalty, first = before.weights, before.sums, before.penalty, not before.steps
            if not differentiable:
                weights = leaves(weights)
            read = weights if self.iterative or not first else None  # the network's own are faster when they are shared
            track = support.seen is None  # else the pass that made it moved running averages
            seen: Pass = support.seen or self.network(support.x, read, track=not self.body)
            reads = (self.reads_labels or self.iterative) and support.ways is not None
            if reads and support.rows.shape[1] != seen.logits.shape[1]:
                raise InputError(
                    f"expected a label for each of {seen.logits.shape[1]} rows of logits, got {support.rows.shape[1]}; "
                    "a network that answers for tokens needs labels (N, L), and zeros with a one per row are read as "
                    "one-hot: adapt(loss) tells them apart"
                )
            if self.iterative:
                weights, seen = inner_loop(
                    self.network,
                    support,
                    seen,
                    weights,
                    lr=self.options.inner_lr,
                    steps=self.options.steps,
                    second_order=differentiable and not self.first_order,
                    allow_unused=self.allow_unused,
                )
            encoded = self._read(support) if first else None
            if self.modulation is not None and first:
                read_of = seen.features if encoded is None else encoded
                weights, penalty = self._modulated(self.modulation, read_of, weights)
                if not self.iterative:
                    seen = self.network(support.x, weights, track=track)
            if self.reads_labels and first:
                with full_precision(seen.features.device):
                    seen = seen._replace(features=in_float32(seen.features))
                    dtype = seen.features.dtype
                    targets = self.network.targets(support, classes=self.needs_every_class).to(dtype)
                    if self.base_learner is None:
                        layer = LastLayer(*(weights[name].to(dtype) for name in self.network.head_names))
                    else:
                        make = self.base_learner if support.ways is not None else self.base_learner.of_values
                        layer = make(self.linear_map(seen.features), targets)
                    head = self.network.head_weights(*layer)
                    learned, of_head = self._learned(layer, seen, encoded, targets, support)
                    distilled = self._distilled(encoded, targets)
                    penalty = penalty + of_head
                    added = {**learned, **distilled}
                    sums = {name: (head[name], learned.get(name), distilled.get(name)) for name in added}
                    head = {**head, **{name: self._sum(*parts) for name, parts in sums.items()}}
                weights = {**weights, **head}
            if self.iterative and self.body and seen.statistics:  # the queries meet those of the adapted network
                seen = self.network(support.x, weights, track=track)
        made = Adapted(weights, seen.statistics, penalty, before.steps + 1, sums)
        return made if differentiable else made.detached()

    def predict(self, adapted: Adapted, query: Tensor) -> Tensor:
        """Outputs ``(T, Q, C)``."""
        return self.network(query, adapted.weights, adapted.statistics).outputs

    def predict_each(self, adapted: Sequence[Adapted], query: Tensor) -> list[Tensor]:
        """Outputs ``(T, Q, C)`` for each; queries pass the network once where adaptations differ in its end alone."""
        first, *others = adapted
        seen = self.network(query, first.weights, first.statistics)
        below = [name for name in first.weights if name not in first.sums]
        same = all(one.weights[name] is first.weights[name] for one in others for name in below)
        ends = seen.outputs.shape == seen.logits.shape and torch.equal(seen.outputs, seen.logits)
        if same and ends and isinstance(self.network.head, Head):
            return [seen.outputs, *(self.network.last_layer(one.weights, seen.features) for one in others)]
        return [seen.outputs, *(self.predict(one, query) for one in others)]

    def controlled(self, adapted: Adapted, control: str) -> Adapted:
        """The last layer with another residual: none, that of the next task, the mean of all tasks, or a random one."""
        weights = dict(adapted.weights)
        for name, (base, *added) in adapted.sums.items():
            learned, distilled = (None if own is None else _CONTROLS[control](own) for own in added)
            weights[name] = self._sum(base, learned, distilled)
        return replace(adapted, weights=weights)

    def penalty(self, adapted: Adapted) -> Tensor | float:
        """The penalty of Δ, ``(T,)``."""
        return adapted.penalty

    def loss(self, adapted: Adapted, outputs: Tensor, episodes: Episodes) -> Tensor:
        """The loss of each episode, ``(T,)``, with what it differs from the encoder as a teacher."""
        own = super().loss(adapted, outputs, episodes)
        if self.encoder is None or not self.options.teacher:
            return own
        return own + self.options.teacher * divergence(self.encoder, outputs, episodes)

    def train(self, mode: bool = True) -> HyperAdapter:
        """As of any module; a frozen encoder stays in evaluation mode."""
        super().train(mode)
        if self.encoder is not None and self.encoder_is_frozen:
            self.encoder.eval()
        return self

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile what makes the weights, see :func:`torch.compile` for the arguments; the network stays as it is."""
        for part in (self.base_learner, self.residual, self.modulation):
            if part is not None:
                part.compile(*args, **kwargs)

    @property
    def _bank_used(self) -> Distillation | None:
        """None in training, where the bank has the very classes of the episodes."""
        return None if self.training else self.distillation

    def _distillation(self, bank: Tensor | None) -> Distillation:
        """The closed form that repeats the encoder, with its bank."""
        reason = ""
        if self.encoder is None or not self.encoder_is_frozen:
            reason = "a frozen encoder; give encoder="
        elif self.body or self.base_learner is None:
            reason = "a base learner in closed form, and weights below it that all tasks share; leave out generate="
        elif any(m.mode != "running" for m in self.network.modules() if isinstance(m, EpisodicBatchNorm)):
            reason = "normalization by running averages, which tasks share; use normalization='running'"
        if reason or self.encoder is None:
            raise InputError(f"a bank needs {reason}")
        features, read = self.network.head.in_features, self.encoder.head.in_features
        return Distillation(features, read, self.options.bank if bank is None else bank)

    def _learned(
        self, layer: LastLayer, seen: Pass, read: Tensor | None, targets: Tensor, support: SupportSet
    ) -> tuple[dict[str, Tensor], Tensor | float]:
        """sΔ by name, and the penalty."""
        if self.residual is None:
            return {}, 0.0
        weight, bias, quadratic = layer
        own_bias = weight.new_zeros(weight.shape[:-1]) if bias is None else bias
        outputs = vmap(F.linear)(seen.features, weight, own_bias)
        if quadratic is not None:
            outputs = outputs + vmap(F.linear)(seen.features.square(), quadratic)
        predictions = outputs if support.ways is None else outputs.softmax(-1)
        changes, units = self.residual(seen.features, read, targets, predictions, weight, own_bias)
        of_weight, of_bias = (unit * self.options.scale * change for unit, change in zip(units, changes, strict=True))
        added = self.network.head_weights(of_weight, None if bias is None else of_bias)
        return added, self._penalty(changes[0]) + self._penalty(changes[1])

    def _distilled(self, read: Tensor | None, targets: Tensor) -> dict[str, Tensor]:
        """The last layer that repeats what the encoder says of the bank, by name."""
        bank, encoder = self._bank_used, self.encoder
        if bank is None or encoder is None or read is None:
            return {}
        features = read[..., : encoder.head.in_features]
        return self.network.head_weights(*bank(self.network, encoder, features, targets))

    def _sum(self, base: Tensor, learned: Tensor | None, distilled: Tensor | None) -> Tensor:
        """B + sΔ, which for features of unit length is turned to the length that B gives its rows; and the bank's."""
        rows = base
        if learned is not None:
            rows = base + learned
            if self.base_learner is not None and self.base_learner.unit_length and rows.ndim == 3:
                rows = F.normalize(rows, dim=-1) * base.norm(dim=-1, keepdim=True)
        return rows if distilled is None else rows + distilled

    def _read(self, support: SupportSet) -> Tensor | None:
        """What the encoder makes of the support samples, ``(T, N, E)``, where something reads it."""
        if self.encoder is None or (self.residual is None and self._bank_used is None):
            return None
        if support.encoded is not None:
            return support.encoded
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.encoder_is_frozen):
            return self.encoder.read(support.x)

    def _modulated(
        self, modulation: Modulation, read: Tensor, weights: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], Tensor | float]:
        with full_precision(read.device):
            changes = modulation(read, {name: weights[name] for name in self.body})
        changed = {
            name: weights[name] + (self.options.scale * change).to(weights[name].dtype)
            for name, change in changes.items()
        }
        return {**weights, **changed}, sum(map(self._penalty, changes.values()))

    def _penalty(self, change: Tensor) -> Tensor:
        return self.options.penalty * (self.options.scale * change).square().flatten(1).mean(1)
