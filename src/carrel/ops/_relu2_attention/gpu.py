"""Triton kernels of `relu2_attention`: two, each under two names.

x and y are queries and keys, or keys and queries ("turned"). One kernel adds up relu(x y')² w over the y, which is o of
the values, or dv of the gradient that arrives; the other 2 relu(x y') (a b') y, which is dq of the gradient and the
values, or dk of the values and the gradient. Scores are computed anew in each, and nothing of all pairs is kept.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._memory import launch_on

_ROWS, _COLUMNS, _VALUES, _WARPS = 64, 64, 128, 4
_FEW = 16  # rows and columns in float64, whose products are sums in registers
_TYPES = {
    torch.float64: tl.float64,
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}


@triton.jit
def _product(a, b, DOT: tl.constexpr):
    if tl.float64 == DOT:
        return tl.sum(a[:, :, None] * b[None, :, :], 1)
    return tl.dot(a.to(DOT), b.to(DOT), input_precision="ieee")


@triton.jit
def _tile(x, row, at, count, n, size, DOT: tl.constexpr):
    """Entries ``n`` of the vectors at places ``at`` of a row; 0 beyond their count and size."""
    where = (row * count + at[:, None]) * size + n[None, :]
    return tl.load(x + where, mask=(at[:, None] < count) & (n[None, :] < size), other=0.0).to(DOT)


@triton.jit
def _seen(i, j, past, CAUSAL: tl.constexpr, TURNED: tl.constexpr):
    """Whether x at i and y at j, a query and a key or a key and a query, see each other."""
    if CAUSAL and TURNED:
        return i[:, None] <= j[None, :] + past
    if CAUSAL:
        return j[None, :] <= i[:, None] + past
    return (i[:, None] >= 0) & (j[None, :] >= 0)


@triton.jit
def _range(first, past, ys, CAUSAL: tl.constexpr, TURNED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """From where to where the y lie that a block of x sees."""
    start, end = 0, ys
    if CAUSAL and TURNED:
        start = tl.maximum(first - past, 0) // COLUMNS * COLUMNS
    elif CAUSAL:
        end = tl.minimum(first + ROWS + past, ys)
    return start, end


@triton.jit
def _gather(
    x, y, w, out, xs, ys, past, size, values,
    CAUSAL: tl.constexpr, TURNED: tl.constexpr, WIDE: tl.constexpr, DOT: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    row, first = tl.program_id(0).to(tl.int64), tl.program_id(1) * ROWS
    i, n, p = first + tl.arange(0, ROWS), tl.arange(0, SIZE), tl.program_id(2) * WIDTH + tl.arange(0, WIDTH)
    own = _tile(x, row, i, xs, n, size, DOT)
    total = tl.zeros((ROWS, WIDTH), WIDE)
    start, end = _range(first, past, ys, CAUSAL, TURNED, ROWS, COLUMNS)
    for begin in range(start, end, COLUMNS):
        j = begin + tl.arange(0, COLUMNS)
        scores = _product(own, tl.trans(_tile(y, row, j, ys, n, size, DOT)), DOT)
        weight = tl.where(_seen(i, j, past, CAUSAL, TURNED), tl.maximum(scores, 0.0), 0.0)
        total += _product(weight * weight, _tile(w, row, j, ys, p, values, DOT), DOT)
    at = (row * xs + i[:, None]) * values + p[None, :]
    tl.store(out + at, total, mask=(i[:, None] < xs) & (p[None, :] < values))


@triton.jit
def _slope(
    x, y, a, b, out, xs, ys, past, size, values,
    CAUSAL: tl.constexpr, TURNED: tl.constexpr, WIDE: tl.constexpr, DOT: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    row, first = tl.program_id(0).to(tl.int64), tl.program_id(1) * ROWS
    i, n = first + tl.arange(0, ROWS), tl.arange(0, SIZE)
    own = _tile(x, row, i, xs, n, size, DOT)
    total = tl.zeros((ROWS, SIZE), WIDE)
    start, end = _range(first, past, ys, CAUSAL, TURNED, ROWS, COLUMNS)
    for begin in range(start, end, COLUMNS):
        j = begin + tl.arange(0, COLUMNS)
        other = _tile(y, row, j, ys, n, size, DOT)
        scores = _product(own, tl.trans(other), DOT)
        weight = tl.where(_seen(i, j, past, CAUSAL, TURNED), tl.maximum(scores, 0.0), 0.0)
        moved = tl.zeros((ROWS, COLUMNS), WIDE)
        for part in range(0, values, WIDTH):
            p = part + tl.arange(0, WIDTH)
            theirs = tl.trans(_tile(b, row, j, ys, p, values, DOT))
            moved += _product(_tile(a, row, i, xs, p, values, DOT), theirs, DOT)
        total += _product(2.0 * weight * moved, other, DOT)
    at = (row * xs + i[:, None]) * size + n[None, :]
    tl.store(out + at, total, mask=(i[:, None] < xs) & (n[None, :] < size))


def _run(kernel: Any, vectors: list[Tensor], like: Tensor, causal: bool, turned: bool, narrow: torch.dtype) -> Tensor:
    """vectors: x, y and what else the kernel takes, (R, L, n) each; the result has the last axis of ``like``."""
    x, y, partner = vectors[0], vectors[1], vectors[2]
    (rows, xs, size), ys, values = x.shape, y.shape[1], partner.shape[2]
    wide = torch.float64 if narrow == torch.float64 else torch.float32
    out = torch.empty((rows, xs, like.shape[-1]), dtype=wide, device=x.device)
    double = wide == torch.float64
    dot = narrow if x.is_cuda else wide  # the interpreter multiplies the bits of bfloat16
    tall, broad = (_FEW, _FEW) if double else (_ROWS, _COLUMNS)
    tall, broad = (min(most, max(16, triton.next_power_of_2(n))) for most, n in ((tall, xs), (broad, ys)))
    width = min(_FEW if double else _VALUES, max(16, triton.next_power_of_2(values)))
    grid = (rows, triton.cdiv(xs, tall), *((triton.cdiv(values, width),) if kernel is _gather else ()))
    with launch_on(x):
        kernel[grid](
            *vectors, out, xs, ys, xs - ys if turned else ys - xs, size, values,
            CAUSAL=causal, TURNED=turned, WIDE=_TYPES[wide], DOT=_TYPES[dot], ROWS=tall, COLUMNS=broad,
            SIZE=max(16, triton.next_power_of_2(size)), WIDTH=width, num_warps=_WARPS,
        )  # fmt: skip
    return out


def _rows(*tensors: Tensor) -> list[Tensor]:
    """(B, H, ...) as (B H, ...), contiguous."""
    return [x.detach().resolve_neg().contiguous().flatten(0, 1) for x in tensors]


def forward(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """o (B, H, L, P) in the type of v."""
    shape = (*q.shape[:3], v.shape[3])
    if q.numel() == 0 or k.numel() == 0:
        return v.new_zeros(shape)
    return _run(_gather, _rows(q, k, v), v, causal, False, v.dtype).view(shape).to(v.dtype)


def backward(q: Tensor, k: Tensor, v: Tensor, g: Tensor, causal: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, in their types."""
    if q.numel() == 0 or k.numel() == 0:
        return torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    given, narrow = (q, k, v), v.dtype
    q, k, v, g = _rows(q, k, v, g)
    dq = _run(_slope, [q, k, g, v], q, causal, False, narrow)
    dk = _run(_slope, [k, q, v, g], k, causal, True, narrow)
    dv = _run(_gather, [k, q, g], v, causal, True, narrow)
    found = zip((dq, dk, dv), given, strict=True)
    return tuple(x.view(like.shape).to(like.dtype) for x, like in found)  # type: ignore[return-value]
