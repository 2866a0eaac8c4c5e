"""The recurrence of `linear_scan` in torch: one line per token, any dtype, no cast."""

from __future__ import annotations

import torch
from torch import Tensor


def scan(a: Tensor, b: Tensor, h0: Tensor, reverse: bool) -> tuple[Tensor, Tensor]:
    """h_t = a_t h_{t-1} + b_t for a (B or 1, L or 1, *S), b (B, L, *S) and h0 (B, *S); autograd differentiates it."""
    length = b.shape[1]
    if length == 0:
        return b.clone(), h0.clone()
    kept = a.expand(-1, length, *a.shape[2:]).unbind(1)
    h, states = h0, [h0] * length
    for t in reversed(range(length)) if reverse else range(length):
        h = states[t] = kept[t] * h + b[:, t]
    return torch.stack(states, 1), h.clone()
