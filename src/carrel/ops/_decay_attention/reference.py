"""The equations of `decay_attention` in torch, token by token."""

from __future__ import annotations

import torch
from torch import Tensor


def recur(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor, exclusive: bool) -> tuple[Tensor, Tensor]:
    """o (B, H, L, P) and the last S (B, H, N, P), for log_decay (B, H, L, N or 1); autograd differentiates it."""
    _check_values(log_decay)
    if q.shape[2] == 1:
        return _token(q, k, v, torch.exp(log_decay), state, exclusive)
    S, rows = state.clone(), []
    for t in range(q.shape[2]):
        now = slice(t, t + 1)
        o, S = _token(q[:, :, now], k[:, :, now], v[:, :, now], torch.exp(log_decay[:, :, now]), S, exclusive)
        rows.append(o)
    return (torch.cat(rows, 2) if rows else v.clone()), S


def _token(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, S: Tensor, exclusive: bool) -> tuple[Tensor, Tensor]:
    after = torch.addcmul(decay.mT * S, k.mT, v)
    # a sum of products, not a matrix product, which autocast would round
    return (q.mT * (S if exclusive else after)).sum(-2, keepdim=True), after


def _check_values(log_decay: Tensor) -> None:
    """As the CPU's kernels do; not while tensors are wrappers or symbols, nor where a look would make a GPU wait."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active() or log_decay.is_cuda:
        return
    with torch.no_grad():
        if (log_decay > 0).any():
            raise ValueError(above_zero(log_decay))


def above_zero(log_decay: Tensor) -> str:
    return f"decay_attention: log_decay must be at most 0 everywhere, its largest entry is {log_decay.max().item():g}"
