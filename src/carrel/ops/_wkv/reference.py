"""The equation of `wkv` in torch, token by token, with a running maximum."""

from __future__ import annotations

import torch
from torch import Tensor


def scan(
    w: Tensor, u: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, p: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y (B, L, C) and the last a, b, p (B, C); autograd differentiates it.

    Whatever an exponential takes is a difference to the larger of two exponents, so one of each pair is 1.
    """
    rows = []
    for key, value in zip(k.unbind(1), v.unbind(1), strict=True):
        q = torch.maximum(p, u + key)
        old, own = torch.exp(p - q), torch.exp(u + key - q)
        rows.append((old * a + own * value) / (old * b + own))
        q = torch.maximum(p - w, key)
        old, own = torch.exp(p - w - q), torch.exp(key - q)
        a, b, p = old * a + own * value, old * b + own, q
    # a sequence of no tokens still returns tensors of its own
    return torch.stack(rows, 1) if rows else v.clone(), a.clone(), b.clone(), p.clone()
