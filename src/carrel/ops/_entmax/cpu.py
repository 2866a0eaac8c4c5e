"""Numba kernels of `entmax`: no sorting, and work only where an entry can still be positive.

After a pass for the maximum, the entries less than 1 / (alpha - 1) below it are gathered (in the closed forms usually a
few of hundreds), and the threshold is found on those by Newton's method: their mass is a convex, falling function of it
for alpha up to 2, so from the left the iterates rise to it and never pass it. For larger alpha it is not convex, and
the interval is halved.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from .._compile import kernel
from .._memory import array, fresh, over_blocks
from .._vector_math import exp2, log2

_LANES = 32
_ROUNDS, _HALVINGS = 64, 64


@kernel
def _maximum(x, lanes):
    """The largest entry; lane by lane, because a running maximum is not turned into vector code."""
    n, low = x.size, x.dtype.type(-np.inf)
    whole = n // _LANES * _LANES
    for c in range(_LANES):
        lanes[c] = low
    for start in range(0, whole, _LANES):
        block = x[start : start + _LANES]
        for c in range(_LANES):
            lanes[c] = block[c] if block[c] > lanes[c] else lanes[c]
    top = low
    for c in range(_LANES):
        top = max(top, lanes[c])
    for i in range(whole, n):
        top = max(top, x[i])
    return top


@kernel
def _gather(x, top, scale, floor, z, place):
    """scale * (x - top) of the entries where that is above ``floor``, also of what is not a number, and their places;
    returns how many there are."""
    n = x.size
    found, edge = 0, top + floor / scale
    for start in range(0, n, _LANES):
        block = x[start : min(start + _LANES, n)]
        hits = 0
        for c in range(block.size):
            hits += not block[c] <= edge
        if hits:
            for c in range(block.size):
                z[found] = (block[c] - top) * scale
                place[found] = start + c
                found += not block[c] <= edge
    return found


@kernel
def _threshold_linear(z, m):
    """tau with sum (z - tau)+ = 1."""
    zero, one = z.dtype.type(0), z.dtype.type(1)
    tau, before = -one, 0
    for _ in range(m + 1):
        mass, count = zero, 0
        for i in range(m):
            mass += z[i] - tau if z[i] > tau else zero
            count += z[i] > tau
        if count == before:
            break
        before = count
        tau += (mass - one) / z.dtype.type(count)
    return tau


@kernel
def _threshold_square(z, m):
    """tau with sum (z - tau)+^2 = 1."""
    zero, one = z.dtype.type(0), z.dtype.type(1)
    tau = -one
    for _ in range(_ROUNDS):
        mass, slope = zero, zero
        for i in range(m):
            u = z[i] - tau if z[i] > tau else zero
            mass += u * u
            slope += u
        step = (mass - one) / (slope + slope)
        if not tau + step > tau:
            break
        tau += step
    return tau


@kernel
def _threshold(z, m, b):
    """tau with sum (z - tau)+^(1/b) = 1."""
    zero, one, half = z.dtype.type(0), z.dtype.type(1), z.dtype.type(0.5)
    tiny = z.dtype.type(np.finfo(z.dtype).tiny)
    root = one / b
    tau = -one
    if root >= one:
        less = root - one
        for _ in range(_ROUNDS):
            mass, slope = zero, zero
            for i in range(m):
                u = z[i] - tau
                inside = u > tiny
                v = exp2(less * log2(u if inside else one))
                v = v if inside else zero
                slope += v
                mass += v * (u if inside else zero)
            step = (mass - one) / (slope * root)
            if not tau + step > tau:
                break
            tau += step
        return tau
    high = zero
    for _ in range(_HALVINGS):
        middle = half * (tau + high)
        mass = zero
        for i in range(m):
            u = z[i] - middle
            inside = u > tiny
            v = exp2(root * log2(u if inside else one))
            mass += v if inside else zero
        if mass >= one:
            tau = middle
        else:
            high = middle
    return tau


@kernel
def _forward(x, alpha, kind, p, i0, i1, c0, c1):
    n = x.shape[1]
    zero, one = x.dtype.type(0), x.dtype.type(1)
    tiny = x.dtype.type(np.finfo(x.dtype).tiny)
    lanes, z, place = np.empty(_LANES, x.dtype), np.empty(n + 1, x.dtype), np.empty(n + 1, np.int64)
    for row in range(i0, i1):
        own, out = x[row], p[row]
        for i in range(n):
            out[i] = zero
        top = _maximum(own, lanes)
        if not top > -np.inf:  # nothing is visible, or nothing is a number
            for i in range(n):
                out[i] = own[i] if own[i] != own[i] else zero
            continue
        b = x.dtype.type((kind if kind > 0 else alpha[row]) - 1)
        m = _gather(own, top, b, -one, z, place)
        unknown = False
        for i in range(m):
            unknown |= z[i] != z[i]
        if unknown:
            for i in range(n):
                out[i] = np.nan
            continue
        if kind == 2:
            tau = _threshold_linear(z, m)
        elif kind == 1.5:
            tau = _threshold_square(z, m)
        else:
            tau = _threshold(z, m, b)
        total = zero
        for i in range(m):
            u = z[i] - tau
            if kind == 2:
                v = u if u > zero else zero
            elif kind == 1.5:
                v = u * u if u > zero else zero
            else:
                v = exp2(log2(u if u > tiny else one) / b) if u > tiny else zero
            z[i] = v
            total += v
        scale = one / total  # rounding of tau, and for kinds without a closed form its last step
        for i in range(m):
            out[place[i]] = z[i] * scale


@kernel
def _backward(p, alpha, g, kind, dx, dalpha, i0, i1, c0, c1):
    n = p.shape[1]
    zero, one = p.dtype.type(0), p.dtype.type(1)
    tiny = p.dtype.type(np.finfo(p.dtype).tiny)
    s = np.empty(n, p.dtype)
    for row in range(i0, i1):
        own, arrived, out = p[row], g[row], dx[row]
        total, mean = zero, zero
        if kind == 2:
            for i in range(n):
                v = one if own[i] > zero else zero
                s[i] = v
                total += v
                mean += v * arrived[i]
        elif kind == 1.5:
            for i in range(n):
                v = np.sqrt(own[i])
                s[i] = v
                total += v
                mean += v * arrived[i]
        else:
            left = p.dtype.type(2 - alpha[row])
            size = abs(left)
            for i in range(n):
                inside = own[i] > tiny
                v = exp2(size * log2(own[i] if inside else one))
                v = v if left >= zero else one / v
                v = v if inside else zero
                s[i] = v
                total += v
                mean += v * arrived[i]
        mean = mean / total if total > zero else zero
        for i in range(n):
            out[i] = s[i] * (arrived[i] - mean)
        if kind == 0 and total > zero:
            b = p.dtype.type(alpha[row] - 1)
            spread, first, second = zero, zero, zero
            for i in range(n):
                inside = own[i] > tiny
                h = own[i] * log2(own[i] if inside else one)
                spread += h
                first += (own[i] - s[i] / total) * arrived[i]
                second += h * arrived[i]
            ln2 = p.dtype.type(math.log(2))
            dalpha[row] = first / (b * b) - ln2 * (second - mean * spread) / b


def forward(x: Tensor, alpha: Tensor, kind: float) -> Tensor:
    """p like x (R, n)."""
    rows, n = x.shape
    if x.numel() == 0:
        return torch.zeros_like(x)
    wide = torch.promote_types(x.dtype, torch.float32)
    p = fresh(x.shape, wide)
    over_blocks(_forward, rows, 1, 1, 4 * rows * n, array(x.to(wide)), array(alpha.to(wide)), kind, array(p))
    return p.to(x.dtype)


def backward(p: Tensor, alpha: Tensor, g: Tensor, kind: float) -> tuple[Tensor, Tensor]:
    """Gradients of x, like p, and of alpha, (R,) or empty."""
    rows, n = p.shape
    if p.numel() == 0:
        return torch.zeros_like(p), torch.zeros_like(alpha)
    wide = torch.promote_types(p.dtype, torch.float32)
    dx, dalpha = fresh(p.shape, wide), torch.zeros(alpha.shape, dtype=wide)
    args = (array(p.to(wide)), array(alpha.to(wide)), array(g.to(wide)), kind, array(dx), array(dalpha))
    over_blocks(_backward, rows, 1, 1, 4 * rows * n, *args)
    return dx.to(p.dtype), dalpha.to(alpha.dtype)
