"""Numba kernels of `selective_scan`: nothing of size (batch, length, channels, state) is ever made.

The channels of one group are cut into blocks of `BLOCK`. The states of a block, (state, BLOCK), stay in the first-level cache while
the kernel goes through time, with the channel as the inner loop: then all that depends on the token and the channel is a vector,
all that depends on the token and the state a scalar, and y needs no sum across a vector.

The forward pass keeps the states at the start of every chunk of tokens. The backward pass walks the chunks from the last to the
first, computes the states of one again into a buffer that the second-level cache holds, and goes back through it. Gradients of B and
C are sums over channels: each block writes its own, so threads do not meet and the sums do not depend on their number.

Blocks are padded to their full width, so that inner loops have a fixed length; rows that one loop uses lie at fixed distances in one
array, because LLVM only vectorises what it can show, with a few comparisons, not to overlap.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from .._kernel_op import array, fresh, over_blocks, wide_dtype
from .vector_math import LOG2E, exp2, log1p_unit

# Products and sums may fuse and reorder; NaN and infinity keep their meaning.
_kernel: Callable[..., Any] = njit(
    nogil=True, cache=True, fastmath={"contract", "reassoc", "nsz"}, error_model="numpy"
)

BLOCK = 64  # channels: eight vectors of float32
_BUFFER = 128 << 10  # bytes of the states of one chunk in the backward pass; as much again for the decays


def chunk(state: int, dtype: torch.dtype) -> int:
    """Tokens between two states that are kept."""
    return max(4, min(64, _BUFFER // (BLOCK * state * wide_dtype(dtype).itemsize)))


@_kernel
def _place(task, channels, groups):
    """Row of the batch, group, number of the block within the group, its first channel and its width."""
    own = channels // groups
    blocks = (own + BLOCK - 1) // BLOCK
    i, rest = task // (groups * blocks), task % (groups * blocks)
    g, k = rest // blocks, rest % blocks
    return i, g, k, g * own + k * BLOCK, min(BLOCK, own - k * BLOCK)


@_kernel
def _step(v, x, bias, softplus, width, x_row, delta_row):
    """The size of the step, what it adds, and the slope of the step in delta, at 0, BLOCK and 3 BLOCK of v; least step found."""
    one, zero, scale = x.dtype.type(1), x.dtype.type(0), x.dtype.type(-LOG2E)
    if softplus:
        for c in range(width):
            s = delta_row[c] + bias[c]
            e = exp2(abs(s) * scale)
            d = max(s, zero) + log1p_unit(e)
            v[c] = d
            v[BLOCK + c] = d * x_row[c]
            v[3 * BLOCK + c] = (one if s >= zero else e) / (one + e)
    else:
        for c in range(width):
            d = delta_row[c] + bias[c]
            v[c] = d
            v[BLOCK + c] = d * x_row[c]
            v[3 * BLOCK + c] = one


@_kernel
def _forward(x, delta, A, B, C, D, z, h0, bias, y, last, states, wrong, softplus, tokens, i0, i1, c0, c1):
    length, channels = x.shape[1:]
    groups, state = B.shape[2:]
    one, zero, to_two = x.dtype.type(1), x.dtype.type(0), x.dtype.type(LOG2E)
    v = np.zeros(4 * BLOCK, x.dtype)  # step, what it adds, output, slope
    rows = np.zeros(state * 2 * BLOCK, x.dtype)  # of each state: A / log 2, h
    gated, keeps = z.size > 0, states.size > 0
    for task in range(i0, i1):
        i, g, _, first, width = _place(task, channels, groups)
        end = first + width
        for n in range(state):
            row = rows[n * 2 * BLOCK : (n + 1) * 2 * BLOCK]
            for c in range(width):
                row[c] = A[first + c, n] * to_two
                row[BLOCK + c] = h0[i, first + c, n]
                if A[first + c, n] >= zero:
                    wrong[0] = 1
        for t in range(length):
            if keeps and t % tokens == 0:
                for n in range(state):
                    row, kept = rows[n * 2 * BLOCK : (n + 1) * 2 * BLOCK], states[i, t // tokens, n, first:end]
                    for c in range(width):
                        kept[c] = row[BLOCK + c]
            x_row, out = x[i, t, first:end], y[i, t, first:end]
            _step(v, x, bias[first:end], softplus, width, x_row, delta[i, t, first:end])
            if not softplus:
                least = zero
                for c in range(width):
                    least = min(least, v[c])
                if least < zero:
                    wrong[1] = 1
            for c in range(width):
                v[2 * BLOCK + c] = D[first + c] * x_row[c]
            for n in range(state):
                row = rows[n * 2 * BLOCK : (n + 1) * 2 * BLOCK]
                into, from_ = B[i, t, g, n], C[i, t, g, n]
                for c in range(BLOCK):
                    h = exp2(v[c] * row[c]) * row[BLOCK + c] + v[BLOCK + c] * into
                    row[BLOCK + c] = h
                    v[2 * BLOCK + c] += from_ * h
            if gated:
                gate = z[i, t, first:end]
                for c in range(width):
                    e = exp2(abs(gate[c]) * -to_two)
                    out[c] = v[2 * BLOCK + c] * gate[c] * (one if gate[c] >= zero else e) / (one + e)
            else:
                for c in range(width):
                    out[c] = v[2 * BLOCK + c]
        for n in range(state):
            row = rows[n * 2 * BLOCK : (n + 1) * 2 * BLOCK]
            for c in range(width):
                last[i, first + c, n] = row[BLOCK + c]


@_kernel
def _backward(
    x, delta, A, B, C, D, z, bias, states, gy, g_last, dx, ddelta, dA, dB, dC, dD, dz, dh0, dbias, softplus, tokens, i0, i1, c0, c1
):  # fmt: skip
    length, channels = x.shape[1:]
    groups, state = B.shape[2:]
    one, zero, to_two, from_two = x.dtype.type(1), x.dtype.type(0), x.dtype.type(LOG2E), x.dtype.type(1 / LOG2E)
    per_token = np.zeros(tokens * 4 * BLOCK, x.dtype)  # of each token: step, what it adds, output, slope
    v = np.zeros(5 * BLOCK, x.dtype)  # gradient of y, step, what it adds, sum over states of q A, of lambda B
    rows = np.zeros(state * 3 * BLOCK, x.dtype)  # of each state: A / log 2, a_{t+1} lambda_{t+1}, gradient of A in this chunk
    whole = np.zeros(state * BLOCK, np.float64)  # gradient of A
    # of each token and state: decay, h before; one token more, whose h before is the chunk's last
    past = np.zeros((tokens + 1) * state * 2 * BLOCK, x.dtype)
    gated = z.size > 0
    for task in range(i0, i1):
        i, g, k, first, width = _place(task, channels, groups)
        end = first + width
        whole[:] = 0
        for n in range(state):
            row = rows[n * 3 * BLOCK : (n + 1) * 3 * BLOCK]
            row[:] = 0
            for c in range(width):
                row[c] = A[first + c, n] * to_two
                row[BLOCK + c] = g_last[i, first + c, n]
        for start in range((length - 1) // tokens * tokens, -1, -tokens):
            stop = min(start + tokens, length)
            for n in range(state):
                here, kept = past[n * 2 * BLOCK : (n + 1) * 2 * BLOCK], states[i, start // tokens, n, first:end]
                for c in range(width):
                    here[BLOCK + c] = kept[c]
            for t in range(start, stop):
                w = per_token[(t - start) * 4 * BLOCK : (t - start + 1) * 4 * BLOCK]
                x_row = x[i, t, first:end]
                _step(w, x, bias[first:end], softplus, width, x_row, delta[i, t, first:end])
                for c in range(width):
                    w[2 * BLOCK + c] = D[first + c] * x_row[c]
                for n in range(state):
                    row = rows[n * 3 * BLOCK : (n + 1) * 3 * BLOCK]
                    at = ((t - start) * state + n) * 2 * BLOCK
                    here = past[at : at + (state + 1) * 2 * BLOCK]
                    after = past[at + state * 2 * BLOCK : at + (state + 1) * 2 * BLOCK]
                    into, from_ = B[i, t, g, n], C[i, t, g, n]
                    for c in range(BLOCK):
                        a = exp2(w[c] * row[c])
                        here[c] = a
                        h = a * here[BLOCK + c] + w[BLOCK + c] * into
                        after[BLOCK + c] = h
                        w[2 * BLOCK + c] += from_ * h
            for t in range(stop - 1, start - 1, -1):
                w = per_token[(t - start) * 4 * BLOCK : (t - start + 1) * 4 * BLOCK]
                arrived, x_row = gy[i, t, first:end], x[i, t, first:end]
                if gated:
                    gate, d_gate = z[i, t, first:end], dz[i, t, first:end]
                    for c in range(width):
                        e = exp2(abs(gate[c]) * -to_two)
                        open_ = (one if gate[c] >= zero else e) / (one + e)
                        v[c] = arrived[c] * gate[c] * open_
                        d_gate[c] = arrived[c] * w[2 * BLOCK + c] * open_ * (one + gate[c] * (one - open_))
                else:
                    for c in range(width):
                        v[c] = arrived[c]
                for c in range(BLOCK):
                    v[BLOCK + c] = w[c]
                    v[2 * BLOCK + c] = w[BLOCK + c]
                    v[3 * BLOCK + c] = zero
                    v[4 * BLOCK + c] = zero
                for n in range(state):
                    row = rows[n * 3 * BLOCK : (n + 1) * 3 * BLOCK]
                    at = ((t - start) * state + n) * 2 * BLOCK
                    here = past[at : at + 2 * BLOCK]
                    after = past[at + state * 2 * BLOCK : at + (state + 1) * 2 * BLOCK]
                    into, from_ = B[i, t, g, n], C[i, t, g, n]
                    d_into, d_from = zero, zero
                    for c in range(BLOCK):
                        lam = v[c] * from_ + row[BLOCK + c]
                        d_from += v[c] * after[BLOCK + c]
                        d_into += lam * v[2 * BLOCK + c]
                        v[4 * BLOCK + c] += lam * into
                        lam *= here[c]
                        row[BLOCK + c] = lam
                        q = lam * here[BLOCK + c]
                        v[3 * BLOCK + c] += q * row[c]
                        row[2 * BLOCK + c] += q * v[BLOCK + c]
                    dB[k, i, t, g, n] = d_into
                    dC[k, i, t, g, n] = d_from
                d_x, d_delta = dx[i, t, first:end], ddelta[i, t, first:end]
                for c in range(width):
                    d_x[c] = D[first + c] * v[c] + v[BLOCK + c] * v[4 * BLOCK + c]
                    found = (v[3 * BLOCK + c] * from_two + x_row[c] * v[4 * BLOCK + c]) * w[3 * BLOCK + c]
                    d_delta[c] = found
                    dbias[i, first + c] += found
                    dD[i, first + c] += v[c] * x_row[c]
            for n in range(state):
                row, sums = rows[n * 3 * BLOCK : (n + 1) * 3 * BLOCK], whole[n * BLOCK : (n + 1) * BLOCK]
                for c in range(width):
                    sums[c] += row[2 * BLOCK + c]
                    row[2 * BLOCK + c] = zero
        for n in range(state):
            row, sums = rows[n * 3 * BLOCK : (n + 1) * 3 * BLOCK], whole[n * BLOCK : (n + 1) * BLOCK]
            for c in range(width):
                dA[i, first + c, n] = sums[c]
                dh0[i, first + c, n] = row[BLOCK + c]


def _blocks(channels: int, groups: int) -> int:
    return -(-(channels // groups) // BLOCK)


def _wide(*tensors: Tensor) -> list[Any]:
    return [array(x.to(wide_dtype(x.dtype))) for x in tensors]


def forward(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    h0: Tensor,
    bias: Tensor,
    states: Tensor,
    softplus: bool,
) -> tuple[Tensor, Tensor]:
    """y like x and the last state like h0; fills ``states``, if it is not empty, with those before every chunk of tokens."""
    batch, length, channels = x.shape
    groups, state = B.shape[2:]
    wide = h0.dtype
    y, last = fresh(x.shape, wide), fresh(h0.shape, wide)
    if x.numel() == 0:
        return y.to(x.dtype), h0.clone()
    wrong = np.zeros(2, np.int64)
    over_blocks(
        _forward, batch * groups * _blocks(channels, groups), 1, 1, x.numel() * state,
        *_wide(x, delta, A, B, C, D, z, h0, bias), array(y), array(last), array(states), wrong, softplus, chunk(state, wide),
    )  # fmt: skip
    if wrong[0]:
        raise ValueError(f"selective_scan: A must be negative everywhere, its largest entry is {A.max().item():g}")
    if wrong[1]:
        raise ValueError(
            "selective_scan: with delta_softplus=False every step delta + delta_bias must be at least 0, "
            f"the least is {(delta + bias).min().item():g}"
        )
    return y.to(x.dtype), last


def backward(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    h0: Tensor,
    bias: Tensor,
    states: Tensor,
    gy: Tensor,
    g_last: Tensor,
    softplus: bool,
) -> tuple[Tensor, ...]:
    """Gradients of x, delta, A, B, C, D, z, h0 and bias."""
    batch, length, channels = x.shape
    groups, state = B.shape[2:]
    wide = h0.dtype
    if x.numel() == 0:
        zeros = [torch.zeros_like(tensor) for tensor in (x, delta, A, B, C, D, z)]
        return (*zeros, g_last.clone(), torch.zeros_like(bias))
    blocks = _blocks(channels, groups)
    dx, ddelta = fresh(x.shape, wide), fresh(x.shape, wide)
    dz = fresh(z.shape, wide)
    dA, dh0 = torch.empty((batch, channels, state), dtype=torch.float64), fresh(h0.shape, wide)
    dB, dC = (fresh((blocks, *B.shape), wide) for _ in range(2))
    dD, dbias = (torch.zeros((batch, channels), dtype=torch.float64) for _ in range(2))
    over_blocks(
        _backward, batch * groups * blocks, 1, 1, x.numel() * state,
        *_wide(x, delta, A, B, C, D, z, bias), array(states), *_wide(gy, g_last),
        *(array(found) for found in (dx, ddelta, dA, dB, dC, dD, dz, dh0, dbias)), softplus, chunk(state, wide),
    )  # fmt: skip
    found = (dx, ddelta, dA.sum(0), dB.sum(0), dC.sum(0), dD.sum(0), dz, dh0, dbias.sum(0))
    return tuple(gradient.to(like.dtype) for gradient, like in zip(found, (x, delta, A, B, C, D, z, h0, bias), strict=True))
