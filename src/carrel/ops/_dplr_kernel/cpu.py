"""Numba kernels of the Cauchy sums over conjugate pairs: no quotient is ever written to memory.

A pair w / (g - lam h) + conj(w) / (g - conj(lam) h) is (2 g Re w - 2 h Re(w conj(lam))) / (g^2 - 2 g h Re lam + h^2
|lam|^2): one real division for both, and real weights. Nodes are taken 64 at a time, so that what all modes and
weights share stays in the cache; real and imaginary parts lie in rows of their own, which is what vector units want.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._compile import kernel
from .._memory import array, fresh, over_blocks
from .._vectors import every, lanes, load, over, same, store, times, times_plus

_NODES = 64

# Where the rows of 64 numbers lie in a kernel's one workspace. The compiler sees that they do not overlap, because they
# have one base and constant distances; of separate arrays it would have to ask, and of so many it does not.
_G, _H, _GG, _GH, _HH = 0, 128, 256, 384, 512
_P, _Q = 640, 768  # the two quotients of the backward
_E, _F, _SUM = 896, 1024, 1152
_FOUR, _END = 1280, 1792  # the sums of four weights
_ROW = 10  # numbers per mode: see _constants


@kernel
def _load(s, x, row, first, count, place, padding):
    for r in range(count):
        s[place + r] = x[row, first + r].real
        s[place + _NODES + r] = x[row, first + r].imag
    for r in range(count, _NODES):
        s[place + r] = padding
        s[place + _NODES + r] = padding - padding


@kernel
def _products(s):
    for r in range(_NODES):
        gr, gi, hr, hi = s[_G + r], s[_G + 64 + r], s[_H + r], s[_H + 64 + r]
        s[_GG + r] = gr * gr - gi * gi
        s[_GG + 64 + r] = gr * gi + gr * gi
        s[_GH + r] = gr * hr - gi * hi
        s[_GH + 64 + r] = gr * hi + gi * hr
        s[_HH + r] = hr * hr - hi * hi
        s[_HH + 64 + r] = hr * hi + hr * hi


@kernel
def _mixed(weight, mode):
    """2 Re w and 2 Re(w conj(lam))."""
    mixed = weight.real * mode.real + weight.imag * mode.imag
    return weight.real + weight.real, mixed + mixed


@kernel
def _constants(table, w, lam):
    """What the modes are multiplied by: -2 Re lam and |lam|^2, then the two parts of four weights; 0 past the last."""
    for k in range(0, len(w), 4):
        for n in range(len(lam)):
            at = (k // 4 * len(lam) + n) * _ROW
            table[at] = -(lam[n].real + lam[n].real)
            table[at + 1] = lam[n].real * lam[n].real + lam[n].imag * lam[n].imag
            for j in range(min(4, len(w) - k)):
                alpha, beta = _mixed(w[k + j, n], lam[n])
                table[at + 2 + 2 * j] = alpha
                table[at + 3 + 2 * j] = -beta


@kernel
def _sum_modes(s, r, table, start, end, one):
    """Four weights' sums over the modes at as many nodes as a vector has lanes: alpha g / D - beta h / D, where
    D = g^2 - 2 g h Re lam + h^2 |lam|^2."""
    x0 = y0 = x1 = y1 = x2 = y2 = x3 = y3 = every(one - one)
    whole, minus = every(one), every(-one)
    gr, gi, hr, hi = load(s, _G + r), load(s, _G + 64 + r), load(s, _H + r), load(s, _H + 64 + r)
    for at in range(start, end, _ROW):
        twice, square = same(table, at), same(table, at + 1)
        dr = times_plus(square, load(s, _HH + r), times_plus(twice, load(s, _GH + r), load(s, _GG + r)))
        di = times_plus(square, load(s, _HH + 64 + r), times_plus(twice, load(s, _GH + 64 + r), load(s, _GG + 64 + r)))
        scale = over(whole, times_plus(dr, dr, times(di, di)))
        dr, di = times(dr, scale), times(di, scale)  # 1 / D is dr - i di now
        back = times(minus, di)
        pr, pi = times_plus(gr, dr, times(gi, di)), times_plus(gi, dr, times(gr, back))
        qr, qi = times_plus(hr, dr, times(hi, di)), times_plus(hi, dr, times(hr, back))
        a, b = same(table, at + 2), same(table, at + 3)
        x0, y0 = times_plus(b, qr, times_plus(a, pr, x0)), times_plus(b, qi, times_plus(a, pi, y0))
        a, b = same(table, at + 4), same(table, at + 5)
        x1, y1 = times_plus(b, qr, times_plus(a, pr, x1)), times_plus(b, qi, times_plus(a, pi, y1))
        a, b = same(table, at + 6), same(table, at + 7)
        x2, y2 = times_plus(b, qr, times_plus(a, pr, x2)), times_plus(b, qi, times_plus(a, pi, y2))
        a, b = same(table, at + 8), same(table, at + 9)
        x3, y3 = times_plus(b, qr, times_plus(a, pr, x3)), times_plus(b, qi, times_plus(a, pi, y3))
    store(s, _FOUR + r, x0)
    store(s, _FOUR + 64 + r, y0)
    store(s, _FOUR + 128 + r, x1)
    store(s, _FOUR + 192 + r, y1)
    store(s, _FOUR + 256 + r, x2)
    store(s, _FOUR + 320 + r, y2)
    store(s, _FOUR + 384 + r, x3)
    store(s, _FOUR + 448 + r, y3)


@kernel
def _forward(w, lam, g, h, out, unit, i0, i1, c0, c1):
    weights, modes, nodes = w.shape[1], w.shape[2], g.shape[1]
    s, row = np.zeros(_END, unit.dtype), modes * _ROW
    table = np.zeros((weights + 3) // 4 * row, unit.dtype)
    for i in range(i0, i1):
        _constants(table, w[i], lam[i])
        for first in range(0, nodes, _NODES):
            count = min(_NODES, nodes - first)
            _load(s, g, i, first, count, _G, unit[0])
            _load(s, h, i if h.shape[0] > 1 else 0, first, count, _H, unit[1])
            _products(s)
            for k in range(0, weights, 4):
                for r in range(0, count, lanes(s)):
                    _sum_modes(s, r, table, k // 4 * row, (k // 4 + 1) * row, unit[0])
                for j in range(min(4, weights - k)):
                    for r in range(count):
                        out[i, k + j, first + r] = complex(s[_FOUR + 128 * j + r], s[_FOUR + 128 * j + 64 + r])


@kernel
def _inverse(s, mode, one):
    """1 / (g - lam h) and 1 / (g - conj(lam) h)."""
    a, b = mode.real, mode.imag
    for r in range(_NODES):
        hr, hi = s[_H + r], s[_H + 64 + r]
        x, y = s[_G + r] - a * hr, s[_G + 64 + r] - a * hi
        xr, xi = x + b * hi, y - b * hr
        scale = one / (xr * xr + xi * xi)
        s[_P + r] = xr * scale
        s[_P + 64 + r] = -xi * scale
        xr, xi = x - b * hi, y + b * hr
        scale = one / (xr * xr + xi * xi)
        s[_Q + r] = xr * scale
        s[_Q + 64 + r] = -xi * scale


@kernel
def _weigh(s, arrived, k, weight, zero):
    """The gradient of one weight; and what the gradients weigh together: e += conj(G) w, f += conj(G) conj(w)."""
    wr, wi = weight.real, weight.imag
    re, im = zero, zero
    for r in range(_NODES):
        x, y = arrived[k, 0, r], arrived[k, 1, r]
        pr, pi, qr, qi = s[_P + r], s[_P + 64 + r], s[_Q + r], s[_Q + 64 + r]
        re += x * (pr + qr) + y * (pi + qi)
        im += y * (pr - qr) - x * (pi - qi)
        s[_E + r] += x * wr + y * wi
        s[_E + 64 + r] += x * wi - y * wr
        s[_F + r] += x * wr - y * wi
        s[_F + 64 + r] += -x * wi - y * wr
    return complex(re, im)


@kernel
def _settle(s, zero):
    """The gradient of the mode, sum_j conj(h e R^2) + h f R'^2; and of g, which loses conj(e R^2 + f R'^2)."""
    re, im = zero, zero
    for r in range(_NODES):
        pr, pi, qr, qi = s[_P + r], s[_P + 64 + r], s[_Q + r], s[_Q + 64 + r]
        xr, xi = pr * pr - pi * pi, pr * pi + pr * pi
        yr, yi = qr * qr - qi * qi, qr * qi + qr * qi
        er, ei, fr, fi = s[_E + r], s[_E + 64 + r], s[_F + r], s[_F + 64 + r]
        ar, ai = er * xr - ei * xi, er * xi + ei * xr
        br, bi = fr * yr - fi * yi, fr * yi + fi * yr
        hr, hi = s[_H + r], s[_H + 64 + r]
        re += hr * (ar + br) - hi * (ai + bi)
        im += hr * (bi - ai) + hi * (br - ar)
        s[_SUM + r] -= ar + br
        s[_SUM + 64 + r] += ai + bi
    return complex(re, im)


@kernel
def _backward(w, lam, g, h, G, dw, dlam, dg, unit, i0, i1, c0, c1):
    weights, modes, nodes = w.shape[1], w.shape[2], g.shape[1]
    s = np.zeros(_END, unit.dtype)
    arrived = np.zeros((weights, 2, _NODES), unit.dtype)
    for i in range(i0, i1):
        for first in range(0, nodes, _NODES):
            count = min(_NODES, nodes - first)
            _load(s, g, i, first, count, _G, unit[0])
            _load(s, h, i if h.shape[0] > 1 else 0, first, count, _H, unit[1])
            for k in range(weights):
                for r in range(_NODES):
                    arrived[k, 0, r] = G[i, k, first + r].real if r < count else unit[1]
                    arrived[k, 1, r] = G[i, k, first + r].imag if r < count else unit[1]
            for r in range(_SUM, _SUM + 128):
                s[r] = 0
            for n in range(modes):
                _inverse(s, lam[i, n], unit[0])
                for r in range(_E, _E + 256):
                    s[r] = 0
                for k in range(weights):
                    dw[i, k, n] += _weigh(s, arrived, k, w[i, k, n], unit[1])
                dlam[i, n] += _settle(s, unit[1])
            for r in range(count):
                dg[i, first + r] = complex(s[_SUM + r], s[_SUM + 64 + r])


def _unit(w: Tensor) -> np.ndarray[Any, Any]:
    """1 and 0 in the type that kernels reckon in, to keep constants from widening it."""
    return np.array([1, 0], np.float32 if w.dtype == torch.complex64 else np.float64)


def forward(w: Tensor, lam: Tensor, g: Tensor, h: Tensor) -> Tensor:
    """The sums (H, K, J) for w (H, K, N), lam (H, N), g (H, J) and h (H or 1, J), all of one complex type."""
    out = fresh((*w.shape[:2], g.shape[1]), w.dtype)
    if out.numel():
        work = out.numel() * w.shape[2]
        over_blocks(_forward, len(w), 1, 1, work, array(w), array(lam), array(g), array(h), array(out), _unit(w))
    return out


def backward(w: Tensor, lam: Tensor, g: Tensor, h: Tensor, G: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of w, lam and g from that of the sums."""
    # what is summed over all nodes is summed in float64 and rounded at the end
    dw, dlam = (torch.zeros(x.shape, dtype=torch.complex128) for x in (w, lam))
    dg = torch.zeros(g.shape, dtype=g.dtype)
    if G.numel():
        work = 2 * G.numel() * w.shape[2]
        given, found = (array(w), array(lam), array(g), array(h), array(G)), (array(dw), array(dlam), array(dg))
        over_blocks(_backward, len(w), 1, 1, work, *given, *found, _unit(w))
    return dw.to(w.dtype), dlam.to(w.dtype), dg
