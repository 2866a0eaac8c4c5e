"""HiPPO: a memory whose state is the best polynomial fit to the past of its input."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from carrel.ops import legs_scan

from .hippo_matrices import KINDS, METHODS, discretize, hippo_matrices, lmu_units

_AHEAD = 64  # steps whose matrices are made together


class HiPPOState(NamedTuple):
    """x: (batch, channels, N), the coefficients; pos: (batch,) int64, samples seen so far."""

    x: Tensor
    pos: Tensor


class HiPPO(nn.Module):
    r"""Coefficients of a signal's past, updated online. Nothing in it is trained.

    .. math:: \text{legs: } x_n(t) = \frac1t \int_0^t f(s)\, p_n(s / t)\, ds, \qquad
              \text{legt: } x_n(t) = \frac1\theta \int_{t-\theta}^t f(s)\, p_n\Big(\frac{s - t + \theta}\theta\Big) ds

    with :math:`p_n(s) = \sqrt{2n+1}\, P_n(2s - 1)`, orthonormal on [0, 1]; "lmu" is legt in other units, "fout" keeps a
    truncated Fourier series of the window. legs is step-free: only the order of the samples matters.

    Args:
        N: coefficients per channel; odd for fout.
        kind: "legs", "legt", "lmu" or "fout".
        dt: time between samples, for the kinds with a window; legs has none.
        theta: length of the window, in the unit of dt; legs has none.
        method: "bilinear", "forward", "backward" or "zoh".
    f: (batch, length) or (batch, length, channels).   Returns c, (batch, length, N) or (batch, length, channels, N), of
    which only the last time is kept with ``return_last``; and HiPPOState(x: (batch, channels, N), pos: (batch,)).
    Feeding a signal in pieces gives what the whole gives.
    Raises ValueError: dt or theta given for legs or missing for the others, an unknown kind or method, forward Euler
    with legs, N > 32 and float32, where it overflows on the way; f or the state of a wrong shape.
    Cost per sample and channel: legs 10 N operations (with zoh 2 N^3, for a matrix per sample), others 2 N^2.
    Source: arXiv:2008.07669.
    """

    def __init__(
        self,
        N: int,
        kind: str = "legs",
        dt: float | None = None,
        theta: float | None = None,
        method: str = "bilinear",
    ) -> None:
        super().__init__()
        if kind not in KINDS or method not in METHODS:
            raise ValueError(
                f"HiPPO wants kind out of {', '.join(KINDS)} and method out of {', '.join(METHODS)}, "
                f"not {kind!r} and {method!r}"
            )
        if kind == "legs" and (dt is not None or theta is not None):
            raise ValueError(f"HiPPO: legs has no step and no window, leave out dt={dt} and theta={theta}")
        if kind != "legs" and dt is None:
            raise ValueError(f"HiPPO: {kind} needs dt, the time between samples")
        self.N, self.kind, self.method = N, kind, method
        self.dt, self.theta = dt, None if kind == "legs" else 1.0 if theta is None else theta
        A, B = hippo_matrices(kind, N, 1.0 if self.theta is None else self.theta)
        if dt is not None:
            A, B = discretize(A, B, dt, method)
        self.register_buffer("A", A, persistent=False)  # of the equation for legs, of one step for the others
        self.register_buffer("B", B, persistent=False)
        self.A: Tensor
        self.B: Tensor

    def forward(
        self, f: Tensor, state: HiPPOState | None = None, *, return_last: bool = False
    ) -> tuple[Tensor, HiPPOState]:
        if f.ndim not in (2, 3) or f.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                "HiPPO wants f of shape (batch, length) or (batch, length, channels) in float32 or float64, "
                f"not {f.dtype} of shape {tuple(f.shape)}"
            )
        signal = f.unsqueeze(-1) if f.ndim == 2 else f
        batch, length, channels = signal.shape
        if state is None:
            state = HiPPOState(
                f.new_zeros(batch, channels, self.N), torch.zeros(batch, dtype=torch.int64, device=f.device)
            )
        elif state.x.shape != (batch, channels, self.N) or state.pos.shape != (batch,):
            raise ValueError(
                f"HiPPO wants a state of x {(batch, channels, self.N)} and pos {(batch,)}, "
                f"not {tuple(state.x.shape)} and {tuple(state.pos.shape)}"
            )
        if self.kind == "legs" and self.method != "zoh":
            c, last = self._stretched(signal, state)
        else:
            c, last = self._stepped(signal, state, return_last)
        after = HiPPOState(last, state.pos + length)
        if return_last:
            c = last.unsqueeze(1)
        return (c.squeeze(2) if f.ndim == 2 else c), after

    def _stretched(self, f: Tensor, state: HiPPOState) -> tuple[Tensor, Tensor]:
        batch, length, channels = f.shape
        if self.method == "forward" and self.N > 32 and f.dtype == torch.float32:
            raise ValueError(
                f"HiPPO: forward Euler with legs and N={self.N} overflows float32 on the way; "
                "use bilinear, or float64 up to about N=128"
            )
        rows = f.transpose(1, 2).reshape(batch * channels, length)
        pos = state.pos.repeat_interleave(channels)
        c, last = legs_scan(rows, state.x.to(f.dtype).reshape(-1, self.N), pos, method=self.method)
        return c.view(batch, channels, length, self.N).transpose(1, 2), last.view(batch, channels, self.N)

    def _stepped(self, f: Tensor, state: HiPPOState, return_last: bool) -> tuple[Tensor, Tensor]:
        A, B, x = self.A.to(f.dtype), self.B.to(f.dtype), state.x.to(f.dtype)
        steps, batch = [], len(f)
        for t in range(f.shape[1]):
            if self.kind == "legs":
                if t % _AHEAD == 0:
                    ahead = torch.arange(1, min(_AHEAD, f.shape[1] - t) + 1, device=f.device)
                    matrices, inputs = self._staircase((state.pos.unsqueeze(1) + t + ahead).flatten())
                    matrices = matrices.to(f.dtype).view(batch, -1, self.N, self.N)
                    inputs = inputs.to(f.dtype).view(batch, -1, 1, self.N)
                A, B = matrices[:, t % _AHEAD], inputs[:, t % _AHEAD]
            x = x @ A.mT + B * f[:, t].unsqueeze(-1)
            if not return_last:
                steps.append(x)
        return (torch.stack(steps, 1) if steps else x.new_zeros(batch, 0, *x.shape[1:])), x

    def _staircase(self, k: Tensor) -> tuple[Tensor, Tensor]:
        r"""The step from k - 1 to k samples for a signal that stays put between them, exactly: (k, N, N) and (k, N).

        With r = (k - 1) / k the past shrinks to [0, r] of the new stretch, so old coefficients meet the new basis as
        :math:`r \int_0^1 p_n(r u) p_m(u) du`, which is :math:`e^{A \log(k / (k-1))}`; the new sample fills [r, 1].
        N nodes of Gauss and Legendre integrate these polynomials exactly.
        """
        nodes, weights = (torch.from_numpy(v).to(k.device) for v in np.polynomial.legendre.leggauss(self.N))
        nodes, weights = (nodes + 1) / 2, weights / 2
        r = (1 - 1 / k.to(torch.float64)).unsqueeze(1)
        old, stretched = legendre_basis(self.N, nodes), legendre_basis(self.N, r * nodes)
        kept = r.unsqueeze(2) * (stretched.mT @ (weights.unsqueeze(1) * old))
        filled = (1 - r) * (legendre_basis(self.N, r + (1 - r) * nodes) * weights.unsqueeze(1)).sum(1)
        return kept, filled

    def reconstruct(self, c: Tensor, points: Tensor) -> Tensor:
        """The remembered signal at places in the remembered stretch of time.

        Args:
            c: (..., N), coefficients at one time.
            points: (places,) in [0, 1]: 0 is the oldest that is remembered, 1 is now.
        Returns (..., places).   Raises ValueError: c without N coefficients.
        """
        if c.shape[-1] != self.N:
            raise ValueError(f"HiPPO wants {self.N} coefficients, not c of shape {tuple(c.shape)}")
        if self.kind == "fout":
            return c @ fourier_basis(self.N, 1 - points.to(c.dtype)).mT
        if self.kind == "lmu":
            c = c / lmu_units(self.N).to(c)
        return c @ legendre_basis(self.N, points.to(c.dtype)).mT

    def extra_repr(self) -> str:
        window = "" if self.kind == "legs" else f", dt={self.dt}, theta={self.theta}"
        return f"{self.N}, kind={self.kind!r}{window}, method={self.method!r}"


def legendre_basis(N: int, points: Tensor) -> Tensor:
    r"""Orthonormal Legendre polynomials on [0, 1],  :math:`\sqrt{2n+1}\, P_n(2s-1)`: (..., N) for s (...)."""
    z = 2 * points - 1
    rows = [torch.ones_like(z), z]
    for n in range(1, N - 1):
        rows.append(((2 * n + 1) * z * rows[n] - n * rows[n - 1]) / (n + 1))
    root = torch.sqrt(2 * torch.arange(N, dtype=z.dtype, device=z.device) + 1)
    return torch.stack(rows[:N], -1) * root


def fourier_basis(N: int, ages: Tensor) -> Tensor:
    """1, √2 sin 2πr, √2 cos 2πr, √2 sin 4πr, ... at ages r in [0, 1]: (places, N)."""
    columns = [torch.ones_like(ages)]
    for h in range(1, (N + 1) // 2):
        columns += [math.sqrt(2) * torch.sin(2 * math.pi * h * ages), math.sqrt(2) * torch.cos(2 * math.pi * h * ages)]
    return torch.stack(columns, -1)
