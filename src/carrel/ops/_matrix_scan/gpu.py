"""Triton kernels of `matrix_scan`: one program per row of the batch and column of the state, token by token.

The matrix of a token sits in registers, and nothing but the state is carried, so loads of later tokens need not wait
for earlier sums. The gradient of A is a product of matrices over all tokens at once and is left to torch.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._memory import launch_on, repeated_as_one, triton_memory

_WARPS, _STAGES = 4, 4  # of a program of more than 16 states; tokens whose loads are in flight


@triton.jit
def _part(x, offsets, mask, PART: tl.constexpr, COMPLEX: tl.constexpr, WIDE: tl.constexpr):
    """The real (0) or imaginary (1) part, in the accumulation type; 0 outside."""
    if COMPLEX:
        offsets = offsets * 2 + PART
    return tl.load(x + offsets, mask=mask, other=0.0).to(WIDE)


@triton.jit
def _put(x, offsets, value, mask, PART: tl.constexpr, COMPLEX: tl.constexpr):
    if COMPLEX:
        offsets = offsets * 2 + PART
    tl.store(x + offsets, value.to(x.dtype.element_ty), mask=mask)


@triton.jit
def _walk(
    A, b, start, out, end,
    length, n, m, A_batch, A_time, b_batch, b_time,
    DOWN: tl.constexpr, BACKWARD: tl.constexpr, COMPLEX: tl.constexpr, WIDE: tl.constexpr, N: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """Forward: out = carry = A carry + b. Backward, b the gradient that arrives: out = b + carry; carry = A^H out."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1)
    r, c = tl.arange(0, N), tl.arange(0, N)
    # y = X s with X[r, c]: forward X is A; backward X is A^H, read by swapping the places of r and c
    at = c[None, :] * n + r[:, None] if BACKWARD else r[:, None] * n + c[None, :]
    square = (r < n)[:, None] & (c < n)[None, :]
    vector = r * m + column
    s = _part(start, row * n * m + vector, r < n, 0, COMPLEX, WIDE)
    s_i = tl.zeros([N], WIDE)
    if COMPLEX:
        s_i = _part(start, row * n * m + vector, r < n, 1, COMPLEX, WIDE)
    for step in tl.range(0, length, num_stages=STAGES):
        token = step
        if DOWN:
            token = length - 1 - step
        token = tl.cast(token, tl.int64)
        place = (row * length + token) * n * m + vector
        X = _part(A, row * A_batch + token * A_time + at, square, 0, COMPLEX, WIDE)
        added = _part(b, row * b_batch + token * b_time + vector, r < n, 0, COMPLEX, WIDE)
        if COMPLEX:
            X_i = _part(A, row * A_batch + token * A_time + at, square, 1, COMPLEX, WIDE)
            if BACKWARD:
                X_i = -X_i
            added_i = _part(b, row * b_batch + token * b_time + vector, r < n, 1, COMPLEX, WIDE)
        if BACKWARD:
            s = s + added
            _put(out, place, s, r < n, 0, COMPLEX)
            if COMPLEX:
                s_i = s_i + added_i
                _put(out, place, s_i, r < n, 1, COMPLEX)
        if COMPLEX:
            y = tl.sum(X * s[None, :] - X_i * s_i[None, :], 1)
            y_i = tl.sum(X * s_i[None, :] + X_i * s[None, :], 1)
            if not BACKWARD:
                y += added
                y_i += added_i
                _put(out, place, y_i, r < n, 1, COMPLEX)
            s_i = y_i
        else:
            y = tl.sum(X * s[None, :], 1)
            if not BACKWARD:
                y += added
        if not BACKWARD:
            _put(out, place, y, r < n, 0, COMPLEX)
        s = y
    _put(end, row * n * m + vector, s, r < n, 0, COMPLEX)
    if COMPLEX:
        _put(end, row * n * m + vector, s_i, r < n, 1, COMPLEX)


def _run(A: Tensor, b: Tensor, start: Tensor, down: bool, backward: bool) -> tuple[Tensor, Tensor]:
    batch, length, n, m = b.shape
    b = repeated_as_one(b)
    strides = (*_strides(A), *_strides(b))
    out = torch.empty((batch, length, n, m), dtype=b.dtype, device=b.device)
    end = torch.empty((batch, n, m), dtype=start.dtype, device=b.device)
    wide = tl.float64 if start.dtype in (torch.float64, torch.complex128) else tl.float32
    arrays = [triton_memory(x) for x in (A, b, start, out, end)]
    with launch_on(b):
        _walk[(batch, m)](
            *arrays, length, n, m, *strides,
            DOWN=down, BACKWARD=backward, COMPLEX=b.is_complex(), WIDE=wide, N=triton.next_power_of_2(n),
            STAGES=_STAGES, num_warps=1 if n <= 16 else _WARPS,
        )  # fmt: skip
    return out, end


def _strides(x: Tensor) -> tuple[int, int]:
    """Steps in memory from one row of the batch and from one token to the next; 0 where the tensor repeats itself."""
    batch, tokens, rows, columns = x.shape
    return (tokens * rows * columns if batch > 1 else 0, rows * columns if tokens > 1 else 0)


def forward(A: Tensor, b: Tensor, h0: Tensor, reverse: bool) -> tuple[Tensor, Tensor]:
    """h like b and the last state like h0, for A (B or 1, L or 1, N, N), b (B, L, N, M), h0 (B, N, M)."""
    if b.numel() == 0:
        return torch.empty_like(b, memory_format=torch.contiguous_format), h0.clone()
    return _run(A, b, h0, reverse, False)


def backward(
    A: Tensor, h0: Tensor, h: Tensor, g: Tensor, g_last: Tensor, reverse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of A, b and h0, from the states h and what arrives for h (g) and for the last state."""
    if h.numel() == 0:
        return torch.zeros_like(A), torch.empty_like(h, memory_format=torch.contiguous_format), g_last.clone()
    db, dh0 = _run(A, g, g_last, not reverse, True)
    start = h0.to(h.dtype).unsqueeze(1)
    before = torch.cat([h[:, 1:], start], 1) if reverse else torch.cat([start, h[:, :-1]], 1)
    wide = (db.to(h0.dtype), before.mH.to(h0.dtype))
    if A.shape[1] != h.shape[1]:  # the same matrix for every token: one product over time as well
        dA = (wide[0].transpose(1, 2).flatten(2) @ wide[1].transpose(2, 3).transpose(1, 2).flatten(2).mT).unsqueeze(1)
    else:
        dA = wide[0] @ wide[1]
    if A.shape[0] != h.shape[0]:
        dA = dA.sum(0, keepdim=True)
    return dA.to(A.dtype), db, dh0
