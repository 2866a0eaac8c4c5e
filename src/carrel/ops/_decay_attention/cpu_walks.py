"""The walks over the memory, in numba, for four tokens at a time: where the time goes.

The way forward reads answers (P numbers) and has P side by side: S lies in tiles of `TILE` columns. The way back reads
gradients of q and k (N numbers) and has N side by side: there S and G lie turned, in blocks of `LANES` channels.
"""

from __future__ import annotations

from .._compile import kernel
from .._vectors import every, lanes, load, plus, same, store, times, times_plus, total
from .cpu_tokens import AT_D, AT_DOT, AT_G, AT_KA, AT_O, AT_QA, AT_V, AT_X, BLOCK, LANES, ROWS, TILE, put_four


@kernel
def answer(S, w, m, among, size, width):
    """o of four tokens, and S after them; two vectors at a time, so that each number of w serves both."""
    step, zero = lanes(S), every(S.dtype.type(0))
    for start in range(0, width, TILE):
        for column in range(0, min(TILE, width - start), 2 * step):
            p = start // TILE * ROWS + column
            r = p + step
            v0, v1 = load(m, p + AT_V), load(m, p + AT_V + TILE)
            v2, v3 = load(m, p + AT_V + 2 * TILE), load(m, p + AT_V + 3 * TILE)
            x0 = x1 = x2 = x3 = y0 = y1 = y2 = y3 = zero
            here = start * size + column
            for first in range(0, size, LANES):
                at = first // LANES * BLOCK
                for n in range(at, at + min(LANES, size - first)):
                    s, t = load(S, here), load(S, here + step)
                    q = same(w, n + AT_QA)
                    x0, y0 = times_plus(q, s, x0), times_plus(q, t, y0)
                    q = same(w, n + AT_QA + LANES)
                    x1, y1 = times_plus(q, s, x1), times_plus(q, t, y1)
                    q = same(w, n + AT_QA + 2 * LANES)
                    x2, y2 = times_plus(q, s, x2), times_plus(q, t, y2)
                    q = same(w, n + AT_QA + 3 * LANES)
                    x3, y3 = times_plus(q, s, x3), times_plus(q, t, y3)
                    k = same(w, n + AT_D)
                    s, t = times(k, s), times(k, t)
                    k = same(w, n + AT_KA)
                    s, t = times_plus(k, v0, s), times_plus(k, load(m, r + AT_V), t)
                    k = same(w, n + AT_KA + LANES)
                    s, t = times_plus(k, v1, s), times_plus(k, load(m, r + AT_V + TILE), t)
                    k = same(w, n + AT_KA + 2 * LANES)
                    s, t = times_plus(k, v2, s), times_plus(k, load(m, r + AT_V + 2 * TILE), t)
                    k = same(w, n + AT_KA + 3 * LANES)
                    s, t = times_plus(k, v3, s), times_plus(k, load(m, r + AT_V + 3 * TILE), t)
                    store(S, here, s)
                    store(S, here + step, t)
                    here += TILE
            _add_among(m, p, among, x0, x1, x2, x3)
            _add_among(m, r, among, y0, y1, y2, y3)


@kernel
def _add_among(m, p, among, o0, o1, o2, o3):
    """What the four see of each other, added to what they see of S."""
    v0, v1 = load(m, p + AT_V), load(m, p + AT_V + TILE)
    v2, v3 = load(m, p + AT_V + 2 * TILE), load(m, p + AT_V + 3 * TILE)
    o0 = times_plus(same(among, 0), v0, o0)
    o1 = times_plus(same(among, 4), v0, times_plus(same(among, 5), v1, o1))
    o2 = times_plus(same(among, 8), v0, times_plus(same(among, 9), v1, times_plus(same(among, 10), v2, o2)))
    o3 = times_plus(same(among, 12), v0, times_plus(same(among, 13), v1, times_plus(same(among, 14), v2, o3)))
    store(m, p + AT_O, o0)
    store(m, p + AT_O + TILE, o1)
    store(m, p + AT_O + 2 * TILE, o2)
    store(m, p + AT_O + 3 * TILE, times_plus(same(among, 15), v3, o3))


@kernel
def ask_and_add(S, w, m, ask, add, by, width, blocks):
    """The dots of a turned S with four rows, and S brought over the four tokens: S d + sum of by times add."""
    step, zero = lanes(S), every(S.dtype.type(0))
    for block in range(blocks):
        for channel in range(0, LANES, 2 * step):
            n = block * BLOCK + channel
            r = n + step
            k0, k1 = load(w, n + by), load(w, n + by + LANES)
            k2, k3, d = load(w, n + by + 2 * LANES), load(w, n + by + 3 * LANES), load(w, n + AT_D)
            x0 = x1 = x2 = x3 = y0 = y1 = y2 = y3 = zero
            here = block * width * LANES + channel
            for first in range(0, width, TILE):
                at = first // TILE * ROWS
                for p in range(at, at + min(TILE, width - first)):
                    s, t = load(S, here), load(S, here + step)
                    g = same(m, p + ask)
                    x0, y0 = times_plus(g, s, x0), times_plus(g, t, y0)
                    g = same(m, p + ask + TILE)
                    x1, y1 = times_plus(g, s, x1), times_plus(g, t, y1)
                    g = same(m, p + ask + 2 * TILE)
                    x2, y2 = times_plus(g, s, x2), times_plus(g, t, y2)
                    g = same(m, p + ask + 3 * TILE)
                    x3, y3 = times_plus(g, s, x3), times_plus(g, t, y3)
                    s, t = times(d, s), times(load(w, r + AT_D), t)
                    g = same(m, p + add)
                    s, t = times_plus(g, k0, s), times_plus(g, load(w, r + by), t)
                    g = same(m, p + add + TILE)
                    s, t = times_plus(g, k1, s), times_plus(g, load(w, r + by + LANES), t)
                    g = same(m, p + add + 2 * TILE)
                    s, t = times_plus(g, k2, s), times_plus(g, load(w, r + by + 2 * LANES), t)
                    g = same(m, p + add + 3 * TILE)
                    s, t = times_plus(g, k3, s), times_plus(g, load(w, r + by + 3 * LANES), t)
                    store(S, here, s)
                    store(S, here + step, t)
                    here += LANES
            put_four(w, n + AT_DOT, LANES, x0, x1, x2, x3)
            put_four(w, r + AT_DOT, LANES, y0, y1, y2, y3)


@kernel
def spread(G, w, m, among, width, blocks):
    """dv of four tokens: k times a turned G, and what later tokens of the four saw of them."""
    step, zero = lanes(G), every(G.dtype.type(0))
    for first in range(0, width, TILE):
        at = first // TILE * ROWS
        for p in range(at, at + TILE, step):
            g0, g1 = load(m, p + AT_G), load(m, p + AT_G + TILE)
            g2, g3 = load(m, p + AT_G + 2 * TILE), load(m, p + AT_G + 3 * TILE)
            o0 = times_plus(same(among, 0), g0, times_plus(same(among, 4), g1, times(same(among, 8), g2)))
            o1 = times_plus(same(among, 5), g1, times_plus(same(among, 9), g2, times(same(among, 13), g3)))
            o2 = times_plus(same(among, 10), g2, times(same(among, 14), g3))
            put_four(m, p + AT_O, TILE, times_plus(same(among, 12), g3, o0), o1, o2, times(same(among, 15), g3))
        for row in range(min(TILE, width - first)):
            x0 = x1 = x2 = x3 = zero
            for block in range(blocks):
                here, n = (block * width + first + row) * LANES, block * BLOCK + AT_KA
                for c in range(0, LANES, step):
                    s = load(G, here + c)
                    x0 = times_plus(load(w, n + c), s, x0)
                    x1 = times_plus(load(w, n + c + LANES), s, x1)
                    x2 = times_plus(load(w, n + c + 2 * LANES), s, x2)
                    x3 = times_plus(load(w, n + c + 3 * LANES), s, x3)
            m[at + AT_O + row] += total(x0)
            m[at + AT_O + TILE + row] += total(x1)
            m[at + AT_O + 2 * TILE + row] += total(x2)
            m[at + AT_O + 3 * TILE + row] += total(x3)


@kernel
def border(w, S, start, G, width, blocks):
    """X from G and the S that begins at ``start``, both turned."""
    step = lanes(G)
    for block in range(blocks):
        for channel in range(0, LANES, step):
            even = odd = every(G.dtype.type(0))
            here = block * width * LANES + channel
            for _ in range(width // 2):
                even = times_plus(load(S, start + here), load(G, here), even)
                odd = times_plus(load(S, start + here + LANES), load(G, here + LANES), odd)
                here += 2 * LANES
            if width % 2:
                even = times_plus(load(S, start + here), load(G, here), even)
            store(w, block * BLOCK + AT_X + channel, plus(even, odd))
