"""`dplr_kernel` and `cauchy`: sums of simple fractions, and the convolution kernel that S4 makes of them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .._kernel_op import resolve
from . import reference
from .derivatives import op


def cauchy(v: Tensor, z: Tensor, lam: Tensor, *, backend: str = "auto") -> Tensor:
    r"""A sum of simple fractions with given poles.

    .. math:: S_j = \sum_n \frac{v_n}{z_j - \lambda_n}

    Args:
        v: (channels, modes), complex.
        z: (nodes,), complex; no derivative is taken by it.
        lam: (channels, modes), complex; the poles, none of them at a node.
        backend: "auto", "reference" (torch), "cpu" (numba) or "gpu" (Triton).
    Returns (channels, nodes), complex, in the wider precision of ``v`` and ``lam``.
    Raises ValueError: shapes, types or devices disagree.
    Cost: O(channels * modes * nodes); no quotient is stored, except for second derivatives and in the reference.
    """
    if v.ndim != 2 or v.shape != lam.shape or z.ndim != 1:
        raise ValueError(
            "cauchy: v and lam must both be (channels, modes) and z (nodes,), "
            f"got {tuple(v.shape)}, {tuple(lam.shape)} and {tuple(z.shape)}"
        )
    _check("cauchy", v=v, lam=lam, z=z)
    v, lam, z = (x.to(torch.promote_types(v.dtype, lam.dtype)) for x in (v, lam, z))
    # over pairs the weight v gives S + S', the weight -i v gives -i S + i S', where S' belongs to the conjugates
    both = _pair_sums(
        "cauchy",
        torch.stack([v, -1j * v], 1),
        lam,
        z.expand(len(v), -1),
        torch.ones(1, len(z), dtype=z.dtype, device=z.device),
        backend,
    )
    return (both[:, 0] + 1j * both[:, 1]) / 2


def dplr_kernel(
    log_dt: Tensor, A: Tensor, P: Tensor, B: Tensor, C: Tensor, length: int, *, backend: str = "auto"
) -> Tensor:
    r"""The first L steps of a state space whose matrix is diagonal minus one of rank one, discretised by the bilinear
    rule.

    .. math:: K_l = C \bar A^l \bar B, \quad l < L, \qquad \bar A, \bar B \text{ from } \Lambda - p p^H, b \text{ and
    } \Delta

    Its generating function at the L-th roots of unity z is, with :math:`r(u, v) = \sum_n u_n v_n R_n` and
    :math:`R_n = 1 / \big(\tfrac2\Delta (1 - z) - \lambda_n (1 + z)\big)`, nowhere singular:

    .. math:: \hat K(z) = 2 \Big[ r(\tilde c, b) - \frac{(1 + z)\, r(\tilde c, p)\, r(\bar p, b)}{1 + (1 + z)\, r(\bar
    p, p)} \Big],
              \qquad \tilde c = C (I - \bar A^L)

    Args:
        log_dt: (channels,), log of the step Δ.
        A, P: (channels, modes), complex: λ with Re λ < 0, and p. Each mode stands for itself and its conjugate.
        B: (channels, modes), or (batch, channels, modes) for as many kernels with the same A, P and C.
        C: (channels, modes), complex: the *truncated* output weights, the tilde above.
        length: L, at least 1.
        backend: "auto", "reference" (torch), "cpu" (numba) or "gpu" (Triton).
    Returns (channels, length) or (batch, channels, length), real, in the precision of ``C``.
    Raises ValueError: shapes, types or devices disagree, length < 1.
    Cost: O(channels * modes * length) and a Fourier transform; no quotient is stored, except for second derivatives.
    Source: arXiv:2111.00396, theorem 3 and appendix C.3, in the form that needs no division by 1 + z.
    """
    if log_dt.ndim != 1 or C.shape != (len(log_dt), C.shape[-1]) or A.shape != C.shape or P.shape != C.shape:
        raise ValueError(
            "dplr_kernel: log_dt must be (channels,) and A, P and C (channels, modes), "
            f"got {tuple(log_dt.shape)}, {tuple(A.shape)}, {tuple(P.shape)} and {tuple(C.shape)}"
        )
    if B.ndim not in (2, 3) or B.shape[-2:] != C.shape:
        raise ValueError(f"dplr_kernel: B must end in {tuple(C.shape)} like C, got shape {tuple(B.shape)}")
    _check("dplr_kernel", C=C, A=A, P=P, B=B)
    if length < 1:
        raise ValueError(f"dplr_kernel: length must be at least 1, got {length}")
    A, P, b = (x.to(C.dtype) for x in (A, P, B if B.ndim == 3 else B.unsqueeze(0)))
    angle = torch.arange(length // 2 + 1, dtype=torch.float64, device=A.device) * (-2 * math.pi / length)
    z = torch.polar(torch.ones_like(angle), angle)
    rate = (2 * torch.exp(-log_dt.double())).unsqueeze(-1)
    b = b.transpose(0, 1)  # (channels, batch, modes)
    c, p = C.unsqueeze(1), P.unsqueeze(1)
    weights = torch.cat([c * b, p.conj() * b, c * p, p.conj() * p], 1)
    turned = (1 + z).to(C.dtype)  # exactly 0 would be no harm: nothing is divided by it
    sums = _pair_sums("dplr_kernel", weights, A, (rate * (1 - z)).to(C.dtype), turned.unsqueeze(0), backend)
    batch = b.shape[1]
    cb, pb, cp, pp = sums[:, :batch], sums[:, batch:-2], sums[:, -2:-1], sums[:, -1:]
    spectrum = 2 * (cb - turned * cp * pb / (1 + turned * pp))
    K = torch.fft.irfft(spectrum, length)
    return K.transpose(0, 1) if B.ndim == 3 else K[:, 0]


def _pair_sums(name: str, w: Tensor, lam: Tensor, g: Tensor, h: Tensor, backend: str) -> Tensor:
    chosen = resolve(name, backend, w.device)
    return reference.pair_sums(w, lam, g, h) if chosen == "reference" else op(w, lam, g, h, chosen)[0]


def _check(op_name: str, **given: Tensor) -> None:
    first, home = next(iter(given.items()))
    for name, x in given.items():
        if x.dtype not in (torch.complex64, torch.complex128):
            raise ValueError(f"{op_name}: {name} must be complex64 or complex128, got {x.dtype}")
        if x.device != home.device:
            raise ValueError(
                f"{op_name}: {name} is on {x.device} but {first} is on {home.device}; they must be on one device"
            )
