"""What diagonal state spaces share: where rates start, how they are kept, the layer of one system for all channels."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from carrel.ops import linear_scan

from .hippo_matrices import legs_normal_part

INITS = ("legs", "lin", "inv", "real")


def initial_rates(init: str, modes: int) -> Tensor:
    r"""Rates of the modes in continuous time, one of each conjugate pair, as S4D starts them. N = 2 modes below.

    .. math:: \text{legs: eigenvalues of LegS's normal part}, \quad \text{lin: } -\tfrac12 + i\pi n, \quad
              \text{inv: } -\tfrac12 + i\,\tfrac{N}{\pi}\Big(\frac{N}{2n+1} - 1\Big), \quad \text{real: } -(n + 1)

    Args: init as above; modes: at least 1.   Returns (modes,) complex128.   Raises ValueError: another init.
    Source: arXiv:2206.11893, section 4.
    """
    n = torch.arange(modes, dtype=torch.float64)
    half, size = torch.full_like(n, -0.5), 2 * modes
    if init == "legs":
        return legs_normal_part(size).rates
    if init == "lin":
        return torch.complex(half, math.pi * n)
    if init == "inv":
        return torch.complex(half, size / math.pi * (size / (2 * n + 1) - 1))
    if init == "real":
        return torch.complex(-(n + 1), torch.zeros_like(n))
    raise ValueError(f"init must be one of {', '.join(INITS)}, got {init!r}")


def initial_log_dt(count: int, dt_min: float, dt_max: float) -> Tensor:
    """Logs of steps drawn log-uniformly from [dt_min, dt_max]: (count,) float64."""
    return math.log(dt_min) + torch.rand(count, dtype=torch.float64) * math.log(dt_max / dt_min)


def check_sizes(name: str, dim: int, state_dim: int, dt_min: float, dt_max: float) -> None:
    """Refuse what no state space can be built from."""
    if dim < 1 or state_dim < 2 or state_dim % 2:
        raise ValueError(
            f"{name} wants dim of at least 1 and an even state_dim of at least 2, because modes come in conjugate "
            f"pairs, not {dim} and {state_dim}"
        )
    if not 0 < dt_min < dt_max:
        raise ValueError(f"{name} wants 0 < dt_min < dt_max, not dt_min={dt_min} and dt_max={dt_max}")


def rates_of(A_log: Tensor, A_imag: Tensor) -> Tensor:
    """A = -exp(A_log) + i A_imag in float32 at least; its real part is negative for every A_log."""
    wide = torch.promote_types(A_log.dtype, torch.float32)
    return torch.complex(-torch.exp(A_log.to(wide)), A_imag.to(wide))


def as_complex(pairs: Tensor) -> Tensor:
    """A parameter (..., 2) of real and imaginary parts as complex numbers, in float32 at least."""
    return torch.view_as_complex(pairs.to(torch.promote_types(pairs.dtype, torch.float32)).contiguous())


def diagonal_layer(
    x: Tensor, a: Tensor, into: Tensor, out: Tensor, D: Tensor, h0: Tensor | None
) -> tuple[Tensor, Tensor]:
    r"""One diagonal system with all channels as its inputs and outputs.

    .. math:: h_t = a \odot h_{t-1} + B x_t, \qquad y_t = \mathrm{Re}(C h_t) + D \odot x_t

    Args:
        x: (batch, length, dim).   a: (modes,) complex.
        into: (modes, 2, dim), real and imaginary parts of B.
        out: (dim, modes, 2), real and *negative* imaginary parts of C.
        h0: (batch, modes) complex, or None.
    Returns y (batch, length, dim) and the last h (batch, modes).
    """
    # Laid out as torch lays out complex numbers, so that both products are one real GEMM without a copy; C is
    # conjugated, because Re(C h) = Re C Re h - Im C Im h is then a plain dot product.
    u = functional.linear(x, into.flatten(0, 1)).to(a.real.dtype)
    u = torch.view_as_complex(u.reshape(*u.shape[:-1], a.shape[0], 2))
    h, last = linear_scan(a, u, h0)
    parts = torch.view_as_real(h).flatten(-2).to(out.dtype)
    return functional.linear(parts, out.flatten(1)) + D * x, last
