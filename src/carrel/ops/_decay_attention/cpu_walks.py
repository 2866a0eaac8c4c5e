"""The walks over one tile of the memory, in numba, two rows at a time for four tokens: where the time goes."""

from __future__ import annotations

from .cpu_tokens import (
    AT_D,
    AT_DOT,
    AT_G,
    AT_KA,
    AT_O,
    AT_QA,
    AT_V,
    AT_X,
    BLOCK,
    LANES,
    TILE,
    kernel,
)


@kernel
def answer(S, w, m, among, size):
    """o of four tokens, and S after them, for one tile of the values."""
    for p in range(TILE):
        v0, v1, v2, v3 = m[AT_V + p], m[AT_V + TILE + p], m[AT_V + 2 * TILE + p], m[AT_V + 3 * TILE + p]
        m[AT_O + p] = among[0] * v0
        m[AT_O + TILE + p] = among[4] * v0 + among[5] * v1
        m[AT_O + 2 * TILE + p] = among[8] * v0 + among[9] * v1 + among[10] * v2
        m[AT_O + 3 * TILE + p] = among[12] * v0 + among[13] * v1 + among[14] * v2 + among[15] * v3
    for n in range(0, size, 2):
        rows = S[n * TILE : (n + 2) * TILE]
        at = n // LANES * BLOCK + n % LANES
        q, k = w[at + AT_QA : at + AT_QA + 4 * LANES], w[at + AT_KA : at + AT_KA + 4 * LANES]
        q0, q1, q2, q3, d = q[0], q[LANES], q[2 * LANES], q[3 * LANES], w[at + AT_D]
        k0, k1, k2, k3 = k[0], k[LANES], k[2 * LANES], k[3 * LANES]
        x0, x1, x2, x3, e = q[1], q[LANES + 1], q[2 * LANES + 1], q[3 * LANES + 1], w[at + AT_D + 1]
        y0, y1, y2, y3 = k[1], k[LANES + 1], k[2 * LANES + 1], k[3 * LANES + 1]
        for p in range(TILE):
            s, t = rows[p], rows[TILE + p]
            m[AT_O + p] += q0 * s + x0 * t
            m[AT_O + TILE + p] += q1 * s + x1 * t
            m[AT_O + 2 * TILE + p] += q2 * s + x2 * t
            m[AT_O + 3 * TILE + p] += q3 * s + x3 * t
            v0, v1, v2, v3 = m[AT_V + p], m[AT_V + TILE + p], m[AT_V + 2 * TILE + p], m[AT_V + 3 * TILE + p]
            rows[p] = d * s + k0 * v0 + k1 * v1 + k2 * v2 + k3 * v3
            rows[TILE + p] = e * t + y0 * v0 + y1 * v1 + y2 * v2 + y3 * v3


@kernel
def spread(G, w, m, among, size):
    """dv of four tokens for one tile: k times G, and what later tokens of the four saw of them."""
    for p in range(TILE):
        g0, g1, g2, g3 = m[AT_G + p], m[AT_G + TILE + p], m[AT_G + 2 * TILE + p], m[AT_G + 3 * TILE + p]
        m[AT_O + p] = among[0] * g0 + among[4] * g1 + among[8] * g2 + among[12] * g3
        m[AT_O + TILE + p] = among[5] * g1 + among[9] * g2 + among[13] * g3
        m[AT_O + 2 * TILE + p] = among[10] * g2 + among[14] * g3
        m[AT_O + 3 * TILE + p] = among[15] * g3
    for n in range(0, size, 2):
        rows = G[n * TILE : (n + 2) * TILE]
        at = n // LANES * BLOCK + n % LANES
        k = w[at + AT_KA : at + AT_KA + 4 * LANES]
        k0, k1, k2, k3 = k[0], k[LANES], k[2 * LANES], k[3 * LANES]
        y0, y1, y2, y3 = k[1], k[LANES + 1], k[2 * LANES + 1], k[3 * LANES + 1]
        for p in range(TILE):
            s, t = rows[p], rows[TILE + p]
            m[AT_O + p] += k0 * s + y0 * t
            m[AT_O + TILE + p] += k1 * s + y1 * t
            m[AT_O + 2 * TILE + p] += k2 * s + y2 * t
            m[AT_O + 3 * TILE + p] += k3 * s + y3 * t


@kernel
def ask_and_add(S, w, m, ask, add, by, size):
    """Add the dots of S with four rows to those in w, and bring S over the four tokens: S d + sum of by times add."""
    zero = S.dtype.type(0)
    asked, added = m[ask : ask + 4 * TILE], m[add : add + 4 * TILE]
    for n in range(0, size, 2):
        rows = S[n * TILE : (n + 2) * TILE]
        at = n // LANES * BLOCK + n % LANES
        k = w[at + by : at + by + 4 * LANES]
        k0, k1, k2, k3, d = k[0], k[LANES], k[2 * LANES], k[3 * LANES], w[at + AT_D]
        y0, y1, y2, y3, e = k[1], k[LANES + 1], k[2 * LANES + 1], k[3 * LANES + 1], w[at + AT_D + 1]
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
        dots = w[at + AT_DOT : at + AT_DOT + 4 * LANES]
        dots[0] += s0
        dots[LANES] += s1
        dots[2 * LANES] += s2
        dots[3 * LANES] += s3
        dots[1] += t0
        dots[LANES + 1] += t1
        dots[2 * LANES + 1] += t2
        dots[3 * LANES + 1] += t3


@kernel
def border(w, S, G, tiles, size):
    """X from S and G, which have an even number of rows."""
    even = size + size % 2
    for first in range(0, size, LANES):
        x = w[first // LANES * BLOCK + AT_X : first // LANES * BLOCK + AT_X + LANES]
        for c in range(min(LANES, size - first)):
            total = w.dtype.type(0)
            for tile in range(tiles):
                at = (tile * even + first + c) * TILE
                s, g = S[at : at + TILE], G[at : at + TILE]
                for p in range(TILE):
                    total += s[p] * g[p]
            x[c] = total
