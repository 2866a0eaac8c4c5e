"""Numba kernels of `sparse_softmax`.

One pass takes the largest of every 128th score, lane by lane; at least k scores are no smaller than the k-th largest of
those, so a second pass gathers the few that are, and the k largest of these are found in a heap with the least on top.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .._compile import kernel
from .._memory import array, fresh, over_blocks

# without "nnan": a score that is not a number has to be seen

_LANES, _BLOCK = 128, 16


@kernel
def _sink(heap, at, size):
    """Put the entry at ``at`` where it belongs below."""
    value = heap[at]
    while True:
        below = 2 * at + 1
        if below >= size:
            break
        if below + 1 < size and heap[below + 1] < heap[below]:
            below += 1
        if not heap[below] < value:
            break
        heap[at] = heap[below]
        at = below
    heap[at] = value


@kernel
def _least_of_largest(x, k, heap):
    """The k-th largest entry."""
    for i in range(k):
        heap[i] = x[i]
    for i in range(k // 2 - 1, -1, -1):
        _sink(heap, i, k)
    for i in range(k, x.size):
        if x[i] > heap[0]:
            heap[0] = x[i]
            _sink(heap, 0, k)
    return heap[0]


@kernel
def _bound(x, k, lanes, heap):
    """A number that at least k entries are not below."""
    n = x.size
    if n < 2 * _LANES or k > _LANES // 2:
        return x.dtype.type(-np.inf)
    for c in range(_LANES):
        lanes[c] = x[c]
    for start in range(_LANES, n - _LANES + 1, _LANES):
        block = x[start : start + _LANES]
        for c in range(_LANES):
            lanes[c] = block[c] if block[c] > lanes[c] else lanes[c]
    return _least_of_largest(lanes, k, heap)


@kernel
def _gather(x, edge, z, place):
    """The entries that are not below ``edge``, also what is not a number, and their places; returns how many."""
    n, found = x.size, 0
    for start in range(0, n, _BLOCK):
        block = x[start : min(start + _BLOCK, n)]
        hits = 0
        for c in range(block.size):
            hits += not block[c] < edge
        if hits:
            for c in range(block.size):
                z[found] = block[c]
                place[found] = start + c
                found += not block[c] < edge
    return found


@kernel
def _forward(x, k, p, i0, i1, c0, c1):
    n = x.shape[1]
    zero, one, low = x.dtype.type(0), x.dtype.type(1), x.dtype.type(-np.inf)
    lanes, heap = np.empty(_LANES, x.dtype), np.empty(k, x.dtype)
    z, place = np.empty(n + 1, x.dtype), np.empty(n + 1, np.int64)
    for row in range(i0, i1):
        own, out = x[row], p[row]
        edge = _bound(own, k, lanes, heap)
        m = _gather(own, edge if edge == edge else low, z, place)
        top, unknown = low, False
        for i in range(m):
            top = max(top, z[i])
            unknown |= z[i] != z[i]
        if unknown:
            for i in range(n):
                out[i] = np.nan
            continue
        edge = _least_of_largest(z[:m], k, heap)
        room = 0
        if edge > low:  # of scores that equal the least, this many have a place
            room = k
            for i in range(k):
                room -= heap[i] > edge
        for i in range(n):
            out[i] = zero
        total, kept = zero, 0
        for i in range(m):
            level = z[i] == edge
            if z[i] > edge or (level and room > 0):
                room -= level
                z[kept], place[kept] = np.exp(z[i] - top), place[i]
                total += z[kept]
                kept += 1
        scale = one / total if kept else zero
        for i in range(kept):
            out[place[i]] = z[i] * scale


@kernel
def _backward(p, g, dx, i0, i1, c0, c1):
    n = p.shape[1]
    zero = p.dtype.type(0)
    for row in range(i0, i1):
        own, arrived, out = p[row], g[row], dx[row]
        mean = zero
        for i in range(n):
            mean += own[i] * arrived[i]
        for i in range(n):
            out[i] = own[i] * (arrived[i] - mean)


def forward(x: Tensor, k: int) -> Tensor:
    """p like x (R, n)."""
    wide = torch.promote_types(x.dtype, torch.float32)
    p = fresh(x.shape, wide)
    over_blocks(_forward, len(x), 1, 1, 2 * x.numel(), array(x.to(wide)), k, array(p))
    return p.to(x.dtype)


def backward(p: Tensor, g: Tensor) -> Tensor:
    """The gradient of x."""
    wide = torch.promote_types(p.dtype, torch.float32)
    dx = fresh(p.shape, wide)
    over_blocks(_backward, len(p), 1, 1, p.numel(), array(p.to(wide)), array(g.to(wide)), array(dx))
    return dx.to(p.dtype)
