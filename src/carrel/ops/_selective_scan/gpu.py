"""Triton kernels of `selective_scan`: one program per row of the batch and block of channels of one group.

A program walks through time in tiles of (tokens, channels) and, within a tile, goes through the states one after the
other: scan of the tile with the pair rule of `linear_scan`, product of its factors times the carry, sum into y. So a
tile is read once, its states live in registers, and one number per state and channel is carried from tile to tile.

The backward pass walks the tiles from the last to the first, computes the states of each again from those kept at its
start, and scans the gradient the other way. Channels meet in the gradients of B and C, which are added atomically: the
last bits there depend on the order.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._memory import launch_on, triton_memory

_TILE, _WIDTH, _WARPS = 64, 16, 4  # tokens (where no states are kept) and channels of a tile, warps of a program


@triton.jit
def _pair(a1, b1, a2, b2):
    return a2 * a1, a2 * b1 + b2


@triton.jit
def _row(x, index, rows: tl.constexpr):
    """One row of a matrix that lies in registers."""
    return tl.sum(tl.where(tl.arange(0, rows)[:, None] == index, x, 0.0), 0)


@triton.jit
def _sigmoid(x):
    e = tl.exp(-tl.abs(x))
    return tl.where(x >= 0, 1.0, e) / (1.0 + e)


@triton.jit
def _softplus(x, TERMS: tl.constexpr):
    """log(1 + e^x) by 2 artanh: the logarithm of a sum would lose the digits of small steps."""
    e = tl.exp(-tl.abs(x))
    s = e / (2.0 + e)
    w = s * s
    two = s * 0.0 + 2.0  # a constant of the type of x
    p = two / (2 * TERMS + 1)
    for k in tl.static_range(TERMS):
        p = p * w + two / (2 * TERMS - 2 * k - 1)
    return tl.maximum(x, 0.0) + s * p


@triton.jit
def _steps(delta, bias, at, mask, SOFTPLUS: tl.constexpr, TERMS: tl.constexpr, WIDE: tl.constexpr):
    """The steps of a tile and their slopes in delta; both 0 beyond its edges, where the states stay as they are."""
    raw = tl.load(delta + at, mask=mask, other=0.0).to(WIDE) + bias[None, :]
    step, slope = raw, raw * 0.0 + 1.0
    if SOFTPLUS:
        step, slope = _softplus(raw, TERMS), _sigmoid(raw)
    return tl.where(mask, step, 0.0), tl.where(mask, slope, 0.0)


@triton.jit
def _forward(
    x, delta, A, B, C, D, z, h0, bias, y, last, states,
    length, channels, groups, state, own, blocks,
    SOFTPLUS: tl.constexpr, GATED: tl.constexpr, KEEPS: tl.constexpr, TERMS: tl.constexpr,
    WIDE: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr, STATE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1) // blocks
    local = tl.program_id(1) % blocks * WIDTH + tl.arange(0, WIDTH)
    inside = local < own
    columns = group * own + local
    numbers = tl.arange(0, STATE)
    held = (numbers < state)[:, None] & inside[None, :]
    per_state = columns[None, :] * state + numbers[:, None]
    rate = tl.load(A + per_state, mask=held, other=0.0).to(WIDE)
    carry = tl.load(h0 + row * channels * state + per_state, mask=held, other=0.0).to(WIDE)
    skip = tl.load(D + columns, mask=inside, other=0.0).to(WIDE)
    added = tl.load(bias + columns, mask=inside, other=0.0).to(WIDE)
    tiles = tl.cdiv(length, TILE)
    for tile in range(tiles):
        step = tile * TILE + tl.arange(0, TILE)
        known = step < length
        mask = known[:, None] & inside[None, :]
        at = (row * length + step)[:, None] * channels + columns[None, :]
        shared = ((row * length + step) * groups + group) * state
        d, _ = _steps(delta, added, at, mask, SOFTPLUS, TERMS, WIDE)
        value = tl.load(x + at, mask=mask, other=0.0).to(WIDE)
        u = d * value
        out = skip[None, :] * value
        if KEEPS:
            kept = ((row * tiles + tile) * state + numbers)[:, None] * channels + columns[None, :]
            tl.store(states + kept, carry, mask=held)
        for n in range(state):
            into = tl.load(B + shared + n, mask=known, other=0.0).to(WIDE)
            from_ = tl.load(C + shared + n, mask=known, other=0.0).to(WIDE)
            a = tl.exp(d * _row(rate, n, STATE)[None, :])
            p, s = tl.associative_scan((a, u * into[:, None]), 0, _pair)
            h = s + p * _row(carry, n, STATE)[None, :]
            out += from_[:, None] * h
            carry = tl.where(numbers[:, None] == n, _row(h, TILE - 1, TILE)[None, :], carry)
        if GATED:
            gate = tl.load(z + at, mask=mask, other=0.0).to(WIDE)
            out = out * gate * _sigmoid(gate)
        tl.store(y + at, out.to(y.dtype.element_ty), mask=mask)
    tl.store(last + row * channels * state + per_state, carry, mask=held)


@triton.jit
def _backward(
    x, delta, A, B, C, D, z, bias, states, gy, g_last,
    dx, ddelta, dA, dB, dC, dD, dz, dh0, dbias,
    length, channels, groups, state, own, blocks,
    SOFTPLUS: tl.constexpr, GATED: tl.constexpr, TERMS: tl.constexpr,
    WIDE: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr, STATE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1) // blocks
    local = tl.program_id(1) % blocks * WIDTH + tl.arange(0, WIDTH)
    inside = local < own
    columns = group * own + local
    numbers = tl.arange(0, STATE)
    held = (numbers < state)[:, None] & inside[None, :]
    per_state = columns[None, :] * state + numbers[:, None]
    rate = tl.load(A + per_state, mask=held, other=0.0).to(WIDE)
    carry = tl.load(g_last + row * channels * state + per_state, mask=held, other=0.0).to(WIDE)
    skip = tl.load(D + columns, mask=inside, other=0.0).to(WIDE)
    added = tl.load(bias + columns, mask=inside, other=0.0).to(WIDE)
    d_rate = tl.zeros([STATE, WIDTH], WIDE)
    d_skip = tl.zeros([WIDTH], WIDE)
    d_added = tl.zeros([WIDTH], WIDE)
    tiles = tl.cdiv(length, TILE)
    for back in range(tiles):
        tile = tiles - 1 - back
        step = tile * TILE + tl.arange(0, TILE)
        known = step < length
        mask = known[:, None] & inside[None, :]
        at = (row * length + step)[:, None] * channels + columns[None, :]
        shared = ((row * length + step) * groups + group) * state
        d, slope = _steps(delta, added, at, mask, SOFTPLUS, TERMS, WIDE)
        # the step of the token after, by which the gradient comes back; 0 past the end, where it comes as it is
        beyond = (step + 1 < length)[:, None] & inside[None, :]
        after, _ = _steps(delta, added, at + channels, beyond, SOFTPLUS, TERMS, WIDE)
        value = tl.load(x + at, mask=mask, other=0.0).to(WIDE)
        arrived = tl.load(gy + at, mask=mask, other=0.0).to(WIDE)
        g = arrived
        if GATED:
            gate = tl.load(z + at, mask=mask, other=0.0).to(WIDE)
            open_ = _sigmoid(gate)
            g = arrived * gate * open_
        u = d * value
        out = skip[None, :] * value
        through_rate = tl.zeros([TILE, WIDTH], WIDE)
        through_input = tl.zeros([TILE, WIDTH], WIDE)
        for n in range(state):
            into = tl.load(B + shared + n, mask=known, other=0.0).to(WIDE)
            from_ = tl.load(C + shared + n, mask=known, other=0.0).to(WIDE)
            kept = ((row * tiles + tile) * state + n) * channels + columns
            start = tl.load(states + kept, mask=inside, other=0.0)
            r = _row(rate, n, STATE)[None, :]
            b = u * into[:, None]
            p, s = tl.associative_scan((tl.exp(d * r), b), 0, _pair)
            h = s + p * start[None, :]
            out += from_[:, None] * h
            p, s = tl.associative_scan((tl.exp(after * r), g * from_[:, None]), 0, _pair, reverse=True)
            lam = s + p * _row(carry, n, STATE)[None, :]
            carry = tl.where(numbers[:, None] == n, _row(lam, 0, TILE)[None, :], carry)
            q = lam * (h - b)
            through_rate += q * r
            through_input += lam * into[:, None]
            d_rate += tl.where(numbers[:, None] == n, tl.sum(q * d, 0)[None, :], 0.0)
            tl.atomic_add(dB + shared + n, tl.sum(lam * u, 1), mask=known)
            tl.atomic_add(dC + shared + n, tl.sum(g * h, 1), mask=known)
        d_step = (through_rate + value * through_input) * slope
        d_added += tl.sum(d_step, 0)
        d_skip += tl.sum(g * value, 0)
        tl.store(dx + at, (skip[None, :] * g + d * through_input).to(dx.dtype.element_ty), mask=mask)
        tl.store(ddelta + at, d_step.to(ddelta.dtype.element_ty), mask=mask)
        if GATED:
            d_gate = arrived * out * open_ * (1.0 + gate * (1.0 - open_))
            tl.store(dz + at, d_gate.to(dz.dtype.element_ty), mask=mask)
    first = row * length * channels + columns[None, :] + tl.zeros([STATE, 1], tl.int64)
    d, _ = _steps(delta, added, first, held, SOFTPLUS, TERMS, WIDE)
    tl.store(dh0 + row * channels * state + per_state, tl.exp(d * rate) * carry, mask=held)
    tl.store(dA + row * channels * state + per_state, d_rate, mask=held)
    tl.store(dD + row * channels + columns, d_skip, mask=inside)
    tl.store(dbias + row * channels + columns, d_added, mask=inside)


def _launch(
    kernel: Any, like: Tensor, wide: torch.dtype, B: Tensor, tile: int, *tensors: Tensor, **options: Any
) -> None:
    batch, length, channels = like.shape
    groups, state = B.shape[2:]
    own = channels // groups
    width = min(_WIDTH, triton.next_power_of_2(own))
    blocks = triton.cdiv(own, width)
    double = wide == torch.float64
    with launch_on(like):
        kernel[(batch, groups * blocks)](
            *(triton_memory(t) for t in tensors), length, channels, groups, state, own, blocks,
            WIDE=tl.float64 if double else tl.float32, TERMS=17 if double else 7, WIDTH=width, TILE=tile,
            STATE=triton.next_power_of_2(state), num_warps=_WARPS, **options,
        )  # fmt: skip


def forward(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    h0: Tensor,
    bias: Tensor,
    states: Tensor,
    softplus: bool,
    tokens: int,
) -> tuple[Tensor, Tensor]:
    """y like x and the last state like h0; fills ``states``, if not empty, with those before every tile of tokens."""
    y, last = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (x, h0))
    if x.numel() == 0:
        return y, h0.clone()
    tile = tokens or min(_TILE, max(2, triton.next_power_of_2(x.shape[1])))
    _launch(
        _forward, x, h0.dtype, B, tile, x, delta, A, B, C, D, z, h0, bias, y, last, states,
        SOFTPLUS=softplus, GATED=z.numel() > 0, KEEPS=tokens > 0,
    )  # fmt: skip
    return y, last


def backward(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    h0: Tensor,
    bias: Tensor,
    states: Tensor,
    gy: Tensor,
    g_last: Tensor,
    softplus: bool,
    tokens: int,
) -> tuple[Tensor, ...]:
    """Gradients of x, delta, A, B, C, D, z, h0 and bias."""
    if x.numel() == 0:
        zeros = [torch.zeros_like(tensor) for tensor in (x, delta, A, B, C, D, z)]
        return (*zeros, g_last.clone(), torch.zeros_like(bias))
    batch, _, channels = x.shape
    dx, ddelta, dz, dh0 = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (x, delta, z, h0))
    dB, dC = (torch.zeros(t.shape, dtype=h0.dtype, device=x.device) for t in (B, C))
    dA = torch.empty_like(dh0)
    dD, dbias = (h0.new_empty((batch, channels)) for _ in range(2))
    _launch(
        _backward, x, h0.dtype, B, tokens, x, delta, A, B, C, D, z, bias, states, gy, g_last,
        dx, ddelta, dA, dB, dC, dD, dz, dh0, dbias, SOFTPLUS=softplus, GATED=z.numel() > 0,
    )  # fmt: skip
    return dx, ddelta, dA.sum(0), dB.to(B.dtype), dC.to(C.dtype), dD.sum(0), dz, dh0, dbias.sum(0)
