"""Numba kernels of a GRU along a whole sequence: one Newton sweep, the residual, the adjoint. No Jacobian is stored.

Rows of the batch stand side by side in groups of `lanes`, and tokens in blocks of `WIDTH` / lanes, so that a block of
one component is `WIDTH` neighbouring numbers: gates and slopes of a block are made in vectors along them. Then the
linear recurrence goes through the block token by token, with the rows of the group as its vector.

A group's arrays are flat: (component, token, lane), with tokens padded to whole blocks. The states begin with the one
before the first token, so that what a token finds lies one token before what it leaves. Indices are unsigned: numba
takes a negative one as counted from the end, and LLVM vectorises no loop with that question in it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from .._compile import compiler
from .._vector_math import LOG2E, exp2

_kernel = compiler(("contract", "nsz"))
_U: Any = np.uint64

WIDTH = 128  # numbers of a block in one component
ROWS = 6  # of scratch memory for a component
SMALL = 6  # components up to which a block's Jacobian is put together before the recurrence
_N, _ROWS = _U(WIDTH), _U(ROWS)
STRIDE = WIDTH + 16  # between rows of scratch memory: not a power of two, which would fill few sets of the cache
_S, _S2, _S3, _S4, _S5 = (_U(k * STRIDE) for k in range(1, 6))
_0, _1, _2, _3, _4 = (_U(k) for k in range(5))


@_kernel
def _slopes(u, W, bias, y, w, first, size, span, states):
    """Of a block: in rows 0, 1, 2 the slopes of f by what enters r, z and v; 3: f; 4: z; 5: the slope by what enters n.

    W (3 D, D) and bias are flat; span and states are the lengths of a row of u and of y; y read from ``first`` on is
    what the tokens find.
    """
    one, none, two = u.dtype.type(1), u.dtype.type(0), u.dtype.type(-LOG2E)
    for i in range(size):
        at = i * _ROWS * _S
        iz, iv = size + i, size + size + i
        br, bz, bv = bias[i], bias[iz], bias[iv]
        ur, uz, un, h = i * span + first, iz * span + first, iv * span + first, i * states + first
        for n in range(_N):
            w[at + n] = u[ur + n] + br
            w[at + _S + n] = u[uz + n] + bz
            w[at + _S2 + n] = bv
            w[at + _S3 + n] = u[un + n]
            w[at + _S4 + n] = y[h + n]
        wr, wz, wv = i * size, iz * size, iv * size
        j = _0
        while j + _3 < size:
            p = j * states + first
            q, s, t = p + states, p + states + states, p + states + states + states
            r0, r1, r2, r3 = W[wr + j], W[wr + j + _1], W[wr + j + _2], W[wr + j + _3]
            z0, z1, z2, z3 = W[wz + j], W[wz + j + _1], W[wz + j + _2], W[wz + j + _3]
            v0, v1, v2, v3 = W[wv + j], W[wv + j + _1], W[wv + j + _2], W[wv + j + _3]
            for n in range(_N):
                a, b, c, d = y[p + n], y[q + n], y[s + n], y[t + n]
                w[at + n] += r0 * a + r1 * b + r2 * c + r3 * d
                w[at + _S + n] += z0 * a + z1 * b + z2 * c + z3 * d
                w[at + _S2 + n] += v0 * a + v1 * b + v2 * c + v3 * d
            j += _4
        while j < size:
            p = j * states + first
            r0, z0, v0 = W[wr + j], W[wz + j], W[wv + j]
            for n in range(_N):
                a = y[p + n]
                w[at + n] += r0 * a
                w[at + _S + n] += z0 * a
                w[at + _S2 + n] += v0 * a
            j += _1
        for n in range(_N):
            a, b, v, before = w[at + n], w[at + _S + n], w[at + _S2 + n], w[at + _S4 + n]
            e = exp2(two * abs(a))
            s = one / (one + e)
            # adding 0 a keeps what is not a number, which the comparison would lose
            r = (s if a >= none else e * s) + none * a
            e = exp2(two * abs(b))
            s = one / (one + e)
            z = (s if b >= none else e * s) + none * b
            c = w[at + _S3 + n] + r * v
            e = exp2((two + two) * abs(c))
            s = (one - e) / (one + e)
            m = (s if c >= none else -s) + none * c
            slope = (one - z) * (one - m * m)
            w[at + n] = slope * v * r * (one - r)
            w[at + _S + n] = (before - m) * z * (one - z)
            w[at + _S2 + n] = slope * r
            w[at + _S3 + n] = m + z * (before - m)
            w[at + _S4 + n] = z
            w[at + _S5 + n] = slope


@_kernel
def _measure(y, w, change, value, first, count, size, states, lanes, top):
    """Raise, in three rows of ``top``, the largest change and value, and a sum of zeros that infinities spoil.

    change, value: where they are, in w if the change is to be read as f - y, else both in y.
    """
    none = y.dtype.type(0)
    for i in range(size):
        a, b = i * states + first + lanes, i * _ROWS * _S + _S3
        for n in range(count):
            now = y[a + n]
            moved = abs(w[b + n] - now) if change else abs(w[b + n])
            now = abs(now)
            top[n] = moved if moved > top[n] else top[n]
            top[_S + n] = now if now > top[_S + n] else top[_S + n]
            top[_S2 + n] += none * (moved + now)


@_kernel
def _conclude(top, most, lanes):
    """The largest of each row of the batch; NaN where a number was not finite."""
    for k in range(lanes):
        change, value, spoilt = top[k], top[_S + k], top[_S2 + k]
        for n in range(k, _N, lanes):
            change, value = max(change, top[n]), max(value, top[_S + n])
            spoilt += top[_S2 + n]
        most[0, k] = change + spoilt
        most[1, k] = value + spoilt


@_kernel
def residual(u, W, bias, y, w, top, most, tokens, i0, i1, c0, c1):
    """most (G, 2, lanes): the largest |f(y_{t-1}) - y_t| of each row of the batch, and its largest |y_t|."""
    lanes = _U(most.shape[2])
    size = _U(bias.size) // _3
    span, states = _U(u.shape[1]) // (_3 * size), _U(y.shape[1]) // size
    end = _U(tokens) * lanes
    for g in range(i0, i1):
        for n in range(_S3):
            top[g, n] = 0
        for first in range(_0, span, _N):
            _slopes(u[g], W, bias, y[g], w[g], first, size, span, states)
            _measure(y[g], w[g], True, True, first, min(_N, end - first), size, states, lanes, top[g])
        _conclude(top[g], most[g], lanes)


@cache
def sweep(count: int) -> Callable[..., None]:
    """The kernel of a Newton sweep for groups of so many rows."""
    lanes = _U(count)

    @_kernel
    def diagonal_steps(W, old, new, s, d, first, size, states):
        for i in range(size):
            at = i * _ROWS * _S
            wr, wz = W[i * size + i], W[(size + i) * size + i]
            wv = W[(size + size + i) * size + i]
            for n in range(_N):
                s[at + _S4 + n] += wr * s[at + n] + wz * s[at + _S + n] + wv * s[at + _S2 + n]
        for n in range(_0, _N, lanes):
            for i in range(size):
                at, to, k0 = i * _ROWS * _S + n, i * states + first + lanes + n, i * lanes
                for k in range(lanes):
                    value = s[at + _S3 + k] + s[at + _S4 + k] * d[k0 + k]
                    new[to + k] = value
                    d[k0 + k] = value - old[to + k]
                    s[at + _S3 + k] = d[k0 + k]

    @_kernel
    def small_steps(W, old, new, s, J, d, first, size, states):
        """The Jacobian of the block first, then the recurrence."""
        for i in range(size):
            at = i * _ROWS * _S
            for j in range(size):
                to = (i * size + j) * _S
                wr, wz = W[i * size + j], W[(size + i) * size + j]
                wv = W[(size + size + i) * size + j]
                for n in range(_N):
                    J[to + n] = wr * s[at + n] + wz * s[at + _S + n] + wv * s[at + _S2 + n]
            to = (i * size + i) * _S
            for n in range(_N):
                J[to + n] += s[at + _S4 + n]
        half = size * lanes
        for n in range(_0, _N, lanes):
            for i in range(size):
                for k in range(lanes):
                    d[half + i * lanes + k] = s[i * _ROWS * _S + _S3 + n + k]
            for j in range(size):  # outside: sums that wait for one another through memory would be slower
                for i in range(size):
                    row, k0 = (i * size + j) * _S + n, half + i * lanes
                    for k in range(lanes):
                        d[k0 + k] += J[row + k] * d[j * lanes + k]
            for i in range(size):
                at, to = i * _ROWS * _S + _S3 + n, i * states + first + lanes + n
                for k in range(lanes):
                    value = d[half + i * lanes + k]
                    new[to + k] = value
                    value -= old[to + k]
                    d[i * lanes + k] = value
                    s[at + k] = value

    @_kernel
    def large_steps(columns, old, new, s, d, first, size, states):
        """Three products with shared weights in place of one with a Jacobian; columns are those of W, flat."""
        gates = _3 * size
        v = lanes * size
        for n in range(_0, _N, lanes):
            for k in range(lanes):
                e = k * size
                for m in range(gates):
                    d[v + m] = 0
                j = _0
                while j + _3 < size:
                    d0, d1, d2, d3 = d[e + j], d[e + j + _1], d[e + j + _2], d[e + j + _3]
                    c0 = j * gates
                    c1, c2, c3 = c0 + gates, c0 + _2 * gates, c0 + _3 * gates
                    for m in range(gates):
                        d[v + m] += (
                            columns[c0 + m] * d0 + columns[c1 + m] * d1 + columns[c2 + m] * d2 + columns[c3 + m] * d3
                        )
                    j += _4
                while j < size:
                    d0, c0 = d[e + j], j * gates
                    for m in range(gates):
                        d[v + m] += columns[c0 + m] * d0
                    j += _1
                for i in range(size):
                    at, to = i * _ROWS * _S + n + k, i * states + first + lanes + n + k
                    value = s[at + _S3] + s[at + _S4] * d[e + i] + s[at] * d[v + i]
                    value += s[at + _S] * d[v + size + i] + s[at + _S2] * d[v + size + size + i]
                    new[to] = value
                    d[e + i] = value - old[to]
                    s[at + _S3] = d[e + i]

    @_kernel
    def kernel(u, W, columns, bias, old, new, diagonal, w, jac, delta, top, most, tokens, i0, i1, c0, c1):
        size = _U(bias.size) // _3
        span, states = _U(u.shape[1]) // (_3 * size), _U(old.shape[1]) // size
        end = _U(tokens) * lanes
        for g in range(i0, i1):
            for n in range(_S3):
                top[g, n] = 0
            for n in range(delta.shape[1]):
                delta[g, n] = 0
            for first in range(_0, span, _N):
                _slopes(u[g], W, bias, old[g], w[g], first, size, span, states)
                if diagonal:
                    diagonal_steps(W, old[g], new[g], w[g], delta[g], first, size, states)
                elif jac.shape[1] > 0:
                    small_steps(W, old[g], new[g], w[g], jac[g], delta[g], first, size, states)
                else:
                    large_steps(columns, old[g], new[g], w[g], delta[g], first, size, states)
                _measure(new[g], w[g], False, True, first, min(_N, end - first), size, states, lanes, top[g])
            _conclude(top[g], most[g], lanes)

    return kernel


@_kernel
def adjoint(u, W, bias, y, g, out, first_gradient, w, lam, lanes_, i0, i1, c0, c1):
    """With lambda_t = g_t + J_{t+1}^T lambda_{t+1}: what reaches the gates, rows r, z, v, n of out, and y0."""
    lanes = _U(lanes_)
    size = _U(bias.size) // _3
    span, states = _U(u.shape[1]) // (_3 * size), _U(y.shape[1]) // size
    q = lanes * size  # lam: the carry, row by row of the batch, and behind it the three products of one row
    for group in range(i0, i1):
        s, given, found, carry = w[group], g[group], out[group], lam[group]
        for m in range(lam.shape[1]):
            carry[m] = 0
        for back in range(_0, span, _N):
            first = span - _N - back
            _slopes(u[group], W, bias, y[group], s, first, size, span, states)
            for behind in range(_0, _N, lanes):
                n = _N - lanes - behind
                for k in range(lanes):
                    e = k * size
                    for i in range(size):
                        at, to = i * _ROWS * _S + n + k, i * span + first + n + k
                        value = given[to] + carry[e + i]
                        r, z, v = s[at] * value, s[at + _S] * value, s[at + _S2] * value
                        carry[q + i], carry[q + size + i], carry[q + size + size + i] = r, z, v
                        found[to], found[to + size * span], found[to + _2 * size * span] = r, z, v
                        found[to + _3 * size * span] = s[at + _S5] * value
                        carry[e + i] = s[at + _S4] * value
                    for i in range(size):
                        r, z, v = carry[q + i], carry[q + size + i], carry[q + size + size + i]
                        wr, wz, wv = i * size, (size + i) * size, (size + size + i) * size
                        for j in range(size):
                            carry[e + j] += W[wr + j] * r + W[wz + j] * z + W[wv + j] * v
        for k in range(lanes):
            for i in range(size):
                first_gradient[group, i, k] = carry[k * size + i]
