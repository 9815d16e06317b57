"""Learned optimizers: a recurrent update rule for every coordinate of a gradient (Andrychowicz et al. 2016)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import higher
import torch
from torch import Tensor, nn

from ..errors import InputError
from ..functional import call, slots
from ..hypernet import Full, HyperNetwork, Target

__all__ = ["LearnedOptimizer", "LearnedRule"]

_P = 10.0  # gradients below exp(-10) are read by their value, larger ones by sign and logarithm


class _Recurrent(nn.Module):
    """Two LSTM layers and a linear one, whose biases and last weight may be other ones for each coordinate.

    The state is one tensor ``(*, N, 4H)``: h and c of the first layer, then of the second.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.first = nn.Linear(2 + hidden, 4 * hidden, bias=False)
        self.second = nn.Linear(2 * hidden, 4 * hidden, bias=False)
        self.bias = nn.Parameter(torch.zeros(2, 4 * hidden))
        self.out = nn.Parameter(torch.randn(hidden) / hidden**0.5)
        self.out_bias = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Features ``(*, N, 2)`` and a state to outputs ``(*, N)`` and the next state."""
        h1, c1, h2, c2 = state.chunk(4, -1)
        bias1, bias2 = self.bias.unbind(-2)
        h1, c1 = _lstm(self.first(torch.cat([x, h1], -1)) + bias1, c1)
        h2, c2 = _lstm(self.second(torch.cat([h1, h2], -1)) + bias2, c2)
        return (h2 * self.out).sum(-1) + self.out_bias, torch.cat([h1, c1, h2, c2], -1)


def _lstm(gates: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    hidden = c.shape[-1]
    i, f, o = gates[..., : 3 * hidden].sigmoid().chunk(3, -1)
    c = f * c + i * gates[..., 3 * hidden :].tanh()
    return o * c.tanh(), c


class LearnedRule(nn.Module):
    r"""Gradients to updates, by a recurrent network that all coordinates share and that keeps a state for each.

    .. math:: \theta_{t+1} = \theta_t + s\,m_\phi(g_t, h_t)

    m is two LSTM layers and a linear one.  A coordinate of the gradient is read as
    :math:`(\log|g| / p, \operatorname{sign} g)`, or :math:`(-1, e^p g)` where :math:`|g| < e^{-p}`, with p = 10.  See
    Andrychowicz et al. 2016, "Learning to learn by gradient descent by gradient descent",
    https://arxiv.org/abs/1606.04474.  As there, the gradient is a constant to the meta-gradient.

    With ``conditioned=True`` a hypernetwork reads statistics of each layer, see :meth:`describe`, and generates what is
    added to the biases and to the last weight of m, so that every layer has a rule of its own.  Untrained, nothing is
    added.

    :class:`LearnedOptimizer` makes a ``torch.optim.Optimizer`` of it, which ``higher`` differentiates, and
    :meth:`transform` is for ``l2l.optim.LearnableOptimizer``.

    Args:
        hidden_size: H, units of each LSTM layer.
        conditioned: whether a hypernetwork changes the rule for each layer.
        scale: s, the size of an update for an output of 1.

    Raises:
        InputError: for a hidden size below 1 or a scale that is not positive.

    Example:
        >>> rule = LearnedRule(conditioned=True)
        >>> gradients = [torch.randn(4, 3), torch.randn(4)]
        >>> updates, states = rule(gradients)
        >>> updates, states = rule(gradients, states)
        >>> [update.shape for update in updates]
        [torch.Size([4, 3]), torch.Size([4])]
    """

    def __init__(self, *, hidden_size: int = 20, conditioned: bool = False, scale: float = 0.1) -> None:
        super().__init__()
        if hidden_size < 1 or not scale > 0:
            raise InputError(f"expected hidden_size >= 1 and scale > 0, got {hidden_size} and {scale}")
        self.hidden_size = hidden_size
        self.scale = scale
        self.recurrent = _Recurrent(hidden_size)
        self.hyper = None
        if conditioned:
            generator = Full(16, Target.of(self.recurrent, ["bias", "out", "out_bias"]), init="zero")
            self.hyper = HyperNetwork(nn.Sequential(nn.Linear(6, 16), nn.Tanh()), generator)

    def describe(self, gradients: Sequence[Tensor], *, batch_dims: int = 0) -> Tensor:
        """Statistics of L layers: size, fan-out and fan-in, whether it is a vector, and how large the gradient is.

        Shape: gradients ``(*B, *shape)`` to ``(*B, L, 6)``.
        """
        flat = [g.flatten(batch_dims) if g.dim() > batch_dims else g.unsqueeze(-1) for g in gradients]
        size = torch.stack([g.square().mean(-1) for g in flat], -1).add(math.exp(-4 * _P)).log() / 2
        peak = torch.stack([g.abs().amax(-1) for g in flat], -1).add(math.exp(-2 * _P)).log()
        shapes = [g.shape[batch_dims:] for g in gradients]
        known = [
            [math.log(s.numel()), math.log(s[:1].numel()), math.log(s[1:].numel()), float(len(s) < 2)] for s in shapes
        ]
        fixed = size.new_tensor(known).expand(*size.shape, 4)
        return torch.cat([fixed, size.unsqueeze(-1), peak.unsqueeze(-1)], -1) / _P

    def forward(
        self,
        gradients: Sequence[Tensor],
        states: Sequence[Tensor | None] | None = None,
        description: Tensor | None = None,
        *,
        batch_dims: int = 0,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The updates of L layers, and the states for the next ones.

        Args:
            gradients: one for each layer, of shape ``(*B, *shape)``.
            states: what the previous call returned; none, or none for a layer, at its first step.
            description: ``(*B, L, 6)``, in the place of what :meth:`describe` says of the gradients.
            batch_dims: number of dimensions B, such as 1 for the same layers of many tasks.
        """
        gradients = [g.detach() for g in gradients]
        batch = gradients[0].shape[:batch_dims]
        sizes = [g.shape[batch_dims:].numel() for g in gradients]
        pairs = zip(sizes, [None] * len(sizes) if states is None else states, strict=True)
        state = torch.cat(
            [gradients[0].new_zeros(*batch, n, 4 * self.hidden_size) if s is None else s for n, s in pairs], -2
        )
        g = torch.cat([g.reshape(*batch, -1) for g in gradients], -1)
        x = torch.stack([g.abs().clamp(min=math.exp(-_P)).log() / _P, (g * math.exp(_P)).clamp(-1, 1)], -1)
        weights = {}
        if self.hyper is not None:
            description = self.describe(gradients, batch_dims=batch_dims) if description is None else description
            start = {name: self.recurrent.get_parameter(name) for name in self.hyper.target.shapes}
            weights = {
                name: torch.cat(
                    [
                        layer.expand(*batch, n, *layer.shape[batch_dims + 1 :])
                        for layer, n in zip(w.split(1, batch_dims), sizes, strict=True)
                    ],
                    batch_dims,
                )
                for name, w in self.hyper(description, start=start).items()
            }
        outputs, state = call(self.recurrent, slots(self.recurrent), weights, x, state)
        updates = [self.scale * u.reshape(of.shape) for u, of in zip(outputs.split(sizes, -1), gradients, strict=True)]
        return updates, list(state.split(sizes, -2))

    def transform(self, parameter: Tensor) -> nn.Module:
        """For ``l2l.optim.LearnableOptimizer(model, rule.transform)``, which calls it with each parameter.

        That class cuts the graph at every step, so meta-training with it looks one step ahead.
        """
        return _Transform(self)


class _Transform(nn.Module):
    """What learn2learn subtracts for one parameter, with the state of that parameter."""

    def __init__(self, rule: LearnedRule) -> None:
        super().__init__()
        self.rule = rule
        self.state: Tensor | None = None

    def forward(self, gradient: Tensor) -> Tensor:
        (update,), (state,) = self.rule([gradient], [self.state])
        self.state = state.detach()
        return -update


class LearnedOptimizer(torch.optim.Optimizer):
    """A trained rule as an optimizer; inside of ``higher.innerloop_ctx`` its steps are differentiable by the rule.

    It keeps 4 × ``hidden_size`` numbers for every coordinate.  ``state_dict`` holds them, not the rule.

    Args:
        params: as of any optimizer.
        rule: the update rule, in the precision and on the device of the parameters.

    Example:
        >>> net = nn.Linear(3, 1)
        >>> optimizer = LearnedOptimizer(net.parameters(), LearnedRule())
        >>> net(torch.randn(8, 3)).square().mean().backward()
        >>> optimizer.step()
    """

    def __init__(self, params: Iterable[Any], rule: LearnedRule) -> None:
        self.rule = rule
        super().__init__(params, {})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step; ``closure``, where given, computes the loss again and is what the step returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            moved = [p for p in group["params"] if p.grad is not None]
            if moved:
                states = [self.state[p] for p in moved]
                updates = _updates(self.rule, [p.grad for p in moved], states)
                for p, update in zip(moved, updates, strict=True):
                    p.add_(update)
        return loss


class _Differentiable(higher.optim.DifferentiableOptimizer):
    """The same steps for ``higher``, with a graph from the new parameters to the rule."""

    def __init__(self, other: LearnedOptimizer, *args: Any, **kwargs: Any) -> None:
        super().__init__(other, *args, **kwargs)
        self.rule = other.rule

    def _update(self, grouped_grads: list[list[Tensor | None]], **kwargs: Any) -> None:
        for group, states, gradients in zip(self.param_groups, self.state, grouped_grads, strict=True):
            moved = {k: gradient for k, gradient in enumerate(gradients) if gradient is not None}
            if moved:
                updates = _updates(self.rule, list(moved.values()), [states[k] for k in moved])
                for k, update in zip(moved, updates, strict=True):
                    group["params"][k] = group["params"][k] + update


def _updates(rule: LearnedRule, gradients: list[Tensor], states: list[dict[str, Tensor]]) -> list[Tensor]:
    """Updates, with the new states of the parameters put in the place of the old ones."""
    updates, new = rule(gradients, [state.get("recurrent") for state in states])
    for state, value in zip(states, new, strict=True):
        state["recurrent"] = value
    return updates


higher.register_optim(LearnedOptimizer, _Differentiable)
