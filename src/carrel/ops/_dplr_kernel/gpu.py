"""Triton kernels of the Cauchy sums over conjugate pairs: one program per channel and what it sums into, in float64.

Forward: a block of nodes and up to four weights, looping over modes. Backward: a weight of a mode, looping over
nodes; a mode, looping over nodes and weights; a block of nodes, looping over modes and weights. Quotients are
computed again in each and never stored.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._memory import launch_on, triton_memory

_BLOCK = 128  # nodes
_WEIGHTS = 4  # weights that share one quotient


@triton.jit
def _pair(x, offsets, mask):
    """Real and imaginary part; nodes beyond the last read 1, which is no pole of a decaying mode where h reads 0."""
    return tl.load(x + 2 * offsets, mask=mask, other=0.0), tl.load(x + 2 * offsets + 1, mask=mask, other=0.0)


@triton.jit
def _inverse(gr, gi, hr, hi, a, b):
    """1 / (g - (a + i b) h)."""
    xr = gr - (a * hr - b * hi)
    xi = gi - (a * hi + b * hr)
    scale = 1 / (xr * xr + xi * xi)
    return xr * scale, -xi * scale


@triton.jit
def _nodes(g, h, row, h_row, start, nodes, BLOCK: tl.constexpr):
    j = start + tl.arange(0, BLOCK)
    mask = j < nodes
    gr, gi = _pair(g, row * nodes + j, mask)
    gr = tl.where(mask, gr, 1.0)
    hr, hi = _pair(h, h_row * nodes + j, mask)
    return j, mask, gr, gi, hr, hi


@triton.jit
def _forward(w, lam, g, h, out, weights, modes, nodes, h_rows, BLOCK: tl.constexpr, WEIGHTS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    h_row = row % h_rows
    j, mask, gr, gi, hr, hi = _nodes(g, h, row, h_row, tl.program_id(1) * BLOCK, nodes, BLOCK)
    k = tl.program_id(2) * WEIGHTS + tl.arange(0, WEIGHTS)
    acc = tl.zeros([WEIGHTS, BLOCK], tl.float64)
    acc_i = tl.zeros([WEIGHTS, BLOCK], tl.float64)
    for n in range(modes):
        a, b = tl.load(lam + 2 * (row * modes + n)), tl.load(lam + 2 * (row * modes + n) + 1)
        rr, ri = _inverse(gr, gi, hr, hi, a, b)
        sr, si = _inverse(gr, gi, hr, hi, a, -b)
        wr, wi = _pair(w, (row * weights + k) * modes + n, k < weights)
        acc += wr[:, None] * (rr + sr)[None, :] - wi[:, None] * (ri - si)[None, :]
        acc_i += wr[:, None] * (ri + si)[None, :] + wi[:, None] * (rr - sr)[None, :]
    place = ((row * weights + k[:, None]) * nodes + j[None, :]) * 2
    inside = (k < weights)[:, None] & mask[None, :]
    tl.store(out + place, acc, mask=inside)
    tl.store(out + place + 1, acc_i, mask=inside)


@triton.jit
def _weight_gradient(lam, g, h, G, dw, weights, modes, nodes, h_rows, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1)
    k = tl.program_id(2)
    a, b = tl.load(lam + 2 * (row * modes + n)), tl.load(lam + 2 * (row * modes + n) + 1)
    re = tl.zeros([BLOCK], tl.float64)
    im = tl.zeros([BLOCK], tl.float64)
    for start in range(0, nodes, BLOCK):
        j, mask, gr, gi, hr, hi = _nodes(g, h, row, row % h_rows, start, nodes, BLOCK)
        rr, ri = _inverse(gr, gi, hr, hi, a, b)
        sr, si = _inverse(gr, gi, hr, hi, a, -b)
        x, y = _pair(G, (row * weights + k) * nodes + j, mask)
        re += x * (rr + sr) + y * (ri + si)
        im += y * (rr - sr) - x * (ri - si)
    place = 2 * ((row * weights + k) * modes + n)
    tl.store(dw + place, tl.sum(re, 0))
    tl.store(dw + place + 1, tl.sum(im, 0))


@triton.jit
def _weighed(w, G, row, n, j, mask, weights, modes, nodes, BLOCK: tl.constexpr):
    """sum_k conj(G_k) w_kn and sum_k conj(G_k) conj(w_kn)."""
    er = tl.zeros([BLOCK], tl.float64)
    ei = tl.zeros([BLOCK], tl.float64)
    fr = tl.zeros([BLOCK], tl.float64)
    fi = tl.zeros([BLOCK], tl.float64)
    for k in range(weights):
        at = 2 * ((row * weights + k) * modes + n)
        wr, wi = tl.load(w + at), tl.load(w + at + 1)
        x, y = _pair(G, (row * weights + k) * nodes + j, mask)
        er += x * wr + y * wi
        ei += x * wi - y * wr
        fr += x * wr - y * wi
        fi += -x * wi - y * wr
    return er, ei, fr, fi


@triton.jit
def _moved(er, ei, rr, ri):
    """e R^2."""
    sr = rr * rr - ri * ri
    si = 2 * rr * ri
    return er * sr - ei * si, er * si + ei * sr


@triton.jit
def _mode_gradient(w, lam, g, h, G, dlam, weights, modes, nodes, h_rows, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1)
    a, b = tl.load(lam + 2 * (row * modes + n)), tl.load(lam + 2 * (row * modes + n) + 1)
    re = tl.zeros([BLOCK], tl.float64)
    im = tl.zeros([BLOCK], tl.float64)
    for start in range(0, nodes, BLOCK):
        j, mask, gr, gi, hr, hi = _nodes(g, h, row, row % h_rows, start, nodes, BLOCK)
        er, ei, fr, fi = _weighed(w, G, row, n, j, mask, weights, modes, nodes, BLOCK)
        rr, ri = _inverse(gr, gi, hr, hi, a, b)
        ar, ai = _moved(er, ei, rr, ri)
        rr, ri = _inverse(gr, gi, hr, hi, a, -b)
        br, bi = _moved(fr, fi, rr, ri)
        re += hr * (ar + br) - hi * (ai + bi)
        im += hr * (bi - ai) + hi * (br - ar)
    tl.store(dlam + 2 * (row * modes + n), tl.sum(re, 0))
    tl.store(dlam + 2 * (row * modes + n) + 1, tl.sum(im, 0))


@triton.jit
def _node_gradient(w, lam, g, h, G, dg, weights, modes, nodes, h_rows, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    j, mask, gr, gi, hr, hi = _nodes(g, h, row, row % h_rows, tl.program_id(1) * BLOCK, nodes, BLOCK)
    re = tl.zeros([BLOCK], tl.float64)
    im = tl.zeros([BLOCK], tl.float64)
    for n in range(modes):
        a, b = tl.load(lam + 2 * (row * modes + n)), tl.load(lam + 2 * (row * modes + n) + 1)
        er, ei, fr, fi = _weighed(w, G, row, n, j, mask, weights, modes, nodes, BLOCK)
        rr, ri = _inverse(gr, gi, hr, hi, a, b)
        ar, ai = _moved(er, ei, rr, ri)
        rr, ri = _inverse(gr, gi, hr, hi, a, -b)
        br, bi = _moved(fr, fi, rr, ri)
        re -= ar + br
        im += ai + bi
    place = 2 * (row * nodes + j)
    tl.store(dg + place, re, mask=mask)
    tl.store(dg + place + 1, im, mask=mask)


def forward(w: Tensor, lam: Tensor, g: Tensor, h: Tensor) -> Tensor:
    """The sums (H, K, J) for w (H, K, N), lam (H, N), g (H, J) and h (H or 1, J), all complex128."""
    channels, weights, modes = w.shape
    nodes = g.shape[1]
    out = w.new_empty((channels, weights, nodes))
    if out.numel():
        grid = (channels, triton.cdiv(nodes, _BLOCK), triton.cdiv(weights, _WEIGHTS))
        given = (triton_memory(x) for x in (w, lam, g, h))
        with launch_on(w):
            _forward[grid](
                *given, triton_memory(out), weights, modes, nodes, h.shape[0], BLOCK=_BLOCK, WEIGHTS=_WEIGHTS
            )
    return out


def backward(w: Tensor, lam: Tensor, g: Tensor, h: Tensor, G: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of w, lam and g from that of the sums."""
    channels, weights, modes = w.shape
    nodes = g.shape[1]
    dw, dlam, dg = (torch.zeros(x.shape, dtype=w.dtype, device=w.device) for x in (w, lam, g))
    if G.numel() and modes:
        W, L, g_, h_, G_ = (triton_memory(x) for x in (w, lam, g, h, G))
        sizes = (weights, modes, nodes, h.shape[0])
        with launch_on(w):
            _weight_gradient[(channels, modes, weights)](L, g_, h_, G_, triton_memory(dw), *sizes, BLOCK=_BLOCK)
            _mode_gradient[(channels, modes)](W, L, g_, h_, G_, triton_memory(dlam), *sizes, BLOCK=_BLOCK)
            blocks = triton.cdiv(nodes, _BLOCK)
            _node_gradient[(channels, blocks)](W, L, g_, h_, G_, triton_memory(dg), *sizes, BLOCK=_BLOCK)
    return dw, dlam, dg
