"""The walks over the memory, in numba, for four tokens at a time: where the time goes.

The way forward reads answers (P numbers) and has P side by side: S lies in tiles of `TILE` columns. The way back reads
gradients of q and k (N numbers) and has N side by side: there S and G lie turned, in blocks of `LANES` channels.
"""

from __future__ import annotations

from .._compile import kernel
from .._vectors import every, lanes, load, plus, same, store, times, times_plus, total
from .cpu_tokens import AT_D, AT_DOT, AT_G, AT_KA, AT_O, AT_QA, AT_V, AT_X, BLOCK, LANES, ROWS, TILE


@kernel
def answer(S, w, m, among, size, width):
    """o of four tokens, and S after them."""
    step = lanes(S)
    for start in range(0, width, TILE):
        for column in range(0, min(TILE, width - start), step):
            p = start // TILE * ROWS + column
            v0, v1 = load(m, p + AT_V), load(m, p + AT_V + TILE)
            v2, v3 = load(m, p + AT_V + 2 * TILE), load(m, p + AT_V + 3 * TILE)
            o0 = times(same(among, 0), v0)
            o1 = times_plus(same(among, 4), v0, times(same(among, 5), v1))
            o2 = times_plus(same(among, 8), v0, times_plus(same(among, 9), v1, times(same(among, 10), v2)))
            o3 = times_plus(same(among, 12), v0, times_plus(same(among, 13), v1, times(same(among, 14), v2)))
            o3 = times_plus(same(among, 15), v3, o3)
            here = start * size + column
            for first in range(0, size, LANES):
                at = first // LANES * BLOCK
                for n in range(at, at + min(LANES, size - first)):
                    s = load(S, here)
                    o0 = times_plus(same(w, n + AT_QA), s, o0)
                    o1 = times_plus(same(w, n + AT_QA + LANES), s, o1)
                    o2 = times_plus(same(w, n + AT_QA + 2 * LANES), s, o2)
                    o3 = times_plus(same(w, n + AT_QA + 3 * LANES), s, o3)
                    s = times_plus(same(w, n + AT_KA), v0, times(same(w, n + AT_D), s))
                    s = times_plus(same(w, n + AT_KA + LANES), v1, s)
                    s = times_plus(same(w, n + AT_KA + 2 * LANES), v2, s)
                    store(S, here, times_plus(same(w, n + AT_KA + 3 * LANES), v3, s))
                    here += TILE
            store(m, p + AT_O, o0)
            store(m, p + AT_O + TILE, o1)
            store(m, p + AT_O + 2 * TILE, o2)
            store(m, p + AT_O + 3 * TILE, o3)


@kernel
def ask_and_add(S, w, m, ask, add, by, width, blocks):
    """The dots of a turned S with four rows, and S brought over the four tokens: S d + sum of by times add."""
    step = lanes(S)
    for block in range(blocks):
        for channel in range(0, LANES, step):
            n = block * BLOCK + channel
            k0, k1 = load(w, n + by), load(w, n + by + LANES)
            k2, k3, d = load(w, n + by + 2 * LANES), load(w, n + by + 3 * LANES), load(w, n + AT_D)
            x0 = x1 = x2 = x3 = every(S.dtype.type(0))
            here = block * width * LANES + channel
            for first in range(0, width, TILE):
                at = first // TILE * ROWS
                for p in range(at, at + min(TILE, width - first)):
                    s = load(S, here)
                    x0 = times_plus(same(m, p + ask), s, x0)
                    x1 = times_plus(same(m, p + ask + TILE), s, x1)
                    x2 = times_plus(same(m, p + ask + 2 * TILE), s, x2)
                    x3 = times_plus(same(m, p + ask + 3 * TILE), s, x3)
                    s = times_plus(same(m, p + add), k0, times(d, s))
                    s = times_plus(same(m, p + add + TILE), k1, s)
                    s = times_plus(same(m, p + add + 2 * TILE), k2, s)
                    store(S, here, times_plus(same(m, p + add + 3 * TILE), k3, s))
                    here += LANES
            store(w, n + AT_DOT, x0)
            store(w, n + AT_DOT + LANES, x1)
            store(w, n + AT_DOT + 2 * LANES, x2)
            store(w, n + AT_DOT + 3 * LANES, x3)


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
            store(m, p + AT_O, times_plus(same(among, 12), g3, o0))
            store(m, p + AT_O + TILE, o1)
            store(m, p + AT_O + 2 * TILE, times_plus(same(among, 10), g2, times(same(among, 14), g3)))
            store(m, p + AT_O + 3 * TILE, times(same(among, 15), g3))
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
