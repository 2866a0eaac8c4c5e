"""Triton kernels of `linear_scan`: one program per row of the batch and block of channels, one pass over memory.

A program walks through time in tiles, scans a tile with the pair rule (a1, b1) then (a2, b2) -> (a2 a1, a2 b1 + b2),
adds the product of its factors times the carry, and carries its last row on. Where rows and blocks are too few to fill
the machine, time is cut into segments: each is summarised (product of factors, end from zero), a scan over the
summaries gives every segment its start, and then all of them run at once.

Tensors come as for the CPU: a (B or 1, L or 1, G) with G dividing C, b and h (B, L, C), h0 (B, C). Complex numbers
travel as pairs.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._memory import launch_on, repeated_as_one, triton_memory

_ROW_BYTES = 128  # of a tile: one full cache line of channels
_TILE, _WARPS, _STAGES = 64, 4, 2  # tokens of a tile, warps of a program, tiles whose loads are in flight
_PER_PROCESSOR = 4  # programs that keep one multiprocessor busy


@triton.jit
def _pair(a1, b1, a2, b2):
    return a2 * a1, a2 * b1 + b2


@triton.jit
def _pair_complex(ar1, ai1, br1, bi1, ar2, ai2, br2, bi2):
    return (
        ar2 * ar1 - ai2 * ai1,
        ar2 * ai1 + ai2 * ar1,
        ar2 * br1 - ai2 * bi1 + br2,
        ar2 * bi1 + ai2 * br1 + bi2,
    )


@triton.jit
def _load(x, offsets, mask, other, PART: tl.constexpr, COMPLEX: tl.constexpr, WIDE: tl.constexpr):
    """The real (0) or imaginary (1) part, in the accumulation type."""
    if COMPLEX:
        offsets = offsets * 2 + PART
    return tl.load(x + offsets, mask=mask, other=other).to(WIDE)


@triton.jit
def _store(x, offsets, value, mask, PART: tl.constexpr, COMPLEX: tl.constexpr):
    if COMPLEX:
        offsets = offsets * 2 + PART
    tl.store(x + offsets, value.to(x.dtype.element_ty), mask=mask)


@triton.jit
def _last_row(x, TILE: tl.constexpr):
    return tl.sum(tl.where(tl.arange(0, TILE)[:, None] == TILE - 1, x, 0.0), 0)


@triton.jit
def _offsets(step, row, length, time_stride, batch_stride, columns, DOWN: tl.constexpr):
    """Where the tokens of these steps lie: from the last to the first if the scan goes down."""
    token = step
    if DOWN:
        token = length - 1 - step
    return row * batch_stride + token.to(tl.int64)[:, None] * time_stride + columns[None, :]


@triton.jit
def _walk(
    a, b, starts, h0, h, out, da, ends, products,
    length, channels, run, segment, segments, a_batch, a_time, b_batch, b_time,
    DOWN: tl.constexpr, BACKWARD: tl.constexpr, SUMMARY: tl.constexpr, INVARIANT: tl.constexpr,
    COMPLEX: tl.constexpr, WIDE: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """One segment of one row.

    Forward: out = h. Backward: b is the gradient that arrives, out = lambda, and da = lambda conj(h before); the
    factors are conjugates, each taken one step earlier in the order of this walk, and 1 at its first step.
    """
    row = (tl.program_id(0) // segments).to(tl.int64)
    part = tl.program_id(0) % segments
    columns = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    inside = columns < channels
    factors = columns // run
    carried = (row * segments + part) * channels + columns
    carry = tl.zeros([WIDTH], WIDE)
    carry_i = tl.zeros([WIDTH], WIDE)
    if not SUMMARY:
        carry = _load(starts, carried, inside, 0.0, 0, COMPLEX, WIDE)
        if COMPLEX:
            carry_i = _load(starts, carried, inside, 0.0, 1, COMPLEX, WIDE)
    whole = tl.full([WIDTH], 1.0, WIDE)
    whole_i = tl.zeros([WIDTH], WIDE)
    sums = tl.zeros([WIDTH], WIDE)
    sums_i = tl.zeros([WIDTH], WIDE)
    if INVARIANT:
        same = _load(a, row * a_batch + factors, inside, 1.0, 0, COMPLEX, WIDE)
        if COMPLEX:
            same_i = _load(a, row * a_batch + factors, inside, 0.0, 1, COMPLEX, WIDE)
    first = part * segment
    last = tl.minimum(first + segment, length)
    for start in tl.range(first, last, TILE, num_stages=STAGES):
        step = start + tl.arange(0, TILE)
        mask = (step < last)[:, None] & inside[None, :]
        shift = step - 1 if BACKWARD else step
        known = mask & (shift >= 0)[:, None]
        at = _offsets(shift, row, length, a_time, a_batch, factors, DOWN)
        if INVARIANT:
            kept = tl.where(known, same[None, :], 1.0)
        else:
            kept = _load(a, at, known, 1.0, 0, COMPLEX, WIDE)
        here = _offsets(step, row, length, b_time, b_batch, columns, DOWN)
        added = _load(b, here, mask, 0.0, 0, COMPLEX, WIDE)
        if COMPLEX:
            if INVARIANT:
                kept_i = tl.where(known, same_i[None, :], 0.0)
            else:
                kept_i = _load(a, at, known, 0.0, 1, COMPLEX, WIDE)
            if BACKWARD:
                kept_i = -kept_i
            added_i = _load(b, here, mask, 0.0, 1, COMPLEX, WIDE)
            p, p_i, s, s_i = tl.associative_scan((kept, kept_i, added, added_i), 0, _pair_complex)
            value = s + p * carry[None, :] - p_i * carry_i[None, :]
            value_i = s_i + p * carry_i[None, :] + p_i * carry[None, :]
        else:
            p, s = tl.associative_scan((kept, added), 0, _pair)
            value = s + p * carry[None, :]
        if SUMMARY:
            q = _last_row(p, TILE)
            if COMPLEX:
                q_i = _last_row(p_i, TILE)
                whole, whole_i = whole * q - whole_i * q_i, whole * q_i + whole_i * q
            else:
                whole = whole * q
        else:
            place = _offsets(step, row, length, channels, length * channels, columns, DOWN)
            _store(out, place, value, mask, 0, COMPLEX)
            if COMPLEX:
                _store(out, place, value_i, mask, 1, COMPLEX)
            if BACKWARD:
                middle = mask & (step + 1 < length)[:, None]
                behind = _offsets(step + 1, row, length, channels, length * channels, columns, DOWN)
                edge = mask & (step + 1 == length)[:, None]
                origin = row * channels + columns[None, :] + tl.zeros([TILE, 1], tl.int64)
                before = _load(h, behind, middle, 0.0, 0, COMPLEX, WIDE)
                before += _load(h0, origin, edge, 0.0, 0, COMPLEX, WIDE)
                if COMPLEX:
                    before_i = _load(h, behind, middle, 0.0, 1, COMPLEX, WIDE)
                    before_i += _load(h0, origin, edge, 0.0, 1, COMPLEX, WIDE)
                    product = value * before + value_i * before_i
                    product_i = value_i * before - value * before_i
                else:
                    product = value * before
                if INVARIANT:
                    sums += tl.sum(tl.where(mask, product, 0.0), 0)
                    if COMPLEX:
                        sums_i += tl.sum(tl.where(mask, product_i, 0.0), 0)
                else:
                    _store(da, place, product, mask, 0, COMPLEX)
                    if COMPLEX:
                        _store(da, place, product_i, mask, 1, COMPLEX)
        # steps past the end have factor 1 and add nothing, so the last row is the state in every tile
        carry = _last_row(value, TILE)
        if COMPLEX:
            carry_i = _last_row(value_i, TILE)
    _store(ends, carried, carry, inside, 0, COMPLEX)
    if SUMMARY:
        _store(products, carried, whole, inside, 0, COMPLEX)
    if BACKWARD and INVARIANT and not SUMMARY:
        _store(da, carried, sums, inside, 0, COMPLEX)
    if COMPLEX:
        _store(ends, carried, carry_i, inside, 1, COMPLEX)
        if SUMMARY:
            _store(products, carried, whole_i, inside, 1, COMPLEX)
        if BACKWARD and INVARIANT and not SUMMARY:
            _store(da, carried, sums_i, inside, 1, COMPLEX)


def _segments(batch: int, length: int, blocks: int, device: torch.device) -> int:
    """Into how many pieces of time to cut so that every multiprocessor has work; 1 where rows and blocks are enough."""
    processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2
    if batch * blocks >= 2 * processors:
        return 1
    return max(1, min(triton.cdiv(processors * _PER_PROCESSOR, batch * blocks), length // (4 * _TILE)))


def _run(
    a: Tensor, b: Tensor, start: Tensor, down: bool, h0: Tensor | None = None, h: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Every state, the last one and, given h, the gradient of a: per token, or per segment if a does not vary."""
    batch, length, channels = b.shape
    backward = h is not None
    invariant = a.shape[1] != length
    b = repeated_as_one(b)
    strides = (*_strides(a, length), *_strides(b, length))
    run = channels // a.shape[2]
    wide = tl.float64 if start.dtype in (torch.float64, torch.complex128) else tl.float32
    width = max(8, _ROW_BYTES // b.element_size())
    blocks = triton.cdiv(channels, width)
    segments = _segments(batch, length, blocks, b.device)
    segment = triton.cdiv(triton.cdiv(length, segments), _TILE) * _TILE
    segments = max(1, triton.cdiv(length, segment))
    grid = (batch * segments, blocks)
    tile = min(_TILE, max(2, triton.next_power_of_2(length)))
    options = {"COMPLEX": b.is_complex(), "WIDE": wide, "WIDTH": width, "TILE": tile, "STAGES": _STAGES, "DOWN": down}
    options["num_warps"] = _WARPS
    kept, added = triton_memory(a), triton_memory(b)
    starts = start.resolve_conj().unsqueeze(1)
    if segments > 1:
        products, ends = (
            torch.empty((batch, segments, channels), dtype=start.dtype, device=b.device) for _ in range(2)
        )
        sizes = (length, channels, run, segment, segments, *strides)
        p, e = triton_memory(products), triton_memory(ends)
        _walk[grid](
            kept, added, e, e, e, e, e, e, p, *sizes, BACKWARD=backward, SUMMARY=True, INVARIANT=invariant, **options
        )
        states, _, _ = _run(products, ends, start, False)
        starts = torch.cat([starts, states[:, :-1]], 1)
    out = torch.empty((batch, length, channels), dtype=b.dtype, device=b.device)
    ends = torch.empty((batch, segments, channels), dtype=start.dtype, device=b.device)
    da = None
    if backward:
        rows, type_ = (segments, start.dtype) if invariant else (length, b.dtype if run == 1 else start.dtype)
        da = torch.empty((batch, rows, channels), dtype=type_, device=b.device)
    arrays = [kept, added, *(None if x is None else triton_memory(x) for x in (starts, h0, h, out, da, ends)), None]
    filled = [x if x is not None else arrays[2] for x in arrays]
    sizes = (length, channels, run, segment, segments, *strides)
    _walk[grid](*filled, *sizes, BACKWARD=backward, SUMMARY=False, INVARIANT=invariant, **options)
    return out, ends[:, -1].clone(), da


def _strides(x: Tensor, length: int) -> tuple[int, int]:
    """Steps in memory from one row of the batch and from one token to the next; 0 where the tensor repeats itself."""
    batch, tokens, width = x.shape
    return (tokens * width if batch > 1 else 0, width if tokens > 1 else 0)


def forward(a: Tensor, b: Tensor, h0: Tensor, reverse: bool) -> tuple[Tensor, Tensor]:
    """h like b and the last state like h0."""
    if b.numel() == 0:
        return torch.empty_like(b, memory_format=torch.contiguous_format), h0.clone()
    with launch_on(b):
        h, last, _ = _run(a, b, h0, reverse)
    return h, last


def backward(
    a: Tensor, h0: Tensor, h: Tensor, g: Tensor, g_last: Tensor, reverse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of a, b and h0, from the states h and what arrives for h (g) and for the last state."""
    if h.numel() == 0:
        return torch.zeros_like(a), torch.empty_like(h, memory_format=torch.contiguous_format), g_last.clone()
    length, channels = h.shape[1:]
    with launch_on(h):
        db, lam, da = _run(a, g, g_last, not reverse, h0, h)
    assert da is not None
    if a.shape[1] != length:
        da = da.sum(1, keepdim=True)
    if a.shape[2] != channels:
        da = da.unflatten(-1, (a.shape[2], -1)).sum(-1)
    if a.shape[0] != h.shape[0]:
        da = da.sum(0, keepdim=True)
    first = a[:, (length - 1 if reverse else 0) if a.shape[1] == length else 0].to(h0.dtype)
    dh0 = first.conj().repeat_interleave(channels // a.shape[2], -1) * lam
    return da.to(a.dtype), db, dh0
