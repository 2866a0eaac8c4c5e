"""The derivatives of `linear_scan` and its three routes, over tensors in the kernels' shapes.

a is (B or 1, L or 1, G) with G dividing C, b and h are (B, L, C), h0 and the last state (B, C) in the accumulation
type. With g the gradient that arrives for h, and that of the last state added to g_L,

    lambda_t = g_t + conj(a_{t+1}) lambda_{t+1},
    db_t = lambda_t,  da_t = lambda_t conj(h_{t-1}),  dh0 = conj(a_1) lambda_1:

the same scan in the other direction, so every further derivative is again made of scans.
"""

import torch
from torch import Tensor

from .._kernel_op import KernelOp, kernels, lead


def _forward(a: Tensor, b: Tensor, h0: Tensor, reverse: bool, backend: str) -> tuple[Tensor, Tensor]:
    return kernels(__package__, backend).forward(a, b, h0, reverse)


def _forward_like(a: Tensor, b: Tensor, h0: Tensor, reverse: bool, backend: str) -> tuple[Tensor, Tensor]:
    return b.new_empty(b.shape), h0.new_empty(h0.shape)


def _backward(
    a: Tensor, h0: Tensor, h: Tensor, g: Tensor, g_last: Tensor, reverse: bool, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    return kernels(__package__, backend).backward(a, h0, h, g, g_last, reverse)


def _backward_like(
    a: Tensor, h0: Tensor, h: Tensor, g: Tensor, g_last: Tensor, reverse: bool, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    return a.new_empty(a.shape), h.new_empty(h.shape), h0.new_empty(h0.shape)


def before(h: Tensor, h0: Tensor, reverse: bool) -> Tensor:
    """h_{t-1} at every t."""
    start = h0.to(h.dtype).unsqueeze(1)
    return torch.cat([h[:, 1:], start], 1) if reverse else torch.cat([start, h[:, :-1]], 1)


def turned(factor: Tensor, g: Tensor, g_last: Tensor, reverse: bool) -> tuple[Tensor, Tensor]:
    """The factors and additions of the scan that makes lambda: factors one token on, the last gradient added."""
    length = g.shape[1]
    following = factor
    if factor.shape[1] == length:  # what stands at the end meets the state zero
        following = torch.cat([factor[:, :1], factor[:, :-1]] if reverse else [factor[:, 1:], factor[:, -1:]], 1)
    at_end = (g.select(1, 0 if reverse else length - 1) + g_last.to(g.dtype)).unsqueeze(1)
    return following, torch.cat([at_end, g[:, 1:]] if reverse else [g[:, :-1], at_end], 1)


def _runs(h: Tensor, a: Tensor) -> Tensor:
    """The channels as (G, run): each run shares one factor."""
    return h.reshape(*h.shape[:-1], a.shape[-1], h.shape[-1] // a.shape[-1])


def _times(a: Tensor, h: Tensor) -> Tensor:
    """The product, with each factor of ``a`` serving its run of channels."""
    return (a.unsqueeze(-1) * _runs(h, a)).flatten(-2)


def _formula(
    a: Tensor, h0: Tensor, h: Tensor, g: Tensor, g_last: Tensor, reverse: bool, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    length = h.shape[1]
    if h.numel() == 0:
        return torch.zeros_like(a), torch.zeros_like(h), g_last.clone()
    factor, first = a.conj(), length - 1 if reverse else 0
    following, g = turned(factor, g, g_last, reverse)
    lam, _ = op(following, g, torch.zeros_like(h0), not reverse, backend)
    da = _runs(lam * before(h, h0, reverse).conj(), a).sum(-1)
    if a.shape[1] != length:
        da = da.sum(1, keepdim=True)
    if a.shape[0] != h.shape[0]:
        da = da.sum(0, keepdim=True)
    dh0 = _times(factor[:, first if a.shape[1] == length else 0], lam[:, first].to(h0.dtype))
    return da, lam, dh0


def _tangent(
    a: Tensor,
    h0: Tensor,
    h: Tensor,
    ta: Tensor | None,
    tb: Tensor | None,
    th0: Tensor | None,
    reverse: bool,
    backend: str,
) -> tuple[Tensor, ...]:
    added = torch.zeros_like(h) if tb is None else tb
    if ta is not None and h.numel():
        added = added + _times(ta, before(h, h0, reverse))
    return op(a, added, torch.zeros_like(h0) if th0 is None else th0, reverse, backend)


def _fold(
    size: int, dims: tuple[int | None, ...], a: Tensor, b: Tensor, h0: Tensor, reverse: bool, backend: str
) -> tuple[Tensor, ...]:
    """``vmap``: more rows of the batch, unless one ``a`` serves them all."""
    b, h0 = lead(b, dims[1], size), lead(h0, dims[2], size)
    batch = b.shape[1]
    if dims[0] is not None or a.shape[0] != 1:
        a = lead(a, dims[0], size)
        a = a.expand(size, batch, *a.shape[2:]).flatten(0, 1)
    outputs = op(a, b.flatten(0, 1), h0.flatten(0, 1), reverse, backend)
    return tuple(x.reshape(size, batch, *x.shape[1:]) for x in outputs)


op = KernelOp(
    "linear_scan",
    3,
    forward=_forward,
    backward=_backward,
    forward_like=_forward_like,
    backward_like=_backward_like,
    keep=lambda a, b, h0, h, last: (a, h0, h),
    formula=_formula,
    tangent=_tangent,
    fold=_fold,
)
