"""Numba kernels of `damped_solve`; see the reference for the recursions."""

from __future__ import annotations

from torch import Tensor

from .._compile import kernel
from .._memory import array, fresh, over_blocks


@kernel
def _invert(M):
    """In place, by Gauss and Jordan without pivots: M is symmetric with eigenvalues of at least 1."""
    size = M.shape[0]
    for p in range(size):
        pivot = 1 / M[p, p]
        M[p, p] = 1
        for c in range(size):
            M[p, c] *= pivot
        for k in range(size):
            if k != p:
                factor = M[k, p]
                M[k, p] = 0
                for c in range(size):
                    M[k, c] -= factor * M[p, c]


@kernel
def _smooth(J, r, damping, inverses, offsets, work, delta, i0, i1, c0, c1):
    """inverses (B, L, D, D) holds the M^{-1}, offsets (B, L, D) the s; work (B, 3, D, D)."""
    length, size = r.shape[1:]
    for i in range(i0, i1):
        S, product = work[i, 0], work[i, 1]
        s = work[i, 2, 0]
        for a in range(size):
            s[a] = 0
            for b in range(size):
                S[a, b] = 0
        for t in range(length - 1, -1, -1):
            M, step, rest = inverses[i, t], J[i, t], r[i, t]
            for a in range(size):
                offsets[i, t, a] = s[a]
                for b in range(size):
                    M[a, b] = S[a, b]
                M[a, a] += 1 + damping
            _invert(M)
            for a in range(size):  # product = (I - M^{-1}) J, and into s what J^T is applied to
                for b in range(size):
                    product[a, b] = step[a, b]
                for k in range(size):
                    factor = M[a, k]
                    for b in range(size):
                        product[a, b] -= factor * step[k, b]
            for a in range(size):
                value = -rest[a]
                for k in range(size):
                    value += M[a, k] * (offsets[i, t, k] + rest[k])
                delta[i, t, a] = value  # room for it until the way forward
            for a in range(size):
                s[a] = 0
                for b in range(size):
                    S[a, b] = 0
            for k in range(size):
                value = delta[i, t, k]
                for a in range(size):
                    factor = step[k, a]
                    s[a] += factor * value
                    for b in range(size):
                        S[a, b] += factor * product[k, b]
        for t in range(length):
            M, step, out = inverses[i, t], J[i, t], delta[i, t]
            for a in range(size):
                value = -r[i, t, a] - offsets[i, t, a]
                if t > 0:
                    for b in range(size):
                        value += step[a, b] * delta[i, t - 1, b]
                s[a] = value
            for a in range(size):
                value = M[a, 0] * s[0]
                for b in range(1, size):
                    value += M[a, b] * s[b]
                out[a] = value


@kernel
def _filter(J, r, damping, work, delta, i0, i1, c0, c1):
    length, size = r.shape[1:]
    for i in range(i0, i1):
        P, before, shrink = work[i, 0], work[i, 1], work[i, 2]
        for a in range(size):
            for b in range(size):
                P[a, b] = 0
        for t in range(length):
            step, out = J[i, t], delta[i, t]
            for a in range(size):
                for b in range(size):
                    value = step[a, 0] * P[0, b]
                    for k in range(1, size):
                        value += step[a, k] * P[k, b]
                    shrink[a, b] = value
            for a in range(size):
                for b in range(size):
                    value = shrink[a, 0] * step[b, 0]
                    for k in range(1, size):
                        value += shrink[a, k] * step[b, k]
                    before[a, b] = value
                before[a, a] += 1
            for a in range(size):
                for b in range(size):
                    shrink[a, b] = damping * before[a, b]
                shrink[a, a] += 1
            _invert(shrink)
            for a in range(size):
                value = -r[i, t, a]
                if t > 0:
                    for b in range(size):
                        value += step[a, b] * delta[i, t - 1, b]
                P[0, a] = value  # room for the prediction
            for a in range(size):
                value = shrink[a, 0] * P[0, 0]
                for b in range(1, size):
                    value += shrink[a, b] * P[0, b]
                out[a] = value
            for a in range(size):
                for b in range(size):
                    value = shrink[a, 0] * before[0, b]
                    for k in range(1, size):
                        value += shrink[a, k] * before[k, b]
                    P[a, b] = value


@kernel
def _smooth_diagonal(J, r, damping, inverses, offsets, work, delta, i0, i1, c0, c1):
    length, size = r.shape[1:]
    for i in range(i0, i1):
        S, s = work[i, 0], work[i, 1]
        for a in range(size):
            S[a] = 0
            s[a] = 0
        for t in range(length - 1, -1, -1):
            for a in range(size):
                inverse, step = 1 / (1 + damping + S[a]), J[i, t, a]
                inverses[i, t, a] = inverse
                offsets[i, t, a] = s[a]
                s[a] = step * (inverse * s[a] - (1 - inverse) * r[i, t, a])
                S[a] = step * (1 - inverse) * step
        for a in range(size):
            s[a] = 0
        for t in range(length):
            for a in range(size):
                s[a] = inverses[i, t, a] * (J[i, t, a] * s[a] - r[i, t, a] - offsets[i, t, a])
                delta[i, t, a] = s[a]


@kernel
def _filter_diagonal(J, r, damping, work, delta, i0, i1, c0, c1):
    length, size = r.shape[1:]
    for i in range(i0, i1):
        P, s = work[i, 0], work[i, 1]
        for a in range(size):
            P[a] = 0
            s[a] = 0
        for t in range(length):
            for a in range(size):
                before = J[i, t, a] * P[a] * J[i, t, a] + 1
                shrink = 1 / (damping * before + 1)
                s[a] = shrink * (J[i, t, a] * s[a] - r[i, t, a])
                P[a] = shrink * before
                delta[i, t, a] = s[a]


def solve(J: Tensor, r: Tensor, damping: float, smoother: bool) -> Tensor:
    """δ (B, L, D) for J (B, L, D, D) or (B, L, D)."""
    batch, _, size = r.shape
    diagonal = J.ndim == r.ndim
    delta = fresh(r.shape, r.dtype)
    work = r.new_empty((batch, 2, size) if diagonal else (batch, 3, size, size))
    given = array(J), array(r), array(r).dtype.type(damping)
    tail = array(work), array(delta)
    cost = J.numel() * (1 if diagonal else size)
    if smoother:
        kept = array(fresh(J.shape, r.dtype)), array(fresh(r.shape, r.dtype))
        over_blocks(_smooth_diagonal if diagonal else _smooth, batch, 1, 1, cost, *given, *kept, *tail)
    else:
        over_blocks(_filter_diagonal if diagonal else _filter, batch, 1, 1, cost, *given, *tail)
    return delta
