"""The recurrence of `matrix_scan` in torch: one line per token, any dtype, no cast."""

from __future__ import annotations

import torch
from torch import Tensor


def scan(A: Tensor, b: Tensor, h0: Tensor, reverse: bool) -> tuple[Tensor, Tensor]:
    """h_t = A_t h_{t-1} + b_t for A (B or 1, L or 1, N, N), b (B, L, N, M), h0 (B, N, M), for autograd."""
    length = b.shape[1]
    if length == 0:
        return b.clone(), h0.clone()
    step = A.expand(-1, length, -1, -1).unbind(1)
    h, states = h0, [h0] * length
    with torch.autocast(b.device.type, enabled=False):  # a product of matrices, which autocast would round
        for t in reversed(range(length)) if reverse else range(length):
            h = states[t] = step[t] @ h + b[:, t]
    return torch.stack(states, 1), h.clone()
