"""Rotary positions: queries and keys turned by angles that grow with the position."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Turns(NamedTuple):
    """cos, sin: (batch or 1, 1, length, pairs), of the angle by which each pair of channels turns at each position."""

    cos: Tensor
    sin: Tensor


def rotary_frequencies(dim: int, base: float = 10000.0, *, device: torch.device | str | None = None) -> Tensor:
    r"""How far each pair of channels turns per position.

    .. math:: \theta_i = b^{-2i / d}, \qquad i = 0 .. d/2 - 1

    Args:
        dim: d, channels of a head; even.
        base: b, above 1. The slowest pair takes about 2π b positions for one round.
        device: where to make them.
    Returns (dim / 2,) float64, radians per position, falling from 1.
    Raises ValueError: dim is odd or below 2, base is not above 1.   Source: arXiv:2104.09864, equation 15.
    """
    if dim < 2 or dim % 2 or not base > 1:
        raise ValueError(f"rotary positions want an even number of channels and a base above 1, not {dim} and {base}")
    return base ** (torch.arange(0, -dim, -2, dtype=torch.float64, device=device) / dim)


def rotary_turns(pos: Tensor, frequencies: Tensor, dtype: torch.dtype = torch.float32) -> Turns:
    """The turns at given positions: ``angle = pos * frequency``.

    Args:
        pos: (length,), or (batch, length) where rows stand at different positions; whole numbers.
        frequencies: (pairs,), float64; others than :func:`rotary_frequencies` make stretched contexts.
        dtype: of the turns. Angles are always float64: in float32 position 10^6 would be wrong by 0.06 radians.
    """
    angle = (pos.to(torch.float64).unsqueeze(-1) * frequencies).unsqueeze(-3)
    angle = angle.unsqueeze(0) if pos.dim() == 1 else angle
    return Turns(angle.cos().to(dtype), angle.sin().to(dtype))


def rotate(x: Tensor, turns: Turns) -> Tensor:
    r"""Turn each pair of channels (x_i, x_{i + d/2}) in its plane.

    .. math:: (R_m q) \cdot (R_n k) = q^\top R_{n - m} k

    so that a product of a turned query and a turned key depends on how far apart they are and not on where they stand.

    Args:
        x: (batch, heads, length, dim).
        turns: for those positions, dim / 2 pairs.
    Returns a tensor like x; computed in the wider of the two types.   Source: arXiv:2104.09864, section 3.2.
    """
    left, right = x.chunk(2, -1)
    return torch.cat((left * turns.cos - right * turns.sin, right * turns.cos + left * turns.sin), -1).to(x.dtype)
