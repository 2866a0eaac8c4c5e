"""Triton kernels of the Vandermonde products: one program per channel and block of steps, or per channel and mode.

As on the CPU, exp(a (64 q + r)) = exp(64 a q) exp(a r): a program that covers ROWS tiles of 64 steps needs ROWS + 64
exponentials per mode for its ROWS * 64 products. The exponentials are taken in float64, because their arguments reach
thousands of radians.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._memory import launch_on, triton_memory

_TILE = 64
_ROWS = 32  # tiles that one program holds in registers


@triton.jit
def _turned(rate, rate_i, steps):
    """exp((rate + i rate_i) steps), real and imaginary parts in float64."""
    size = tl.exp(rate * steps)
    return size * tl.cos(rate_i * steps), size * tl.sin(rate_i * steps)


@triton.jit
def _evaluate(v, a, out, channels, modes, length, WIDE: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    rates = a + (row % channels) * modes * 2
    starts = v + row * modes * 2
    tile = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    inner = tl.arange(0, TILE)
    acc = tl.zeros([ROWS, TILE], WIDE)
    for n in range(modes):
        rate, rate_i = tl.load(rates + 2 * n), tl.load(rates + 2 * n + 1)
        start, start_i = tl.load(starts + 2 * n).to(tl.float64), tl.load(starts + 2 * n + 1).to(tl.float64)
        w, w_i = _turned(rate, rate_i, (tile * TILE).to(tl.float64))
        z, z_i = _turned(rate, rate_i, inner.to(tl.float64))
        c = (start * w - start_i * w_i).to(WIDE)
        c_i = (start * w_i + start_i * w).to(WIDE)
        acc += c[:, None] * z.to(WIDE)[None, :] - c_i[:, None] * z_i.to(WIDE)[None, :]
    step = tile[:, None] * TILE + inner[None, :]
    tl.store(out + row * length + step, acc, mask=step < length)


@triton.jit
def _moments(
    u, a, s, s1, channels, modes, length,
    FIRST: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1)
    place = (row % channels) * modes + n
    rate, rate_i = tl.load(a + 2 * place), tl.load(a + 2 * place + 1)
    inner = tl.arange(0, TILE)
    z, z_i = _turned(rate, rate_i, inner.to(tl.float64))
    z, z_i = z.to(WIDE), z_i.to(WIDE)
    ramp = inner.to(WIDE)
    sums = tl.zeros([ROWS], tl.float64)
    sums_i = tl.zeros([ROWS], tl.float64)
    firsts = tl.zeros([ROWS], tl.float64)
    firsts_i = tl.zeros([ROWS], tl.float64)
    for start in range(0, length, ROWS * TILE):
        tile = start // TILE + tl.arange(0, ROWS)
        step = tile[:, None] * TILE + inner[None, :]
        g = tl.load(u + row * length + step, mask=step < length, other=0.0)
        w, w_i = _turned(rate, rate_i, (tile * TILE).to(tl.float64))
        p = tl.sum(g * z[None, :], 1).to(tl.float64)
        p_i = tl.sum(g * z_i[None, :], 1).to(tl.float64)
        sums += w * p - w_i * p_i
        sums_i += w * p_i + w_i * p
        if FIRST:
            g = g * ramp[None, :]
            p = p * (tile * TILE) + tl.sum(g * z[None, :], 1).to(tl.float64)
            p_i = p_i * (tile * TILE) + tl.sum(g * z_i[None, :], 1).to(tl.float64)
            firsts += w * p - w_i * p_i
            firsts_i += w * p_i + w_i * p
    out = (row * modes + n) * 2
    tl.store(s + out, tl.sum(sums, 0).to(WIDE))
    tl.store(s + out + 1, tl.sum(sums_i, 0).to(WIDE))
    if FIRST:
        tl.store(s1 + out, tl.sum(firsts, 0).to(WIDE))
        tl.store(s1 + out + 1, tl.sum(firsts_i, 0).to(WIDE))


def _wide(dtype: torch.dtype) -> tl.dtype:
    return tl.float64 if dtype == torch.float64 else tl.float32


def evaluate(v: Tensor, a: Tensor, length: int) -> Tensor:
    """Re sum_n v_n exp(a_n l), (B, H, length), for v (B, H, N) and a (H, N) in complex128."""
    batch, channels, modes = v.shape
    dtype = v.dtype.to_real()
    out = v.new_empty((batch, channels, length), dtype=dtype)
    if out.numel():
        rows = min(_ROWS, triton.next_power_of_2(triton.cdiv(length, _TILE)))
        grid = (batch * channels, triton.cdiv(length, rows * _TILE))
        with launch_on(v):
            _evaluate[grid](
                triton_memory(v), triton_memory(a), out, channels, modes, length,
                WIDE=_wide(dtype), ROWS=rows, TILE=_TILE,
            )  # fmt: skip
    return out


def moments(u: Tensor, a: Tensor, first: bool) -> tuple[Tensor, Tensor]:
    """sum_l u_l exp(a_n l), (B, H, N), and sum_l l u_l exp(a_n l) if ``first``, for u (B, H, L) and a (H, N)."""
    batch, channels, length = u.shape
    modes = a.shape[1]
    dtype = u.dtype.to_complex()
    s = u.new_empty((batch, channels, modes), dtype=dtype)
    s1 = u.new_empty(s.shape if first else (0, 0, 0), dtype=dtype)
    if s.numel():
        rows = min(_ROWS, triton.next_power_of_2(max(1, triton.cdiv(length, _TILE))))
        with launch_on(u):
            _moments[(batch * channels, modes)](
                triton_memory(u), triton_memory(a), triton_memory(s), triton_memory(s1), channels, modes, length,
                FIRST=first, WIDE=_wide(u.dtype), ROWS=rows, TILE=_TILE,
            )  # fmt: skip
    return s, s1
