"""One state space for all channels: S5."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from carrel.layers.mixer import Mixer
from carrel.ops import discretize_diagonal

from .diagonal import check_sizes, diagonal_layer, initial_log_dt, rates_of
from .hippo_matrices import legs_normal_part


class S5State(NamedTuple):
    """h: (batch, state_dim / 2), complex64, or complex128 for a float64 layer."""

    h: Tensor


class S5(Mixer):
    r"""A linear recurrence shared by all channels that starts from HiPPO's memory.

    .. math:: h_t = e^{\Delta A} \odot h_{t-1} + \frac{e^{\Delta A} - 1}{A} \odot B x_t, \qquad
              y_t = 2\,\mathrm{Re}(C h_t) + D \odot x_t, \qquad A = -e^{\rho} + i\omega

    The Linear Recurrent Unit with another parametrisation: rates are in continuous time, each mode has a step Δ, and
    the system starts as ``blocks`` copies of LegS's normal part in the basis of its eigenvectors V: A its eigenvalues,
    B = Vᴴ B', C = C' V with random real B' and C'.

    Args:
        dim: width of x and y.
        state_dim: N, even; N / 2 complex modes are kept.
        blocks: copies of a smaller LegS matrix along the diagonal; state_dim must be a multiple of 2 blocks.
        dt_min, dt_max: range that the modes' steps are drawn from, log-uniformly.
    x, y: (batch, length, dim).   state: S5State(h: (batch, state_dim / 2)), complex, constant size.
    Raises ValueError: sizes that do not divide, dt_min >= dt_max; x or the state of a wrong shape or type.
    Cost: as LRU with state_dim / 2 modes.   Source: arXiv:2208.04933, section 4 and appendix B.
    """

    no_weight_decay: ClassVar[frozenset[str]] = frozenset({"log_dt", "A_log", "A_imag"})

    def __init__(
        self, dim: int, state_dim: int = 64, blocks: int = 1, dt_min: float = 1e-3, dt_max: float = 1e-1
    ) -> None:
        super().__init__()
        check_sizes("S5", dim, state_dim, dt_min, dt_max)
        if blocks < 1 or state_dim % (2 * blocks):
            raise ValueError(
                f"S5 wants state_dim to be a multiple of 2 blocks, not state_dim={state_dim} and blocks={blocks}"
            )
        self.dim, self.state_dim, self.blocks = dim, state_dim, blocks
        self.dt_min, self.dt_max = dt_min, dt_max
        modes = state_dim // 2
        self.log_dt = nn.Parameter(torch.empty(modes))
        self.A_log = nn.Parameter(torch.empty(modes))
        self.A_imag = nn.Parameter(torch.empty(modes))
        self.B = nn.Parameter(torch.empty(modes, 2, dim))
        self.C = nn.Parameter(torch.empty(dim, modes, 2))  # real and negative imaginary parts
        self.D = nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw every parameter anew from torch's global generator."""
        size = self.state_dim // self.blocks
        start = legs_normal_part(size)
        self.log_dt.copy_(initial_log_dt(len(self.log_dt), self.dt_min, self.dt_max))
        self.A_log.copy_(torch.log(-start.rates.real).repeat(self.blocks))
        self.A_imag.copy_(start.rates.imag.repeat(self.blocks))
        into = torch.randn(self.blocks, size, self.dim, dtype=torch.float64) * self.dim**-0.5
        out = torch.randn(self.blocks, self.dim, size, dtype=torch.float64) * self.state_dim**-0.5
        B = (start.vectors.mH @ into.to(start.vectors.dtype)).flatten(0, 1)  # (modes, dim)
        C = (out.to(start.vectors.dtype) @ start.vectors).transpose(0, 1).flatten(1)  # (dim, modes)
        self.B.copy_(torch.stack([B.real, B.imag], 1))
        self.C.copy_(torch.stack([C.real, -C.imag], -1))
        nn.init.normal_(self.D)

    def rates(self) -> Tensor:
        """A: (state_dim / 2,), complex, Re A < 0."""
        return rates_of(self.A_log, self.A_imag)

    def forward(self, x: Tensor, state: S5State | None = None) -> tuple[Tensor, S5State]:
        self._check_input(x)
        self._check_state(x, state)
        rates = self.rates()
        a, b = discretize_diagonal(self.log_dt, rates)
        b = b.to(rates.dtype).unsqueeze(-1)
        re, im = self.B.to(b.real.dtype).unbind(1)
        into = torch.stack([b.real * re - b.imag * im, b.real * im + b.imag * re], 1).to(self.B.dtype)
        h0 = None if state is None else state.h
        y, last = diagonal_layer(x, torch.exp(a).to(rates.dtype), into, 2 * self.C, self.D, h0)
        return y, S5State(last)

    def _check_state(self, x: Tensor, state: S5State | None) -> None:
        if state is None:
            return
        wanted = (x.shape[0], self.state_dim // 2)
        if not isinstance(state, S5State):
            raise ValueError(f"S5 wants an S5State or None as its state, not {type(state).__name__}")
        if tuple(state.h.shape) != wanted or not state.h.is_complex():
            raise ValueError(
                f"S5 wants a complex state of shape {wanted}, not {state.h.dtype} of shape {tuple(state.h.shape)}"
            )

    def extra_repr(self) -> str:
        return f"{self.dim}, state_dim={self.state_dim}, blocks={self.blocks}"
