"""Recurrent cells that know their Jacobians: what `deer` and `ParallelRNN` step with.

A cell maps states (M, state_dim) and inputs (M, input_dim) to the next states, row by row. The product of the input
with its weights does not depend on the state, so it is made once for a whole sequence by ``prepare``; ``advance``,
``linearize`` and ``linearize_diagonal`` take what that returns.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional


class Cell(nn.Module, ABC):
    r"""One step of a recurrent network, with torch's weights.    y_t = cell(y_{t-1}, x_t)

    Args of ``__init__``: input_dim, hidden_dim: sizes of the input and of h; bias: whether there are biases.
    Attributes: ``weight_ih`` (gates hidden_dim, input_dim), ``weight_hh`` (gates hidden_dim, hidden_dim), ``bias_ih``,
        ``bias_hh``, laid out and started as in torch's cells; ``state_dim``, the size of a state.
    Raises ValueError: a size below 1.
    """

    bias_ih: Tensor | None
    bias_hh: Tensor | None
    gates: ClassVar[int]
    parts: ClassVar[int] = 1  # how many vectors of hidden_dim a state has

    def __init__(self, input_dim: int, hidden_dim: int, bias: bool = True) -> None:
        super().__init__()
        if input_dim < 1 or hidden_dim < 1:
            raise ValueError(
                f"{type(self).__name__} wants input_dim and hidden_dim of at least 1, not {input_dim} and {hidden_dim}"
            )
        self.input_dim, self.hidden_dim, self.state_dim = input_dim, hidden_dim, self.parts * hidden_dim
        self.weight_ih = nn.Parameter(torch.empty(self.gates * hidden_dim, input_dim))
        self.weight_hh = nn.Parameter(torch.empty(self.gates * hidden_dim, hidden_dim))
        for name in ("bias_ih", "bias_hh"):
            self.register_parameter(name, nn.Parameter(torch.empty(self.gates * hidden_dim)) if bias else None)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw every parameter anew, uniform within one over the root of hidden_dim, as torch does."""
        for parameter in self.parameters():
            parameter.uniform_(-1 / math.sqrt(self.hidden_dim), 1 / math.sqrt(self.hidden_dim))

    @classmethod
    def from_torch(cls, module: nn.RNNBase | nn.RNNCellBase, layer: int = 0) -> Self:
        """A cell with a copy of the weights of one layer of ``nn.RNN``, ``nn.GRU`` or ``nn.LSTM``, or of torch's cell.

        Raises ValueError: another kind of module, a backward direction, projections, a layer that it does not have.
        """
        kinds = {"TanhRNN": (nn.RNN, nn.RNNCell), "GRU": (nn.GRU, nn.GRUCell), "LSTM": (nn.LSTM, nn.LSTMCell)}
        whole, single = kinds[cls.__name__]
        if not isinstance(module, (whole, single)) or getattr(module, "nonlinearity", "tanh") != "tanh":
            raise ValueError(
                f"{cls.__name__} takes the weights of a {whole.__name__} or {single.__name__} of torch"
                f"{' with tanh' if whole is nn.RNN else ''}, not of {module}"
            )
        suffix = ""
        if isinstance(module, nn.RNNBase):
            if module.bidirectional or module.proj_size:
                raise ValueError(f"{cls.__name__} goes one way and has no projection, unlike {module}")
            if not 0 <= layer < module.num_layers:
                raise ValueError(f"{module} has layers 0 to {module.num_layers - 1}, not {layer}")
            suffix = f"_l{layer}"
        into, own = (getattr(module, f"{name}{suffix}") for name in ("weight_ih", "weight_hh"))
        cell = cls(into.shape[1], own.shape[1], bool(module.bias)).to(own)
        with torch.no_grad():
            for name, parameter in cell.named_parameters():
                parameter.copy_(getattr(module, f"{name}{suffix}"))
        return cell

    # ---- the step

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        """The next states (M, state_dim), from states (M, state_dim) and inputs (M, input_dim)."""
        return self.advance(y, self.prepare(x))

    def forward_with_jacobian(self, y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """The next states, and their derivatives by the states (M, state_dim, state_dim)."""
        return self.linearize(y, self.prepare(x))

    def prepare(self, x: Tensor) -> Tensor:
        """What the inputs (..., input_dim) add to the gates: (..., gates hidden_dim)."""
        bias = None if self.bias_ih is None else self.bias_ih.to(x.dtype)
        return functional.linear(x, self.weight_ih.to(x.dtype), bias)

    def recurrent(self, h: Tensor) -> Tensor:
        """What the states add to the gates."""
        bias = None if self.bias_hh is None else self.bias_hh.to(h.dtype)
        return functional.linear(h, self.weight_hh.to(h.dtype), bias)

    def output(self, y: Tensor) -> Tensor:
        """The part of the states that other layers see."""
        return y

    @abstractmethod
    def advance(self, y: Tensor, u: Tensor) -> Tensor:
        """The next states."""

    @abstractmethod
    def linearize(self, y: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """The next states and their Jacobian (M, state_dim, state_dim)."""

    @abstractmethod
    def linearize_diagonal(self, y: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """The next states and the diagonal of their Jacobian (M, state_dim)."""

    def _blocks(self, like: Tensor) -> tuple[Tensor, ...]:
        return self.weight_hh.to(like.dtype).chunk(self.gates)

    def extra_repr(self) -> str:
        return f"{self.input_dim}, {self.hidden_dim}{'' if self.bias_ih is not None else ', bias=False'}"


class TanhRNN(Cell):
    r"""The plain recurrent cell.

    .. math:: h' = \tanh(W_i x + b_i + W_h h + b_h), \qquad J = \mathrm{diag}(1 - h'^2)\, W_h
    """

    gates = 1

    def advance(self, y: Tensor, u: Tensor) -> Tensor:
        return torch.tanh(u + self.recurrent(y))

    def linearize(self, y: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        h = self.advance(y, u)
        return h, (1 - h * h).unsqueeze(-1) * self.weight_hh.to(h.dtype)

    def linearize_diagonal(self, y: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        h = self.advance(y, u)
        return h, (1 - h * h) * self.weight_hh.diagonal().to(h.dtype)


class GRU(Cell):
    r"""The gated recurrent unit, in torch's convention.

    .. math:: r = \sigma(u_r + W_r h + b_r), \quad z = \sigma(u_z + W_z h + b_z), \quad v = W_n h + b_n, \quad
              n = \tanh(u_n + r \odot v), \quad h' = (1 - z) \odot n + z \odot h

    .. math:: J = \mathrm{diag}(z) + \mathrm{diag}((h - n) z (1 - z)) W_z + \mathrm{diag}(c\, r) W_n
              + \mathrm{diag}(c\, v\, r (1 - r)) W_r, \qquad c = (1 - z)(1 - n^2)

    with u = W_i x + b_i.
    """

    gates = 3

    def advance(self, y: Tensor, u: Tensor) -> Tensor:
        return self._gates(y, u)[0]

    def _gates(self, y: Tensor, u: Tensor) -> tuple[Tensor, ...]:
        ur, uz, un = u.chunk(3, -1)
        vr, vz, v = self.recurrent(y).chunk(3, -1)
        r, z = torch.sigmoid(ur + vr), torch.sigmoid(uz + vz)
        n = torch.tanh(un + r * v)
        return n + z * (y - n), r, z, n, v

    def _slopes(self, y: Tensor, u: Tensor) -> tuple[Tensor, ...]:
        """h', z, and the derivatives of h' by what enters r, z and v."""
        h, r, z, n, v = self._gates(y, u)
        c = (1 - z) * (1 - n * n)
        return h, z, c * v * r * (1 - r), (y - n) * z * (1 - z), c * r

    def linearize(self, y: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        h, z, by_r, by_z, by_v = self._slopes(y, u)
        Wr, Wz, Wn = self._blocks(h)
        J = torch.diag_embed(z).addcmul_(by_r.unsqueeze(-1), Wr).addcmul_(by_z.unsqueeze(-1), Wz)
        return h, J.addcmul_(by_v.unsqueeze(-1), Wn)

    def linearize_diagonal(self, y: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        h, z, by_r, by_z, by_v = self._slopes(y, u)
        r, zz, n = (W.diagonal() for W in self._blocks(h))
        return h, z + by_r * r + by_z * zz + by_v * n

    def newton(self, u: Tensor, y0: Tensor) -> Any:
        """Newton steps on a whole trajectory by kernels that keep no Jacobian; None where they cannot run."""
        from carrel.ops._gru_newton import GRUNewton, refuses

        W, bias = self.shared(u.dtype)
        return None if refuses(u, W) else GRUNewton(u, W, bias, y0)

    def shared(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The recurrent weights and biases in the type of the computation."""
        W = self.weight_hh.to(dtype)
        return W, W.new_zeros(len(W)) if self.bias_hh is None else self.bias_hh.to(dtype)


class LSTM(Cell):
    r"""The long short-term memory, in torch's convention. A state is (h, c), side by side.

    .. math:: i, f, o = \sigma(u + W h + b), \quad g = \tanh(u_g + W_g h + b_g), \quad c' = f \odot c + i \odot g,
              \quad h' = o \odot \tanh c'
    """

    gates = 4
    parts = 2

    def output(self, y: Tensor) -> Tensor:
        return y[..., : self.hidden_dim]

    def _gates(self, y: Tensor, u: Tensor) -> tuple[Tensor, ...]:
        h, c = y.chunk(2, -1)
        i, f, g, o = (u + self.recurrent(h)).chunk(4, -1)
        i, f, g, o = torch.sigmoid(i), torch.sigmoid(f), torch.tanh(g), torch.sigmoid(o)
        return i, f, g, o, c, f * c + i * g

    def advance(self, y: Tensor, u: Tensor) -> Tensor:
        *_, o, _, c = self._gates(y, u)
        return torch.cat([o * torch.tanh(c), c], -1)

    def _slopes(self, y: Tensor, u: Tensor) -> tuple[Tensor, ...]:
        """Next states; slopes of c' by what enters i, f and g, of h' by o's, h' by c', c' by c."""
        i, f, g, o, c, after = self._gates(y, u)
        th = torch.tanh(after)
        by_o, by_c = o * (1 - o) * th, o * (1 - th * th)
        state = torch.cat([o * th, after], -1)
        return state, g * i * (1 - i), c * f * (1 - f), i * (1 - g * g), by_o, by_c, f

    def linearize(self, y: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        state, by_i, by_f, by_g, by_o, by_c, f = self._slopes(y, u)
        Wi, Wf, Wg, Wo = self._blocks(state)
        c_by_h = by_i.unsqueeze(-1) * Wi + by_f.unsqueeze(-1) * Wf + by_g.unsqueeze(-1) * Wg
        h_by_h = by_o.unsqueeze(-1) * Wo + by_c.unsqueeze(-1) * c_by_h
        above = torch.cat([h_by_h, torch.diag_embed(by_c * f)], -1)
        return state, torch.cat([above, torch.cat([c_by_h, torch.diag_embed(f)], -1)], -2)

    def linearize_diagonal(self, y: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        state, by_i, by_f, by_g, by_o, by_c, f = self._slopes(y, u)
        i, ff, g, o = (W.diagonal() for W in self._blocks(state))
        return state, torch.cat([by_o * o + by_c * (by_i * i + by_f * ff + by_g * g), f], -1)
