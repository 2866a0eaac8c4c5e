"""The matrices of HiPPO, their discretisation, and the normal part of LegS that state spaces start from."""

from __future__ import annotations

import math
import warnings
from typing import NamedTuple

import torch
from torch import Tensor

KINDS = ("legs", "legt", "lmu", "fout")
METHODS = ("forward", "backward", "bilinear", "zoh")


def hippo_matrices(kind: str, N: int, theta: float = 1.0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    r"""A and B of the memory's ordinary differential equation, for n, k = 0 .. N - 1.

    .. math:: \text{legs: } x' = \tfrac1t (A x + B f),\quad B_n = \sqrt{2n+1}, \quad
              A_{nk} = -\sqrt{(2n+1)(2k+1)}\ (n > k),\ -(n + 1)\ (n = k),\ 0\ (n < k)

    .. math:: \text{legt: } x' = A x + B f,\quad B_n = \tfrac1\theta\sqrt{2n+1}, \quad
              A_{nk} = -\tfrac1\theta \sqrt{(2n+1)(2k+1)} \cdot \big(1\ (k \le n),\ (-1)^{n-k}\ (k > n)\big)

    "lmu" is legt with other units for the coefficients, :math:`T A T^{-1}` and :math:`T B` with
    :math:`T_{nn} = (-1)^n \sqrt{2n+1}`. "fout" keeps a truncated Fourier series of the window:
    :math:`A = (\Omega - b b^T) / \theta`, :math:`B = b / \theta` with b = (1, 0, √2, 0, √2, ...), where Ω turns the
    h-th pair of sine and cosine by :math:`2 \pi h`.

    Args:
        kind: "legs" (the whole past, stretched), "legt", "lmu" or "fout" (a sliding window).
        N: number of coefficients, at least 1; odd for fout.
        theta: length θ of the window in the unit of time; legs has none.
    Returns A (N, N) and B (N,).
    Raises ValueError: N < 1, an unknown kind, an even N for fout, theta <= 0.
    Source: arXiv:2008.07669, section 2.3 and appendix D; arXiv:2206.12037 for fout; Voelker et al. 2019 for lmu.
    """
    if kind not in KINDS:
        raise ValueError(f"hippo_matrices: kind must be one of {', '.join(KINDS)}, got {kind!r}")
    if N < 1:
        raise ValueError(f"hippo_matrices: N must be at least 1, got {N}")
    if not theta > 0:
        raise ValueError(f"hippo_matrices: theta must be positive, got {theta}")
    if kind == "fout":
        A, B = _fourier(N, theta)
        return A.to(dtype), B.to(dtype)
    n = torch.arange(N, dtype=torch.float64)
    root = torch.sqrt(2 * n + 1)
    if kind == "legs":
        A, B = -torch.tril(torch.outer(root, root), -1) - torch.diag(n + 1), root
        return A.to(dtype), B.to(dtype)
    sign = 1 - 2 * ((n.unsqueeze(1) - n) % 2)
    A = -torch.outer(root, root) * torch.where(n <= n.unsqueeze(1), 1.0, sign) / theta
    B = root / theta
    if kind == "lmu":
        scale = lmu_units(N)
        A, B = scale.unsqueeze(1) * A / scale, scale * B
    return A.to(dtype), B.to(dtype)


def lmu_units(N: int) -> Tensor:
    """T: how many lmu coefficients one legt coefficient is worth, (N,) float64."""
    n = torch.arange(N, dtype=torch.float64)
    return (1 - 2 * (n % 2)) * torch.sqrt(2 * n + 1)


def _fourier(N: int, theta: float) -> tuple[Tensor, Tensor]:
    if N % 2 == 0:
        raise ValueError(f"hippo_matrices: fout has a constant and pairs of waves, so N must be odd, got {N}")
    b = torch.zeros(N, dtype=torch.float64)
    b[0] = 1
    b[2::2] = math.sqrt(2)
    A = -torch.outer(b, b)
    for h in range(1, (N + 1) // 2):
        A[2 * h - 1, 2 * h] += 2 * math.pi * h
        A[2 * h, 2 * h - 1] -= 2 * math.pi * h
    return A / theta, b / theta


def discretize(A: Tensor, B: Tensor, dt: float, method: str = "bilinear") -> tuple[Tensor, Tensor]:
    r"""One step of x' = A x + B f:    x_k = Ab x_{k-1} + Bb f_k

    .. math:: \text{forward: } I + \Delta A,\ \Delta B \qquad \text{backward: } (I - \Delta A)^{-1} [I,\ \Delta B]

    .. math:: \text{bilinear: } (I - \tfrac\Delta2 A)^{-1} [I + \tfrac\Delta2 A,\ \Delta B] \qquad
              \text{zoh: } e^{\Delta A},\ A^{-1}(e^{\Delta A} - I) B

    Args:
        A, B: (N, N) and (N,).
        dt: the step Δ, above 0, in the unit of time of A.
        method: as above. "zoh" is exact for an input that stays put during a step, and A may be singular.
    Returns Ab (N, N) and Bb (N,).
    Raises ValueError: shapes that disagree, dt <= 0, an unknown method. Warns if forward Euler grows at this step.
    """
    if A.ndim != 2 or A.shape[0] != A.shape[1] or B.shape != A.shape[:1]:
        raise ValueError(f"discretize: A must be (N, N) and B (N,), got {tuple(A.shape)} and {tuple(B.shape)}")
    if not dt > 0:
        raise ValueError(f"discretize: dt must be positive, got {dt}")
    N = len(A)
    eye = torch.eye(N, dtype=A.dtype, device=A.device)
    if method == "forward":
        if torch.linalg.eigvals(eye + dt * A).abs().max() > 1 + 1e-9:
            warnings.warn(
                f"forward Euler is unstable with a step of {dt}: the state grows without bound; use bilinear",
                stacklevel=2,
            )
        return eye + dt * A, dt * B
    if method == "zoh":  # the input as one more coefficient that does not change: no inverse of A
        joint = torch.linalg.matrix_exp(torch.cat([torch.cat([A, B.unsqueeze(1)], 1), A.new_zeros(1, N + 1)]) * dt)
        return joint[:N, :N], joint[:N, N]
    if method == "backward":
        left, right = eye - dt * A, eye
    elif method == "bilinear":
        left, right = eye - dt / 2 * A, eye + dt / 2 * A
    else:
        raise ValueError(f"discretize: method must be one of {', '.join(METHODS)}, got {method!r}")
    both = torch.linalg.solve(left, torch.cat([right, dt * B.unsqueeze(1)], 1))
    return both[:, :N], both[:, N]


class NormalPart(NamedTuple):
    """LegS in the basis V of the eigenvectors of A + p p^T, one of each conjugate pair.

    A = V diag(rates) V^H - p p^T and the conjugate pairs; low_rank = V^H p, input = V^H B. vectors: (N, N / 2).
    """

    rates: Tensor
    low_rank: Tensor
    input: Tensor
    vectors: Tensor


def legs_normal_part(N: int) -> NormalPart:
    r"""LegS as a normal matrix minus one of rank one, diagonalised by a unitary V.

    .. math:: A = V (\Lambda - p p^H) V^H, \qquad (V p)_n = \sqrt{n + \tfrac12}

    The normal part is -1/2 plus a skew matrix, so i times that is Hermitian and V is found stably; LegS itself has
    eigenvectors that no precision bears.   Args: N: even, at least 2.   Returns the half with Im λ > 0 in rising order,
    all complex128.   Raises ValueError: N odd or below 2.   Source: arXiv:2111.00396, theorem 1 and appendix C.
    """
    if N < 2 or N % 2:
        raise ValueError(f"legs_normal_part: N must be even and at least 2, for eigenvalues come in pairs; got {N}")
    A, B = hippo_matrices("legs", N)
    p = torch.sqrt(torch.arange(N, dtype=torch.float64) + 0.5)
    skew = A + torch.outer(p, p) + 0.5 * torch.eye(N, dtype=torch.float64)
    w, V = torch.linalg.eigh(-1j * skew)
    w, V = w[N // 2 :], V[:, N // 2 :]
    rates = torch.complex(torch.full_like(w, -0.5), w)
    return NormalPart(rates, V.mH @ p.to(V.dtype), V.mH @ B.to(V.dtype), V)
