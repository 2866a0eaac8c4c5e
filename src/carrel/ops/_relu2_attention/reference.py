"""The equation of `relu2_attention` in torch, over all pairs; scale and count are in q."""

from __future__ import annotations

import torch
from torch import Tensor


def scores(q: Tensor, k: Tensor, causal: bool) -> Tensor:
    """relu(q k'), (B, H, L, M), 0 where a query does not see a key."""
    found = torch.relu(torch.einsum("bhin,bhjn->bhij", q, k))
    return found.tril(k.shape[2] - q.shape[2]) if causal else found


def attend(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """o (B, H, L, P); autograd differentiates it."""
    return torch.einsum("bhij,bhjp->bhip", scores(q, k, causal).square(), v)
