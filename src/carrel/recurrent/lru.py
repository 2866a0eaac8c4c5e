"""The Linear Recurrent Unit."""

from __future__ import annotations

import math
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from carrel.layers.mixer import Mixer

from .diagonal import diagonal_layer

# 1 - |λ|² stays above this at the start: on the circle itself γ is 0 and ν has no finite value
_SHORTEST_DISTANCE = 1e-8


class LRUState(NamedTuple):
    """h: (batch, state_dim), complex64, or complex128 for a float64 layer."""

    h: Tensor


class LRU(Mixer):
    r"""A linear RNN of complex modes, each decaying and turning at its own rate.

    .. math:: h_t = \lambda \odot h_{t-1} + \gamma \odot B x_t, \qquad y_t = \mathrm{Re}(C h_t) + D \odot x_t, \qquad
              \lambda = e^{-e^{\nu} + i e^{\theta}}

    :math:`|\lambda| < 1` for every real ν. At the start λ is uniform over the area of the ring r_min ≤ |λ| ≤ r_max, and
    :math:`\gamma = \sqrt{1 - |\lambda|^2}` keeps a state that is driven by white noise at the noise's size; γ is free
    afterwards.

    Args:
        dim: width of x and y, H in the paper.
        state_dim: number of complex modes, N in the paper; dim if None.
        r_min, r_max: the ring, 0 <= r_min < r_max <= 1. A mode remembers about 1 / (1 - |λ|) tokens: 0.9 and 0.999
            for long memories.
        max_phase: modes turn by up to this angle per token, in radians, in (0, 2π]; π / 10 for long memories.
    x, y: (batch, length, dim).   state: LRUState(h: (batch, state_dim)), complex, constant size.
    Raises ValueError: sizes below 1, a ring or a phase out of range; x or the state of a wrong shape, a real state.
    Cost: two real matrix products of 4 dim state_dim operations per token, and one scan of state_dim complex numbers.
    The scan and λ are computed in float32 at least, under autocast too; prefer autocast to ``.bfloat16()``, which also
    rounds ν and θ. Weight decay must not touch ν, θ and γ: see :func:`carrel.layers.parameter_groups`.
    Source: arXiv:2303.06349, section 3 and appendix A. ``B`` is a real tensor (state_dim, 2, dim) of real and imaginary
    parts, ``C`` one (dim, state_dim, 2) of real and *negative* imaginary parts.
    """

    no_weight_decay: ClassVar[frozenset[str]] = frozenset({"nu_log", "theta_log", "gamma_log"})

    def __init__(
        self,
        dim: int,
        state_dim: int | None = None,
        r_min: float = 0.0,
        r_max: float = 1.0,
        max_phase: float = 2 * math.pi,
    ) -> None:
        super().__init__()
        state_dim = dim if state_dim is None else state_dim
        if dim < 1 or state_dim < 1:
            raise ValueError(f"LRU wants dim and state_dim of at least 1, not {dim} and {state_dim}")
        if not 0 <= r_min < r_max <= 1:
            raise ValueError(f"LRU wants 0 <= r_min < r_max <= 1, not r_min={r_min} and r_max={r_max}")
        if not 0 < max_phase <= 2 * math.pi * (1 + 1e-12):
            raise ValueError(f"LRU wants max_phase above 0 and up to 2π, not {max_phase}")
        self.dim, self.state_dim = dim, state_dim
        self.r_min, self.r_max, self.max_phase = r_min, r_max, max_phase
        self.nu_log = nn.Parameter(torch.empty(state_dim))
        self.theta_log = nn.Parameter(torch.empty(state_dim))
        self.gamma_log = nn.Parameter(torch.empty(state_dim))
        # C is kept conjugated, as (real, -imaginary): see diagonal_layer
        self.B = nn.Parameter(torch.empty(state_dim, 2, dim))
        self.C = nn.Parameter(torch.empty(dim, state_dim, 2))
        self.D = nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw every parameter anew from torch's global generator."""
        u1, u2 = torch.rand(2, self.state_dim, dtype=torch.float64, device=self.B.device)
        squared = u1 * (self.r_max**2 - self.r_min**2) + self.r_min**2  # |λ|², uniform: uniform over the area
        squared = squared.clamp(1e-16, 1 - _SHORTEST_DISTANCE)
        self.nu_log.copy_(torch.log(-0.5 * torch.log(squared)))
        self.theta_log.copy_(torch.log((self.max_phase * u2).clamp_min(1e-16)))
        self.gamma_log.copy_(0.5 * torch.log1p(-squared))
        nn.init.normal_(self.B, std=(2 * self.dim) ** -0.5)
        nn.init.normal_(self.C, std=self.state_dim**-0.5)
        nn.init.normal_(self.D)

    def eigenvalues(self) -> Tensor:
        """λ: (state_dim,), complex64, or complex128 for a float64 layer."""
        wide = torch.promote_types(self.nu_log.dtype, torch.float32)
        return torch.polar(torch.exp(-torch.exp(self.nu_log.to(wide))), torch.exp(self.theta_log.to(wide)))

    def forward(self, x: Tensor, state: LRUState | None = None) -> tuple[Tensor, LRUState]:
        self._check_input(x)
        self._check_state(x, state)
        a = self.eigenvalues()
        into = torch.exp(self.gamma_log)[:, None, None] * self.B  # γ on the weights: smaller than the sequence
        y, last = diagonal_layer(x, a, into, self.C, self.D, None if state is None else state.h)
        return y, LRUState(last)

    def _check_state(self, x: Tensor, state: LRUState | None) -> None:
        if state is None:
            return
        wanted = (x.shape[0], self.state_dim)
        if not isinstance(state, LRUState):
            raise ValueError(f"LRU wants an LRUState or None as its state, not {type(state).__name__}")
        if tuple(state.h.shape) != wanted or not state.h.is_complex():
            raise ValueError(
                f"LRU wants a complex state of shape {wanted}, not {state.h.dtype} of shape {tuple(state.h.shape)}"
            )

    def extra_repr(self) -> str:
        return f"{self.dim}, state_dim={self.state_dim}, r_min={self.r_min}, r_max={self.r_max}"
