"""The features whose products are the second-order Taylor polynomial of the exponential."""

from __future__ import annotations

import torch
from torch import Tensor


def taylor_features(u: Tensor) -> Tensor:
    r"""Features of which a product is what `taylor_softmax` of order 2 makes of the scores before it divides.

    .. math:: \phi(u) \cdot \phi(w) = 1 + u \cdot w + \tfrac12 (u \cdot w)^2, \qquad
              \phi(u) = \big[\,1,\ u,\ (u_i u_j)_{i < j},\ u_i^2 / \sqrt2\,\big]

    Args:
        u: (..., d), real.
    Returns (..., 1 + d + d (d + 1) / 2).   Raises ValueError: no last axis, or an empty one.
    Cost: one product per feature.   Source: arXiv:2402.18668, section 3; products of two channels are kept once.
    """
    if u.dim() < 1 or u.shape[-1] < 1:
        raise ValueError(f"taylor_features wants at least one channel on the last axis, not shape {tuple(u.shape)}")
    dim, parts = u.shape[-1], [torch.ones_like(u[..., :1]), u]
    for i in range(dim):
        own = u[..., i : i + 1]
        parts += [own.square() * 0.5**0.5, own * u[..., i + 1 :]]
    return torch.cat(parts, -1)


def taylor_size(dim: int) -> int:
    """How many features there are of ``dim`` channels."""
    return 1 + dim + dim * (dim + 1) // 2
