"""Blocks of `relu2_attention` on the CPU: torch's matrix products, with one pass over the block between them.

A block of 384 queries by 768 keys stays in the cache, and its products run at 0.9 of the speed of large ones; beside
values of 512 channels relu and square take a fiftieth of the time, so there is little for a kernel of our own to fuse.
Blocks above the diagonal are never looked at. Few queries have broader blocks, and short sequences share one: as many
rows of batch and heads at once as fit in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .._memory import fresh

_QUERIES, _KEYS = 384, 768
_CORNER = 64, 4  # least queries of a block, and blocks at least, where much of the work would lie above the diagonal


class _Block(NamedTuple):
    """rows: of batch and heads; i, j: queries and keys; tril: the last diagonal that is seen, None if all is."""

    rows: slice
    i: slice
    j: slice
    tril: int | None


def _blocks(rows: int, length: int, columns: int, causal: bool) -> Iterator[_Block]:
    past = columns - length
    least, parts = _CORNER
    tall = min(_QUERIES, max(least, columns // parts)) if causal else _QUERIES
    pairs = _QUERIES * _KEYS
    broad = pairs // max(1, min(length, tall))  # all keys at once for the one query of decoding
    group = max(1, pairs // max(1, min(length, tall) * min(columns, broad)))
    for first in range(0, rows, group):
        some = slice(first, min(first + group, rows))
        for i in range(0, length, tall):
            end = min(i + tall, length)
            seen = past + end if causal else columns
            for j in range(0, seen, broad):
                last = min(j + broad, seen)
                cut = causal and last - 1 > past + i
                yield _Block(some, slice(i, end), slice(j, last), past + i - j if cut else None)


class _Scratch:
    """Blocks of memory that are used again and again."""

    def __init__(self, like: Tensor) -> None:
        self.like, self.size = like, 0

    def __call__(self, *shape: int) -> Tensor:
        size = shape[0] * shape[1] * shape[2]
        if size > self.size:
            self.memory, self.size = self.like.new_empty(size), size
        return self.memory[:size].view(shape)


def _rows(x: Tensor, wide: torch.dtype) -> Tensor:
    """(B, H, L, n) as (B H, L, n) in the accumulation type, without autograd."""
    return x.detach().to(wide).flatten(0, 1)


def _scores(q: Tensor, k: Tensor, block: _Block, scratch: _Scratch) -> Tensor:
    """relu(q k') in a block."""
    q, k = q[block.rows, block.i], k[block.rows, block.j]
    found = torch.bmm(q, k.mT, out=scratch(q.shape[0], q.shape[1], k.shape[1])).clamp_(min=0)
    return found if block.tril is None else found.tril_(block.tril)


def forward(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """o (B, H, L, P) in the type of v."""
    wide, shape = q.dtype, (*q.shape[:3], v.shape[3])
    (rows, length, _), columns = (q := _rows(q, wide)).shape, k.shape[2]
    k, v, dtype = _rows(k, wide), _rows(v, wide), v.dtype
    o = fresh((rows, length, shape[3]), wide).zero_()
    scratch = _Scratch(q)
    for block in _blocks(rows, length, columns, causal):
        r = _scores(q, k, block, scratch)
        o[block.rows, block.i].baddbmm_(r.square_(), v[block.rows, block.j])
    return o.view(shape).to(dtype)


def backward(q: Tensor, k: Tensor, v: Tensor, g: Tensor, causal: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, in their types."""
    given, wide = (q, k, v), q.dtype
    q, k, v, g = (_rows(x, wide) for x in (q, k, v, g))
    dq, dk, dv = (fresh(x.shape, wide).zero_() for x in (q, k, v))
    first, second = _Scratch(q), _Scratch(q)
    for block in _blocks(q.shape[0], q.shape[1], k.shape[1], causal):
        rows, i, j, _ = block
        r = _scores(q, k, block, first)
        dv[rows, j].baddbmm_(torch.mul(r, r, out=second(*r.shape)).mT, g[rows, i])
        moved = torch.bmm(g[rows, i], v[rows, j].mT, out=second(*r.shape)).mul_(r)
        dq[rows, i].baddbmm_(moved, k[rows, j], alpha=2)
        dk[rows, j].baddbmm_(moved.mT, q[rows, i], alpha=2)
    found = zip((dq, dk, dv), given, strict=True)
    return tuple(x.view(like.shape).to(like.dtype) for x, like in found)  # type: ignore[return-value]
