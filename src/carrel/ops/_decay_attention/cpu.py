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

Channels of k lie in blocks of `LANES`, those of v in tiles of `TILE`, whose rows have fixed distances: LLVM then needs
no comparisons of addresses before it vectorises. Tokens past the end are filled in as ones that change nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

from .._memory import array, fresh, over_blocks
from .._selective_scan.vector_math import LOG2E, exp2
from .derivatives import result_like
from .reference import above_zero

# Products and sums may fuse and reorder; NaN and infinity keep their meaning.
_kernel: Callable[..., Any] = njit(nogil=True, cache=True, fastmath={"contract", "reassoc", "nsz"}, error_model="numpy")

LANES, TILE = 16, 64
# Rows of a block of LANES channels, four tokens each: q, k, decays a, what q sees of its own decay f (a, or 1 if
# exclusive), q and k times the decays back to, or on to, the border of the four, dots with S or G, dq; then the
# product of the four decays and X.
_Q, _K, _A, _F, _QA, _KA, _DOT, _DQ, _D, _X = (LANES * row for row in (0, 4, 8, 12, 16, 20, 24, 28, 32, 33))
_BLOCK = LANES * 34
# Rows of a tile: v, the gradient g of o, and o or dv.
_V, _G, _O = (TILE * row for row in (0, 4, 8))
_ROWS = TILE * 12


def _copying(context: Any, to: Any, there: Any, source: Any, here: Any, count: Any) -> Any:
    """``count`` numbers from one place to another, in bounds and without overlap, which is not looked at.

    Assignment of views would do, but each is counted up and down, by additions that lock the bus.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointers = [context.make_array(signature.args[i])(context, builder, args[i]).data for i in (0, 2)]
        target, origin = (builder.gep(x, [args[i]]) for x, i in zip(pointers, (1, 3), strict=True))
        size = context.get_abi_sizeof(context.get_data_type(to.dtype))
        cgutils.raw_memcpy(builder, target, origin, args[4], size)
        return context.get_dummy_value()

    return types.void(to, types.intp, source, types.intp, types.intp), generate


_copy: Any = intrinsic(_copying)


@_kernel
def _put(to, place, source, start, count, width, step, row):
    """Copy ``count`` tokens into four rows of each block, at ``place`` in it; the others become 0."""
    for first in range(0, width, row):
        there, some = place + first // row * step, min(row, width - first)
        for r in range(count):
            here = start[0] + r * start[1] + first
            if some == row:  # a number known when this is compiled: a few moves in place of a call
                _copy(to, there + r * row, source, here, row)
            else:
                _copy(to, there + r * row, source, here, some)
        for c in range(count * row, 4 * row):
            to[there + c] = 0


@_kernel
def _take(to, start, source, place, count, width, step, row):
    """The other way round."""
    for first in range(0, width, row):
        here, some = place + first // row * step, min(row, width - first)
        for r in range(count):
            there = start[0] + r * start[1] + first
            if some == row:
                _copy(to, there, source, here + r * row, row)
            else:
                _copy(to, there, source, here + r * row, some)


@_kernel
def _put_decays(w, log_decay, start, count, size, shared, exclusive, wrong):
    """a and f of four tokens; ``wrong[0]`` becomes 1 where there is growth."""
    one, zero, to_two = w.dtype.type(1), w.dtype.type(0), w.dtype.type(LOG2E)
    growth = zero
    if shared:
        for r in range(4):
            known = log_decay[start[0] + r * start[1]] if r < count else zero
            growth += max(known, zero)
            a = exp2(min(known, zero) * to_two)
            for block in range((size + LANES - 1) // LANES):
                for c in range(LANES):
                    w[block * _BLOCK + _A + r * LANES + c] = a
    else:
        _put(w, _A, log_decay, start, count, size, _BLOCK, LANES)
    for first in range(0, size, LANES):
        b = w[first // LANES * _BLOCK : (first // LANES + 1) * _BLOCK]
        if not shared:
            for c in range(4 * LANES):
                growth += max(b[_A + c], zero)
                b[_A + c] = exp2(min(b[_A + c], zero) * to_two)
            for c in range(size - first, LANES):  # past the edge, where 1 would be a growth next time
                b[_A + c] = zero
                b[_A + LANES + c] = zero
                b[_A + 2 * LANES + c] = zero
                b[_A + 3 * LANES + c] = zero
        for c in range(4 * LANES):
            b[_F + c] = one if exclusive else b[_A + c]
    if growth > zero:
        wrong[0] = 1


@_kernel
def _carry_k(w, size):
    """k times the decays after it, and the product of all four."""
    for first in range(0, size, LANES):
        b = w[first // LANES * _BLOCK : (first // LANES + 1) * _BLOCK]
        for c in range(LANES):
            a1, a2, a3 = b[_A + LANES + c], b[_A + 2 * LANES + c], b[_A + 3 * LANES + c]
            a32 = a3 * a2
            a321 = a32 * a1
            b[_KA + c] = b[_K + c] * a321
            b[_KA + LANES + c] = b[_K + LANES + c] * a32
            b[_KA + 2 * LANES + c] = b[_K + 2 * LANES + c] * a3
            b[_KA + 3 * LANES + c] = b[_K + 3 * LANES + c]
            b[_D + c] = a321 * b[_A + c]


@_kernel
def _carry_q(w, size, own, sums, among):
    """q times the decays before it; and ``among[4 r + j]``, what token r sees of token j <= r."""
    zero = w.dtype.type(0)
    for c in range(10 * LANES):
        sums[c] = zero
    for first in range(0, size, LANES):
        b = w[first // LANES * _BLOCK : (first // LANES + 1) * _BLOCK]
        for c in range(LANES):
            a0, a1, a2 = b[_A + c], b[_A + LANES + c], b[_A + 2 * LANES + c]
            q0, q1, q2, q3 = b[_Q + c], b[_Q + LANES + c], b[_Q + 2 * LANES + c], b[_Q + 3 * LANES + c]
            k0, k1, k2, k3 = b[_K + c], b[_K + LANES + c], b[_K + 2 * LANES + c], b[_K + 3 * LANES + c]
            sums[c] += q0 * k0
            sums[LANES + c] += q1 * k1
            sums[2 * LANES + c] += q2 * k2
            sums[3 * LANES + c] += q3 * k3
            b[_QA + c] = q0 * b[_F + c]
            q1 *= b[_F + LANES + c]
            q2 *= b[_F + 2 * LANES + c]
            q3 *= b[_F + 3 * LANES + c]
            sums[4 * LANES + c] += q1 * k0
            sums[5 * LANES + c] += q2 * k1
            sums[6 * LANES + c] += q3 * k2
            b[_QA + LANES + c] = q1 * a0
            q2 *= a1
            q3 *= a2
            sums[7 * LANES + c] += q2 * k0
            sums[8 * LANES + c] += q3 * k1
            b[_QA + 2 * LANES + c] = q2 * a0
            q3 *= a1
            sums[9 * LANES + c] += q3 * k0
            b[_QA + 3 * LANES + c] = q3 * a0
    for pair, (r, j) in enumerate(((0, 0), (1, 1), (2, 2), (3, 3), (1, 0), (2, 1), (3, 2), (2, 0), (3, 1), (3, 0))):
        total = zero
        for c in range(LANES):
            total += sums[pair * LANES + c]
        among[4 * r + j] = total * own if r == j else total


@_kernel
def _meet(m, tiles, own, met):
    """``met[4 r + j]``: the gradient of token r's answer times the value of token j <= r."""
    s00 = s11 = s22 = s33 = s10 = s21 = s32 = s20 = s31 = s30 = m.dtype.type(0)
    for tile in range(tiles):
        b = m[tile * _ROWS : (tile + 1) * _ROWS]
        for p in range(TILE):
            v0, v1, v2, v3 = b[_V + p], b[_V + TILE + p], b[_V + 2 * TILE + p], b[_V + 3 * TILE + p]
            g0, g1, g2, g3 = b[_G + p], b[_G + TILE + p], b[_G + 2 * TILE + p], b[_G + 3 * TILE + p]
            s00 += g0 * v0
            s11 += g1 * v1
            s22 += g2 * v2
            s33 += g3 * v3
            s10 += g1 * v0
            s21 += g2 * v1
            s32 += g3 * v2
            s20 += g2 * v0
            s31 += g3 * v1
            s30 += g3 * v0
    met[0], met[5], met[10], met[15] = own * s00, own * s11, own * s22, own * s33
    met[4], met[9], met[14], met[8], met[13], met[12] = s10, s21, s32, s20, s31, s30


@_kernel
def _answer(S, w, m, among, size):
    """o of four tokens, and S after them, for one tile of the values."""
    for p in range(TILE):
        v0, v1, v2, v3 = m[_V + p], m[_V + TILE + p], m[_V + 2 * TILE + p], m[_V + 3 * TILE + p]
        m[_O + p] = among[0] * v0
        m[_O + TILE + p] = among[4] * v0 + among[5] * v1
        m[_O + 2 * TILE + p] = among[8] * v0 + among[9] * v1 + among[10] * v2
        m[_O + 3 * TILE + p] = among[12] * v0 + among[13] * v1 + among[14] * v2 + among[15] * v3
    for n in range(0, size, 2):
        rows = S[n * TILE : (n + 2) * TILE]
        at = n // LANES * _BLOCK + n % LANES
        q, k = w[at + _QA : at + _QA + 4 * LANES], w[at + _KA : at + _KA + 4 * LANES]
        q0, q1, q2, q3, d = q[0], q[LANES], q[2 * LANES], q[3 * LANES], w[at + _D]
        k0, k1, k2, k3 = k[0], k[LANES], k[2 * LANES], k[3 * LANES]
        x0, x1, x2, x3, e = q[1], q[LANES + 1], q[2 * LANES + 1], q[3 * LANES + 1], w[at + _D + 1]
        y0, y1, y2, y3 = k[1], k[LANES + 1], k[2 * LANES + 1], k[3 * LANES + 1]
        for p in range(TILE):
            s, t = rows[p], rows[TILE + p]
            m[_O + p] += q0 * s + x0 * t
            m[_O + TILE + p] += q1 * s + x1 * t
            m[_O + 2 * TILE + p] += q2 * s + x2 * t
            m[_O + 3 * TILE + p] += q3 * s + x3 * t
            v0, v1, v2, v3 = m[_V + p], m[_V + TILE + p], m[_V + 2 * TILE + p], m[_V + 3 * TILE + p]
            rows[p] = d * s + k0 * v0 + k1 * v1 + k2 * v2 + k3 * v3
            rows[TILE + p] = e * t + y0 * v0 + y1 * v1 + y2 * v2 + y3 * v3


@_kernel
def _spread(G, w, m, among, size):
    """dv of four tokens for one tile: k times G, and what later tokens of the four saw of them."""
    for p in range(TILE):
        g0, g1, g2, g3 = m[_G + p], m[_G + TILE + p], m[_G + 2 * TILE + p], m[_G + 3 * TILE + p]
        m[_O + p] = among[0] * g0 + among[4] * g1 + among[8] * g2 + among[12] * g3
        m[_O + TILE + p] = among[5] * g1 + among[9] * g2 + among[13] * g3
        m[_O + 2 * TILE + p] = among[10] * g2 + among[14] * g3
        m[_O + 3 * TILE + p] = among[15] * g3
    for n in range(0, size, 2):
        rows = G[n * TILE : (n + 2) * TILE]
        at = n // LANES * _BLOCK + n % LANES
        k = w[at + _KA : at + _KA + 4 * LANES]
        k0, k1, k2, k3 = k[0], k[LANES], k[2 * LANES], k[3 * LANES]
        y0, y1, y2, y3 = k[1], k[LANES + 1], k[2 * LANES + 1], k[3 * LANES + 1]
        for p in range(TILE):
            s, t = rows[p], rows[TILE + p]
            m[_O + p] += k0 * s + y0 * t
            m[_O + TILE + p] += k1 * s + y1 * t
            m[_O + 2 * TILE + p] += k2 * s + y2 * t
            m[_O + 3 * TILE + p] += k3 * s + y3 * t


@_kernel
def _ask_and_add(S, w, m, ask, add, by, size):
    """Add the dots of S with four rows to those in w, and bring S over the four tokens: S d + sum of by times add."""
    zero = S.dtype.type(0)
    asked, added = m[ask : ask + 4 * TILE], m[add : add + 4 * TILE]
    for n in range(0, size, 2):
        rows = S[n * TILE : (n + 2) * TILE]
        at = n // LANES * _BLOCK + n % LANES
        k = w[at + by : at + by + 4 * LANES]
        k0, k1, k2, k3, d = k[0], k[LANES], k[2 * LANES], k[3 * LANES], w[at + _D]
        y0, y1, y2, y3, e = k[1], k[LANES + 1], k[2 * LANES + 1], k[3 * LANES + 1], w[at + _D + 1]
        s0 = s1 = s2 = s3 = t0 = t1 = t2 = t3 = zero
        for p in range(TILE):
            s, t = rows[p], rows[TILE + p]
            x0, x1, x2, x3 = asked[p], asked[TILE + p], asked[2 * TILE + p], asked[3 * TILE + p]
            s0 += x0 * s
            s1 += x1 * s
            s2 += x2 * s
            s3 += x3 * s
            t0 += x0 * t
            t1 += x1 * t
            t2 += x2 * t
            t3 += x3 * t
            v0, v1, v2, v3 = added[p], added[TILE + p], added[2 * TILE + p], added[3 * TILE + p]
            rows[p] = d * s + k0 * v0 + k1 * v1 + k2 * v2 + k3 * v3
            rows[TILE + p] = e * t + y0 * v0 + y1 * v1 + y2 * v2 + y3 * v3
        dots = w[at + _DOT : at + _DOT + 4 * LANES]
        dots[0] += s0
        dots[LANES] += s1
        dots[2 * LANES] += s2
        dots[3 * LANES] += s3
        dots[1] += t0
        dots[LANES + 1] += t1
        dots[2 * LANES + 1] += t2
        dots[3 * LANES + 1] += t3


@_kernel
def _no_dots(w, size):
    for first in range(0, size, LANES):
        dots = w[first // LANES * _BLOCK + _DOT : first // LANES * _BLOCK + _DOT + 4 * LANES]
        for c in range(4 * LANES):
            dots[c] = 0


@_kernel
def _finish_dq(w, met, size):
    """dq of four tokens from the dots of S with their gradients."""
    for first in range(0, size, LANES):
        b = w[first // LANES * _BLOCK : (first // LANES + 1) * _BLOCK]
        for c in range(LANES):
            a0, a1, a2 = b[_A + c], b[_A + LANES + c], b[_A + 2 * LANES + c]
            k0, k1, k2, k3 = b[_K + c], b[_K + LANES + c], b[_K + 2 * LANES + c], b[_K + 3 * LANES + c]
            x1 = a0 * b[_DOT + LANES + c] + k0 * met[4]
            x2 = a1 * (a0 * b[_DOT + 2 * LANES + c] + k0 * met[8]) + k1 * met[9]
            x3 = a2 * (a1 * (a0 * b[_DOT + 3 * LANES + c] + k0 * met[12]) + k1 * met[13]) + k2 * met[14]
            b[_DQ + c] = b[_F + c] * b[_DOT + c] + k0 * met[0]
            b[_DQ + LANES + c] = b[_F + LANES + c] * x1 + k1 * met[5]
            b[_DQ + 2 * LANES + c] = b[_F + 2 * LANES + c] * x2 + k2 * met[10]
            b[_DQ + 3 * LANES + c] = b[_F + 3 * LANES + c] * x3 + k3 * met[15]


@_kernel
def _finish_dk(w, met, size):
    """dk of four tokens from the dots of G with their values, in their place."""
    for first in range(0, size, LANES):
        b = w[first // LANES * _BLOCK : (first // LANES + 1) * _BLOCK]
        for c in range(LANES):
            a1, a2, a3 = b[_A + LANES + c], b[_A + 2 * LANES + c], b[_A + 3 * LANES + c]
            q0, q1, q2, q3 = b[_Q + c], b[_Q + LANES + c], b[_Q + 2 * LANES + c], b[_Q + 3 * LANES + c]
            f1, f2, f3 = b[_F + LANES + c] * q1, b[_F + 2 * LANES + c] * q2, b[_F + 3 * LANES + c] * q3
            x0 = a2 * (a3 * b[_DOT + c] + f3 * met[12]) + f2 * met[8]
            x1 = a3 * b[_DOT + LANES + c] + f3 * met[13]
            b[_DOT + c] = a1 * x0 + f1 * met[4] + q0 * met[0]
            b[_DOT + LANES + c] = a2 * x1 + f2 * met[9] + q1 * met[5]
            b[_DOT + 2 * LANES + c] = a3 * b[_DOT + 2 * LANES + c] + f3 * met[14] + q2 * met[10]
            b[_DOT + 3 * LANES + c] += q3 * met[15]


@_kernel
def _total(row, size):
    """The sum over all channels of a row whose first block starts where ``row`` does."""
    total = row.dtype.type(0)
    for first in range(0, size, LANES):
        block = row[first // LANES * _BLOCK : first // LANES * _BLOCK + LANES]
        for c in range(LANES):
            total += block[c]
    return total


@_kernel
def _finish_decays(w, own, size):
    """From q, dq, k, dk and X after the four tokens: their gradients in the place of a, and X before them."""
    one, zero = w.dtype.type(1), w.dtype.type(0)
    for first in range(0, size, LANES):
        b = w[first // LANES * _BLOCK : (first // LANES + 1) * _BLOCK]
        for c in range(LANES):
            asked = b[_Q + 3 * LANES + c] * b[_DQ + 3 * LANES + c]
            x3 = b[_X + c] + own * asked - b[_K + 3 * LANES + c] * b[_DOT + 3 * LANES + c]
            x3 = x3 if b[_A + 3 * LANES + c] > zero else zero
            before = x3 + (one - own) * asked
            asked = b[_Q + 2 * LANES + c] * b[_DQ + 2 * LANES + c]
            x2 = before + own * asked - b[_K + 2 * LANES + c] * b[_DOT + 2 * LANES + c]
            x2 = x2 if b[_A + 2 * LANES + c] > zero else zero
            before = x2 + (one - own) * asked
            asked = b[_Q + LANES + c] * b[_DQ + LANES + c]
            x1 = before + own * asked - b[_K + LANES + c] * b[_DOT + LANES + c]
            x1 = x1 if b[_A + LANES + c] > zero else zero
            before = x1 + (one - own) * asked
            asked = b[_Q + c] * b[_DQ + c]
            x0 = before + own * asked - b[_K + c] * b[_DOT + c]
            x0 = x0 if b[_A + c] > zero else zero
            b[_X + c] = x0 + (one - own) * asked
            b[_A + c] = x0
            b[_A + LANES + c] = x1
            b[_A + 2 * LANES + c] = x2
            b[_A + 3 * LANES + c] = x3


@_kernel
def _border(w, S, G, tiles, size):
    """X from S and G, which have an even number of rows."""
    even = size + size % 2
    for first in range(0, size, LANES):
        x = w[first // LANES * _BLOCK + _X : first // LANES * _BLOCK + _X + LANES]
        for c in range(min(LANES, size - first)):
            total = w.dtype.type(0)
            for tile in range(tiles):
                at = (tile * even + first + c) * TILE
                s, g = S[at : at + TILE], G[at : at + TILE]
                for p in range(TILE):
                    total += s[p] * g[p]
            x[c] = total


@_kernel
def _load_state(S, source, size, width):
    """(N, P) into tiles of TILE columns with an even number of rows; what lies beyond stays 0."""
    even = size + size % 2
    for n in range(size):
        for first in range(0, width, TILE):
            some = min(TILE, width - first)
            here, there = source[n, first : first + some], S[(first // TILE * even + n) * TILE :]
            for p in range(some):
                there[p] = here[p]


@_kernel
def _store_state(to, S, size, width):
    even = size + size % 2
    for n in range(size):
        for first in range(0, width, TILE):
            some = min(TILE, width - first)
            there, here = to[n, first : first + some], S[(first // TILE * even + n) * TILE :]
            for p in range(some):
                there[p] = here[p]


@_kernel
def _start(steps, i, heads, t):
    """Place of a token in flat memory and the distance to the next, from the distances of batch, head and token."""
    return i // heads * steps[0] + i % heads * steps[1] + t * steps[2], steps[2]


@_kernel
def _load_tokens(w, m, k, v, decay, steps, i, heads, t, count, width, size, shared, exclusive, wrong):
    _put(w, _K, k, _start(steps[1], i, heads, t), count, size, _BLOCK, LANES)
    _put(m, _V, v, _start(steps[2], i, heads, t), count, width, _ROWS, TILE)
    _put_decays(w, decay, _start(steps[3], i, heads, t), count, size, shared, exclusive, wrong)
    _carry_k(w, size)


@_kernel
def _forward(q, k, v, decay, o, steps, state, last, wrong, length, shared, exclusive, i0, i1, c0, c1):
    heads, size, width = state.shape[1:]
    even, tiles = size + size % 2, (width + TILE - 1) // TILE
    w = np.zeros((size + LANES - 1) // LANES * _BLOCK, q.dtype)
    m = np.zeros(tiles * _ROWS, q.dtype)
    S = np.zeros(tiles * even * TILE, q.dtype)
    sums, among = np.zeros(10 * LANES, q.dtype), np.zeros(16, q.dtype)
    own = q.dtype.type(0 if exclusive else 1)
    for i in range(i0, i1):
        _load_state(S, state[i // heads, i % heads], size, width)
        for t in range(0, length, 4):
            count = min(4, length - t)
            _put(w, _Q, q, _start(steps[0], i, heads, t), count, size, _BLOCK, LANES)
            _load_tokens(w, m, k, v, decay, steps, i, heads, t, count, width, size, shared, exclusive, wrong)
            _carry_q(w, size, own, sums, among)
            for tile in range(tiles):
                _answer(S[tile * even * TILE :], w, m[tile * _ROWS :], among, even)
            _take(o, _start(steps[4], i, heads, t), m, _O, count, width, _ROWS, TILE)
        _store_state(last[i // heads, i % heads], S, size, width)


@_kernel
def _backward(
    q, k, v, decay, g, dq, dk, dv, d_decay, steps, state, g_last, d_state, wrong, length, shared, exclusive, chunk,
    i0, i1, c0, c1,
):  # fmt: skip
    heads, size, width = state.shape[1:]
    even, tiles = size + size % 2, (width + TILE - 1) // TILE
    area = tiles * even * TILE
    w = np.zeros((size + LANES - 1) // LANES * _BLOCK, q.dtype)
    m = np.zeros(tiles * _ROWS, q.dtype)
    S, G = np.zeros(area, q.dtype), np.zeros(area, q.dtype)
    borders = np.zeros((length + chunk - 1) // chunk * area, q.dtype)  # S before every chunk
    sums, among, met = np.zeros(10 * LANES, q.dtype), np.zeros(16, q.dtype), np.zeros(16, q.dtype)
    own = q.dtype.type(0 if exclusive else 1)
    for i in range(i0, i1):
        _load_state(S, state[i // heads, i % heads], size, width)
        for t in range(0, length, 4):
            count = min(4, length - t)
            if t % chunk == 0:
                kept = borders[t // chunk * area : (t // chunk + 1) * area]
                for n in range(area):
                    kept[n] = S[n]
            _load_tokens(w, m, k, v, decay, steps, i, heads, t, count, width, size, shared, exclusive, wrong)
            _put(m, _G, g, _start(steps[4], i, heads, t), count, width, _ROWS, TILE)
            _meet(m, tiles, own, met)
            _no_dots(w, size)
            for tile in range(tiles):
                _ask_and_add(S[tile * even * TILE :], w, m[tile * _ROWS :], _G, _V, _KA, even)
            _finish_dq(w, met, size)
            _take(dq, _start(steps[5], i, heads, t), w, _DQ, count, size, _BLOCK, LANES)
        _load_state(G, g_last[i // heads, i % heads], size, width)
        _border(w, S, G, tiles, size)
        for t in range((length - 1) // 4 * 4, -1, -4):
            count = min(4, length - t)
            _put(w, _Q, q, _start(steps[0], i, heads, t), count, size, _BLOCK, LANES)
            _load_tokens(w, m, k, v, decay, steps, i, heads, t, count, width, size, shared, exclusive, wrong)
            _put(m, _G, g, _start(steps[4], i, heads, t), count, width, _ROWS, TILE)
            _put(w, _DQ, dq, _start(steps[5], i, heads, t), count, size, _BLOCK, LANES)
            _carry_q(w, size, own, sums, among)
            _meet(m, tiles, own, met)
            _no_dots(w, size)
            for tile in range(tiles):
                _spread(G[tile * even * TILE :], w, m[tile * _ROWS :], among, even)
                _ask_and_add(G[tile * even * TILE :], w, m[tile * _ROWS :], _V, _G, _QA, even)
            _finish_dk(w, met, size)
            _finish_decays(w, own, size)
            _take(dk, _start(steps[6], i, heads, t), w, _DOT, count, size, _BLOCK, LANES)
            _take(dv, _start(steps[7], i, heads, t), m, _O, count, width, _ROWS, TILE)
            start = _start(steps[8], i, heads, t)
            if shared:
                for r in range(count):
                    d_decay[start[0] + r * start[1]] = _total(w[_A + r * LANES :], size)
            else:
                _take(d_decay, start, w, _A, count, size, _BLOCK, LANES)
            if t and t % chunk == 0:
                _border(w, borders[t // chunk * area :], G, tiles, size)
        _store_state(d_state[i // heads, i % heads], G, size, width)


Placed = tuple[np.ndarray[Any, Any], tuple[int, ...]]


def _place(x: Tensor, wide: torch.dtype) -> Placed:
    """Memory of (B, H, L, N) as one line of numbers, and how far batches, heads and tokens lie apart in it."""
    x = x.detach().to(wide)
    if (x.stride(3) != 1 and x.shape[3] > 1) or x.is_neg():
        x = x.contiguous()
    last = sum((count - 1) * step for count, step in zip(x.shape, x.stride(), strict=True))
    return x.as_strided((last + 1,), (1,)).numpy(), x.stride()[:3]


def _fresh(x: Tensor, wide: torch.dtype) -> Tensor:
    return result_like(x, lambda shape: fresh(shape, wide))


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
