"""The walk of ``min_abc`` compiled for 64-bit integers. Importing this loads numba."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from numba import njit

_jit: Callable[..., Any] = njit(nogil=True, cache=True)


@_jit
def _ceil_sqrt(n):  # type: ignore[no-untyped-def]
    # the float root is off by a few units near 2^62: walk to the exact one
    r = int(math.sqrt(n))
    while r * r >= n and r > 0:
        r -= 1
    while r * r < n:
        r += 1
    return r


@_jit
def fill(values, columns, largest):  # type: ignore[no-untyped-def]
    """Write total, a, b, c, steps of each value up to ``largest`` into the five rows of ``columns``."""
    for k in range(values.size):
        N = values[k]
        if largest < N:
            continue
        s = _ceil_sqrt(4 * N)
        best = N
        best_s = 0
        best_d = 0
        if s >= 1:
            below = s - 1
            total = below + N - below * below // 4
            if total < best:
                best = total
                best_s = below
                best_d = below & 1
        steps = 0
        D = s * s - 4 * N
        while s < best:
            d = _ceil_sqrt(D)
            d += (s ^ d) & 1
            total = s + (d * d - D) // 4
            if total < best:
                best = total
                best_s = s
                best_d = d
            D += 2 * s + 1
            s += 1
            steps += 1
        columns[0, k] = best
        columns[1, k] = (best_s + best_d) // 2
        columns[2, k] = (best_s - best_d) // 2
        columns[3, k] = best - best_s
        columns[4, k] = steps
