"""The derivatives of `relu2_attention` and its three routes.

q (B, H, L, N) holds scale and count and is in the accumulation type; k (B, H, M, N) and v (B, H, M, P) may be narrower.
With R = relu(q k') where a query sees a key and g the gradient that arrives for o = R² v,

    dR = 2 R (g v'),    dq = dR k,    dk = dR' q,    dv = (R²)' g.

The kernels hold one block of R at a time. Further derivatives are of the composition below, which holds all of it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._kernel_op import KernelOp, kernels, lead
from .reference import scores


def _forward(q: Tensor, k: Tensor, v: Tensor, causal: bool, backend: str) -> tuple[Tensor]:
    return (kernels(__package__, backend).forward(q, k, v, causal),)


def _forward_like(q: Tensor, k: Tensor, v: Tensor, causal: bool, backend: str) -> tuple[Tensor]:
    return (v.new_empty((*q.shape[:3], v.shape[3])),)


def _backward(q: Tensor, k: Tensor, v: Tensor, g: Tensor, causal: bool, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    return kernels(__package__, backend).backward(q, k, v, g, causal)


def _backward_like(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, causal: bool, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _formula(q: Tensor, k: Tensor, v: Tensor, g: Tensor, causal: bool, backend: str) -> tuple[Tensor, ...]:
    given, (k, v, g) = (q, k, v), (x.to(q.dtype) for x in (k, v, g))
    r = scores(q, k, causal)
    moved = 2 * r * torch.einsum("bhip,bhjp->bhij", g, v)
    found = (
        torch.einsum("bhij,bhjn->bhin", moved, k),
        torch.einsum("bhij,bhin->bhjn", moved, q),
        torch.einsum("bhij,bhip->bhjp", r.square(), g),
    )
    return tuple(x.to(like.dtype) for x, like in zip(found, given, strict=True))


def _tangent(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tq: Tensor | None,
    tk: Tensor | None,
    tv: Tensor | None,
    causal: bool,
    backend: str,
) -> tuple[Tensor, ...]:
    given = (q, k, v)
    tq, tk, tv = (
        torch.zeros_like(x, dtype=q.dtype) if tangent is None else tangent.to(q.dtype)
        for x, tangent in zip(given, (tq, tk, tv), strict=True)
    )
    dtype, k, v = v.dtype, k.to(q.dtype), v.to(q.dtype)
    r = scores(q, k, causal)
    moved = torch.einsum("bhin,bhjn->bhij", tq, k) + torch.einsum("bhin,bhjn->bhij", q, tk)
    to = torch.einsum("bhij,bhjp->bhip", 2 * r * moved, v) + torch.einsum("bhij,bhjp->bhip", r.square(), tv)
    return (to.to(dtype),)


def _fold(
    size: int, dims: tuple[int | None, ...], q: Tensor, k: Tensor, v: Tensor, causal: bool, backend: str
) -> tuple[Tensor, ...]:
    """``vmap``: more rows of the batch."""
    rows = [lead(x, dim, size).flatten(0, 1) for x, dim in zip((q, k, v), dims, strict=True)]
    (o,) = op(*rows, causal, backend)
    return (o.reshape(size, len(o) // size, *o.shape[1:]),)


op = KernelOp(
    "relu2_attention",
    3,
    forward=_forward,
    backward=_backward,
    forward_like=_forward_like,
    backward_like=_backward_like,
    keep=lambda *everything: everything[:3],
    formula=_formula,
    tangent=_tangent,
    fold=_fold,
)
