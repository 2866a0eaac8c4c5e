"""The derivatives of `matrix_scan` and its three routes, over tensors in the kernels' shapes.

A is (B or 1, L or 1, N, N), b and h are (B, L, N, M), h0 and the last state (B, N, M) in the accumulation type. With g
the gradient that arrives for h, and that of the last state added to g_L,

    lambda_t = g_t + A_{t+1}^H lambda_{t+1},  db_t = lambda_t,  dA_t = lambda_t h_{t-1}^H,  dh0 = A_1^H lambda_1.
"""

import torch
from torch import Tensor

from .._kernel_op import KernelOp, kernels, lead
from .._linear_scan.derivatives import before, turned


def _forward(A: Tensor, b: Tensor, h0: Tensor, reverse: bool, backend: str) -> tuple[Tensor, Tensor]:
    return kernels(__package__, backend).forward(A, b, h0, reverse)


def _forward_like(A: Tensor, b: Tensor, h0: Tensor, reverse: bool, backend: str) -> tuple[Tensor, Tensor]:
    return b.new_empty(b.shape), h0.new_empty(h0.shape)


def _backward(
    A: Tensor, h0: Tensor, h: Tensor, g: Tensor, g_last: Tensor, reverse: bool, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    return kernels(__package__, backend).backward(A, h0, h, g, g_last, reverse)


def _backward_like(
    A: Tensor, h0: Tensor, h: Tensor, g: Tensor, g_last: Tensor, reverse: bool, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    return A.new_empty(A.shape), h.new_empty(h.shape), h0.new_empty(h0.shape)


def _product(x: Tensor, y: Tensor) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):  # which would round to half precision
        return x @ y


def _formula(
    A: Tensor, h0: Tensor, h: Tensor, g: Tensor, g_last: Tensor, reverse: bool, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    length = h.shape[1]
    if h.numel() == 0:
        return torch.zeros_like(A), torch.zeros_like(h), g_last.clone()
    factor, first = A.mH, length - 1 if reverse else 0
    following, g = turned(factor, g, g_last, reverse)
    lam, _ = op(following, g, torch.zeros_like(h0), not reverse, backend)
    dA = _product(lam, before(h, h0, reverse).mH)
    if A.shape[1] != length:
        dA = dA.sum(1, keepdim=True)
    if A.shape[0] != h.shape[0]:
        dA = dA.sum(0, keepdim=True)
    dh0 = _product(factor[:, first if A.shape[1] == length else 0].to(h0.dtype), lam[:, first].to(h0.dtype))
    return dA, lam, dh0


def _tangent(
    A: Tensor, h0: Tensor, h: Tensor, tA: Tensor | None, tb: Tensor | None, th0: Tensor | None, reverse: bool,
    backend: str,
) -> tuple[Tensor, ...]:  # fmt: skip
    added = torch.zeros_like(h) if tb is None else tb
    if tA is not None and h.numel():
        added = added + _product(tA, before(h, h0, reverse))
    return op(A, added, torch.zeros_like(h0) if th0 is None else th0, reverse, backend)


def _fold(
    size: int, dims: tuple[int | None, ...], A: Tensor, b: Tensor, h0: Tensor, reverse: bool, backend: str
) -> tuple[Tensor, ...]:
    """``vmap``: more rows of the batch, unless one ``A`` serves them all."""
    b, h0 = lead(b, dims[1], size), lead(h0, dims[2], size)
    batch = b.shape[1]
    if dims[0] is not None or A.shape[0] != 1:
        A = lead(A, dims[0], size)
        A = A.expand(size, batch, *A.shape[2:]).flatten(0, 1)
    outputs = op(A, b.flatten(0, 1), h0.flatten(0, 1), reverse, backend)
    return tuple(x.reshape(size, batch, *x.shape[1:]) for x in outputs)


op = KernelOp(
    "matrix_scan",
    3,
    forward=_forward,
    backward=_backward,
    forward_like=_forward_like,
    backward_like=_backward_like,
    keep=lambda A, b, h0, h, last: (A, h0, h),
    formula=_formula,
    tangent=_tangent,
    fold=_fold,
)
