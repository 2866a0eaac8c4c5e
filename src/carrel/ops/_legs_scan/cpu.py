"""Numba kernels of `legs_scan`: O(N) per sample, because A is a triangle of rank one below its diagonal.

A v needs one running sum over coefficients, and so does solving with I - c A; both run in one loop over n, with rows
of the batch side by side in the inner one. The transposed update of the backward runs the same loop downwards.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._compile import kernel
from .._memory import array, fresh, over_blocks

_ROWS = 64  # rows side by side, whose states stay in the cache


@kernel
def _forward(f, k, root, implicit, every, x, out, i0, i1, c0, c1):
    """x (N, R) is the state, in place; out (L, N, R) or empty."""
    length, size = f.shape[0], x.shape[0]
    below, solved = np.zeros(_ROWS), np.zeros(_ROWS)
    for first in range(i0, i1, _ROWS):
        rows = min(_ROWS, i1 - first)
        for t in range(length):
            for r in range(rows):
                below[r] = 0
                solved[r] = 0
            for n in range(size):
                s = root[n]
                for r in range(rows):
                    step = 1 / (k[first + r] + t + 1)
                    old = x[n, first + r]
                    ahead = (1 - implicit) * step
                    v = old - ahead * (s * below[r] + (n + 1) * old) + step * s * f[t, first + r]
                    below[r] += s * old
                    c = implicit * step
                    y = (v - c * s * solved[r]) / (1 + c * (n + 1))
                    solved[r] += s * y
                    x[n, first + r] = y
                    if every:
                        out[t, n, first + r] = y


@kernel
def _backward(g, k, root, implicit, every, x, df, i0, i1, c0, c1):
    """x (N, R) is the gradient of the last state, and becomes that of the first; g (L, N, R) or empty."""
    length, size = df.shape[0], x.shape[0]
    above, solved = np.zeros(_ROWS), np.zeros(_ROWS)
    for first in range(i0, i1, _ROWS):
        rows = min(_ROWS, i1 - first)
        for t in range(length - 1, -1, -1):
            for r in range(rows):
                above[r] = 0
                solved[r] = 0
            for n in range(size - 1, -1, -1):
                s = root[n]
                for r in range(rows):
                    step = 1 / (k[first + r] + t + 1)
                    arrived = x[n, first + r]
                    if every:
                        arrived += g[t, n, first + r]
                    c = implicit * step
                    y = (arrived - c * s * solved[r]) / (1 + c * (n + 1))
                    solved[r] += s * y
                    x[n, first + r] = y - (1 - implicit) * step * (s * above[r] + (n + 1) * y)
                    above[r] += s * y
            for r in range(rows):
                df[t, first + r] = solved[r] / (k[first + r] + t + 1)


def _root(size: int) -> np.ndarray[Any, Any]:
    return np.sqrt(2.0 * np.arange(size) + 1)


def forward(f: Tensor, x0: Tensor, k: Tensor, implicit: float, every: bool) -> tuple[Tensor, Tensor]:
    """All x (R, L, N), if ``every``, and the last (R, N)."""
    rows, length = f.shape
    size = x0.shape[1]
    state = x0.detach().T.to(torch.float64).contiguous().clone()
    out = fresh((length if every else 0, size, rows), f.dtype)
    args = (array(f.T), array(k), _root(size), implicit, every, array(state), array(out))
    over_blocks(_forward, rows, 1, 1, rows * length * size, *args)
    return out.permute(2, 0, 1).contiguous(), state.T.to(x0.dtype).contiguous()


def backward(k: Tensor, g: Tensor, g_last: Tensor, length: int, implicit: float, every: bool) -> tuple[Tensor, Tensor]:
    """Gradients of f (R, length) and x0 (R, N)."""
    rows, size = g_last.shape
    state = g_last.detach().T.to(torch.float64).contiguous().clone()
    df = fresh((length, rows), g_last.dtype)
    args = (array(g.permute(1, 2, 0)), array(k), _root(size), implicit, every, array(state), array(df))
    over_blocks(_backward, rows, 1, 1, rows * length * size, *args)
    return df.T.contiguous(), state.T.to(g_last.dtype).contiguous()
