"""The derivatives of `entmax` and its three routes, over rows: x and p (R, n), alpha (R,), or empty if it is fixed.

With b = alpha - 1, s_i = p_i^(2 - alpha) on the support and 0 off it, and w = s / sum s,

    dx = s * (g - <w, g>),    dp/dalpha = (p - w) / b^2 - (p log p - w <1, p log p>) / b.

Only p is kept. Further derivatives are of these formulas, which hold wherever the support does not change.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._kernel_op import KernelOp, kernels, lead
from . import reference


def _forward(x: Tensor, alpha: Tensor, kind: float, backend: str) -> tuple[Tensor]:
    return (kernels(__package__, backend).forward(x, alpha, kind),)


def _forward_like(x: Tensor, alpha: Tensor, kind: float, backend: str) -> tuple[Tensor]:
    return (x.new_empty(x.shape),)


def _backward(p: Tensor, alpha: Tensor, g: Tensor, kind: float, backend: str) -> tuple[Tensor, Tensor]:
    return kernels(__package__, backend).backward(p, alpha, g, kind)


def _backward_like(p: Tensor, alpha: Tensor, g: Tensor, kind: float, backend: str) -> tuple[Tensor, Tensor]:
    return p.new_empty(p.shape), alpha.new_empty(alpha.shape)


def _formula(p: Tensor, alpha: Tensor, g: Tensor, kind: float, backend: str) -> tuple[Tensor, Tensor]:
    return reference.backward(p, alpha, g, kind)


def _tangent(
    p: Tensor, alpha: Tensor, tx: Tensor | None, talpha: Tensor | None, kind: float, backend: str
) -> tuple[Tensor, ...]:
    wide = torch.promote_types(p.dtype, torch.float32)
    own = p.to(wide)
    order = alpha.to(wide).unsqueeze(-1) if kind == 0 else kind
    s = reference.power(own, 2 - order)
    share = s / s.sum(-1, keepdim=True).clamp(min=torch.finfo(wide).tiny)
    moved = torch.zeros_like(own)
    if tx is not None:
        moved = moved + s * (tx.to(wide) - (share * tx.to(wide)).sum(-1, keepdim=True))
    if talpha is not None and kind == 0:
        moved = moved + reference.order_slope(own, share, order) * talpha.to(wide).unsqueeze(-1)
    return (moved.to(p.dtype),)


def _fold(
    size: int, dims: tuple[int | None, ...], x: Tensor, alpha: Tensor, kind: float, backend: str
) -> tuple[Tensor, ...]:
    """``vmap``: more rows."""
    x, alpha = (lead(t, dim, size) for t, dim in zip((x, alpha), dims, strict=True))
    (p,) = op(x.flatten(0, 1), alpha.flatten(0, 1) if kind == 0 else alpha[0], kind, backend)
    return (p.reshape(x.shape),)


op = KernelOp(
    "entmax",
    2,
    forward=_forward,
    backward=_backward,
    forward_like=_forward_like,
    backward_like=_backward_like,
    keep=lambda x, alpha, p: (p, alpha),
    formula=_formula,
    tangent=_tangent,
    fold=_fold,
)
