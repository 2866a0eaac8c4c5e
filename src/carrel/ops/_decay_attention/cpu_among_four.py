"""What four neighbouring tokens make of one another, in numba: products of at most four of their decays."""

from __future__ import annotations

from .._compile import kernel
from .._vector_math import LOG2E, exp2
from .._vectors import every, kept, lanes, load, plus, same, store, times, times_plus, total
from .cpu_tokens import (
    AT_A,
    AT_D,
    AT_DOT,
    AT_DQ,
    AT_F,
    AT_G,
    AT_K,
    AT_KA,
    AT_Q,
    AT_QA,
    AT_V,
    AT_X,
    BLOCK,
    LANES,
    ROWS,
    TILE,
    four,
    plain,
    put,
    put_four,
)


@kernel
def put_decays(w, log_decay, start, count, size, shared, exclusive, ahead, wrong):
    """a and f of four tokens; ``wrong[0]`` becomes 1 where there is growth."""
    one, zero, to_two = w.dtype.type(1), w.dtype.type(0), w.dtype.type(LOG2E)
    growth, step = zero, lanes(w)
    if shared:
        for r in range(4):
            known = log_decay[start[0] + r * start[1]] if r < count else zero
            growth += max(known, zero)
            a = exp2(min(known, zero) * to_two)
            f = one if exclusive else a
            for first in range(0, size, LANES):
                for n in range(first // LANES * BLOCK + r * LANES, first // LANES * BLOCK + (r + 1) * LANES, step):
                    store(w, n + AT_A, every(a))
                    store(w, n + AT_F, every(f))
    else:
        put(w, plain(AT_A), log_decay, start, count, size, plain(BLOCK), plain(LANES), ahead)
        for first in range(0, size, LANES):
            b = w[first // LANES * BLOCK : (first // LANES + 1) * BLOCK]
            for c in range(4 * LANES):
                growth += max(b[AT_A + c], zero)
                b[AT_A + c] = exp2(min(b[AT_A + c], zero) * to_two)
            for c in range(size - first, LANES):  # past the edge, where 1 would be a growth next time
                b[AT_A + c] = zero
                b[AT_A + LANES + c] = zero
                b[AT_A + 2 * LANES + c] = zero
                b[AT_A + 3 * LANES + c] = zero
            for c in range(4 * LANES):
                b[AT_F + c] = one if exclusive else b[AT_A + c]
    if growth > zero:
        wrong[0] = 1


@kernel
def carry_k(w, blocks):
    """k times the decays after it, and the product of all four."""
    for block in range(blocks):
        for n in range(block * BLOCK, block * BLOCK + LANES, lanes(w)):
            a0, a1, a2, a3 = four(w, n + AT_A, LANES)
            k0, k1, k2, k3 = four(w, n + AT_K, LANES)
            a32 = times(a3, a2)
            a321 = times(a32, a1)
            put_four(w, n + AT_KA, LANES, times(k0, a321), times(k1, a32), times(k2, a3), k3)
            store(w, n + AT_D, times(a321, a0))


@kernel
def carry_q(w, blocks, own, among):
    """q times the decays before it; and ``among[4 r + j]``, what token r sees of token j <= r."""
    s00 = s11 = s22 = s33 = s10 = s21 = s32 = s20 = s31 = s30 = every(w.dtype.type(0))
    for block in range(blocks):
        for n in range(block * BLOCK, block * BLOCK + LANES, lanes(w)):
            q0, q1, q2, q3 = four(w, n + AT_Q, LANES)
            k0, k1, k2, k3 = four(w, n + AT_K, LANES)
            s00, s11 = times_plus(q0, k0, s00), times_plus(q1, k1, s11)
            s22, s33 = times_plus(q2, k2, s22), times_plus(q3, k3, s33)
            f0, f1, f2, f3 = four(w, n + AT_F, LANES)
            q0, q1, q2, q3 = times(q0, f0), times(q1, f1), times(q2, f2), times(q3, f3)
            s10, s21, s32 = times_plus(q1, k0, s10), times_plus(q2, k1, s21), times_plus(q3, k2, s32)
            a0, a1, a2 = load(w, n + AT_A), load(w, n + AT_A + LANES), load(w, n + AT_A + 2 * LANES)
            q2, q3 = times(q2, a1), times(q3, a2)
            s20, s31 = times_plus(q2, k0, s20), times_plus(q3, k1, s31)
            q3 = times(q3, a1)
            s30 = times_plus(q3, k0, s30)
            put_four(w, n + AT_QA, LANES, q0, times(q1, a0), times(q2, a0), times(q3, a0))
    among[0], among[5], among[10], among[15] = own * total(s00), own * total(s11), own * total(s22), own * total(s33)
    among[4], among[9], among[14] = total(s10), total(s21), total(s32)
    among[8], among[13], among[12] = total(s20), total(s31), total(s30)


@kernel
def meet(m, tiles, own, met):
    """``met[4 r + j]``: the gradient of token r's answer times the value of token j <= r."""
    s00 = s11 = s22 = s33 = s10 = s21 = s32 = s20 = s31 = s30 = every(m.dtype.type(0))
    for tile in range(tiles):
        for p in range(tile * ROWS, tile * ROWS + TILE, lanes(m)):
            v0, v1, v2, v3 = four(m, p + AT_V, TILE)
            g0, g1, g2, g3 = four(m, p + AT_G, TILE)
            s00, s11 = times_plus(g0, v0, s00), times_plus(g1, v1, s11)
            s22, s33 = times_plus(g2, v2, s22), times_plus(g3, v3, s33)
            s10, s21, s32 = times_plus(g1, v0, s10), times_plus(g2, v1, s21), times_plus(g3, v2, s32)
            s20, s31, s30 = times_plus(g2, v0, s20), times_plus(g3, v1, s31), times_plus(g3, v0, s30)
    met[0], met[5], met[10], met[15] = own * total(s00), own * total(s11), own * total(s22), own * total(s33)
    met[4], met[9], met[14] = total(s10), total(s21), total(s32)
    met[8], met[13], met[12] = total(s20), total(s31), total(s30)


@kernel
def finish_dq(w, met, blocks):
    """dq of four tokens from the dots of S with their gradients."""
    for block in range(blocks):
        for n in range(block * BLOCK, block * BLOCK + LANES, lanes(w)):
            a0, a1, a2 = load(w, n + AT_A), load(w, n + AT_A + LANES), load(w, n + AT_A + 2 * LANES)
            f0, f1, f2, f3 = four(w, n + AT_F, LANES)
            k0, k1, k2, k3 = four(w, n + AT_K, LANES)
            x0, x1, x2, x3 = four(w, n + AT_DOT, LANES)
            x1, x2, x3 = times(a0, x1), times(a0, x2), times(a0, x3)
            x1, x2 = times_plus(k0, same(met, 4), x1), times_plus(k0, same(met, 8), x2)
            x3 = times_plus(a1, times_plus(k0, same(met, 12), x3), times(k1, same(met, 13)))
            x2 = times_plus(a1, x2, times(k1, same(met, 9)))
            x3 = times_plus(a2, x3, times(k2, same(met, 14)))
            x0 = times_plus(f0, x0, times(k0, same(met, 0)))
            x1 = times_plus(f1, x1, times(k1, same(met, 5)))
            x2 = times_plus(f2, x2, times(k2, same(met, 10)))
            x3 = times_plus(f3, x3, times(k3, same(met, 15)))
            put_four(w, n + AT_DQ, LANES, x0, x1, x2, x3)


@kernel
def finish_dk(w, met, blocks):
    """dk of four tokens from the dots of G with their values, in their place."""
    for block in range(blocks):
        for n in range(block * BLOCK, block * BLOCK + LANES, lanes(w)):
            a1, a2, a3 = load(w, n + AT_A + LANES), load(w, n + AT_A + 2 * LANES), load(w, n + AT_A + 3 * LANES)
            q0, q1, q2, q3 = four(w, n + AT_Q, LANES)
            f1, f2 = times(load(w, n + AT_F + LANES), q1), times(load(w, n + AT_F + 2 * LANES), q2)
            f3 = times(load(w, n + AT_F + 3 * LANES), q3)
            x0, x1, x2, x3 = four(w, n + AT_DOT, LANES)
            x0, x1, x2 = times(a3, x0), times(a3, x1), times(a3, x2)
            x0, x1 = times_plus(f3, same(met, 12), x0), times_plus(f3, same(met, 13), x1)
            x0, x1 = times(a2, x0), times(a2, x1)
            x0 = times(a1, times_plus(f2, same(met, 8), x0))
            x1 = times_plus(f2, same(met, 9), x1)
            x2 = times_plus(f3, same(met, 14), x2)
            x0 = times_plus(f1, same(met, 4), times_plus(q0, same(met, 0), x0))
            x1 = times_plus(q1, same(met, 5), x1)
            x2 = times_plus(q2, same(met, 10), x2)
            x3 = times_plus(q3, same(met, 15), x3)
            put_four(w, n + AT_DOT, LANES, x0, x1, x2, x3)


@kernel
def finish_decays(w, own, blocks):
    """From q, dq, k, dk and X after the four tokens: their gradients in the place of a, and X before them."""
    now, later = every(own), every(w.dtype.type(1) - own)  # which of the two memories a token's q asks
    minus = every(w.dtype.type(-1))
    for block in range(blocks):
        for n in range(block * BLOCK, block * BLOCK + LANES, lanes(w)):
            x = load(w, n + AT_X)
            for r in range(3, -1, -1):
                at = n + r * LANES
                asked = times(load(w, at + AT_Q), load(w, at + AT_DQ))
                left = times(minus, times(load(w, at + AT_K), load(w, at + AT_DOT)))
                x = kept(plus(times_plus(now, asked, x), left), load(w, at + AT_A))
                store(w, at + AT_A, x)
                x = times_plus(later, asked, x)
            store(w, n + AT_X, x)


@kernel
def over_channels(w, at, blocks):
    """The sum over all channels of the row that lies ``at`` a place in each block."""
    x = every(w.dtype.type(0))
    for block in range(blocks):
        for n in range(block * BLOCK, block * BLOCK + LANES, lanes(w)):
            x = plus(x, load(w, n + at))
    return total(x)
