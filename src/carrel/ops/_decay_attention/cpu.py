"""Numba kernels of `decay_attention`: the recurrence itself, four tokens per walk over the memory.

One S (N, P) stays in the first-level cache. For four tokens with decays a_0 .. a_3, products of at most four of them
say all: what each token sees of S, what S keeps, and what the four see of each other. So a row of S is read once,
answers four queries, takes up four values and is written back: 2 N P multiplications and additions per token, no
exponential of a sum, no division, and a decay per channel costs what one per head does.

The backward pass walks twice: up in time for dq = S g, and down for the gradient G of S, which gives dk = G v and
dv = G' k. For the decays, with X_t = sum_p S_t G_t at the border after token t,

    dlog_decay_t = a_t sum_p S_{t-1} G_t = X_t + q_t dq_t - k_t dk_t = X_{t-1}

(exclusive: q dq joins X_{t-1} only). Such a running difference gathers rounding errors, so X is computed afresh from
S and G at every border of a chunk, and is 0 where the decay is.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._compile import kernel
from .._memory import array, fresh, over_blocks
from .cpu_among_four import carry_k, carry_q, finish_decays, finish_dk, finish_dq, meet, over_channels, put_decays
from .cpu_tokens import (
    AT_A,
    AT_DOT,
    AT_DQ,
    AT_G,
    AT_K,
    AT_KA,
    AT_O,
    AT_Q,
    AT_QA,
    AT_V,
    BLOCK,
    LANES,
    ROWS,
    TILE,
    load_state,
    load_turned,
    plain,
    put,
    store_state,
    store_turned,
    take,
)
from .cpu_walks import answer, ask_and_add, border, spread
from .derivatives import steps_like
from .reference import above_zero


@kernel
def _start(steps, i, heads, t):
    """Place of a token in flat memory and the distance to the next, from the distances of batch, head and token."""
    return i // heads * steps[0] + i % heads * steps[1] + t * steps[2], steps[2]


@kernel
def _load_tokens(w, m, k, v, decay, steps, i, heads, t, count, width, size, shared, exclusive, ahead, wrong):
    put(w, plain(AT_K), k, _start(steps[1], i, heads, t), count, size, plain(BLOCK), plain(LANES), ahead)
    put(m, plain(AT_V), v, _start(steps[2], i, heads, t), count, width, plain(ROWS), plain(TILE), ahead)
    put_decays(w, decay, _start(steps[3], i, heads, t), count, size, shared, exclusive, ahead, wrong)
    carry_k(w, (size + LANES - 1) // LANES)


@kernel
def _forward(q, k, v, decay, o, steps, state, last, wrong, length, shared, exclusive, i0, i1, c0, c1):
    heads, size, width = state.shape[1:]
    blocks, tiles = (size + LANES - 1) // LANES, (width + TILE - 1) // TILE
    w, m = np.zeros(blocks * BLOCK, q.dtype), np.zeros(tiles * ROWS, q.dtype)
    S, among = np.zeros(tiles * size * TILE, q.dtype), np.zeros(16, q.dtype)
    own = q.dtype.type(0 if exclusive else 1)
    for i in range(i0, i1):
        load_state(S, state[i // heads, i % heads], size, width)
        for t in range(0, length, 4):
            count = min(4, length - t)
            put(w, plain(AT_Q), q, _start(steps[0], i, heads, t), count, size, plain(BLOCK), plain(LANES), plain(4))
            _load_tokens(w, m, k, v, decay, steps, i, heads, t, count, width, size, shared, exclusive, plain(4), wrong)
            carry_q(w, blocks, own, among)
            answer(S, w, m, among, size, width)
            take(o, _start(steps[4], i, heads, t), m, plain(AT_O), count, width, plain(ROWS), plain(TILE))
        store_state(last[i // heads, i % heads], S, size, width)


@kernel
def _backward(
    q, k, v, decay, g, dq, dk, dv, d_decay, steps, state, g_last, d_state, wrong, length, shared, exclusive, chunk,
    i0, i1, c0, c1,
):  # fmt: skip
    heads, size, width = state.shape[1:]
    blocks, tiles = (size + LANES - 1) // LANES, (width + TILE - 1) // TILE
    area = blocks * LANES * width
    w, m = np.zeros(blocks * BLOCK, q.dtype), np.zeros(tiles * ROWS, q.dtype)
    S, G = np.zeros(area, q.dtype), np.zeros(area, q.dtype)
    borders = np.zeros((length + chunk - 1) // chunk * area, q.dtype)  # S before every chunk
    among, met = np.zeros(16, q.dtype), np.zeros(16, q.dtype)
    own = q.dtype.type(0 if exclusive else 1)
    for i in range(i0, i1):
        load_turned(S, state[i // heads, i % heads], size, width)
        for t in range(0, length, 4):
            count = min(4, length - t)
            if t % chunk == 0:
                kept = borders[t // chunk * area : (t // chunk + 1) * area]
                for n in range(area):
                    kept[n] = S[n]
            _load_tokens(w, m, k, v, decay, steps, i, heads, t, count, width, size, shared, exclusive, plain(4), wrong)
            put(m, plain(AT_G), g, _start(steps[4], i, heads, t), count, width, plain(ROWS), plain(TILE), plain(4))
            meet(m, tiles, own, met)
            ask_and_add(S, w, m, plain(AT_G), plain(AT_V), plain(AT_KA), width, blocks)
            finish_dq(w, met, blocks)
            take(dq, _start(steps[5], i, heads, t), w, plain(AT_DQ), count, size, plain(BLOCK), plain(LANES))
        load_turned(G, g_last[i // heads, i % heads], size, width)
        border(w, S, 0, G, width, blocks)
        for t in range((length - 1) // 4 * 4, -1, -4):
            count = min(4, length - t)
            put(w, plain(AT_Q), q, _start(steps[0], i, heads, t), count, size, plain(BLOCK), plain(LANES), plain(-4))
            _load_tokens(w, m, k, v, decay, steps, i, heads, t, count, width, size, shared, exclusive, plain(-4), wrong)
            put(m, plain(AT_G), g, _start(steps[4], i, heads, t), count, width, plain(ROWS), plain(TILE), plain(-4))
            put(w, plain(AT_DQ), dq, _start(steps[5], i, heads, t), count, size, plain(BLOCK), plain(LANES), plain(-4))
            carry_q(w, blocks, own, among)
            meet(m, tiles, own, met)
            spread(G, w, m, among, width, blocks)
            ask_and_add(G, w, m, plain(AT_V), plain(AT_G), plain(AT_QA), width, blocks)
            finish_dk(w, met, blocks)
            finish_decays(w, own, blocks)
            take(dk, _start(steps[6], i, heads, t), w, plain(AT_DOT), count, size, plain(BLOCK), plain(LANES))
            take(dv, _start(steps[7], i, heads, t), m, plain(AT_O), count, width, plain(ROWS), plain(TILE))
            start = _start(steps[8], i, heads, t)
            if shared:
                for r in range(count):
                    d_decay[start[0] + r * start[1]] = over_channels(w, AT_A + r * LANES, blocks)
            else:
                take(d_decay, start, w, plain(AT_A), count, size, plain(BLOCK), plain(LANES))
            if t and t % chunk == 0:
                border(w, borders, t // chunk * area, G, width, blocks)
        store_turned(d_state[i // heads, i % heads], G, size, width)


Placed = tuple[np.ndarray[Any, Any], tuple[int, ...]]


def _place(x: Tensor, wide: torch.dtype) -> Placed:
    """Memory of (B, H, L, N) as one line of numbers, and how far batches, heads and tokens lie apart in it."""
    x = x.detach().to(wide)
    if (x.stride(3) != 1 and x.shape[3] > 1) or x.is_neg():
        x = x.contiguous()
    last = sum((count - 1) * step for count, step in zip(x.shape, x.stride(), strict=True))
    return x.as_strided((last + 1,), (1,)).numpy(), x.stride()[:3]


def _fresh(x: Tensor, wide: torch.dtype) -> Tensor:
    return fresh(x.shape, wide, steps_like(x))


def forward(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor, exclusive: bool, chunk: int
) -> tuple[Tensor, Tensor]:
    """o like v and the last memory like ``state``; log_decay is (B, H, L, N) or (B, H, L, 1)."""
    batch, heads, length, size = q.shape
    wide, o = state.dtype, _fresh(v, state.dtype)
    if q.numel() == 0:
        return o.to(v.dtype), state.clone(memory_format=torch.contiguous_format)
    last, wrong = fresh(state.shape, wide), np.zeros(1, np.int64)
    places, steps = zip(*(_place(x, wide) for x in (q, k, v, log_decay, o)), strict=True)
    over_blocks(
        _forward, batch * heads, 1, 1, q.numel() * v.shape[3], *places, steps, array(state), array(last), wrong,
        length, log_decay.shape[3] < size, exclusive,
    )  # fmt: skip
    if wrong[0]:
        raise ValueError(above_zero(log_decay))
    return o.to(v.dtype), last


def backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    state: Tensor,
    g: Tensor,
    g_last: Tensor,
    exclusive: bool,
    chunk: int,
) -> tuple[Tensor, ...]:
    """Gradients of q, k, v, log_decay and state."""
    batch, heads, length, size = q.shape
    wide, given = state.dtype, (q, k, v, log_decay)
    found = [_fresh(x, wide) for x in given]
    if q.numel() == 0:
        return (*(x.to(like.dtype) for x, like in zip(found, given, strict=True)), g_last.clone())
    d_state, wrong = fresh(state.shape, wide), np.zeros(1, np.int64)
    places, steps = zip(*(_place(x, wide) for x in (*given, g, *found)), strict=True)
    over_blocks(
        _backward, batch * heads, 1, 1, 2 * q.numel() * v.shape[3], *places, steps, array(state), array(g_last),
        array(d_state), wrong, length, log_decay.shape[3] < size, exclusive, -(-chunk // 4) * 4,
    )  # fmt: skip
    return (*(x.to(like.dtype) for x, like in zip(found, given, strict=True)), d_state)
