"""Numba kernels of `wkv`: one pass through time forward; backward, chunks of tokens from the last to the first.

The channels are cut into blocks of `BLOCK`, whose state stays in the first-level cache while the kernel goes through
time. Rows that one loop uses lie at fixed distances in one array, which lets LLVM vectorise the loop. Of the two
exponentials in a sum of two terms only the smaller is computed, the other is 1.

The backward pass computes the states of a chunk again, from those kept at its start, into a buffer that caches hold.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._compile import kernel
from .._memory import array, fresh, over_blocks
from .._vector_math import LOG2E, exp2

BLOCK = 256  # channels: segments of a row under 1 KiB halve the speed of the forward pass


@kernel
def _load(s, k, v, width):
    for c in range(width):
        s[5 * BLOCK + c] = k[c]
        s[6 * BLOCK + c] = v[c]


@kernel
def _step(s, width):
    """Put y in the row of v, and move the state on. Rows of s: a, b, p, w, u, k, v."""
    one, down = s.dtype.type(1), s.dtype.type(-LOG2E)
    for c in range(width):
        a, b, p, k, v = s[c], s[BLOCK + c], s[2 * BLOCK + c], s[5 * BLOCK + c], s[6 * BLOCK + c]
        ahead = p - (s[4 * BLOCK + c] + k)
        less = exp2(abs(ahead) * down)
        old = one if ahead >= 0 else less
        own = less if ahead >= 0 else one
        s[6 * BLOCK + c] = (old * a + own * v) / (old * b + own)
        ahead = (p - s[3 * BLOCK + c]) - k
        less = exp2(abs(ahead) * down)
        old = one if ahead >= 0 else less
        own = less if ahead >= 0 else one
        s[c] = old * a + own * v
        s[BLOCK + c] = old * b + own
        s[2 * BLOCK + c] = p - s[3 * BLOCK + c] if ahead >= 0 else k


@kernel
def _forward(w, u, k, v, a, b, p, y, states, tokens, i0, i1, c0, c1):
    length = k.shape[1]
    s = np.zeros(7 * BLOCK, a.dtype)
    keeps = states.size > 0
    for i in range(i0, i1):
        for first in range(c0, c1, BLOCK):
            width = min(BLOCK, c1 - first)
            end = first + width
            for c in range(width):
                s[c] = a[i, first + c]
                s[BLOCK + c] = b[i, first + c]
                s[2 * BLOCK + c] = p[i, first + c]
                s[3 * BLOCK + c] = w[first + c]
                s[4 * BLOCK + c] = u[first + c]
            for t in range(length):
                if keeps and t % tokens == 0:
                    for j in range(3):
                        kept = states[i, t // tokens, j, first:end]
                        for c in range(width):
                            kept[c] = s[j * BLOCK + c]
                _load(s, k[i, t, first:end], v[i, t, first:end], width)
                _step(s, width)
                out = y[i, t, first:end]
                for c in range(width):
                    out[c] = s[6 * BLOCK + c]
            for c in range(width):
                a[i, first + c] = s[c]
                b[i, first + c] = s[BLOCK + c]
                p[i, first + c] = s[2 * BLOCK + c]


@kernel
def _again(past, s, width):
    """A step of the state once more. Rows of past: what of the past and of the token is in y, and in the next state; a
    and b before it."""
    one, down = s.dtype.type(1), s.dtype.type(-LOG2E)
    for c in range(width):
        a, b, p, k, v = s[c], s[BLOCK + c], s[2 * BLOCK + c], s[5 * BLOCK + c], s[6 * BLOCK + c]
        ahead = p - (s[4 * BLOCK + c] + k)
        less = exp2(abs(ahead) * down)
        old = one if ahead >= 0 else less
        own = less if ahead >= 0 else one
        share = one / (old * b + own)
        past[c] = old * share
        past[BLOCK + c] = own * share
        ahead = (p - s[3 * BLOCK + c]) - k
        less = exp2(abs(ahead) * down)
        old = one if ahead >= 0 else less
        own = less if ahead >= 0 else one
        past[2 * BLOCK + c] = old
        past[3 * BLOCK + c] = own
        past[4 * BLOCK + c] = a
        past[5 * BLOCK + c] = b
        s[c] = old * a + own * v
        s[BLOCK + c] = old * b + own
        s[2 * BLOCK + c] = p - s[3 * BLOCK + c] if ahead >= 0 else k


@kernel
def _back(r, past, width):
    """Rows of r: v, the gradient of y; those of a, b and p after the token, then before it; dk, dv; sums of du, dw."""
    zero, one = r.dtype.type(0), r.dtype.type(1)
    for c in range(width):
        old, own, kept, added = past[c], past[BLOCK + c], past[2 * BLOCK + c], past[3 * BLOCK + c]
        a, b, v, g = past[4 * BLOCK + c], past[5 * BLOCK + c], r[c], r[BLOCK + c]
        da, db, dp = r[2 * BLOCK + c], r[3 * BLOCK + c], r[4 * BLOCK + c]
        y = old * a + own * v
        old *= g
        own *= g
        first = own * (v - y)
        taken = dp if added == one else zero  # the maximum is this token's key, or that of an earlier one
        dp -= taken
        r[5 * BLOCK + c] = first + added * (da * v + db) + taken
        r[6 * BLOCK + c] = own + added * da
        r[7 * BLOCK + c] += first
        da *= kept
        db *= kept
        r[8 * BLOCK + c] -= da * a + db * b + dp
        r[2 * BLOCK + c] = da + old
        r[3 * BLOCK + c] = db - old * y
        r[4 * BLOCK + c] = dp


@kernel
def _backward(w, u, k, v, a0, b0, states, g, ga, gb, gp, dw, du, dk, dv, da, db, dp, tokens, i0, i1, c0, c1):
    length = k.shape[1]
    zero = a0.dtype.type(0)
    s = np.zeros(7 * BLOCK, a0.dtype)
    r = np.zeros(9 * BLOCK, a0.dtype)
    whole = np.zeros(2 * BLOCK, np.float64)
    past = np.zeros(tokens * 6 * BLOCK, a0.dtype)
    for i in range(i0, i1):
        for first in range(c0, c1, BLOCK):
            width = min(BLOCK, c1 - first)
            end = first + width
            for c in range(width):
                r[2 * BLOCK + c] = ga[i, first + c]
                r[3 * BLOCK + c] = gb[i, first + c]
                r[4 * BLOCK + c] = gp[i, first + c]
                s[3 * BLOCK + c] = w[first + c]
                s[4 * BLOCK + c] = u[first + c]
            for c in range(2 * BLOCK):
                whole[c] = 0
            for piece in range((length + tokens - 1) // tokens - 1, -1, -1):
                start, stop = piece * tokens, min(length, (piece + 1) * tokens)
                for j in range(3):
                    kept = states[i, piece, j, first:end]
                    for c in range(width):
                        s[j * BLOCK + c] = kept[c]
                for t in range(start, stop):
                    _load(s, k[i, t, first:end], v[i, t, first:end], width)
                    _again(past[(t - start) * 6 * BLOCK : (t - start + 1) * 6 * BLOCK], s, width)
                for t in range(stop - 1, start - 1, -1):
                    values, arrived = v[i, t, first:end], g[i, t, first:end]
                    for c in range(width):
                        r[c] = values[c]
                        r[BLOCK + c] = arrived[c]
                    _back(r, past[(t - start) * 6 * BLOCK : (t - start + 1) * 6 * BLOCK], width)
                    d_k, d_v = dk[i, t, first:end], dv[i, t, first:end]
                    for c in range(width):
                        d_k[c] = r[5 * BLOCK + c]
                        d_v[c] = r[6 * BLOCK + c]
                for c in range(2 * BLOCK):  # the sums of a chunk go to a wider type
                    whole[c] += r[7 * BLOCK + c]
                    r[7 * BLOCK + c] = zero
            for c in range(width):
                du[i, first + c] = whole[c]
                dw[i, first + c] = whole[BLOCK + c]
                d_a, d_b = r[2 * BLOCK + c], r[3 * BLOCK + c]
                da[i, first + c] = d_a
                db[i, first + c] = d_b
                dp[i, first + c] = r[4 * BLOCK + c] + d_a * a0[i, first + c] + d_b * b0[i, first + c]


def _wide(*tensors: Tensor) -> list[Any]:
    return [array(t.float() if t.dtype in (torch.float16, torch.bfloat16) else t) for t in tensors]


def forward(
    w: Tensor, u: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, p: Tensor, states: Tensor, tokens: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y like k and the last a, b and p; fills ``states``, if not empty, with those before every chunk of tokens."""
    batch, _, channels = k.shape
    y = fresh(k.shape, a.dtype)
    a, b, p = (t.clone(memory_format=torch.contiguous_format) for t in (a, b, p))
    if k.numel():
        moved = (array(t) for t in (a, b, p, y, states))
        over_blocks(_forward, batch, channels, 1, k.numel(), *_wide(w, u, k, v), *moved, tokens)
    return y.to(k.dtype), a, b, p


def backward(
    w: Tensor,
    u: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    states: Tensor,
    g: Tensor,
    ga: Tensor,
    gb: Tensor,
    gp: Tensor,
    tokens: int,
) -> tuple[Tensor, ...]:
    """Gradients of w, u, k, v, a, b and p, for gp that belongs to the maximum alone."""
    batch, _, channels = k.shape
    dw, du = (torch.zeros((batch, channels), dtype=torch.float64) for _ in range(2))
    dk, dv = fresh(k.shape, a.dtype), fresh(k.shape, a.dtype)
    da, db, dp = (fresh(a.shape, a.dtype) for _ in range(3))
    if k.numel():
        found = (array(t) for t in (dw, du, dk, dv, da, db, dp))
        over_blocks(
            _backward, batch, channels, 1, k.numel(), *_wide(w, u, k, v, a, b, states, g, ga, gb, gp), *found, tokens
        )
    else:
        da, db, dp = ga.clone(), gb.clone(), gp + ga * a + gb * b
    return dw.sum(0).to(w.dtype), du.sum(0).to(u.dtype), dk.to(k.dtype), dv.to(v.dtype), da, db, dp
