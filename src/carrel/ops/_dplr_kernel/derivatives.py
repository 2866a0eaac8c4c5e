"""The derivatives of the Cauchy sums over conjugate pairs, and their three routes.

With R = 1 / (g_j - lam_n h_j), R' the same with conj(lam), and G the gradient that arrives for S_kj = sum_n w_kn R +
conj(w_kn) R',

    dw_kn  = sum_j G R^* + G^* R'
    dlam_n = sum_jk (w_kn G^* h R^2)^* + (conj(w_kn) G^*) h R'^2
    dg_j   = -sum_nk (w_kn G^* R^2 + conj(w_kn) G^* R'^2)^*

h carries no derivative: it holds constants. Further derivatives hold the quotients, (channels, modes, nodes) numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._kernel_op import KernelOp, kernels, lead
from .reference import quotients


def _forward(w: Tensor, lam: Tensor, g: Tensor, h: Tensor, backend: str) -> tuple[Tensor]:
    return (kernels(__package__, backend).forward(w, lam, g, h),)


def _forward_like(w: Tensor, lam: Tensor, g: Tensor, h: Tensor, backend: str) -> tuple[Tensor]:
    return (w.new_empty((*w.shape[:2], g.shape[1])),)


def _backward(
    w: Tensor, lam: Tensor, g: Tensor, h: Tensor, G: Tensor, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (*kernels(__package__, backend).backward(w, lam, g, h, G), torch.zeros_like(h))


def _backward_like(
    w: Tensor, lam: Tensor, g: Tensor, h: Tensor, G: Tensor, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return torch.empty_like(w), torch.empty_like(lam), torch.empty_like(g), torch.empty_like(h)


def _formula(
    w: Tensor, lam: Tensor, g: Tensor, h: Tensor, G: Tensor, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    one, other = quotients(lam, g, h)
    dw = torch.matmul(G, one.mH) + torch.matmul(G.conj(), other.mT)
    e = torch.matmul(w.mT, G.conj()) * one.square()  # (H, N, J)
    f = torch.matmul(w.mH, G.conj()) * other.square()
    turned = h.unsqueeze(1)
    dlam = ((turned * e).conj() + turned * f).sum(-1)
    return dw, dlam, -(e + f).sum(1).conj(), torch.zeros_like(h)


def _tangent(
    w: Tensor,
    lam: Tensor,
    g: Tensor,
    h: Tensor,
    tw: Tensor | None,
    tlam: Tensor | None,
    tg: Tensor | None,
    th: Tensor | None,
    backend: str,
) -> tuple[Tensor]:
    found = torch.zeros((*w.shape[:2], g.shape[1]), dtype=w.dtype, device=w.device)
    if tw is not None:
        found = found + op(tw, lam, g, h, backend)[0]
    if tlam is None and tg is None:
        return (found,)
    one, other = (x.square() for x in quotients(lam, g, h))
    if tlam is not None:
        moved = torch.matmul(w * tlam.unsqueeze(1), one) + torch.matmul((w * tlam.unsqueeze(1)).conj(), other)
        found = found + h.unsqueeze(1) * moved
    if tg is not None:
        found = found - tg.unsqueeze(1) * (torch.matmul(w, one) + torch.matmul(w.conj(), other))
    return (found,)


def _fold(
    size: int, dims: tuple[int | None, ...], w: Tensor, lam: Tensor, g: Tensor, h: Tensor, backend: str
) -> tuple[Tensor]:
    """``vmap``: more channels."""
    channels = g.shape[-2]
    h = h.expand(*h.shape[:-2], channels, h.shape[-1]) if dims[3] is None else lead(h, dims[3], size)
    w, lam, g = (lead(x, dim, size) for x, dim in zip((w, lam, g), dims, strict=False))
    h = h.expand(size, *g.shape[1:])
    (found,) = op(w.flatten(0, 1), lam.flatten(0, 1), g.flatten(0, 1), h.flatten(0, 1), backend)
    return (found.view(size, -1, *found.shape[1:]),)


op = KernelOp(
    "pair_sums",
    4,
    forward=_forward,
    backward=_backward,
    forward_like=_forward_like,
    backward_like=_backward_like,
    keep=lambda w, lam, g, h, s: (w, lam, g, h),
    formula=_formula,
    tangent=_tangent,
    fold=_fold,
)
