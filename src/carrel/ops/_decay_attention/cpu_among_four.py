"""What four neighbouring tokens make of one another, in numba: products of at most four of their decays."""

from __future__ import annotations

from .._selective_scan.vector_math import LOG2E, exp2
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
    kernel,
    plain,
    put,
)


@kernel
def put_decays(w, log_decay, start, count, size, shared, exclusive, ahead, wrong):
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
                    w[block * BLOCK + AT_A + r * LANES + c] = a
    else:
        put(w, plain(AT_A), log_decay, start, count, size, plain(BLOCK), plain(LANES), ahead)
    for first in range(0, size, LANES):
        b = w[first // LANES * BLOCK : (first // LANES + 1) * BLOCK]
        if not shared:
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
def carry_k(w, size):
    """k times the decays after it, and the product of all four."""
    for first in range(0, size, LANES):
        b = w[first // LANES * BLOCK : (first // LANES + 1) * BLOCK]
        for c in range(LANES):
            a1, a2, a3 = b[AT_A + LANES + c], b[AT_A + 2 * LANES + c], b[AT_A + 3 * LANES + c]
            a32 = a3 * a2
            a321 = a32 * a1
            b[AT_KA + c] = b[AT_K + c] * a321
            b[AT_KA + LANES + c] = b[AT_K + LANES + c] * a32
            b[AT_KA + 2 * LANES + c] = b[AT_K + 2 * LANES + c] * a3
            b[AT_KA + 3 * LANES + c] = b[AT_K + 3 * LANES + c]
            b[AT_D + c] = a321 * b[AT_A + c]


@kernel
def carry_q(w, size, own, sums, among):
    """q times the decays before it; and ``among[4 r + j]``, what token r sees of token j <= r."""
    zero = w.dtype.type(0)
    for c in range(10 * LANES):
        sums[c] = zero
    for first in range(0, size, LANES):
        b = w[first // LANES * BLOCK : (first // LANES + 1) * BLOCK]
        for c in range(LANES):
            a0, a1, a2 = b[AT_A + c], b[AT_A + LANES + c], b[AT_A + 2 * LANES + c]
            q0, q1, q2, q3 = b[AT_Q + c], b[AT_Q + LANES + c], b[AT_Q + 2 * LANES + c], b[AT_Q + 3 * LANES + c]
            k0, k1, k2, k3 = b[AT_K + c], b[AT_K + LANES + c], b[AT_K + 2 * LANES + c], b[AT_K + 3 * LANES + c]
            sums[c] += q0 * k0
            sums[LANES + c] += q1 * k1
            sums[2 * LANES + c] += q2 * k2
            sums[3 * LANES + c] += q3 * k3
            b[AT_QA + c] = q0 * b[AT_F + c]
            q1 *= b[AT_F + LANES + c]
            q2 *= b[AT_F + 2 * LANES + c]
            q3 *= b[AT_F + 3 * LANES + c]
            sums[4 * LANES + c] += q1 * k0
            sums[5 * LANES + c] += q2 * k1
            sums[6 * LANES + c] += q3 * k2
            b[AT_QA + LANES + c] = q1 * a0
            q2 *= a1
            q3 *= a2
            sums[7 * LANES + c] += q2 * k0
            sums[8 * LANES + c] += q3 * k1
            b[AT_QA + 2 * LANES + c] = q2 * a0
            q3 *= a1
            sums[9 * LANES + c] += q3 * k0
            b[AT_QA + 3 * LANES + c] = q3 * a0
    for pair, (r, j) in enumerate(((0, 0), (1, 1), (2, 2), (3, 3), (1, 0), (2, 1), (3, 2), (2, 0), (3, 1), (3, 0))):
        total = zero
        for c in range(LANES):
            total += sums[pair * LANES + c]
        among[4 * r + j] = total * own if r == j else total


@kernel
def meet(m, tiles, own, met):
    """``met[4 r + j]``: the gradient of token r's answer times the value of token j <= r."""
    s00 = s11 = s22 = s33 = s10 = s21 = s32 = s20 = s31 = s30 = m.dtype.type(0)
    for tile in range(tiles):
        b = m[tile * ROWS : (tile + 1) * ROWS]
        for p in range(TILE):
            v0, v1, v2, v3 = b[AT_V + p], b[AT_V + TILE + p], b[AT_V + 2 * TILE + p], b[AT_V + 3 * TILE + p]
            g0, g1, g2, g3 = b[AT_G + p], b[AT_G + TILE + p], b[AT_G + 2 * TILE + p], b[AT_G + 3 * TILE + p]
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


@kernel
def no_dots(w, size):
    for first in range(0, size, LANES):
        dots = w[first // LANES * BLOCK + AT_DOT : first // LANES * BLOCK + AT_DOT + 4 * LANES]
        for c in range(4 * LANES):
            dots[c] = 0


@kernel
def finish_dq(w, met, size):
    """dq of four tokens from the dots of S with their gradients."""
    for first in range(0, size, LANES):
        b = w[first // LANES * BLOCK : (first // LANES + 1) * BLOCK]
        for c in range(LANES):
            a0, a1, a2 = b[AT_A + c], b[AT_A + LANES + c], b[AT_A + 2 * LANES + c]
            k0, k1, k2, k3 = b[AT_K + c], b[AT_K + LANES + c], b[AT_K + 2 * LANES + c], b[AT_K + 3 * LANES + c]
            x1 = a0 * b[AT_DOT + LANES + c] + k0 * met[4]
            x2 = a1 * (a0 * b[AT_DOT + 2 * LANES + c] + k0 * met[8]) + k1 * met[9]
            x3 = a2 * (a1 * (a0 * b[AT_DOT + 3 * LANES + c] + k0 * met[12]) + k1 * met[13]) + k2 * met[14]
            b[AT_DQ + c] = b[AT_F + c] * b[AT_DOT + c] + k0 * met[0]
            b[AT_DQ + LANES + c] = b[AT_F + LANES + c] * x1 + k1 * met[5]
            b[AT_DQ + 2 * LANES + c] = b[AT_F + 2 * LANES + c] * x2 + k2 * met[10]
            b[AT_DQ + 3 * LANES + c] = b[AT_F + 3 * LANES + c] * x3 + k3 * met[15]


@kernel
def finish_dk(w, met, size):
    """dk of four tokens from the dots of G with their values, in their place."""
    for first in range(0, size, LANES):
        b = w[first // LANES * BLOCK : (first // LANES + 1) * BLOCK]
        for c in range(LANES):
            a1, a2, a3 = b[AT_A + LANES + c], b[AT_A + 2 * LANES + c], b[AT_A + 3 * LANES + c]
            q0, q1, q2, q3 = b[AT_Q + c], b[AT_Q + LANES + c], b[AT_Q + 2 * LANES + c], b[AT_Q + 3 * LANES + c]
            f1, f2, f3 = b[AT_F + LANES + c] * q1, b[AT_F + 2 * LANES + c] * q2, b[AT_F + 3 * LANES + c] * q3
            x0 = a2 * (a3 * b[AT_DOT + c] + f3 * met[12]) + f2 * met[8]
            x1 = a3 * b[AT_DOT + LANES + c] + f3 * met[13]
            b[AT_DOT + c] = a1 * x0 + f1 * met[4] + q0 * met[0]
            b[AT_DOT + LANES + c] = a2 * x1 + f2 * met[9] + q1 * met[5]
            b[AT_DOT + 2 * LANES + c] = a3 * b[AT_DOT + 2 * LANES + c] + f3 * met[14] + q2 * met[10]
            b[AT_DOT + 3 * LANES + c] += q3 * met[15]


@kernel
def total(row, size):
    """The sum over all channels of a row whose first block starts where ``row`` does."""
    total = row.dtype.type(0)
    for first in range(0, size, LANES):
        block = row[first // LANES * BLOCK : first // LANES * BLOCK + LANES]
        for c in range(LANES):
            total += block[c]
    return total


@kernel
def finish_decays(w, own, size):
    """From q, dq, k, dk and X after the four tokens: their gradients in the place of a, and X before them."""
    one, zero = w.dtype.type(1), w.dtype.type(0)
    for first in range(0, size, LANES):
        b = w[first // LANES * BLOCK : (first // LANES + 1) * BLOCK]
        for c in range(LANES):
            asked = b[AT_Q + 3 * LANES + c] * b[AT_DQ + 3 * LANES + c]
            x3 = b[AT_X + c] + own * asked - b[AT_K + 3 * LANES + c] * b[AT_DOT + 3 * LANES + c]
            x3 = x3 if b[AT_A + 3 * LANES + c] > zero else zero
            before = x3 + (one - own) * asked
            asked = b[AT_Q + 2 * LANES + c] * b[AT_DQ + 2 * LANES + c]
            x2 = before + own * asked - b[AT_K + 2 * LANES + c] * b[AT_DOT + 2 * LANES + c]
            x2 = x2 if b[AT_A + 2 * LANES + c] > zero else zero
            before = x2 + (one - own) * asked
            asked = b[AT_Q + LANES + c] * b[AT_DQ + LANES + c]
            x1 = before + own * asked - b[AT_K + LANES + c] * b[AT_DOT + LANES + c]
            x1 = x1 if b[AT_A + LANES + c] > zero else zero
            before = x1 + (one - own) * asked
            asked = b[AT_Q + c] * b[AT_DQ + c]
            x0 = before + own * asked - b[AT_K + c] * b[AT_DOT + c]
            x0 = x0 if b[AT_A + c] > zero else zero
            b[AT_X + c] = x0 + (one - own) * asked
            b[AT_A + c] = x0
            b[AT_A + LANES + c] = x1
            b[AT_A + 2 * LANES + c] = x2
            b[AT_A + 3 * LANES + c] = x3
