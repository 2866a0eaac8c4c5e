"""The derivatives of the two Vandermonde products and their three routes.

`evaluate` takes v (B, H, N) and rates a (H, N) to k_l = Re sum_n v_n exp(a_n l); `sums` takes u (B, H, L) to s_n =
sum_l u_l exp(a_n l). Each is the other's adjoint but for a conjugate, and a derivative by a only brings down a factor
l, so all derivatives are made of the two:

    evaluate: dv = conj(sums(g)),             da = conj(v sums(l g))
    sums:     du = evaluate(conj(g)),         da = g conj(sums(l u))
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._kernel_op import KernelOp, kernels, lead


def _ramp(x: Tensor) -> Tensor:
    return x * torch.arange(x.shape[-1], dtype=x.dtype, device=x.device)


# ------------------------------------------------------------------------------------------- from modes to steps


def _forward(v: Tensor, a: Tensor, length: int, backend: str) -> tuple[Tensor]:
    return (kernels(__package__, backend).evaluate(v, a, length),)


def _forward_like(v: Tensor, a: Tensor, length: int, backend: str) -> tuple[Tensor]:
    return (v.new_empty((*v.shape[:2], length), dtype=v.dtype.to_real()),)


def _backward(v: Tensor, a: Tensor, g: Tensor, length: int, backend: str) -> tuple[Tensor, Tensor]:
    s, s1 = kernels(__package__, backend).moments(g, a, True)
    return s.conj_physical(), (v * s1).sum(0).conj_physical().to(a.dtype)


def _backward_like(v: Tensor, a: Tensor, g: Tensor, length: int, backend: str) -> tuple[Tensor, Tensor]:
    return torch.empty_like(v), torch.empty_like(a)


def _formula(v: Tensor, a: Tensor, g: Tensor, length: int, backend: str) -> tuple[Tensor, Tensor]:
    (s,), (s1,) = sums(g, a, backend), sums(_ramp(g), a, backend)
    return s.conj(), (v * s1).sum(0).conj().to(a.dtype)


def _tangent(v: Tensor, a: Tensor, tv: Tensor | None, ta: Tensor | None, length: int, backend: str) -> tuple[Tensor]:
    found = torch.zeros((*v.shape[:2], length), dtype=v.dtype.to_real(), device=v.device)
    if tv is not None:
        found = found + evaluate(tv, a, length, backend)[0]
    if ta is not None:
        found = found + _ramp(evaluate((v * ta).to(v.dtype), a, length, backend)[0])
    return (found,)


def _fold(size: int, dims: tuple[int | None, ...], v: Tensor, a: Tensor, length: int, backend: str) -> tuple[Tensor]:
    """``vmap``: more rows of the batch where the rates are shared, else more channels."""
    v = lead(v, dims[0], size)
    if dims[1] is None:
        (k,) = evaluate(v.flatten(0, 1), a, length, backend)
        return (k.view(size, -1, *k.shape[1:]),)
    a = lead(a, dims[1], size)
    (k,) = evaluate(v.transpose(0, 1).flatten(1, 2), a.flatten(0, 1), length, backend)
    return (k.view(len(k), size, -1, length).transpose(0, 1),)


evaluate = KernelOp(
    "vandermonde",
    2,
    forward=_forward,
    backward=_backward,
    forward_like=_forward_like,
    backward_like=_backward_like,
    keep=lambda v, a, k: (v, a),
    formula=_formula,
    tangent=_tangent,
    fold=_fold,
)


# ------------------------------------------------------------------------------------------- from steps to modes


def _sums(u: Tensor, a: Tensor, backend: str) -> tuple[Tensor]:
    return (kernels(__package__, backend).moments(u, a, False)[0],)


def _sums_like(u: Tensor, a: Tensor, backend: str) -> tuple[Tensor]:
    return (u.new_empty((*u.shape[:2], a.shape[1]), dtype=u.dtype.to_complex()),)


def _sums_backward(u: Tensor, a: Tensor, g: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    found = kernels(__package__, backend)
    du = found.evaluate(g.conj_physical(), a, u.shape[-1])
    _, s1 = found.moments(u, a, True)
    return du, (g * s1.conj()).sum(0).to(a.dtype)


def _sums_backward_like(u: Tensor, a: Tensor, g: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    return torch.empty_like(u), torch.empty_like(a)


def _sums_formula(u: Tensor, a: Tensor, g: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    (du,), (s1,) = evaluate(g.conj(), a, u.shape[-1], backend), sums(_ramp(u), a, backend)
    return du, (g * s1.conj()).sum(0).to(a.dtype)


def _sums_tangent(u: Tensor, a: Tensor, tu: Tensor | None, ta: Tensor | None, backend: str) -> tuple[Tensor]:
    found = torch.zeros((*u.shape[:2], a.shape[1]), dtype=u.dtype.to_complex(), device=u.device)
    if tu is not None:
        found = found + sums(tu, a, backend)[0]
    if ta is not None:
        found = found + (ta * sums(_ramp(u), a, backend)[0]).to(found.dtype)
    return (found,)


def _sums_fold(size: int, dims: tuple[int | None, ...], u: Tensor, a: Tensor, backend: str) -> tuple[Tensor]:
    u = lead(u, dims[0], size)
    if dims[1] is None:
        (s,) = sums(u.flatten(0, 1), a, backend)
        return (s.view(size, -1, *s.shape[1:]),)
    a = lead(a, dims[1], size)
    (s,) = sums(u.transpose(0, 1).flatten(1, 2), a.flatten(0, 1), backend)
    return (s.view(len(s), size, -1, s.shape[2]).transpose(0, 1),)


sums = KernelOp(
    "power_sums",
    2,
    forward=_sums,
    backward=_sums_backward,
    forward_like=_sums_like,
    backward_like=_sums_backward_like,
    keep=lambda u, a, s: (u, a),
    formula=_sums_formula,
    tangent=_sums_tangent,
    fold=_sums_fold,
)
