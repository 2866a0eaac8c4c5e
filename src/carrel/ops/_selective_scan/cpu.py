"""Numba kernels of `selective_scan`: nothing of size (batch, length, channels, state) is ever made.

The channels of one group are cut into blocks of `BLOCK`. The states of a block, (state, BLOCK), stay in the first-level
cache while the kernel goes through time, with the channel as the inner loop: then all that depends on the token and the
channel is a vector, all that depends on the token and the state a scalar, and y needs no sum across a vector.

The forward pass keeps the states at the start of every chunk of tokens. The backward pass walks the chunks from the
last to the first, computes the states of one again into a buffer that the second-level cache holds, and goes back
through it. Gradients of B and C are sums over channels: each block writes its own, so threads do not meet and the sums
do not depend on their number.

Blocks are padded to their full width, so that inner loops have a fixed length; rows that one loop uses lie at fixed
distances in one array, because LLVM only vectorises what it can show, with a few comparisons, not to overlap.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._compile import kernel
from .._memory import array, fresh, over_blocks
from .._vector_math import LOG2E, exp2
from .cpu_block import BLOCK, clear, load_token, place, sigmoid, take_step
from .reference import not_negative, step_below_zero


@kernel
def _forward(x, delta, A, B, C, D, z, h0, bias, y, last, states, wrong, softplus, tokens, i0, i1, c0, c1):
    length, channels = x.shape[1:]
    groups, state = B.shape[2:]
    zero, to_two = x.dtype.type(0), x.dtype.type(LOG2E)
    w = np.zeros(6 * BLOCK, x.dtype)  # step, what it adds, output, slope, x, delta
    fixed = np.zeros(2 * BLOCK, x.dtype)  # bias, D
    gate = np.zeros(2 * BLOCK, x.dtype)  # z, its sigmoid
    rows = np.zeros(state * 2 * BLOCK, x.dtype)  # of each state: A / log 2, h
    gated, keeps = z.size > 0, states.size > 0
    for task in range(i0, i1):
        i, g, _, first, width = place(task, channels, groups)
        end = first + width
        if width < BLOCK:  # what an earlier block left beyond the edge
            clear(w)
            clear(fixed)
            clear(rows)
        for c in range(width):
            fixed[c] = bias[first + c]
            fixed[BLOCK + c] = D[first + c]
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
            load_token(w, x[i, t, first:end], delta[i, t, first:end], width)
            take_step(w, fixed, softplus)
            if not softplus:
                for c in range(width):
                    if w[c] < zero:
                        wrong[1] = 1
            for n in range(state):
                row = rows[n * 2 * BLOCK : (n + 1) * 2 * BLOCK]
                into, from_ = B[i, t, g, n], C[i, t, g, n]
                for c in range(BLOCK):
                    h = exp2(w[c] * row[c]) * row[BLOCK + c] + w[BLOCK + c] * into
                    row[BLOCK + c] = h
                    w[2 * BLOCK + c] += from_ * h
            out = y[i, t, first:end]
            if gated:
                z_row = z[i, t, first:end]
                for c in range(width):
                    gate[c] = z_row[c]
                sigmoid(gate)
                for c in range(width):
                    out[c] = w[2 * BLOCK + c] * gate[c] * gate[BLOCK + c]
            else:
                for c in range(width):
                    out[c] = w[2 * BLOCK + c]
        for n in range(state):
            row = rows[n * 2 * BLOCK : (n + 1) * 2 * BLOCK]
            for c in range(width):
                last[i, first + c, n] = row[BLOCK + c]


@kernel
def _again(per_token, past, rows, fixed, x, delta, B, C, softplus):
    """The states of a chunk once more, from those before it: fills both buffers; rows as in the backward pass."""
    state, width = B.shape[1], x.shape[1]
    for t in range(x.shape[0]):
        w = per_token[t * 6 * BLOCK : (t + 1) * 6 * BLOCK]
        load_token(w, x[t], delta[t], width)
        take_step(w, fixed, softplus)
        for n in range(state):
            row = rows[n * 3 * BLOCK : (n + 1) * 3 * BLOCK]
            at, after = (t * state + n) * 2 * BLOCK, ((t + 1) * state + n) * 2 * BLOCK
            here, there = past[at : at + 2 * BLOCK], past[after : after + 2 * BLOCK]
            into, from_ = B[t, n], C[t, n]
            for c in range(BLOCK):
                a = exp2(w[c] * row[c])
                here[c] = a
                h = a * here[BLOCK + c] + w[BLOCK + c] * into
                there[BLOCK + c] = h
                w[2 * BLOCK + c] += from_ * h


@kernel
def _backward(
    x, delta, A, B, C, D, z, bias, states, gy, g_last,
    dx, ddelta, dA, dB, dC, dD, dz, dh0, dbias, softplus, tokens, i0, i1, c0, c1,
):  # fmt: skip
    length, channels = x.shape[1:]
    groups, state = B.shape[2:]
    one, zero, to_two, from_two = x.dtype.type(1), x.dtype.type(0), x.dtype.type(LOG2E), x.dtype.type(1 / LOG2E)
    per_token = np.zeros(tokens * 6 * BLOCK, x.dtype)  # of each token what the forward pass keeps of the present one
    v = np.zeros(7 * BLOCK, x.dtype)  # gradient of y, step, what it adds, sums of q A and lambda B, gradients to come
    fixed = np.zeros(2 * BLOCK, x.dtype)  # bias, D
    gate = np.zeros(2 * BLOCK, x.dtype)  # z, its sigmoid
    rows = np.zeros(state * 3 * BLOCK, x.dtype)  # of each state: A / log 2, a_{t+1} lambda_{t+1}, dA of this chunk
    whole = np.zeros((state + 2) * BLOCK, np.float64)  # dA, dD, dbias
    # of each token and state: decay, h before; one token more, whose h before is the chunk's last
    past = np.zeros((tokens + 1) * state * 2 * BLOCK, x.dtype)
    d_skip = whole[state * BLOCK : (state + 1) * BLOCK]
    d_bias = whole[(state + 1) * BLOCK : (state + 2) * BLOCK]
    gated = z.size > 0
    for task in range(i0, i1):
        i, g, k, first, width = place(task, channels, groups)
        end = first + width
        clear(whole)
        if width < BLOCK:  # what an earlier block left beyond the edge
            clear(v)
            clear(fixed)
            clear(rows)
            clear(past)
            clear(per_token)
        for c in range(width):
            fixed[c] = bias[first + c]
            fixed[BLOCK + c] = D[first + c]
        for n in range(state):
            row = rows[n * 3 * BLOCK : (n + 1) * 3 * BLOCK]
            for c in range(width):
                row[c] = A[first + c, n] * to_two
                row[BLOCK + c] = g_last[i, first + c, n]
        for start in range((length - 1) // tokens * tokens, -1, -tokens):
            stop = min(start + tokens, length)
            for n in range(state):
                here, kept = past[n * 2 * BLOCK : (n + 1) * 2 * BLOCK], states[i, start // tokens, n, first:end]
                for c in range(width):
                    here[BLOCK + c] = kept[c]
            _again(
                per_token, past, rows, fixed, x[i, start:stop, first:end], delta[i, start:stop, first:end],
                B[i, start:stop, g], C[i, start:stop, g], softplus,
            )  # fmt: skip
            for t in range(stop - 1, start - 1, -1):
                w = per_token[(t - start) * 6 * BLOCK : (t - start + 1) * 6 * BLOCK]
                arrived = gy[i, t, first:end]
                for c in range(width):
                    v[c] = arrived[c]
                if gated:
                    z_row, d_gate = z[i, t, first:end], dz[i, t, first:end]
                    for c in range(width):
                        gate[c] = z_row[c]
                    sigmoid(gate)
                    for c in range(BLOCK):
                        open_ = gate[BLOCK + c]
                        v[5 * BLOCK + c] = v[c] * w[2 * BLOCK + c] * open_ * (one + gate[c] * (one - open_))
                        v[c] *= gate[c] * open_
                    for c in range(width):
                        d_gate[c] = v[5 * BLOCK + c]
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
                for c in range(BLOCK):
                    v[5 * BLOCK + c] = fixed[BLOCK + c] * v[c] + v[BLOCK + c] * v[4 * BLOCK + c]
                    added = w[4 * BLOCK + c] * v[4 * BLOCK + c]
                    v[6 * BLOCK + c] = (v[3 * BLOCK + c] * from_two + added) * w[3 * BLOCK + c]
                for c in range(BLOCK):
                    d_skip[c] += v[c] * w[4 * BLOCK + c]
                    d_bias[c] += v[6 * BLOCK + c]
                d_x, d_delta = dx[i, t, first:end], ddelta[i, t, first:end]
                for c in range(width):
                    d_x[c] = v[5 * BLOCK + c]
                    d_delta[c] = v[6 * BLOCK + c]
            for n in range(state):
                row, sums = rows[n * 3 * BLOCK : (n + 1) * 3 * BLOCK], whole[n * BLOCK : (n + 1) * BLOCK]
                for c in range(BLOCK):
                    sums[c] += row[2 * BLOCK + c]
                    row[2 * BLOCK + c] = zero
        for c in range(width):
            dD[i, first + c] = d_skip[c]
            dbias[i, first + c] = d_bias[c]
            for n in range(state):
                dA[i, first + c, n] = whole[n * BLOCK + c]
                dh0[i, first + c, n] = rows[(n * 3 + 1) * BLOCK + c]


def _blocks(channels: int, groups: int) -> int:
    return -(-(channels // groups) // BLOCK)


def _wide(*tensors: Tensor) -> list[Any]:
    return [array(x.float() if x.dtype in (torch.float16, torch.bfloat16) else x) for x in tensors]


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
    tokens: int,
) -> tuple[Tensor, Tensor]:
    """y like x and the last state like h0; fills ``states``, if not empty, with those before every chunk of tokens."""
    batch, _, channels = x.shape
    groups, state = B.shape[2:]
    wide = h0.dtype
    y, last = fresh(x.shape, wide), fresh(h0.shape, wide)
    if x.numel() == 0:
        return y.to(x.dtype), h0.clone()
    wrong = np.zeros(2, np.int64)
    over_blocks(
        _forward, batch * groups * _blocks(channels, groups), 1, 1, x.numel() * state,
        *_wide(x, delta, A, B, C, D, z, h0, bias), array(y), array(last), array(states), wrong, softplus, tokens,
    )  # fmt: skip
    if wrong[0]:
        raise ValueError(not_negative(A))
    if wrong[1]:
        raise ValueError(step_below_zero(delta, bias))
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
    tokens: int,
) -> tuple[Tensor, ...]:
    """Gradients of x, delta, A, B, C, D, z, h0 and bias."""
    batch, _, channels = x.shape
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
    dD, dbias = (torch.empty((batch, channels), dtype=torch.float64) for _ in range(2))
    over_blocks(
        _backward, batch * groups * blocks, 1, 1, x.numel() * state,
        *_wide(x, delta, A, B, C, D, z, bias), array(states), *_wide(gy, g_last),
        *(array(found) for found in (dx, ddelta, dA, dB, dC, dD, dz, dh0, dbias)), softplus, tokens,
    )  # fmt: skip
    found = (dx, ddelta, dA.sum(0), dB.sum(0), dC.sum(0), dD.sum(0), dz, dh0, dbias.sum(0))
    return tuple(
        gradient.to(like.dtype) for gradient, like in zip(found, (x, delta, A, B, C, D, z, h0, bias), strict=True)
    )
