"""Triton kernels of `wkv`: one program per row of the batch and block of channels, in tiles of (tokens, channels).

Within a tile the states before every token are found by an associative scan whose rule is the merge of two stretches of
tokens: exponents move to the larger one, a and b are added. What an exponential takes is at most 0 there too.

The backward pass walks the tiles from the last to the first, with the states kept at the start of each, and scans the
gradients of a and b the other way. That scan must give row t what arrives from the tokens after it, so a row also looks
at the keys and values of its next token.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._memory import launch_on, triton_memory

_TILE, _WIDTH, _WARPS = 32, 32, 4  # tokens (where no states are kept) and channels of a tile, warps of a program
_NOTHING = tl.constexpr(-1e30)  # exponent of a token that is not there: finite, since two of them are subtracted


@triton.jit
def _merge(d1, p1, a1, b1, d2, p2, a2, b2):
    """Two stretches of tokens, the earlier first: how far each decays what came before it, and its p, a and b."""
    p1 -= d2
    p = tl.maximum(p1, p2)
    e1 = tl.exp(p1 - p)
    e2 = tl.exp(p2 - p)
    return d1 + d2, p, a1 * e1 + a2 * e2, b1 * e1 + b2 * e2


@triton.jit
def _onward(e1, a1, b1, r1, e2, a2, b2, r2):
    """What arrives from later tokens (1) passes an earlier one (2): for a, for b, and for the last p."""
    return e1 * e2, e2 * a1 + a2, e2 * b1 + b2, r1 * r2


@triton.jit
def _row(x, index, rows: tl.constexpr):
    """One row of a matrix that lies in registers."""
    return tl.sum(tl.where(tl.arange(0, rows)[:, None] == index, x, 0.0), 0)


@triton.jit
def _before(k, v, at, step, length, inside, rate, channels, a, b, p, TILE: tl.constexpr, WIDE: tl.constexpr):
    """a, b and p before every token of a tile, from those before its first: row 0 is the carry, row t token t - 1."""
    first = (tl.arange(0, TILE) == 0)[:, None]
    known = (step - 1 < length)[:, None] & inside[None, :] & ~first
    key = tl.load(k + at - channels, mask=known, other=0.0).to(WIDE)
    value = tl.load(v + at - channels, mask=known, other=0.0).to(WIDE)
    decay = tl.where(known, rate[None, :], 0.0)
    key = tl.where(first, p[None, :], tl.where(known, key, _NOTHING))
    value = tl.where(first, a[None, :], value)
    weight = tl.where(first, b[None, :], tl.where(known, 1.0, 0.0).to(WIDE))
    _, p_, a_, b_ = tl.associative_scan((decay, key, value, weight), 0, _merge)
    return a_, b_, p_


@triton.jit
def _shares(old, own):
    """e to the power of two exponents, less the larger of them; minus infinity may be one."""
    most = tl.maximum(old, own)
    return tl.exp(old - most), tl.exp(own - most)


@triton.jit
def _forward(
    w, u, k, v, a0, b0, p0, y, a_last, b_last, p_last, states, length, channels,
    KEEPS: tl.constexpr, WIDE: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    inside = columns < channels
    own_at = row * channels + columns
    rate = tl.load(w + columns, mask=inside, other=0.0)
    bonus = tl.load(u + columns, mask=inside, other=0.0)
    a = tl.load(a0 + own_at, mask=inside, other=0.0)
    b = tl.load(b0 + own_at, mask=inside, other=1.0)
    p = tl.load(p0 + own_at, mask=inside, other=0.0)
    tiles = tl.cdiv(length, TILE)
    for tile in range(tiles):
        if KEEPS:
            kept = (row * tiles + tile) * 3 * channels + columns
            tl.store(states + kept, a, mask=inside)
            tl.store(states + kept + channels, b, mask=inside)
            tl.store(states + kept + 2 * channels, p, mask=inside)
        step = tile * TILE + tl.arange(0, TILE)
        mask = (step < length)[:, None] & inside[None, :]
        at = (row * length + step)[:, None] * channels + columns[None, :]
        key = tl.load(k + at, mask=mask, other=0.0).to(WIDE)
        value = tl.load(v + at, mask=mask, other=0.0).to(WIDE)
        a_, b_, p_ = _before(k, v, at, step, length, inside, rate, channels, a, b, p, TILE, WIDE)
        old, own = _shares(p_, bonus[None, :] + key)
        tl.store(y + at, ((old * a_ + own * value) / (old * b_ + own)).to(y.dtype.element_ty), mask=mask)
        # the state before the tile's last token, and that token; beyond the end neither is there
        end = tl.minimum(length - tile * TILE, TILE) - 1
        decayed = _row(p_, end, TILE) - rate
        p = tl.maximum(decayed, _row(key, end, TILE))
        old, own = tl.exp(decayed - p), tl.exp(_row(key, end, TILE) - p)
        a = old * _row(a_, end, TILE) + own * _row(value, end, TILE)
        b = old * _row(b_, end, TILE) + own
    tl.store(a_last + own_at, a, mask=inside)
    tl.store(b_last + own_at, b, mask=inside)
    tl.store(p_last + own_at, p, mask=inside)


@triton.jit
def _backward(
    w, u, k, v, a0, b0, states, g, ga, gb, gp, dw, du, dk, dv, da, db, dp, length, channels,
    WIDE: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    inside = columns < channels
    own_at = row * channels + columns
    rate = tl.load(w + columns, mask=inside, other=0.0)
    bonus = tl.load(u + columns, mask=inside, other=0.0)
    for_a = tl.load(ga + own_at, mask=inside, other=0.0)
    for_b = tl.load(gb + own_at, mask=inside, other=0.0)
    for_p = tl.load(gp + own_at, mask=inside, other=0.0)
    d_rate = tl.zeros([WIDTH], WIDE)
    d_bonus = tl.zeros([WIDTH], WIDE)
    rows = tl.arange(0, TILE)[:, None]
    tiles = tl.cdiv(length, TILE)
    for back in range(tiles):
        tile = tiles - 1 - back
        step = tile * TILE + tl.arange(0, TILE)
        mask = (step < length)[:, None] & inside[None, :]
        beyond = (step + 1 < length)[:, None] & inside[None, :]
        at = (row * length + step)[:, None] * channels + columns[None, :]
        kept = (row * tiles + tile) * 3 * channels + columns
        a = tl.load(states + kept, mask=inside, other=0.0)
        b = tl.load(states + kept + channels, mask=inside, other=1.0)
        p = tl.load(states + kept + 2 * channels, mask=inside, other=0.0)
        key = tl.load(k + at, mask=mask, other=0.0).to(WIDE)
        value = tl.load(v + at, mask=mask, other=0.0).to(WIDE)
        arrived = tl.load(g + at, mask=mask, other=0.0).to(WIDE)
        a_, b_, p_ = _before(k, v, at, step, length, inside, rate, channels, a, b, p, TILE, WIDE)
        old, own = _shares(p_, bonus[None, :] + key)
        share = 1.0 / (old * b_ + own)
        old, own = old * share, own * share
        y = old * a_ + own * value
        fresh, fresh_b = old * arrived, -old * y * arrived
        keeps, adds = _shares(p_ - rate[None, :], key)
        taken = tl.where(mask & (key >= p_ - rate[None, :]), 1.0, 0.0).to(WIDE)
        # the next token, from the state before it
        a_next = keeps * a_ + adds * value
        b_next = keeps * b_ + adds
        p_next = tl.maximum(p_ - rate[None, :], key)
        key_next = tl.load(k + at + channels, mask=beyond, other=0.0).to(WIDE)
        value_next = tl.load(v + at + channels, mask=beyond, other=0.0).to(WIDE)
        g_next = tl.load(g + at + channels, mask=beyond, other=0.0).to(WIDE)
        old_next, own_next = _shares(p_next, bonus[None, :] + key_next)
        share = 1.0 / (old_next * b_next + own_next)
        old_next, own_next = old_next * share, own_next * share
        y_next = old_next * a_next + own_next * value_next
        keeps_next, _ = _shares(p_next - rate[None, :], key_next)
        passes = tl.where(beyond, keeps_next, 1.0)
        from_a = tl.where(beyond, old_next * g_next, 0.0)
        from_b = tl.where(beyond, -old_next * y_next * g_next, 0.0)
        stays = tl.where(beyond & (key_next >= p_next - rate[None, :]), 0.0, 1.0).to(WIDE)
        f, from_a, from_b, stays = tl.associative_scan((passes, from_a, from_b, stays), 0, _onward, reverse=True)
        at_a = from_a + f * for_a[None, :]
        at_b = from_b + f * for_b[None, :]
        at_p = stays * for_p[None, :]
        by_key = arrived * own * (value - y)
        d_key = by_key + adds * (at_a * value + at_b) + taken * at_p
        d_value = own * arrived + adds * at_a
        through = keeps * (at_a * a_ + at_b * b_) + (1.0 - taken) * at_p
        tl.store(dk + at, d_key.to(dk.dtype.element_ty), mask=mask)
        tl.store(dv + at, d_value.to(dv.dtype.element_ty), mask=mask)
        d_bonus += tl.sum(tl.where(mask, by_key, 0.0), 0)
        d_rate -= tl.sum(tl.where(mask, through, 0.0), 0)
        # row 0 before its own token is what the tile before this one is given by its last row, through that token
        if tile == 0:
            only = rows == 0
            for_a = tl.sum(tl.where(only, fresh + keeps * at_a, 0.0), 0)
            for_b = tl.sum(tl.where(only, fresh_b + keeps * at_b, 0.0), 0)
            for_p = tl.sum(tl.where(only, (1.0 - taken) * at_p, 0.0), 0)
        else:
            for_a, for_b, for_p = _row(at_a, 0, TILE), _row(at_b, 0, TILE), _row(at_p, 0, TILE)
    tl.store(dw + own_at, d_rate, mask=inside)
    tl.store(du + own_at, d_bonus, mask=inside)
    tl.store(da + own_at, for_a, mask=inside)
    tl.store(db + own_at, for_b, mask=inside)
    a = tl.load(a0 + own_at, mask=inside, other=0.0)
    b = tl.load(b0 + own_at, mask=inside, other=0.0)
    tl.store(dp + own_at, for_p + for_a * a + for_b * b, mask=inside)


def _launch(kernel: Any, like: Tensor, wide: torch.dtype, tile: int, *tensors: Tensor, **options: Any) -> None:
    batch, length, channels = like.shape
    width = min(_WIDTH, triton.next_power_of_2(channels))
    with launch_on(like):
        kernel[(batch, triton.cdiv(channels, width))](
            *(triton_memory(t) for t in tensors), length, channels,
            WIDE=tl.float64 if wide == torch.float64 else tl.float32, WIDTH=width, TILE=tile, num_warps=_WARPS,
            **options,
        )  # fmt: skip


def forward(
    w: Tensor, u: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, p: Tensor, states: Tensor, tokens: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y like k and the last a, b and p; fills ``states``, if not empty, with those before every tile of tokens."""
    if k.numel() == 0:
        return torch.empty_like(k, memory_format=torch.contiguous_format), a.clone(), b.clone(), p.clone()
    y, *last = [torch.empty_like(t, memory_format=torch.contiguous_format) for t in (k, a, b, p)]
    tile = tokens or min(_TILE, max(2, triton.next_power_of_2(k.shape[1])))
    _launch(_forward, k, a.dtype, tile, w, u, k, v, a, b, p, y, *last, states, KEEPS=tokens > 0)
    return y, last[0], last[1], last[2]


def backward(
    w: Tensor,
    u: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    states: Tensor,
    g: Tensor,
    ga: Tensor,
    gb: Tensor,
    gp: Tensor,
    tokens: int,
) -> tuple[Tensor, ...]:
    """Gradients of w, u, k, v, a, b and p, for gp that belongs to the maximum alone."""
    if k.numel() == 0:
        zeros = [torch.zeros_like(t) for t in (w, u, k, v)]
        return (*zeros, ga.clone(), gb.clone(), gp + ga * a + gb * b)
    dk, dv, da, db, dp, dw, du = (
        torch.empty_like(t, memory_format=torch.contiguous_format) for t in (k, v, a, a, a, a, a)
    )
    _launch(_backward, k, a.dtype, tokens, w, u, k, v, a, b, states, g, ga, gb, gp, dw, du, dk, dv, da, db, dp)
    return dw.sum(0), du.sum(0), dk, dv, da, db, dp
