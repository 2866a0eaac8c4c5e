"""Diagonal state spaces: S4D."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from carrel.layers import fft_conv
from carrel.layers.mixer import Mixer
from carrel.ops import discretize_diagonal, power_sums, vandermonde

from .diagonal import INITS, as_complex, check_sizes, initial_log_dt, initial_rates, rates_of

_CHUNK = 64  # tokens whose powers the kernels keep; a cut about here meets every seam of theirs


class S4DState(NamedTuple):
    """x: (batch, dim, state_dim / 2), complex64, or complex128 for a float64 layer."""

    x: Tensor


class S4D(Mixer):
    r"""A bank of decaying oscillators per channel, trained as a long convolution and run as a recurrence.

    .. math:: x_l = e^{a} \odot x_{l-1} + \bar b\, u_l, \qquad y_l = 2\,\mathrm{Re} \sum_n C_n x_{l,n} + D u_l, \qquad
              A_n = -e^{\rho_n} + i \omega_n

    with a, b of :func:`carrel.ops.discretize_diagonal` from A and the channel's step :math:`\Delta`. Whole sequences
    are convolved with :math:`K_l = 2\,\mathrm{Re} \sum_n C_n \bar b_n e^{a_n l}`; single tokens take the recurrence.

    Args:
        dim: channels, each with a system of its own.
        state_dim: N, even; N / 2 complex modes are kept, their conjugates are implied.
        init: where the rates A start: "legs", "lin", "inv" or "real", see
            :func:`~carrel.recurrent.diagonal.initial_rates`.
        dt_min, dt_max: range that steps are drawn from, log-uniformly; a mode remembers about 1 / (Δ |Re A|) tokens.
        disc: "zoh" or "bilinear".
    x, y: (batch, length, dim).   state: S4DState(x: (batch, dim, state_dim / 2)), complex, constant size.
    Raises ValueError: an odd state_dim, dt_min >= dt_max, an unknown init or disc; x or the state of a wrong shape or
    type. Cost: the kernel O(dim state_dim length), once for the batch; the convolution O(batch dim length log
    length); the last state O(batch dim state_dim length); nothing of size state_dim * length is stored.
    Rates, steps and powers are computed in float64. Train ρ, ω and Δ without weight decay and with a learning rate of
    at most 1e-3.   Source: arXiv:2206.11893; B is 1, as it only multiplies C.
    """

    chunk = _CHUNK
    no_weight_decay: ClassVar[frozenset[str]] = frozenset({"log_dt", "A_log", "A_imag"})

    def __init__(
        self,
        dim: int,
        state_dim: int = 64,
        init: str = "legs",
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
        disc: str = "zoh",
    ) -> None:
        super().__init__()
        check_sizes("S4D", dim, state_dim, dt_min, dt_max)
        if init not in INITS or disc not in ("zoh", "bilinear"):
            raise ValueError(
                f"S4D wants init out of {', '.join(INITS)} and disc out of zoh, bilinear, not {init!r} and {disc!r}"
            )
        self.dim, self.state_dim, self.init, self.disc = dim, state_dim, init, disc
        self.dt_min, self.dt_max = dt_min, dt_max
        modes = state_dim // 2
        self.log_dt = nn.Parameter(torch.empty(dim))
        self.A_log = nn.Parameter(torch.empty(dim, modes))
        self.A_imag = nn.Parameter(torch.empty(dim, modes))
        self.C = nn.Parameter(torch.empty(dim, modes, 2))
        self.D = nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw every parameter anew from torch's global generator."""
        self.log_dt.copy_(initial_log_dt(self.dim, self.dt_min, self.dt_max))
        rates = initial_rates(self.init, self.state_dim // 2)
        self.A_log.copy_(torch.log(-rates.real).expand_as(self.A_log))
        self.A_imag.copy_(rates.imag.expand_as(self.A_imag))
        nn.init.normal_(self.C, std=0.5**0.5)
        nn.init.normal_(self.D)

    def rates(self) -> Tensor:
        """A: (dim, state_dim / 2), complex, Re A < 0."""
        return rates_of(self.A_log, self.A_imag)

    def kernel(self, length: int) -> Tensor:
        """The convolution kernel K: (dim, length)."""
        a, b = self._steps()
        return vandermonde((2 * as_complex(self.C) * b).to(as_complex(self.C).dtype), a, length)

    def forward(self, x: Tensor, state: S4DState | None = None) -> tuple[Tensor, S4DState]:
        self._check_input(x)
        self._check_state(x, state)
        a, b = self._steps()
        C = as_complex(self.C)
        dtype, length = C.dtype, x.shape[1]
        u = x.transpose(1, 2).to(C.real.dtype)  # (batch, dim, length)
        before = None if state is None else state.x.to(dtype)
        if length == 0:
            return x, S4DState(x.new_zeros(x.shape[0], *C.shape, dtype=dtype) if before is None else before)
        if length == 1:
            h = (b.to(dtype) * u) if before is None else torch.exp(a).to(dtype) * before + b.to(dtype) * u
            y = 2 * (C * h).real.sum(-1).unsqueeze(-1)
        else:
            carry = None
            if before is not None:
                carry = vandermonde((2 * C * torch.exp(a)).to(dtype) * before, a, length)
            y = fft_conv(u, vandermonde((2 * C * b).to(dtype), a, length), carry)
            h = b.to(dtype) * power_sums(u.flip(-1), a)
            if before is not None:
                h = h + torch.exp(a * length).to(dtype) * before
        return y.transpose(1, 2).to(x.dtype) + self.D * x, S4DState(h)

    def _steps(self) -> tuple[Tensor, Tensor]:
        return discretize_diagonal(self.log_dt.unsqueeze(-1), self.rates(), self.disc)

    def _check_state(self, x: Tensor, state: S4DState | None) -> None:
        if x.is_complex():
            raise ValueError(f"S4D wants real x, not {x.dtype}")
        if state is None:
            return
        wanted = (x.shape[0], self.dim, self.state_dim // 2)
        if not isinstance(state, S4DState):
            raise ValueError(f"S4D wants an S4DState or None as its state, not {type(state).__name__}")
        if tuple(state.x.shape) != wanted or not state.x.is_complex():
            raise ValueError(
                f"S4D wants a complex state of shape {wanted}, not {state.x.dtype} of shape {tuple(state.x.shape)}"
            )

    def extra_repr(self) -> str:
        return f"{self.dim}, state_dim={self.state_dim}, init={self.init!r}, disc={self.disc!r}"
