"""`entmax` by its definition: sorting where the threshold has a closed form, else bisection."""

from __future__ import annotations

import torch
from torch import Tensor

_HALVINGS = 80  # of an interval of length 1: beyond float64


def power(p: Tensor, exponent: Tensor | float) -> Tensor:
    """p ** exponent on the support, 0 off it; its derivative is 0 there too."""
    inside = p > 0
    return torch.where(inside, torch.where(inside, p, 1.0) ** exponent, 0.0)


def shifted(x: Tensor) -> Tensor:
    """Rows with their maximum at 0; a row of nothing but -inf stays as it is."""
    top = x.amax(-1, keepdim=True)
    return x - torch.where(torch.isfinite(top), top, 0.0)


def forward(x: Tensor, alpha: Tensor, kind: float) -> Tensor:
    """p like x (R, n); ``alpha`` (R,) is looked at if ``kind`` is 0."""
    wide = torch.promote_types(x.dtype, torch.float32)
    if x.numel() == 0:
        return torch.zeros_like(x)
    z = shifted(x.to(wide))
    if kind == 2.0:
        p = _sparsemax(z)
    elif kind == 1.5:
        p = _entmax15(z)
    else:
        p = _bisected(z, alpha.to(wide).unsqueeze(-1))
    return torch.where(torch.isneginf(z).all(-1, keepdim=True), 0.0, p).to(x.dtype)


def _sparsemax(z: Tensor) -> Tensor:
    ordered = z.sort(-1, descending=True).values
    count = torch.arange(1, z.shape[-1] + 1, dtype=z.dtype, device=z.device)
    sums = torch.where(torch.isneginf(ordered), 0.0, ordered).cumsum(-1)
    size = (count * ordered > sums - 1).sum(-1, keepdim=True).clamp(min=1)
    tau = (sums.gather(-1, size - 1) - 1) / size
    return (z - tau).clamp(min=0)


def _entmax15(z: Tensor) -> Tensor:
    half = z / 2
    ordered = half.sort(-1, descending=True).values
    finite = torch.where(torch.isneginf(ordered), 0.0, ordered)
    count = torch.arange(1, z.shape[-1] + 1, dtype=z.dtype, device=z.device)
    mean, square = finite.cumsum(-1) / count, (finite**2).cumsum(-1) / count
    tau = mean - ((1 - count * (square - mean**2)) / count).clamp(min=0).sqrt()
    size = (tau <= ordered).sum(-1, keepdim=True).clamp(min=1)
    return (half - tau.gather(-1, size - 1)).clamp(min=0) ** 2


def _bisected(z: Tensor, alpha: Tensor) -> Tensor:
    b = alpha - 1
    low, high = torch.full_like(b * z[:, :1], -1.0), torch.zeros_like(b * z[:, :1])
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        mass = power((b * z - middle).clamp(min=0), 1 / b).sum(-1, keepdim=True)
        low, high = torch.where(mass >= 1, middle, low), torch.where(mass >= 1, high, middle)
    p = power((b * z - low).clamp(min=0), 1 / b)
    return p / p.sum(-1, keepdim=True)


def backward(p: Tensor, alpha: Tensor, g: Tensor, kind: float) -> tuple[Tensor, Tensor]:
    """Gradients of x, like p, and of alpha, (R,) or empty."""
    wide = torch.promote_types(p.dtype, torch.float32)
    own, arrived = p.to(wide), g.to(wide)
    order = alpha.to(wide).unsqueeze(-1) if kind == 0 else kind
    s = power(own, 2 - order)
    share = s / s.sum(-1, keepdim=True).clamp(min=torch.finfo(wide).tiny)
    dx = s * (arrived - (share * arrived).sum(-1, keepdim=True))
    if kind != 0:
        return dx.to(p.dtype), torch.zeros_like(alpha)
    return dx.to(p.dtype), (arrived * order_slope(own, share, order)).sum(-1).to(alpha.dtype)


def order_slope(p: Tensor, share: Tensor, alpha: Tensor | float) -> Tensor:
    """dp / dalpha, with share the normalised p ** (2 - alpha)."""
    b = alpha - 1
    spread = torch.xlogy(p, p)
    return (p - share) / b**2 - (spread - share * spread.sum(-1, keepdim=True)) / b
