"""HyperLSTM: an LSTM whose weights a smaller LSTM rescales for every sample at every step (Ha et al. 2016)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from ..errors import InputError
from ..hypernet import Full, HyperNetwork, Target

__all__ = ["HyperLSTM", "LayerNormLSTM"]

State = tuple[Tensor, Tensor]


class _Gates(nn.Module):
    """What an LSTM does after its matrix products, with layer normalization of each gate and of the cell state."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(4, hidden))
        self.shift = nn.Parameter(torch.zeros(4, hidden))
        nn.init.ones_(self.shift[1])  # of the forget gate, which remembers at the start
        self.norm = nn.LayerNorm(hidden)

    def forward(self, gates: Tensor, c: Tensor) -> State:
        """``(B, 4H)`` and the cell state ``(B, H)`` to the next hidden state and cell state."""
        normed = torch.addcmul(self.shift, self.gain, F.layer_norm(gates.unflatten(-1, (4, -1)), c.shape[-1:]))
        gates, new = normed.split([3, 1], 1)
        i, f, o = gates.sigmoid().unbind(1)
        c = f * c + i * new.squeeze(1).tanh()
        return o * self.norm(c).tanh(), c


class _Cell(nn.Module):
    """One layer and direction of a layer-normalized LSTM."""

    def __init__(self, inputs: int, recurrent: int, hidden: int) -> None:
        super().__init__()
        self.sizes = [hidden]
        self.input = nn.Linear(inputs, 4 * hidden, bias=False)
        self.recurrent = nn.Linear(recurrent, 4 * hidden, bias=False)
        self.gates = _Gates(hidden)

    def read(self, x: Tensor) -> tuple[Tensor, ...]:
        """What does not depend on the state, for all steps at once."""
        return (self.input(x),)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> State:
        return self.gates(x + self.recurrent(h), c)


class _HyperCell(nn.Module):
    """One layer and direction of a HyperLSTM; its state is that of the main LSTM, then that of the smaller one."""

    def __init__(self, inputs: int, hidden: int, hyper: int, embedding: int) -> None:
        super().__init__()
        self.sizes = [hidden, hyper]
        self.main = _Cell(inputs, hidden, hidden)
        self.hyper = _Cell(inputs, hidden + hyper, hyper)
        target = Target({"input": (4 * hidden,), "recurrent": (4 * hidden,), "bias": (4 * hidden,)})
        generator = Full(embedding, target, init="zero")
        nn.init.ones_(generator.linear.bias[: 8 * hidden])  # untrained, the rows keep their scale
        self.weights = HyperNetwork(nn.Linear(hyper, embedding), generator)

    def read(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.main.input(x), self.hyper.input(x)

    def forward(
        self, x: Tensor, x_hyper: Tensor, h: Tensor, c: Tensor, h_hyper: Tensor, c_hyper: Tensor
    ) -> tuple[Tensor, ...]:
        h_hyper, c_hyper = self.hyper(x_hyper, torch.cat([h, h_hyper], -1), c_hyper)
        w = self.weights(h_hyper)
        # The product with a matrix whose rows are rescaled is the rescaled product: no sample's matrix is ever made.
        gates = torch.addcmul(torch.addcmul(w["bias"], w["input"], x), w["recurrent"], self.main.recurrent(h))
        return *self.main.gates(gates, c), h_hyper, c_hyper


class _Recurrent(nn.Module):
    """Layers and directions of cells, as in ``nn.LSTM``."""

    def __init__(
        self,
        make_cell: Callable[[int], nn.Module],
        sizes: tuple[int, int, int],
        num_layers: int,
        batch_first: bool,
        dropout: float,
        bidirectional: bool,
    ) -> None:
        super().__init__()
        self.input_size, self.hidden_size, self.state_size = sizes
        if min(*sizes, num_layers) < 1 or not 0 <= dropout < 1:
            raise InputError(
                f"expected sizes and num_layers of at least 1 and 0 <= dropout < 1, "
                f"got sizes {sizes}, {num_layers} layers and dropout {dropout}"
            )
        self.num_layers = num_layers
        self.batch_first = batch_first
        self.dropout = dropout
        self.directions = 2 if bidirectional else 1
        deeper = self.hidden_size * self.directions
        self.cells = nn.ModuleList(
            make_cell(deeper if layer else self.input_size)
            for layer in range(num_layers)
            for _ in range(self.directions)
        )

    def forward(self, input: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Outputs of the last layer and the final states, as ``nn.LSTM`` answers."""
        if isinstance(input, PackedSequence):
            raise InputError(
                "expected a padded tensor, got a PackedSequence; try pad_packed_sequence, and mask the loss"
            )
        if input.dim() != 3 or input.shape[-1] != self.input_size:
            axes = "(batch, time, " if self.batch_first else "(time, batch, "
            raise InputError(f"expected an input of shape {axes}{self.input_size}), got {tuple(input.shape)}")
        x = input.transpose(0, 1) if self.batch_first else input
        expected = (len(self.cells), x.shape[1], self.state_size)
        h, c = (x.new_zeros(expected),) * 2 if state is None else state
        if h.shape != expected or c.shape != expected:
            raise InputError(f"expected states of shape {expected}, got {tuple(h.shape)} and {tuple(c.shape)}")
        final = []
        for layer in range(self.num_layers):
            outputs = []
            for k in range(layer * self.directions, (layer + 1) * self.directions):
                backward = k % self.directions == 1
                steps, last = self._run(self.cells[k], x.flip(0) if backward else x, h[k], c[k])
                outputs.append(steps.flip(0) if backward else steps)
                final.append(last)
            x = torch.cat(outputs, -1) if self.directions == 2 else outputs[0]
            if layer < self.num_layers - 1:
                x = F.dropout(x, self.dropout, self.training)
        h, c = (torch.stack(parts) for parts in zip(*final, strict=True))
        return x.transpose(0, 1) if self.batch_first else x, (h, c)

    def _run(self, cell: Any, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, State]:
        parts = zip(h.split(cell.sizes, -1), c.split(cell.sizes, -1), strict=True)
        state, outputs = tuple(part for pair in parts for part in pair), []
        for step in zip(*cell.read(x), strict=True):
            state = cell(*step, *state)
            outputs.append(state[0])
        return torch.stack(outputs), (torch.cat(state[::2], -1), torch.cat(state[1::2], -1))


class LayerNormLSTM(_Recurrent):
    r"""``nn.LSTM`` with layer normalization (Ba et al. 2016, https://arxiv.org/abs/1607.06450).

    It is what :class:`HyperLSTM` is without its generated weights, with the same options and shapes as ``nn.LSTM``:

    .. math:: i, f, o, g = \operatorname{LN}(W_x x_t + W_h h_{t-1}), \qquad
        c_t = \sigma(f)\,c_{t-1} + \sigma(i) \tanh(g), \qquad h_t = \sigma(o) \tanh(\operatorname{LN}(c_t))

    Each gate is normalized by itself.

    Raises:
        InputError: for sizes below 1, a dropout outside of [0, 1), an input or state of another shape, and a
            ``PackedSequence``.

    Example:
        >>> output, (h, c) = LayerNormLSTM(8, 16, batch_first=True)(torch.randn(4, 10, 8))
        >>> output.shape, h.shape
        (torch.Size([4, 10, 16]), torch.Size([1, 4, 16]))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
    ) -> None:
        super().__init__(
            lambda inputs: _Cell(inputs, hidden_size, hidden_size),
            (input_size, hidden_size, hidden_size),
            num_layers,
            batch_first,
            dropout,
            bidirectional,
        )


class HyperLSTM(_Recurrent):
    r"""An LSTM whose weights change at every step, with the interface of ``nn.LSTM``.

    A smaller, layer-normalized LSTM reads the input and both hidden states.  Its own state :math:`\hat h_t` is the
    description from which a hypernetwork generates a scale for each row of the two weight matrices of the main LSTM,
    and its bias, for each sample and step:

    .. math:: i, f, o, g = \operatorname{LN}\bigl(d^x(z_t)\,W_x x_t + d^h(z_t)\,W_h h_{t-1} + b(z_t)\bigr), \qquad
        z_t = E \hat h_t + e

    with the rest as in :class:`LayerNormLSTM`.  Untrained, all scales are 1 and all biases 0, and the outputs are those
    of a :class:`LayerNormLSTM` with the same weights.  See Ha, Dai and Le 2016, "HyperNetworks",
    https://arxiv.org/abs/1609.09106.  There each gate and each of the three parts has an embedding of its own; here one
    embedding serves all, which with twelve times the size can express the same.

    Args:
        input_size: features of the input.
        hidden_size: H, of the main LSTM and of the output.
        num_layers: layers, each with a smaller LSTM of its own.
        hyper_size: :math:`\hat H`, hidden size of the smaller LSTM.
        embedding_size: numbers in :math:`z_t`.
        batch_first: whether inputs and outputs are ``(batch, time, features)`` and not ``(time, batch, features)``.
        dropout: of the outputs of every layer but the last.
        bidirectional: whether a second LSTM reads the sequence from its end.

    Shape: as in ``nn.LSTM``, except that the final states ``h`` and ``c`` have H + Ĥ features: those of the main LSTM,
    then those of the smaller one.  They go in again as they come out.

    Raises:
        InputError: for sizes below 1, a dropout outside of [0, 1), an input or state of another shape, and a
            ``PackedSequence``.

    Example:
        >>> lstm = HyperLSTM(8, 16, hyper_size=4, batch_first=True)
        >>> output, (h, c) = lstm(torch.randn(4, 10, 8))
        >>> output.shape, h.shape
        (torch.Size([4, 10, 16]), torch.Size([1, 4, 20]))
        >>> output, (h, c) = lstm(torch.randn(4, 10, 8), (h, c))  # the text goes on
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        hyper_size: int = 128,
        embedding_size: int = 16,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
    ) -> None:
        if min(hyper_size, embedding_size) < 1:
            raise InputError(f"hyper_size and embedding_size must be at least 1, got {hyper_size} and {embedding_size}")
        super().__init__(
            lambda inputs: _HyperCell(inputs, hidden_size, hyper_size, embedding_size),
            (input_size, hidden_size, hidden_size + hyper_size),
            num_layers,
            batch_first,
            dropout,
            bidirectional,
        )
