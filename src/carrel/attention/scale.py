"""What a score is multiplied by before it is made a probability, by the number of keys it competes with."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

ScaleRule = Literal["standard", "entropy", "gradmax-normal", "gradmax-cosine"]
SCALE_RULES: tuple[ScaleRule, ...] = ("standard", "entropy", "gradmax-normal", "gradmax-cosine")
_KNOTS, _LARGEST = 48, 18.0  # of ln n, where the cosine rule is solved by halving, for Newton's method to start from
_POLISH = 6


def attention_scale(
    n: int | Tensor,
    dim: int,
    rule: ScaleRule = "standard",
    *,
    base: float = 512.0,
    floor: float | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    r"""The factor c(n) in softmax(c(n) q·k), for rows that see n keys.

    .. math:: \text{standard: } \frac1{\sqrt d}, \qquad
              \text{entropy: } \frac{\ln n}{\ln m}\frac1{\sqrt d}, \qquad
              \text{gradmax-normal: } \frac{a}{\sqrt d},\ e^{a^2}(1 + 2a^2) = n, \qquad
              \text{gradmax-cosine: } \arg\max_a\, a\Big(1 - \frac{E\,e^{2as}}{n\,(E\,e^{as})^2}\Big)

    "entropy" keeps the number of keys that a row attends to from growing with n. The other two make the gradient of the
    softmax large, under an estimate that puts averages into its sums: for normal scores by
    a = sqrt(W(n √e / 2) - 1/2), W Lambert's function, and for s the cosine of two random directions in d dimensions.
    The exact average of the gradient goes on rising beyond that a, so it is the cautious end of the useful range.

    Args:
        n: keys seen, at least 1; a number or a tensor of whole numbers. "entropy" takes 1 for 2.
        dim: d, channels of a head.
        rule: one of `SCALE_RULES`. "gradmax-cosine" is for queries and keys of length 1, and then is the whole factor.
        base: m, the length at which "entropy" is "standard"; above 1.
        floor: least value of ln n / ln m; 1.0 never makes a row less sharp than at the base.
        device: of the result where n is a number.
    Returns c: float64, in the shape of n.
    Raises ValueError: an argument out of range, an unknown rule.
    Cost: a few operations per n; the cosine rule solves 48 equations once per dim, then a few hundred per n.
    Source: arXiv:1706.03762, section 3.2.1; kexue.fm/archives/8823 (entropy), 9812 (gradient).
    """
    least = 3 if rule == "gradmax-cosine" else 1  # two directions in a plane have no spread to speak of
    if dim < least:
        raise ValueError(f"attention_scale wants dim of at least {least}, not {dim}")
    if not 1 < base < math.inf:
        raise ValueError(f"attention_scale wants a finite base above 1, not {base}")
    count = torch.as_tensor(n, dtype=torch.float64, device=device)
    if not isinstance(n, Tensor) and n < 1:
        raise ValueError(f"attention_scale wants n of at least 1, not {n}")
    if rule == "standard":
        return torch.full_like(count, dim**-0.5)
    if rule == "entropy":
        growth = torch.log(count.clamp(min=2)) / math.log(base)
        return growth.clamp(min=floor) * dim**-0.5 if floor is not None else growth * dim**-0.5
    if rule == "gradmax-normal":
        return (lambert_w(torch.log(count) + 0.5 - math.log(2)) - 0.5).clamp(min=0).sqrt() * dim**-0.5
    if rule == "gradmax-cosine":
        return _steepest_cosine(torch.log(count), dim)
    raise ValueError(f"attention_scale wants a rule among {', '.join(SCALE_RULES)}, not {rule!r}")


def gradient_size(scores: Tensor, a: float | Tensor) -> Tensor:
    r"""How much a softmax moves when its scores do: half the sum of its Jacobian's entries without sign.

    .. math:: g(a) = \tfrac12 \sum_{ij} \Big|\frac{\partial p_i}{\partial s_j}\Big| = a\,\big(1 - \textstyle\sum_i
              p_i^2\big), \qquad p = \mathrm{softmax}(a s)

    Args:
        scores: s, (..., n).
        a: the factor, a number or (...).
    Returns g: (...), 0 at a = 0 and, unless the largest score is not alone, as a grows.   Source:
    kexue.fm/archives/9812.
    """
    factor = torch.as_tensor(a, dtype=scores.dtype, device=scores.device)
    p = torch.softmax(factor.unsqueeze(-1) * scores, -1)
    return factor * (1 - p.square().sum(-1))


def lambert_w(log_x: Tensor) -> Tensor:
    """W(x) with W e^W = x > 0, from ln x, so that no x is too large. float64, by Newton's method on w + ln w = ln x."""
    y = log_x.to(torch.float64)
    w = torch.where(y > 1, y - torch.log(y.clamp(min=1)), torch.exp(y.clamp(max=1)) / (1 + torch.exp(y.clamp(max=1))))
    for _ in range(8):
        w = w * (1 + y - torch.log(w)) / (1 + w)
    return w


# ------------------------------------------------------------------------ cosines of random directions in d dimensions


def _moments(a: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """ln M(a) = ln E e^{as}, M = Gamma(d/2) (2/a)^v I_v(a) with v = d/2 - 1, and its slope E s e^{as} / M."""
    order = dim / 2 - 1
    far = a > max(400.0, order**2 / 2)
    total, slope = _series(torch.where(far, 1.0, a), dim)
    if not bool(far.any()):
        return total, slope
    b = torch.where(far, a, 1e3)
    own, next_ = _asymptotic(b, order), _asymptotic(b, order + 1)
    beyond = math.lgamma(dim / 2) + order * torch.log(2 / b) + b - 0.5 * torch.log(2 * math.pi * b) + torch.log(own)
    return torch.where(far, beyond, total), torch.where(far, next_ / own, slope)


def _series(a: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """The power series, whose terms are all positive."""
    half = dim / 2
    k = torch.arange(0, int(a.max().item()) + 60, dtype=torch.float64, device=a.device)
    terms = -torch.lgamma(k + 1) - torch.lgamma(k + half) + math.lgamma(half)
    terms = terms + 2 * k * torch.log(a / 2).unsqueeze(-1)
    total = torch.logsumexp(terms, -1)
    return total, (torch.exp(terms - total.unsqueeze(-1)) * 2 * k).sum(-1) / a


def _asymptotic(a: Tensor, order: float) -> Tensor:
    """I_order(a) e^{-a} sqrt(2 pi a) for a large beside order^2."""
    total, term = torch.ones_like(a), torch.ones_like(a)
    for k in range(1, 30):
        factor = ((2 * k - 1) ** 2 - 4 * order**2) / (8 * k * a)
        term = term * torch.where(factor.abs() < 1.2, factor, 0.0)
        total = total + term
    return total


def _excess(a: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """The logarithm of what n is at the maximum a, and its slope: phi + ln(1 + a phi'), phi = ln M(2a) - 2 ln M(a)."""
    (m1, r1), (m2, r2) = _moments(a, dim), _moments(2 * a, dim)
    phi, slope = m2 - 2 * m1, 2 * (r2 - r1)
    # r' = 1 - r^2 - (d - 1) r / a, the equation that ratios of Bessel functions obey
    bend = 4 * (1 - r2**2 - (dim - 1) * r2 / (2 * a)) - 2 * (1 - r1**2 - (dim - 1) * r1 / a)
    return phi + torch.log1p(a * slope), slope + (slope + a * bend) / (1 + a * slope)


@lru_cache(maxsize=32)
def _knots(dim: int) -> tuple[Tensor, Tensor]:
    """ln n and a, at even steps of ln n from 0.01."""
    log_n = torch.linspace(0.01, _LARGEST, _KNOTS, dtype=torch.float64)
    low, high = torch.full_like(log_n, 1e-6), torch.full_like(log_n, 1.0)
    while bool((short := _excess(high, dim)[0] < log_n).any()):
        high = torch.where(short, high * 2, high)
    for _ in range(30):
        middle = (low + high) / 2
        above = _excess(middle, dim)[0] > log_n
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return log_n, (low + high) / 2


def _steepest_cosine(log_n: Tensor, dim: int) -> Tensor:
    if not log_n.numel():
        return log_n
    distinct, place = torch.unique(log_n, return_inverse=True)
    knots, at = (t.to(log_n.device) for t in _knots(dim))
    right = torch.searchsorted(knots, distinct).clamp(1, _KNOTS - 1)
    share = (distinct - knots[right - 1]) / (knots[right] - knots[right - 1])
    a = (at[right - 1] + share * (at[right] - at[right - 1])).clamp(min=1e-3)
    for _ in range(_POLISH):
        value, slope = _excess(a, dim)
        a = (a - (value - distinct) / slope).clamp(min=1e-9)
    return torch.where(distinct > 0, a, 0.0)[place]
