"""What the numba kernels of `selective_scan` do with one token of one block of channels."""

from __future__ import annotations

from .._compile import kernel
from .._vector_math import LOG2E, exp2, log1p_unit

BLOCK = 64  # channels: eight vectors of float32


@kernel
def clear(v):
    for c in range(v.size):  # v[:] = 0 would add seconds to the compilation
        v[c] = 0


@kernel
def place(task, channels, groups):
    """Row of the batch, group, number of the block within the group, its first channel and its width."""
    own = channels // groups
    blocks = (own + BLOCK - 1) // BLOCK
    i, rest = task // (groups * blocks), task % (groups * blocks)
    g, k = rest // blocks, rest % blocks
    return i, g, k, g * own + k * BLOCK, min(BLOCK, own - k * BLOCK)


@kernel
def sigmoid(v):
    """Fill row 1 of v with the sigmoid of row 0."""
    one, zero, scale = v.dtype.type(1), v.dtype.type(0), v.dtype.type(-LOG2E)
    for c in range(BLOCK):
        e = exp2(abs(v[c]) * scale)
        v[BLOCK + c] = (one if v[c] >= zero else e) / (one + e)


@kernel
def load_token(w, x, delta, width):
    for c in range(width):
        w[4 * BLOCK + c] = x[c]
        w[5 * BLOCK + c] = delta[c]


@kernel
def take_step(w, fixed, softplus):
    """From x and delta in w: the step, what it adds, what D passes on, and the slope of the step in delta."""
    one, zero, scale = w.dtype.type(1), w.dtype.type(0), w.dtype.type(-LOG2E)
    if softplus:
        for c in range(BLOCK):
            raw = w[5 * BLOCK + c] + fixed[c]
            e = exp2(abs(raw) * scale)
            step = max(raw, zero) + log1p_unit(e)
            w[c] = step
            w[BLOCK + c] = step * w[4 * BLOCK + c]
            w[2 * BLOCK + c] = fixed[BLOCK + c] * w[4 * BLOCK + c]
            w[3 * BLOCK + c] = (one if raw >= zero else e) / (one + e)
    else:
        for c in range(BLOCK):
            step = w[5 * BLOCK + c] + fixed[c]
            w[c] = step
            w[BLOCK + c] = step * w[4 * BLOCK + c]
            w[2 * BLOCK + c] = fixed[BLOCK + c] * w[4 * BLOCK + c]
            w[3 * BLOCK + c] = one
