"""Draws by Gumbel's noise: exact ones that do not depend on how a row is cut, and soft ones with a gradient."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.functional import one_hot

_HELD = 1 << 18  # scores that get their noise at a time
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64


def gumbel_max(x: Tensor | Iterable[Tensor], generator: torch.Generator | None = None, k: int = 1) -> Tensor:
    r"""Indices drawn with the probabilities softmax(x), one after the other and none twice.

    .. math:: i_1, \dots, i_k = \operatorname{arg\,top}_k\,(x_j + g_j), \qquad g_j = -\ln(-\ln u_j)

    The noise of an entry depends on one number from the generator and on the entry's row and index alone. So a row may
    come in pieces of any size, such as the logits of a large vocabulary, and the draw is the same.

    Args:
        x: (..., n), scores, -inf for what must not be drawn; or an iterable of pieces (..., n_i) of them, in order.
        generator: the source of chance, on the device of x or on the CPU; None is torch's own.
        k: how many to draw from each row.
    Returns (..., k) int64, in the order in which they are drawn.
    Raises ValueError: k below 1 or above the number of entries that may be drawn (looked for on the CPU only), pieces
        that do not go together, or x not floating point.
    Cost: one pass; keeps k scores and indices per row.   Source: arXiv:1611.01144, equation 1, for k = 1.
    """
    if not isinstance(k, int) or k < 1:
        raise ValueError(f"gumbel_max wants k of at least 1, not {k}")
    key = int(torch.randint(-(2**63), 2**63 - 1, (), generator=generator, device=_home(generator)))
    best: Tensor | None = None
    chosen = torch.empty(0)
    lead, seen = torch.Size(), 0
    for piece in (x,) if isinstance(x, Tensor) else x:
        if not piece.is_floating_point() or piece.dim() < 1:
            raise ValueError(f"gumbel_max wants scores (..., n) of floating point, not {_what(piece)}")
        if best is None:
            lead = piece.shape[:-1]
            best = torch.empty(lead.numel(), 0, dtype=torch.float64, device=piece.device)
            chosen = torch.empty_like(best, dtype=torch.int64)
        elif piece.shape[:-1] != lead or piece.device != best.device:
            raise ValueError(f"gumbel_max wants pieces (..., n) with one (...), here {tuple(lead)}, not {_what(piece)}")
        rows = piece.detach().reshape(lead.numel(), piece.shape[-1])
        width = max(1, _HELD // max(1, len(rows)))
        for start in range(0, rows.shape[-1], width):
            part = rows[:, start : start + width]
            index = torch.arange(seen + start, seen + start + part.shape[-1], device=part.device)
            best = torch.cat([best, part.double() + _gumbel(len(rows), index, key)], -1)
            best, order = best.topk(min(k, best.shape[-1]), -1)
            chosen = torch.cat([chosen, index.expand(len(rows), -1)], -1).gather(-1, order)
        seen += piece.shape[-1]
    if best is None or seen < k:
        raise ValueError(f"gumbel_max wants k of at most the entries of a row, {seen}, not {k}")
    if not best.is_cuda and bool(torch.isneginf(best).any()):
        raise ValueError(f"gumbel_max wants at least {k} scores above -inf in every row, to draw {k}")
    return chosen.reshape(*lead, k)


def gumbel_softmax(
    x: Tensor, tau: float = 1.0, hard: bool = False, generator: torch.Generator | None = None, dim: int = -1
) -> Tensor:
    r"""A sample from softmax(x), softened so that a gradient passes through it.

    .. math:: y = \mathrm{softmax}\big((x + g) / \tau\big), \qquad g_j = -\ln(-\ln u_j)

    The largest entry is distributed as softmax(x) says, whatever τ. As τ falls, y nears that entry's unit vector and
    its gradients get fewer errors on average and more scatter.

    Args:
        x: real, of any shape, with one entry above -inf in every row.
        tau: τ, above 0.
        hard: return the unit vector itself; gradients pass as if it were y (straight-through).
        generator: as in `gumbel_max`, which draws the same entry from the same state along the last axis.
        dim: the axis that sums to 1.
    Returns y: like x.
    Raises ValueError: tau not above 0, x not floating point, an axis that is not there or is empty.
    Cost: one pass for the noise and a softmax.   Source: arXiv:1611.01144, equations 1 and 2; arXiv:1611.00712.
    """
    if not 0 < tau < math.inf:
        raise ValueError(f"gumbel_softmax wants a finite tau above 0, not {tau}")
    if not x.is_floating_point():
        raise ValueError(f"gumbel_softmax wants x to be floating point, not {x.dtype}")
    if not -x.dim() <= dim < x.dim() or x.shape[dim] == 0:
        raise ValueError(
            f"gumbel_softmax wants dim to be an axis of x that is not empty, not {dim} of {tuple(x.shape)}"
        )
    key = int(torch.randint(-(2**63), 2**63 - 1, (), generator=generator, device=_home(generator)))
    rows = x.movedim(dim, -1)
    n = rows.shape[-1]
    g = _gumbel(rows.shape[:-1].numel(), torch.arange(n, device=x.device), key).reshape(rows.shape)
    wide = torch.promote_types(x.dtype, torch.float32)
    y = torch.softmax((rows.to(wide) + g.to(wide)) / tau, -1)
    if hard:
        y = one_hot((rows.detach() + g).argmax(-1), n).to(wide) + (y - y.detach())
    return y.to(x.dtype).movedim(-1, dim)


def _gumbel(rows: int, index: Tensor, key: int) -> Tensor:
    """Gumbel's noise, (rows, entries) in float64, a function of key, row and index (splitmix64's counter)."""
    row = torch.arange(rows, device=index.device).unsqueeze(-1)
    bits = _mixed(_mixed(key + row * _GOLDEN) + index * _GOLDEN)
    u = ((bits >> 12 & (1 << 52) - 1).double() + 0.5) * 2.0**-52
    return -torch.log(-torch.log(u))


def _mixed(z: Tensor) -> Tensor:
    z = (z ^ (z >> 30 & (1 << 34) - 1)) * (0xBF58476D1CE4E5B9 - 2**64)
    z = (z ^ (z >> 27 & (1 << 37) - 1)) * (0x94D049BB133111EB - 2**64)
    return z ^ (z >> 31 & (1 << 33) - 1)


def _home(generator: torch.Generator | None) -> torch.device:
    return generator.device if generator is not None else torch.device("cpu")


def _what(x: Tensor) -> str:
    return f"{x.dtype} of shape {tuple(x.shape)} on {x.device}"
