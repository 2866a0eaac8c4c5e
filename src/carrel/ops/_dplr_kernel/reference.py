"""The sums of `dplr_kernel` in torch, as they are written, with one quotient per mode and node held in memory."""

from __future__ import annotations

import torch
from torch import Tensor


def quotients(lam: Tensor, g: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """1 / (g_j - lam_n h_j) and the same with conj(lam): (H, N, J) each."""
    g, h, lam = g.unsqueeze(1), h.unsqueeze(1), lam.unsqueeze(2)
    return 1 / (g - lam * h), 1 / (g - lam.conj() * h)


def pair_sums(w: Tensor, lam: Tensor, g: Tensor, h: Tensor) -> Tensor:
    """sum_n w_kn / (g_j - lam_n h_j) + conj(w_kn) / (g_j - conj(lam_n) h_j): (H, K, J)."""
    one, other = quotients(lam, g, h)
    return torch.matmul(w, one) + torch.matmul(w.conj(), other)
