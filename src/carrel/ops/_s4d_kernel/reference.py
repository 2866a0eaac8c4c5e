"""The sums of `s4d_kernel` in torch, as they are written: one exponential per mode and step."""

from __future__ import annotations

import torch
from torch import Tensor


def evaluate(v: Tensor, a: Tensor, length: int) -> Tensor:
    """Re sum_n v_n exp(a_n l) at l = 0 .. length - 1, for v (B, H, N) and a (H, N)."""
    powers = torch.exp(a.unsqueeze(-1) * torch.arange(length, device=a.device)).to(v.dtype)
    return (v.unsqueeze(-1) * powers).sum(-2).real


def sums(u: Tensor, a: Tensor) -> Tensor:
    """sum_l u_l exp(a_n l), for u (B, H, L) and a (H, N)."""
    powers = torch.exp(a.unsqueeze(-1) * torch.arange(u.shape[-1], device=a.device))
    return (u.unsqueeze(-2) * powers.to(torch.promote_types(u.dtype, torch.complex64))).sum(-1)
