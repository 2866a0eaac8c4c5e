"""Triton kernel of `decay_attention`: one program per row and block of values walks over chunks of tokens.

Everything is the same walk under other names. A memory M (N, P) takes up k v' and is asked by q, up or down in time,
and fades along N, along P, or as one:

- o: asked by q, adds k v', fades along N;
- dq: asked by g, adds v k', fades along what are now the values;
- dk: down in time, asked by v, adds g q', fades along the values;
- dv: down in time, asked by k, adds q g', fades along N.

Within a chunk only differences of running sums b of the logarithms are exponentiated, later minus earlier, which are at
most 0. The sums are float64: after a token that forgets all they are huge and their differences small.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._memory import launch_on
from .derivatives import empty_like

_CHUNK, _PART, _VALUES, _WARPS = 64, 16, 32, 4  # tokens with one decay per head and with many, values of a block
_ONE, _KEYS, _ALONG = 0, 1, 2  # what fades: all as one, along the keys, along the values


@triton.jit
def _product(a, b, DOUBLE: tl.constexpr):
    return tl.sum(a[:, :, None] * b[None, :, :], 1) if DOUBLE else tl.dot(a, b, input_precision="ieee")


@triton.jit
def _row(x, index, ROWS: tl.constexpr):
    """One row of a matrix that lies in registers."""
    return tl.sum(tl.where(tl.arange(0, ROWS)[:, None] == index, x, 0.0), 0)


@triton.jit
def _walk(
    q, k, v, log_decay, start, o, last, length, size, values,
    FADES: tl.constexpr, DOWN: tl.constexpr, EXCLUSIVE: tl.constexpr, DOUBLE: tl.constexpr, WIDE: tl.constexpr,
    CHUNK: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    n, p, i = tl.arange(0, SIZE), tl.program_id(1) * WIDTH + tl.arange(0, WIDTH), tl.arange(0, CHUNK)
    in_n, in_p = n < size, p < values
    held, at_state = in_n[:, None] & in_p[None, :], (row * size + n[:, None]) * values + p[None, :]
    M = tl.load(start + at_state, mask=held, other=0.0).to(WIDE)
    earlier = (i[:, None] > i[None, :]) if EXCLUSIVE else (i[:, None] >= i[None, :])
    for first in range(0, length, CHUNK):
        known = first + i < length
        t = row * length + (length - 1 - first - i if DOWN else first + i)
        at_n, mask_n = t[:, None] * size + n[None, :], known[:, None] & in_n[None, :]
        at_p, mask_p = t[:, None] * values + p[None, :], known[:, None] & in_p[None, :]
        asked = tl.load(q + at_n, mask=mask_n, other=0.0).to(WIDE)
        key = tl.load(k + at_n, mask=mask_n, other=0.0).to(WIDE)
        value = tl.load(v + at_p, mask=mask_p, other=0.0).to(WIDE)
        if FADES == 0:
            fade = tl.load(log_decay + t, mask=known, other=0.0).to(tl.float64)
        elif FADES == 1:
            fade = tl.load(log_decay + at_n, mask=mask_n, other=0.0).to(tl.float64)
        else:
            fade = tl.load(log_decay + at_p, mask=mask_p, other=0.0).to(tl.float64)
        b = tl.cumsum(fade, 0)
        seen = b - fade if EXCLUSIVE else b
        end = tl.sum(fade, 0)
        if FADES == 0:
            reach = tl.exp(tl.where(earlier, tl.minimum(seen[:, None] - b[None, :], 0.0), 0.0).to(WIDE))
            weight = tl.where(earlier, _product(asked, tl.trans(key), DOUBLE) * reach, 0.0)
            out = _product(weight, value, DOUBLE)
            out += _product(asked * tl.exp(seen.to(WIDE))[:, None], M, DOUBLE)
            kept = key * tl.exp((end - b).to(WIDE))[:, None]
            M = M * tl.exp(end.to(WIDE)) + _product(tl.trans(kept), value, DOUBLE)
        elif FADES == 1:
            out = _product(asked * tl.exp(seen.to(WIDE)), M, DOUBLE)
            for j in range(CHUNK):
                reach = tl.exp(tl.minimum(seen - _row(b, j, CHUNK)[None, :], 0.0).to(WIDE))
                weight = tl.sum(asked * reach * _row(key, j, CHUNK)[None, :], 1)
                sees = i > j if EXCLUSIVE else i >= j
                out += tl.where(sees, weight, 0.0)[:, None] * _row(value, j, CHUNK)[None, :]
            kept = key * tl.exp((end[None, :] - b).to(WIDE))
            M = M * tl.exp(end.to(WIDE))[:, None] + _product(tl.trans(kept), value, DOUBLE)
        else:
            out = _product(asked, M, DOUBLE) * tl.exp(seen.to(WIDE))
            for j in range(CHUNK):
                reach = tl.exp(tl.minimum(seen - _row(b, j, CHUNK)[None, :], 0.0).to(WIDE))
                weight = tl.sum(asked * _row(key, j, CHUNK)[None, :], 1)
                sees = i > j if EXCLUSIVE else i >= j
                out += tl.where(sees, weight, 0.0)[:, None] * reach * _row(value, j, CHUNK)[None, :]
            kept = value * tl.exp((end[None, :] - b).to(WIDE))
            M = M * tl.exp(end.to(WIDE))[None, :] + _product(tl.trans(key), kept, DOUBLE)
        tl.store(o + at_p, out, mask=mask_p)
    tl.store(last + at_state, M, mask=held)


def _rows(*tensors: Tensor) -> list[Tensor]:
    """(B, H, ...) as (B H, ...), contiguous."""
    return [x.detach().resolve_neg().contiguous().flatten(0, 1) for x in tensors]


def _walked(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, start: Tensor, *, chunk: int, **options: Any
) -> tuple[Tensor, Tensor]:
    """All answers (R, L, P) and the last memory (R, N, P), in the type of the first."""
    (rows, length, size), values, wide = q.shape, v.shape[-1], start.dtype
    o, last = (torch.empty_like(x, dtype=wide) for x in (v, start))
    double = wide == torch.float64
    most = _CHUNK if options["FADES"] == _ONE and not double else _PART
    width = min(max(16, triton.next_power_of_2(values)), 16 if double else _VALUES)
    with launch_on(q):
        _walk[(rows, triton.cdiv(values, width))](
            q, k, v, log_decay, start, o, last, length, size, values, DOUBLE=double,
            WIDE=tl.float64 if double else tl.float32, CHUNK=min(most, max(16, triton.next_power_of_2(chunk))),
            SIZE=max(16, triton.next_power_of_2(size)), WIDTH=width, num_warps=_WARPS, **options,
        )  # fmt: skip
    return o, last


def _placed(x: Tensor, like: Tensor) -> Tensor:
    return empty_like(like).copy_(x.view(like.shape))


def forward(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor, exclusive: bool, chunk: int
) -> tuple[Tensor, Tensor]:
    """o like v and the last memory like ``state``; log_decay is (B, H, L, N) or (B, H, L, 1)."""
    if q.numel() == 0:
        return empty_like(v), state.clone(memory_format=torch.contiguous_format)
    fades = _KEYS if log_decay.shape[-1] > 1 or q.shape[-1] == 1 else _ONE
    rows = _rows(q, k, v, log_decay, state)
    o, last = _walked(*rows, chunk=chunk, FADES=fades, DOWN=False, EXCLUSIVE=exclusive)
    return _placed(o, v), last.view(state.shape)


def backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    state: Tensor,
    g: Tensor,
    g_last: Tensor,
    exclusive: bool,
    chunk: int,
) -> tuple[Tensor, ...]:
    """Gradients of q, k, v, log_decay and state."""
    if q.numel() == 0:
        return (*(empty_like(x) for x in (q, k, v, log_decay)), g_last.clone())
    one = log_decay.shape[-1] == 1 and q.shape[-1] > 1
    keys, along = (_ONE, _ONE) if one else (_KEYS, _ALONG)
    fq, fk, fv, fade, start, fg, end = _rows(q, k, v, log_decay, state, g, g_last)
    # down in time, a gradient is decayed by the token after before it meets this one's; if exclusive, by this one
    after = fade if exclusive else torch.cat([fade[:, 1:], torch.zeros_like(fade[:, :1])], 1)
    turned = start.mT.contiguous()
    dq, last = _walked(fg, fv, fk, fade, turned, chunk=chunk, FADES=along, DOWN=False, EXCLUSIVE=exclusive)
    dk, _ = _walked(fv, fg, fq, after, end.mT.contiguous(), chunk=chunk, FADES=along, DOWN=True, EXCLUSIVE=exclusive)
    dv, first = _walked(fk, fq, fg, after, end, chunk=chunk, FADES=keys, DOWN=True, EXCLUSIVE=exclusive)
    d_state = first if exclusive else torch.exp(fade[:, 0]).unsqueeze(-1) * first
    d_fade = _of_decays(fq * dq, fk * dk, (last.mT * end).sum(-1), exclusive)
    d_fade = (d_fade.sum(-1, keepdim=True) if one else d_fade).masked_fill(torch.exp(fade) == 0, 0)
    found = zip((dq, dk, dv, d_fade), (q, k, v, log_decay), strict=True)
    return (*(_placed(x, like) for x, like in found), d_state.view(state.shape))


def _of_decays(asked: Tensor, added: Tensor, end: Tensor, exclusive: bool) -> Tensor:
    """The running difference of q dq and k dk from the last token back, from ``end`` = sum_p S G after it."""
    asked, added = asked.double(), added.double()
    if exclusive:
        asked = torch.cat([asked[:, 1:], torch.zeros_like(asked[:, :1])], 1)
    return end.double().unsqueeze(1) + (asked - added).flip(1).cumsum(1).flip(1)
