"""The chance of each score to come out largest when all are shaken, as weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

NOISES: tuple[str, ...] = ("gumbel", "normal", "logistic", "uniform", "exponential", "laplace")
_TAIL = 1e-17  # of the largest score's distribution that the grid leaves out on either side
_FAR = 1e4  # units of noise below the maximum, from which a score has no chance in any type
_HELD = 1 << 18  # numbers held at once; 2 MiB in float64
_PANEL = 16  # Gauss-Legendre nodes of one piece of a range


def perturb_max(
    x: Tensor, noise: str = "normal", scale: float = 1.0, points: int = 256, dim: int = -1, *, normalized: bool = True
) -> Tensor:
    r"""The probability of each score to be the largest once every score has got its own noise; softmax for Gumbel's.

    .. math:: p_i = P\big[\arg\max_j\,(x_j + \sigma e_j) = i\big] = \int f(u - x_i) \prod_{j \ne i} F(u - x_j)\, du

    for the noise σe with density f and distribution function F. Whatever the noise, a shift of all scores changes
    nothing, larger scores get larger weights, and no weight is 0 but for noise that has bounds.

    Args:
        x: real, of any shape. Entries of -inf get 0; rows of nothing else are 0 throughout.
        noise: "gumbel", "normal", "logistic" (their standard forms), "exponential" (mean 1), "laplace" (density
            exp(-\|e\|) / 2) or "uniform" (on an interval of length 1).
        scale: σ, above 0, in units of the scores.
        points: values u at which the integrand is taken, at least 8. From 128 on the error is below 1e-11 for the first
            three noises and "exponential". Where densities have corners inside the range it falls as 1 / points²: for
            "laplace" and "uniform", the latter only with more points than scores that lie within σ of the largest.
        dim: the axis that sums to 1.
        normalized: divide by the sum. Without, 1 less the sum is the error of the integral.
    Returns p: like x.
    Raises ValueError: an argument out of range, x not floating point, or an axis that is not there or is empty.
    Cost: points evaluations of log F and f per entry, forward and again backward, all at shared u; holds 2 MiB beside
        x and p. The gradient is that of the integral, by hazards f / F at the same points.
    Source: arXiv:2205.09615, section 3, for normal noise and one right class; kexue.fm/archives/9085.
    """
    if noise not in NOISES:
        raise ValueError(f"perturb_max wants a noise among {', '.join(NOISES)}, not {noise!r}")
    if not 0 < scale < math.inf:
        raise ValueError(f"perturb_max wants a finite scale above 0, not {scale}")
    if not isinstance(points, int) or points < 8:
        raise ValueError(f"perturb_max wants at least 8 points, not {points}")
    _check(x, dim, "perturb_max")
    rows = x.movedim(dim, -1)
    flat = rows.reshape(-1, rows.shape[-1]).to(torch.promote_types(x.dtype, torch.float32))
    p: Tensor = _PerturbMax.apply(flat, noise, float(scale), points, normalized)  # type: ignore[no-untyped-call]
    return p.to(x.dtype).reshape(rows.shape).movedim(-1, dim)


class _PerturbMax(torch.autograd.Function):
    """p (rows, n) from x (rows, n); the backward goes over the same points again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, noise: str, scale: float, points: int, normalized: bool) -> Tensor:
        ctx.save_for_backward(x)
        ctx.rule = (noise, scale, points)
        p = torch.cat([_chances(r, noise, scale, points) for r in x.split(_height(x))])
        return _shares(p) if normalized else p

    @staticmethod
    def backward(ctx: Any, *arrived: Tensor) -> tuple[Tensor | None, ...]:
        """Of the integral, whose sum is 1 whatever x: dividing by the sum adds nothing."""
        (x,) = ctx.saved_tensors
        noise, scale, points = ctx.rule
        parts = []
        for r, g in zip(x.split(_height(x)), arrived[0].split(_height(x)), strict=True):
            to_x = torch.zeros_like(r)
            for weight, hazard in _blocks(r, noise, scale, points):
                both = hazard.sum(-1, keepdim=True) * g.unsqueeze(1) - (hazard * g.unsqueeze(1)).sum(-1, keepdim=True)
                to_x = to_x + (weight * hazard * both).sum(1)
            parts.append(to_x / scale)
        return torch.cat(parts), None, None, None, None


def _chances(x: Tensor, noise: str, scale: float, points: int) -> Tensor:
    p = torch.zeros_like(x)
    for weight, hazard in _blocks(x, noise, scale, points):
        p = p + (weight * hazard).sum(1)
    return p


def _blocks(x: Tensor, noise: str, scale: float, points: int) -> Iterable[tuple[Tensor, Tensor]]:
    """Some points at a time: the weight of each, times the chance that no score is above it, (rows, points, 1); and
    every score's hazard f / F there, (rows, points, n). All u are reckoned from the row's largest score."""
    top = x.amax(-1, keepdim=True)
    below = ((torch.where(torch.isneginf(top), 0.0, top) - x) / scale).clamp(max=_FAR).unsqueeze(1)
    grid = _grid(noise, x.shape[-1], points)
    size = max(1, _HELD // max(1, x.numel()))
    for start in range(0, len(grid.u), size):
        stop = start + size
        u, weight, width = (torch.as_tensor(v[start:stop], dtype=x.dtype, device=x.device).view(1, -1, 1) for v in grid)
        log_f, hazard = _SHAPES[noise](u + below, width)
        yield weight * torch.exp(log_f.sum(-1, keepdim=True)), hazard


class _Grid(NamedTuple):
    """u: where the integrand is taken, from the largest score; weight: of each u; width: of the cell around it."""

    u: np.ndarray[Any, Any]
    weight: np.ndarray[Any, Any]
    width: np.ndarray[Any, Any]


@lru_cache(maxsize=64)
def _grid(noise: str, n: int, points: int) -> _Grid:
    """Below the range the largest score alone would already be above, with all but certainty; beyond it none is."""
    reach = math.log(n / _TAIL)
    if noise in ("gumbel", "normal", "logistic"):  # smooth and flat at both ends: equal steps converge at once
        low = {"gumbel": -math.log(-math.log(_TAIL)), "normal": -math.sqrt(2 * -math.log(_TAIL))}.get(
            noise, math.log(_TAIL)
        )
        high = math.sqrt(2 * reach) if noise == "normal" else reach
        step = (high - low) / points
        u = low + step * (np.arange(points) + 0.5)
        return _Grid(u, np.full(points, step), np.full(points, step))
    if noise == "exponential":  # smooth above 0, where it starts with a corner
        u, weight = _pieces(0.0, reach, points)
        return _Grid(u, weight, weight)
    if noise == "laplace":  # below 0 by s = exp(u / 2), since corners lie there at every score
        u, weight = _pieces(0.0, reach, points - points // 2)
        s, each = _pieces(0.0, 1.0, points // 2)
        u, weight = np.concatenate([2 * np.log(s), u]), np.concatenate([2 * each / s, weight])
        return _Grid(u, weight, weight)
    edges = 1 - (1 - np.arange(points + 1) / points) ** 2  # uniform: finer towards the top, where many scores compete
    return _Grid((edges[1:] + edges[:-1]) / 2, np.diff(edges), np.diff(edges))


def _pieces(low: float, high: float, points: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Gauss and Legendre's rule on equal pieces of a range, no more than ``points`` nodes in all."""
    nodes, weights = np.polynomial.legendre.leggauss(min(points, _PANEL))
    pieces = points // len(nodes)
    width = (high - low) / pieces
    starts = low + width * np.arange(pieces)[:, None]
    return (starts + width * (nodes + 1) / 2).ravel(), np.tile(weights * width / 2, pieces)


def _gumbel_shape(z: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
    hazard = torch.exp(-z)
    return -hazard, hazard


def _normal_shape(z: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
    """By erfc of |z|, four times as fast as torch's log_ndtr, which also serves what lies below all grids."""
    beyond = torch.special.erfc(z.abs() / math.sqrt(2)) / 2
    above = z > 0
    log_f = torch.where(above, torch.log1p(-beyond), torch.log(torch.where(above, 1.0, beyond)))
    passed = torch.where(above, 1 - beyond, beyond)
    return log_f, torch.exp(-z * z / 2) / (math.sqrt(2 * math.pi) * passed)


def _logistic_shape(z: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
    return logsigmoid(z), torch.sigmoid(-z)


def _exponential_shape(z: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
    passed = -torch.expm1(-z)
    return torch.log(passed), torch.exp(-z) / passed


def _laplace_shape(z: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
    half = torch.exp(-z.abs()) / 2
    above = z > 0
    return torch.where(above, torch.log1p(-half), z - math.log(2)), torch.where(above, half / (1 - half), 1.0)


def _uniform_shape(z: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
    """The density is the share of the cell that lies below 1, so that an end within a cell costs no accuracy."""
    inside = ((1 + width / 2 - z) / width).clamp(0, 1)
    passed = z.clamp(max=1)
    return torch.log(passed), inside / passed


_SHAPES: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "gumbel": _gumbel_shape,
    "normal": _normal_shape,
    "logistic": _logistic_shape,
    "uniform": _uniform_shape,
    "exponential": _exponential_shape,
    "laplace": _laplace_shape,
}


def _height(x: Tensor) -> int:
    """Rows that are worked on together: so many that a few points of each fill what may be held."""
    return max(1, _HELD // (16 * max(1, x.shape[-1])))


def _shares(p: Tensor) -> Tensor:
    total = p.sum(-1, keepdim=True)
    return p / torch.where(total > 0, total, 1.0)


def _check(x: Tensor, dim: int, name: str) -> None:
    if not x.is_floating_point():
        raise ValueError(f"{name} wants x to be floating point, not {x.dtype}")
    if not -x.dim() <= dim < x.dim():
        raise ValueError(f"{name} wants dim to be an axis of x of shape {tuple(x.shape)}, not {dim}")
    if x.shape[dim] == 0:
        raise ValueError(f"{name} wants at least one entry along axis {dim}, x has shape {tuple(x.shape)}")
