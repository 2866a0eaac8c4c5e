"""`sparse_softmax` by its definition, with torch's own selection of the k largest."""

from __future__ import annotations

import torch
from torch import Tensor


def largest(x: Tensor, k: int) -> Tensor:
    """Where the k largest of the last axis are; of equal ones the first."""
    least = x.detach().topk(k, -1).values[..., -1:]
    above, level = x > least, x == least
    room = k - above.sum(-1, keepdim=True)
    return above | (level & (level.cumsum(-1) <= room))


def forward(x: Tensor, k: int) -> Tensor:
    """p like x (R, n)."""
    kept = torch.where(largest(x, k), x, -torch.inf).to(torch.promote_types(x.dtype, torch.float32))
    nothing = torch.isneginf(kept.amax(-1, keepdim=True))
    p = torch.where(nothing, 0.0, torch.softmax(torch.where(nothing, 0.0, kept), -1))
    return torch.where(x.isnan().any(-1, keepdim=True), torch.nan, p).to(x.dtype)


def backward(p: Tensor, g: Tensor) -> Tensor:
    """The gradient of x; 0 off the support, where p is."""
    wide = torch.promote_types(p.dtype, torch.float32)
    own, arrived = p.to(wide), g.to(wide)
    return (own * (arrived - (own * arrived).sum(-1, keepdim=True))).to(p.dtype)
