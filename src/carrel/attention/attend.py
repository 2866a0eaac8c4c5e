"""Causal attention of the newest tokens over a cache's columns, by the path that its lengths ask for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from carrel.layers.state import visible

from .normalizers import normalize

_FEW = 16  # tokens; all queries of a group then lie in one matrix, so that torch reads keys and values once
_LEAST_BLOCK = 64


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pos: Tensor | None = None,
    *,
    window: int | None = None,
    normalizer: str = "softmax",
    alpha: Tensor | None = None,
    top_k: int | None = None,
    scale: float | None = None,
) -> Tensor:
    """What the newest tokens take from all columns so far, their own included.

    Args:
        q: (batch, heads, length, head_dim), of the last ``length`` columns.
        k, v: (batch, kv_heads, columns, head_dim).
        pos: (batch,), tokens that a row has seen, these included; None if every column is its own.
        window: columns that a token sees, itself included; None for all.
        normalizer: what makes weights of scores, a name of `normalize`; all but "softmax" hold them for all pairs.
        alpha: (heads,), of "entmax".
        top_k: of "sparse-softmax"; tokens that see fewer columns keep them all.
        scale: of the scores; head_dim^{-1/2} if None.
    Returns (batch, heads, length, head_dim).
    """
    length, columns = q.shape[2], k.shape[2]
    if window is not None and window >= columns:
        window = None
    if normalizer == "softmax" and window is not None and length > 2 * window:
        return _in_blocks(q, k, v, pos, window, scale)
    grouped = k.shape[1] < q.shape[1]
    if normalizer == "softmax" and window is None and pos is None:
        return scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=grouped)
    owned = torch.full((1,), columns, device=q.device) if pos is None else pos
    seen = visible(owned, columns, length, window)
    if normalizer != "softmax":
        return _weighed(q, k, v, seen, normalizer, alpha, top_k, scale)
    if not grouped or length > _FEW:
        return scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scale, enable_gqa=grouped)
    group = q.shape[1] // k.shape[1]
    rows = q.unflatten(1, (-1, group)).flatten(2, 3)
    o = scaled_dot_product_attention(rows, k, v, attn_mask=seen.repeat(1, 1, group, 1), scale=scale)
    return o.unflatten(2, (group, -1)).flatten(1, 2)


def _weighed(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    seen: Tensor,
    normalizer: str,
    alpha: Tensor | None,
    top_k: int | None,
    scale: float | None,
) -> Tensor:
    if not q.shape[2]:
        return q  # and its path to the inputs
    q = q.unflatten(1, (k.shape[1], -1))  # (batch, kv_heads, group, length, head_dim)
    scores = q @ k.unsqueeze(2).mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    options: dict[str, Any] = {} if alpha is None else {"alpha": alpha.view(*q.shape[1:3], 1, 1)}
    if top_k is not None:
        options["k"] = min(top_k, k.shape[2])
    p = normalize(scores, normalizer, mask=seen.unsqueeze(1), **options)
    return (p.to(v.dtype) @ v.unsqueeze(2)).flatten(1, 2)


def _in_blocks(q: Tensor, k: Tensor, v: Tensor, pos: Tensor | None, window: int, scale: float | None) -> Tensor:
    """Blocks of queries, each with the columns that one of them can see: length times window, not length squared."""
    batch, heads, length, _ = q.shape
    block = max(window, _LEAST_BLOCK)
    count = -(-length // block)
    total, size = count * block + window - 1, block + window - 1
    q = pad(q, (0, 0, count * block - length, 0))
    q = q.unflatten(2, (count, block)).transpose(1, 2).flatten(0, 1)
    columns = min(k.shape[2], total)
    k, v = (pad(t[:, :, t.shape[2] - columns :], (0, 0, total - columns, 0)) for t in (k, v))
    k, v = (t.unfold(2, size, block).permute(0, 2, 1, 4, 3).flatten(0, 1) for t in (k, v))
    row, column = torch.arange(block, device=q.device)[:, None], torch.arange(size, device=q.device)
    itself = column == row + window - 1  # for the rows of padding, which would see nothing
    owned = torch.full((batch,), columns, device=q.device) if pos is None else pos.clamp(max=columns)
    real = (torch.arange(total, device=q.device) >= total - owned[:, None]).unfold(1, size, block).unsqueeze(2)
    seen = (((column >= row) & (column < row + window) & real) | itself).flatten(0, 1).unsqueeze(1)
    o = scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scale, enable_gqa=k.shape[1] < heads)
    return o.unflatten(0, (batch, count)).transpose(1, 2).flatten(2, 3)[:, :, count * block - length :]
