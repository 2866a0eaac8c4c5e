"""Numba kernels of the Vandermonde products: no table of modes times steps, and few exponentials.

With l = 64 q + r the power exp(a l) is exp(64 a q) exp(a r). The 64 inner powers of every mode stay in the cache for
a whole channel, and what is left is a small matrix product between them and one coefficient per mode and tile. Powers
are made by multiplying in float64, starting again from an exact exponential every 64 tiles, so that nothing drifts.

Arrays are indexed, not sliced: a slice counts references, which takes longer than the row it names.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .._compile import kernel
from .._memory import array, fresh, over_blocks

_TILE = 64  # steps whose powers are kept
_RESTART = 64  # tiles between two exact exponentials
_TILES = 4  # tiles made together, so that each power that is loaded serves four products


@kernel
def _powers(rates, zr, zi, wr, wi):
    """z^r for r = 0 .. 63 of every mode, and w = z^64."""
    for n in range(rates.shape[0]):
        z, p = np.exp(rates[n]), np.complex128(1.0)
        for r in range(_TILE):
            if r % 16 == 0:
                p = np.exp(rates[n] * r)
            zr[n, r] = p.real
            zi[n, r] = p.imag
            p = p * z
        w = np.exp(rates[n] * _TILE)
        wr[n] = w.real
        wi[n] = w.imag


@kernel
def _advance(tr, ti, wr, wi):
    for n in range(tr.shape[0]):
        x, y = tr[n], ti[n]
        tr[n] = x * wr[n] - y * wi[n]
        ti[n] = x * wi[n] + y * wr[n]


@kernel
def _combine(zr, zi, cr, ci, acc):
    """Four tiles of the kernel, each a combination of the modes' powers."""
    for k in range(_TILES):
        for r in range(_TILE):
            acc[k, r] = 0
    for n in range(0, zr.shape[0], 2):
        a0, a1, a2, a3 = cr[0, n], cr[1, n], cr[2, n], cr[3, n]
        b0, b1, b2, b3 = ci[0, n], ci[1, n], ci[2, n], ci[3, n]
        c0, c1, c2, c3 = cr[0, n + 1], cr[1, n + 1], cr[2, n + 1], cr[3, n + 1]
        d0, d1, d2, d3 = ci[0, n + 1], ci[1, n + 1], ci[2, n + 1], ci[3, n + 1]
        for r in range(_TILE):
            x, y, z, w = zr[n, r], zi[n, r], zr[n + 1, r], zi[n + 1, r]
            acc[0, r] += a0 * x - b0 * y + c0 * z - d0 * w
            acc[1, r] += a1 * x - b1 * y + c1 * z - d1 * w
            acc[2, r] += a2 * x - b2 * y + c2 * z - d2 * w
            acc[3, r] += a3 * x - b3 * y + c3 * z - d3 * w


@kernel
def _combine_one(zr, zi, cr, ci, acc, k):
    """One tile, where fewer than four are left."""
    for r in range(_TILE):
        acc[k, r] = 0
    for n in range(0, zr.shape[0], 2):
        a, b, c, d = cr[k, n], ci[k, n], cr[k, n + 1], ci[k, n + 1]
        for r in range(_TILE):
            acc[k, r] += a * zr[n, r] - b * zi[n, r] + c * zr[n + 1, r] - d * zi[n + 1, r]


@kernel
def _evaluate(v, a, out, tiny, h0, h1, c0, c1):
    batch, modes, length = v.shape[0], v.shape[2], out.shape[2]
    padded, tiles = modes + modes % 2, (length + _TILE - 1) // _TILE
    zr, zi = np.zeros((padded, _TILE), out.dtype), np.zeros((padded, _TILE), out.dtype)
    wr, wi = np.zeros(padded), np.zeros(padded)
    tr, ti = np.zeros(padded), np.zeros(padded)
    cr, ci = np.zeros((_TILES, padded), out.dtype), np.zeros((_TILES, padded), out.dtype)
    acc = np.zeros((_TILES, _TILE), out.dtype)
    for h in range(h0, h1):
        _powers(a[h], zr, zi, wr, wi)
        for b in range(batch):
            for q in range(0, tiles, _TILES):
                some = min(_TILES, tiles - q)
                if q % _RESTART == 0:
                    for n in range(modes):
                        start = v[b, h, n] * (np.exp(a[h, n] * (q * _TILE)) if q else 1.0)
                        tr[n] = start.real
                        ti[n] = start.imag
                for k in range(some):
                    for n in range(padded):
                        # numbers too small to matter would turn denormal, which costs a hundred cycles each
                        cr[k, n] = tr[n] if abs(tr[n]) > tiny else 0.0
                        ci[k, n] = ti[n] if abs(ti[n]) > tiny else 0.0
                    _advance(tr, ti, wr, wi)
                if some == _TILES:
                    _combine(zr, zi, cr, ci, acc)
                else:
                    for k in range(some):
                        _combine_one(zr, zi, cr, ci, acc, k)
                for k in range(some):
                    first = (q + k) * _TILE
                    for r in range(min(_TILE, length - first)):
                        out[b, h, first + r] = acc[k, r]


@kernel
def _project(z, g, acc):
    """acc[k] = sum_r g[k, r] z[r] for four tiles of a sequence."""
    for k in range(_TILES):
        for m in range(z.shape[1]):
            acc[k, m] = 0
    for r in range(0, _TILE, 2):
        a0, a1, a2, a3 = g[0, r], g[1, r], g[2, r], g[3, r]
        b0, b1, b2, b3 = g[0, r + 1], g[1, r + 1], g[2, r + 1], g[3, r + 1]
        for m in range(z.shape[1]):
            x, y = z[r, m], z[r + 1, m]
            acc[0, m] += a0 * x + b0 * y
            acc[1, m] += a1 * x + b1 * y
            acc[2, m] += a2 * x + b2 * y
            acc[3, m] += a3 * x + b3 * y


@kernel
def _project_one(z, g, acc, k):
    """One tile, where fewer than four are left."""
    for m in range(z.shape[1]):
        acc[k, m] = 0
    for r in range(0, _TILE, 4):
        a, b, c, d = g[k, r], g[k, r + 1], g[k, r + 2], g[k, r + 3]
        for m in range(z.shape[1]):
            acc[k, m] += a * z[r, m] + b * z[r + 1, m] + c * z[r + 2, m] + d * z[r + 3, m]


@kernel
def _gather(tr, ti, p, k, sr, si, scale):
    modes = tr.shape[0]
    for n in range(modes):
        x, y = p[k, n] * scale, p[k, modes + n] * scale
        sr[n] += tr[n] * x - ti[n] * y
        si[n] += tr[n] * y + ti[n] * x


@kernel
def _moments(u, a, s, s1, first, h0, h1, c0, c1):
    """sum_l u_l z^l and, if ``first``, sum_l l u_l z^l as well."""
    batch, length, modes = u.shape[0], u.shape[2], a.shape[1]
    tiles = (length + _TILE - 1) // _TILE
    zr, zi = np.zeros((modes, _TILE)), np.zeros((modes, _TILE))
    z = np.zeros((_TILE, 2 * modes), u.dtype)
    wr, wi = np.zeros(modes), np.zeros(modes)
    tr, ti = np.zeros(modes), np.zeros(modes)
    p, p1 = np.zeros((_TILES, 2 * modes), u.dtype), np.zeros((_TILES, 2 * modes), u.dtype)
    sr, si = np.zeros(modes), np.zeros(modes)
    s1r, s1i = np.zeros(modes), np.zeros(modes)
    g, ramp = np.zeros((_TILES, _TILE), u.dtype), np.zeros((_TILES, _TILE), u.dtype)
    tiny = 1e-30 if u.itemsize == 4 else 1e-290
    for h in range(h0, h1):
        _powers(a[h], zr, zi, wr, wi)
        for r in range(_TILE):
            for n in range(modes):
                z[r, n] = zr[n, r] if abs(zr[n, r]) > tiny else 0.0
                z[r, modes + n] = zi[n, r] if abs(zi[n, r]) > tiny else 0.0
        for b in range(batch):
            for n in range(modes):
                sr[n] = 0
                si[n] = 0
                s1r[n] = 0
                s1i[n] = 0
            for q in range(0, tiles, _TILES):
                some = min(_TILES, tiles - q)
                if q % _RESTART == 0:
                    for n in range(modes):
                        start = np.exp(a[h, n] * (q * _TILE)) if q else 1.0 + 0.0j
                        tr[n] = start.real
                        ti[n] = start.imag
                for k in range(some):
                    begin = (q + k) * _TILE
                    full = max(0, min(_TILE, length - begin))
                    for r in range(full):
                        g[k, r] = u[b, h, begin + r]
                    for r in range(full, _TILE):
                        g[k, r] = 0
                if some == _TILES:
                    _project(z, g, p)
                else:
                    for k in range(some):
                        _project_one(z, g, p, k)
                if first:
                    for k in range(some):
                        for r in range(_TILE):
                            ramp[k, r] = g[k, r] * r
                        _project_one(z, ramp, p1, k)
                for k in range(some):
                    _gather(tr, ti, p, k, sr, si, 1.0)
                    if first:
                        _gather(tr, ti, p1, k, s1r, s1i, 1.0)
                        _gather(tr, ti, p, k, s1r, s1i, float((q + k) * _TILE))
                    _advance(tr, ti, wr, wi)
            for n in range(modes):
                s[b, h, n] = complex(sr[n], si[n])
                if first:
                    s1[b, h, n] = complex(s1r[n], s1i[n])


def evaluate(v: Tensor, a: Tensor, length: int) -> Tensor:
    """Re sum_n v_n exp(a_n l), (B, H, length), for v (B, H, N) and a (H, N) in complex128."""
    batch, channels, modes = v.shape
    dtype = v.dtype.to_real()
    out = fresh((batch, channels, length), dtype)
    if out.numel():
        tiny = 1e-30 if dtype == torch.float32 else 1e-290
        over_blocks(_evaluate, channels, 1, 1, out.numel() * modes // 16, array(v), array(a), array(out), tiny)
    return out


def moments(u: Tensor, a: Tensor, first: bool) -> tuple[Tensor, Tensor]:
    """sum_l u_l exp(a_n l), (B, H, N), and sum_l l u_l exp(a_n l) if ``first``, for u (B, H, L) and a (H, N)."""
    batch, channels, _ = u.shape
    shape = (batch, channels, a.shape[1])
    dtype = u.dtype.to_complex()
    s = torch.zeros(shape, dtype=dtype)
    s1 = torch.zeros(shape if first else (0, 0, 0), dtype=dtype)
    if s.numel():
        work = u.numel() * a.shape[1] // 16
        over_blocks(_moments, channels, 1, 1, work, array(u), array(a), array(s), array(s1), first)
    return s, s1
