"""One Newton sweep of a GRU in torch, with all Jacobians written out, and the adjoint."""

from __future__ import annotations

import torch
from torch import Tensor

from .._linear_scan import linear_scan
from .._matrix_scan import matrix_scan


def linearize(u: Tensor, W: Tensor, bias: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    """f (B, L, D) and its Jacobian (B, L, D, D) at the states ``before`` each token."""
    r, z, v = (before @ W.T + bias).chunk(3, -1)
    ur, uz, un = u.chunk(3, -1)
    r, z = torch.sigmoid(ur + r), torch.sigmoid(uz + z)
    n = torch.tanh(un + r * v)
    c = (1 - z) * (1 - n * n)
    by = (c * v * r * (1 - r), (before - n) * z * (1 - z), c * r)
    J = torch.diag_embed(z) + sum(s.unsqueeze(-1) * part for s, part in zip(by, W.chunk(3), strict=True))
    return n + z * (before - n), J


def sweep(u: Tensor, W: Tensor, bias: Tensor, y0: Tensor, y: Tensor, diagonal: bool) -> Tensor:
    """The states after one step: (B, L, D)."""
    before = torch.cat([y0.unsqueeze(1), y[:, :-1]], 1)
    f, J = linearize(u, W, bias, before)
    if diagonal:
        J = J.diagonal(dim1=-2, dim2=-1)
        return linear_scan(J, f - J * before, y0, backend="reference")[0]
    return matrix_scan(J, f - (J @ before.unsqueeze(-1)).squeeze(-1), y0, backend="reference")[0]
