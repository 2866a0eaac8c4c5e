"""The derivatives of `legs_scan` and its three routes.

The scan is linear in f and x0: its tangent is itself, and its adjoint the transposed update from the last sample back.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._kernel_op import KernelOp, lead
from . import reference


def _forward(f: Tensor, x0: Tensor, k: Tensor, implicit: float, every: bool) -> tuple[Tensor, Tensor]:
    from . import cpu

    return cpu.forward(f, x0, k, implicit, every)


def _forward_like(f: Tensor, x0: Tensor, k: Tensor, implicit: float, every: bool) -> tuple[Tensor, Tensor]:
    return f.new_empty((f.shape[0], f.shape[1] if every else 0, x0.shape[1])), torch.empty_like(x0)


def _backward(
    f: Tensor, x0: Tensor, k: Tensor, g: Tensor, g_last: Tensor, implicit: float, every: bool
) -> tuple[Tensor, Tensor, Tensor]:
    from . import cpu

    df, dx0 = cpu.backward(k, g, g_last, f.shape[1], implicit, every)
    return df, dx0, torch.zeros_like(k)


def _backward_like(
    f: Tensor, x0: Tensor, k: Tensor, g: Tensor, g_last: Tensor, implicit: float, every: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(f), torch.empty_like(x0), torch.empty_like(k)


def _formula(
    f: Tensor, x0: Tensor, k: Tensor, g: Tensor, g_last: Tensor, implicit: float, every: bool
) -> tuple[Tensor, Tensor, Tensor]:
    A, B = reference.matrix(g_last.shape[1], g_last)
    eye = torch.eye(len(A), dtype=A.dtype, device=A.device)
    x, found = g_last, []
    for t in range(f.shape[1] - 1, -1, -1):
        step = (1 / (k + t + 1)).to(A.dtype).unsqueeze(1)
        arrived = x + g[:, t] if every else x
        left = (eye - implicit * step.unsqueeze(2) * A).mT
        y = torch.linalg.solve_triangular(left, arrived.unsqueeze(2), upper=True).squeeze(2)
        found.append((step * B * y).sum(1))
        x = y + (1 - implicit) * step * (y @ A)
    df = torch.stack(found[::-1], 1) if found else torch.zeros_like(f)
    return df, x.clone(), torch.zeros_like(k)


def _tangent(
    f: Tensor,
    x0: Tensor,
    k: Tensor,
    tf: Tensor | None,
    tx0: Tensor | None,
    tk: Tensor | None,
    implicit: float,
    every: bool,
) -> tuple[Tensor, ...]:
    tf = torch.zeros_like(f) if tf is None else tf
    tx0 = torch.zeros_like(x0) if tx0 is None else tx0
    return op(tf, tx0, k, implicit, every)


def _fold(
    size: int, dims: tuple[int | None, ...], f: Tensor, x0: Tensor, k: Tensor, implicit: float, every: bool
) -> tuple[Tensor, ...]:
    """``vmap``: more rows."""
    f, x0, k = (lead(x, dim, size) for x, dim in zip((f, x0, k), dims, strict=True))
    x, last = op(f.flatten(0, 1), x0.flatten(0, 1), k.flatten(0, 1), implicit, every)
    return x.view(size, -1, *x.shape[1:]), last.view(size, -1, last.shape[1])


op = KernelOp(
    "legs_scan",
    3,
    forward=_forward,
    backward=_backward,
    forward_like=_forward_like,
    backward_like=_backward_like,
    keep=lambda f, x0, k, x, last: (f, x0, k),
    formula=_formula,
    tangent=_tangent,
    fold=_fold,
)
