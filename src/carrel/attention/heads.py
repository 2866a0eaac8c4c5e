"""Cutting a width into heads."""

from __future__ import annotations

from torch import Tensor


def head_width(owner: str, dim: int, heads: int, head_dim: int | None) -> int:
    """Channels of a head: what was asked for, or dim / heads. ValueError says what does not fit."""
    sizes = {"dim": dim, "heads": heads} | ({} if head_dim is None else {"head_dim": head_dim})
    for name, size in sizes.items():
        if not isinstance(size, int) or size < 1:
            raise ValueError(f"{owner} wants {name} to be a whole number of at least 1, not {size!r}")
    if head_dim is None and dim % heads:
        raise ValueError(f"{owner} wants heads that divide dim, or head_dim, not dim={dim} and heads={heads}")
    return dim // heads if head_dim is None else head_dim


def split_heads(x: Tensor, parts: int, heads: int) -> tuple[Tensor, ...]:
    """(batch, length, parts * heads * d) as ``parts`` views of (batch, heads, length, d)."""
    return x.unflatten(-1, (parts, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)


def join_heads(x: Tensor) -> Tensor:
    """(batch, heads, length, d) as (batch, length, heads * d)."""
    return x.transpose(1, 2).flatten(2)
