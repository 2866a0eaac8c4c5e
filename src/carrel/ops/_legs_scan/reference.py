"""The update of `legs_scan` in torch with the dense matrix, one triangular system per sample."""

from __future__ import annotations

import torch
from torch import Tensor


def matrix(N: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """A and B of HiPPO-LegS."""
    n = torch.arange(N, dtype=like.dtype, device=like.device)
    B = torch.sqrt(2 * n + 1)
    return -torch.tril(torch.outer(B, B), -1) - torch.diag(n + 1), B


def scan(f: Tensor, x0: Tensor, k: Tensor, implicit: float) -> tuple[Tensor, Tensor]:
    """All x (R, L, N) and the last, for f (R, L), x0 (R, N) and k (R,), the samples seen before."""
    A, B = matrix(x0.shape[1], f)
    eye = torch.eye(len(A), dtype=f.dtype, device=f.device)
    x, rows = x0, []
    for t in range(f.shape[1]):
        step = (1 / (k + t + 1)).to(f.dtype).unsqueeze(1)
        v = x + (1 - implicit) * step * (x @ A.T) + step * B * f[:, t : t + 1]
        left = eye - implicit * step.unsqueeze(2) * A
        x = torch.linalg.solve_triangular(left, v.unsqueeze(2), upper=False).squeeze(2)
        rows.append(x)
    return (torch.stack(rows, 1) if rows else x0.new_zeros(x0.shape[0], 0, x0.shape[1])), x.clone()
