"""The derivatives of `sparse_softmax` and its three routes, over rows: x and p (R, n).

Those of a softmax, of which only p is kept:  dx = p * (g - <p, g>).
"""

from __future__ import annotations

from torch import Tensor

from .._kernel_op import KernelOp, kernels, lead
from . import reference


def _forward(x: Tensor, k: int, backend: str) -> tuple[Tensor]:
    return (kernels(__package__, backend).forward(x, k),)


def _forward_like(x: Tensor, k: int, backend: str) -> tuple[Tensor]:
    return (x.new_empty(x.shape),)


def _backward(p: Tensor, g: Tensor, k: int, backend: str) -> tuple[Tensor]:
    return (kernels(__package__, backend).backward(p, g),)


def _backward_like(p: Tensor, g: Tensor, k: int, backend: str) -> tuple[Tensor]:
    return (p.new_empty(p.shape),)


def _formula(p: Tensor, g: Tensor, k: int, backend: str) -> tuple[Tensor]:
    return (reference.backward(p, g),)


def _tangent(p: Tensor, t: Tensor | None, k: int, backend: str) -> tuple[Tensor, ...]:
    return (p.new_zeros(p.shape) if t is None else reference.backward(p, t),)  # its Jacobian is symmetric


def _fold(size: int, dims: tuple[int | None, ...], x: Tensor, k: int, backend: str) -> tuple[Tensor, ...]:
    """``vmap``: more rows."""
    x = lead(x, dims[0], size)
    (p,) = op(x.flatten(0, 1), k, backend)
    return (p.reshape(x.shape),)


op = KernelOp(
    "sparse_softmax",
    1,
    forward=_forward,
    backward=_backward,
    forward_like=_forward_like,
    backward_like=_backward_like,
    keep=lambda x, p: (p,),
    formula=_formula,
    tangent=_tangent,
    fold=_fold,
)
