"""`sparsemax`, `entmax15` and `entmax`: distributions that can be exactly zero."""

from __future__ import annotations

import torch
from torch import Tensor

from .._kernel_op import resolve
from .derivatives import op

NEAR_SOFTMAX = 1e-4  # alpha - 1 below which the formulas, which divide by its square, are worse than softmax itself


def sparsemax(x: Tensor, dim: int = -1, *, backend: str = "auto") -> Tensor:
    r"""The point of the simplex nearest to x.

    .. math:: p = \arg\min_{p \in \Delta} \lVert p - x \rVert^2 = \max(x - \tau, 0), \qquad \textstyle\sum_i p_i = 1

    Args:
        x: real, of any shape; -inf entries get 0, and rows of nothing else are 0 throughout.
        dim: the axis that sums to 1.
        backend: "auto", "reference" (torch, sorts), "cpu" (numba) or "gpu" (Triton).
    Returns p: like x. Entries more than 1 below the maximum are exactly 0, and often most others; their gradient too.
    Raises ValueError: x is not floating point, or an axis that is not there or is empty.
    Cost: two passes over x and a few rounds over the entries within 1 of the maximum; no sorting. Keeps p alone.
    Source: arXiv:1602.02068, equations 2 and 14.
    """
    return _along(x, dim, 2.0, x.new_empty(0), backend, "sparsemax")


def entmax15(x: Tensor, dim: int = -1, *, backend: str = "auto") -> Tensor:
    r"""Halfway between softmax and sparsemax: smooth where positive, exactly zero elsewhere.

    .. math:: p_i = \max\big(\tfrac12 x_i - \tau, 0\big)^2, \qquad \textstyle\sum_i p_i = 1

    Arguments, returns and errors as for `sparsemax`; entries more than 2 below the maximum are 0.
    Cost: two passes over x and a few rounds over the entries within 2 of the maximum.
    Source: arXiv:1905.05702, section 3 (the threshold here by Newton's method, which sorts nothing).
    """
    return _along(x, dim, 1.5, x.new_empty(0), backend, "entmax15")


def entmax(x: Tensor, alpha: float | Tensor, dim: int = -1, *, backend: str = "auto") -> Tensor:
    r"""The family that joins softmax (alpha = 1), `entmax15` and sparsemax (alpha = 2), and goes on beyond it.

    .. math:: p_i = \max\big((\alpha - 1) x_i - \tau, 0\big)^{1 / (\alpha - 1)}, \qquad \textstyle\sum_i p_i = 1

    Args:
        x: real, of any shape; -inf entries get 0.
        alpha: at least 1; a number, or a tensor that broadcasts to x with size 1 along ``dim``, such as one learnt
            value per head; it then gets its exact gradient, and stays above 1.0001.
        dim: the axis that sums to 1.
        backend: as for `sparsemax`.
    Returns p: like x.
    Raises ValueError: alpha below 1 or of a shape that varies along ``dim``, x not floating point.
    Cost: two passes over x and about eight rounds, with one logarithm and one exponential per entry that can still be
    positive, for alpha up to 2; beyond, sixty halvings. Keeps p alone.
    Source: arXiv:1905.05702, section 3; the gradient of alpha arXiv:1909.00015, proposition 1.
    """
    if not isinstance(alpha, Tensor):
        if not alpha >= 1:
            raise ValueError(f"entmax wants alpha to be at least 1, not {alpha}")
        if alpha - 1 < NEAR_SOFTMAX:
            return _softmax(x, dim)
        if alpha in (1.5, 2.0):
            return _along(x, dim, float(alpha), x.new_empty(0), backend, "entmax")
        alpha = torch.full((1,) * x.dim(), alpha, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
    if alpha.dim() > x.dim() or not alpha.is_floating_point() or alpha.device != x.device:
        raise ValueError(
            f"entmax wants alpha to be real, on the device of x, and to broadcast to x of shape {tuple(x.shape)}, "
            f"not {alpha.dtype} of shape {tuple(alpha.shape)} on {alpha.device}"
        )
    return _along(x, dim, 0.0, alpha, backend, "entmax")


def _softmax(x: Tensor, dim: int) -> Tensor:
    """Softmax with the rule of this file for rows of nothing but -inf."""
    top = x.amax(dim, keepdim=True)
    return torch.where(torch.isneginf(top), 0.0, torch.softmax(torch.where(torch.isneginf(top), 0.0, x), dim))


def _along(x: Tensor, dim: int, kind: float, alpha: Tensor, backend: str, name: str) -> Tensor:
    if not x.is_floating_point():
        raise ValueError(f"{name} wants x to be floating point, not {x.dtype}")
    if not -x.dim() <= dim < x.dim():
        raise ValueError(f"{name} wants dim to be an axis of x of shape {tuple(x.shape)}, not {dim}")
    if x.shape[dim] == 0:
        raise ValueError(f"{name} wants at least one entry along axis {dim}, x has shape {tuple(x.shape)}")
    rows = x.movedim(dim, -1)
    if kind == 0.0:
        own = alpha.reshape((1,) * (x.dim() - alpha.dim()) + alpha.shape).movedim(dim, -1)
        if own.shape[-1] != 1 or any(a not in (1, r) for a, r in zip(own.shape, rows.shape, strict=True)):
            raise ValueError(
                f"{name} wants alpha to have size 1 along axis {dim} and to broadcast to x of shape {tuple(x.shape)}, "
                f"not shape {tuple(alpha.shape)}"
            )
        wide = torch.promote_types(x.dtype, torch.float32)
        alpha = own.squeeze(-1).expand(rows.shape[:-1]).reshape(-1).to(wide).clamp(min=1 + NEAR_SOFTMAX)
    flat = rows.reshape(-1, rows.shape[-1])
    (p,) = op(flat, alpha, kind, resolve(name, backend, x.device))
    return p.reshape(rows.shape).movedim(-1, dim)
