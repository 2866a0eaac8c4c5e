"""Numba kernels of `linear_scan`: one pass over memory forward, one backward.

Time is the outer loop and a whole contiguous row of channels the inner one, so that memory is read as one stream; the
carry is one row and stays in the cache. A scan that goes down in time also goes down within each row: rows read upwards
while time goes down defeat the prefetcher, which costs the backward a third of its time (21 ms against 14 for
8 x 4096 x 256 in float32).

The kernels avoid numba's array expressions (``x[:] = y``, ``x.copy()``): each of them adds seconds to the compilation,
which takes 0.5 to 1 s for a kernel and type and is cached on disk.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .._compile import kernel
from .._memory import array, fresh, over_blocks, repeated_as_one

_PIECE = 1 << 18  # elements of a half type that are widened at a time: 1 MiB in float32, which the caches hold
_FLUSH = 64  # tokens whose products are summed in the type itself before the sum goes to a wider one


@kernel
def _forward(a, b, h, state, reverse, i0, i1, c0, c1):
    length, n = b.shape[1], c1 - c0
    for i in range(i0, i1):
        s = state[i, c0:c1]
        for k in range(length):
            t = length - 1 - k if reverse else k
            kept = a[i if a.shape[0] > 1 else 0, t if a.shape[1] > 1 else 0, c0:c1]
            added = b[i, t, c0:c1]
            out = h[i, t, c0:c1]
            if reverse:
                for c in range(n - 1, -1, -1):
                    s[c] = kept[c] * s[c] + added[c]
                    out[c] = s[c]
            else:
                for c in range(n):
                    s[c] = kept[c] * s[c] + added[c]
                    out[c] = s[c]


@kernel
def _forward_runs(a, b, h, state, reverse, i0, i1, c0, c1):
    length, run = b.shape[1], b.shape[2] // a.shape[2]
    for i in range(i0, i1):
        for k in range(length):
            t = length - 1 - k if reverse else k
            kept = a[i if a.shape[0] > 1 else 0, t if a.shape[1] > 1 else 0]
            for f in range(c0 // run, c1 // run):
                factor = kept[f]
                s = state[i, f * run : (f + 1) * run]
                added = b[i, t, f * run : (f + 1) * run]
                out = h[i, t, f * run : (f + 1) * run]
                for c in range(run):
                    s[c] = factor * s[c] + added[c]
                    out[c] = s[c]


@kernel
def _backward(a, h0, h, g, da, db, state, reverse, i0, i1, c0, c1):
    length, n = h.shape[1], c1 - c0
    for i in range(i0, i1):
        s = state[i, c0:c1]
        for k in range(length - 1, -1, -1):
            t = length - 1 - k if reverse else k
            kept = a[i if a.shape[0] > 1 else 0, t if a.shape[1] > 1 else 0, c0:c1]
            arrived = g[i if g.shape[0] > 1 else 0, t if g.shape[1] > 1 else 0, c0:c1]
            before = h0[i, c0:c1]
            if k > 0:
                before = h[i, t + 1 if reverse else t - 1, c0:c1]
            lam = db[i, t, c0:c1]
            product = da[i, t, c0:c1]
            if reverse:
                for c in range(n):
                    value = arrived[c] + s[c]
                    lam[c] = value
                    product[c] = value * np.conj(before[c])
                    s[c] = np.conj(kept[c]) * value
            else:
                for c in range(n - 1, -1, -1):
                    value = arrived[c] + s[c]
                    lam[c] = value
                    product[c] = value * np.conj(before[c])
                    s[c] = np.conj(kept[c]) * value


@kernel
def _backward_invariant(a, h0, h, g, partial, total, db, state, reverse, i0, i1, c0, c1):
    length, n = h.shape[1], c1 - c0
    for i in range(i0, i1):
        s = state[i, c0:c1]
        kept = a[i if a.shape[0] > 1 else 0, 0, c0:c1]
        sums, whole = partial[i, c0:c1], total[i, c0:c1]
        for k in range(length - 1, -1, -1):
            t = length - 1 - k if reverse else k
            arrived = g[i if g.shape[0] > 1 else 0, t if g.shape[1] > 1 else 0, c0:c1]
            before = h0[i, c0:c1]
            if k > 0:
                before = h[i, t + 1 if reverse else t - 1, c0:c1]
            lam = db[i, t, c0:c1]
            if reverse:
                for c in range(n):
                    value = arrived[c] + s[c]
                    lam[c] = value
                    sums[c] += value * np.conj(before[c])
                    s[c] = np.conj(kept[c]) * value
            else:
                for c in range(n - 1, -1, -1):
                    value = arrived[c] + s[c]
                    lam[c] = value
                    sums[c] += value * np.conj(before[c])
                    s[c] = np.conj(kept[c]) * value
            if k % _FLUSH == 0:
                for c in range(n):
                    whole[c] += sums[c]
                    sums[c] = 0


@kernel
def _backward_runs(a, h0, h, g, da, total, nothing, db, state, reverse, i0, i1, c0, c1):
    length, run = h.shape[1], h.shape[2] // a.shape[2]
    invariant = a.shape[1] != length
    for i in range(i0, i1):
        for k in range(length - 1, -1, -1):
            t = length - 1 - k if reverse else k
            kept = a[i if a.shape[0] > 1 else 0, t if a.shape[1] > 1 else 0]
            for f in range(c0 // run, c1 // run):
                c0_, c1_ = f * run, (f + 1) * run
                s, lam, before = state[i, c0_:c1_], db[i, t, c0_:c1_], h0[i, c0_:c1_]
                arrived = g[i if g.shape[0] > 1 else 0, t if g.shape[1] > 1 else 0, c0_:c1_]
                if k > 0:
                    before = h[i, t + 1 if reverse else t - 1, c0_:c1_]
                factor, product = np.conj(kept[f]), nothing
                for c in range(run):
                    value = arrived[c] + s[c]
                    lam[c] = value
                    product += value * np.conj(before[c])
                    s[c] = factor * value
                if invariant:
                    total[i, f] += product
                else:
                    da[i, t, f] = product


def forward(a: Tensor, b: Tensor, h0: Tensor, reverse: bool) -> tuple[Tensor, Tensor]:
    """h like b and the last state like h0, for a (B or 1, L or 1, G) with G dividing C, b (B, L, C), h0 (B, C)."""
    batch, length, channels = b.shape
    h, state = fresh(b.shape, b.dtype), _copy(h0)
    if b.dtype != h0.dtype:
        for piece in _pieces(length, batch * channels, reverse):
            h[:, piece], state = forward(_cut(a, length, piece).float(), b[:, piece].float(), state, reverse)
    elif b.numel():
        kernel, run = (_forward, 1) if a.shape[2] == channels else (_forward_runs, channels // a.shape[2])
        over_blocks(kernel, batch, channels, run, b.numel(), array(a), array(b), array(h), array(state), reverse)
    return h, state


def backward(
    a: Tensor, h0: Tensor, h: Tensor, g: Tensor, g_last: Tensor, reverse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of a, b and h0, from the states h and what arrives for h (g) and for the last state."""
    if h.dtype != h0.dtype:
        return _backward_in_pieces(a, h0, h, g, g_last, reverse)
    batch, length, channels = h.shape
    factors = a.shape[2]
    invariant = a.shape[1] != length
    db, state = fresh(h.shape, h.dtype), _copy(g_last)
    # a factor that serves every token has its gradient summed in a wider type and rounded at the end
    wider = torch.complex128 if h.is_complex() else torch.float64
    da = torch.empty((0, 0, 0), dtype=h.dtype) if invariant else fresh((batch, length, factors), h.dtype)
    total = torch.zeros((batch, factors) if invariant else (0, 0), dtype=wider)
    if h.numel():
        given = (array(a), array(h0), array(h), array(repeated_as_one(g)))
        found = (array(db), array(state), reverse)
        if factors != channels:
            run = channels // factors
            sums = (array(da), array(total), found[0].dtype.type(0))
            over_blocks(_backward_runs, batch, channels, run, h.numel(), *given, *sums, *found)
        elif invariant:
            partial = np.zeros((batch, factors), found[0].dtype)
            over_blocks(_backward_invariant, batch, channels, 1, h.numel(), *given, partial, array(total), *found)
        else:
            over_blocks(_backward, batch, channels, 1, h.numel(), *given, array(da), *found)
    if invariant:
        da = total.unsqueeze(1)
    if a.shape[0] != batch:
        da = da.sum(0, keepdim=True)
    return da.to(a.dtype), db, state


def _backward_in_pieces(
    a: Tensor, h0: Tensor, h: Tensor, g: Tensor, g_last: Tensor, reverse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    batch, length, channels = h.shape
    invariant = a.shape[1] != length
    da = torch.zeros(a.shape, dtype=h0.dtype) if invariant else fresh(a.shape, a.dtype)
    db = fresh(h.shape, h.dtype)
    arrived = g_last
    for piece in reversed(_pieces(length, batch * channels, reverse)):
        before = piece.stop if reverse else piece.start - 1
        start = h[:, before].to(h0.dtype) if 0 <= before < length else h0
        kept, states = _cut(a, length, piece).float(), h[:, piece].float()
        part, lam, arrived = backward(kept, start, states, g[:, piece].float(), arrived, reverse)
        db[:, piece] = lam
        if invariant:
            da += part
        else:
            da[:, piece] = part
    return da.to(a.dtype), db, arrived if length else g_last.clone()


def _copy(state: Tensor) -> Tensor:
    return state.clone() if state.is_contiguous() else state.clone(memory_format=torch.contiguous_format)


def _pieces(length: int, row: int, reverse: bool) -> list[slice]:
    """Stretches of time, in the order of the scan."""
    step = max(1, _PIECE // max(1, row))
    pieces = [slice(t, min(t + step, length)) for t in range(0, length, step)]
    return pieces[::-1] if reverse else pieces


def _cut(a: Tensor, length: int, piece: slice) -> Tensor:
    return a[:, piece] if a.shape[1] == length else a
