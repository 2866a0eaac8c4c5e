"""How concentrated a row of attention over random keys is, by formula."""

from __future__ import annotations

import math

import numpy as np

_KINDS = ("exp", "identity", "relu2", "linear")
_STEEP = -3.0  # of beta / gamma, below which moments of a rectified normal are integrated instead of subtracted


def sparsity(kind: str, beta: float, gamma: float, n: int | None = None) -> float:
    r"""S of a row over infinitely many keys whose scores q·k are normal, with mean β and standard deviation γ.

    .. math:: S = \frac{E|a|}{\sqrt{E a^2}}, \qquad \text{exp: } S = e^{-\gamma^2 / 2}, \qquad
              \text{linear: } S = \frac{1}{\sqrt{1 + \gamma^2 / \beta^2}}, \qquad r = \beta / \gamma

    .. math:: \text{identity: } S = \frac{\sqrt{2/\pi}\,\gamma e^{-r^2/2} + \beta\,\mathrm{erf}(r/\sqrt2)}
              {\sqrt{\beta^2 + \gamma^2}}, \qquad
              \text{relu2: } S = \frac{E\,(q \cdot k)_+^2}{\sqrt{E\,(q \cdot k)_+^4}}

    Args:
        kind: "exp" (softmax), "identity" (linear attention without features), "relu2", or "linear": products of
            features that are nowhere negative, whose mean and deviation β and γ then are, normal or not.
        beta: β, the mean; above 0 for "linear".
        gamma: γ, at least 0, and not 0 where β is.
        n: keys, for "exp" alone: the leading order for so many, which leaves the formula at γ = sqrt(ln n / 2), where
            no key is left that large enough scores come from, and is 1 / sqrt(n) from sqrt(2 ln n) on, where one key
            has it all.
    Returns S.   Raises ValueError: an unknown kind, an argument out of range.
    Source: kexue.fm/archives/9889; the case of n keys is the random energy model, by us.
    """
    if not (math.isfinite(beta) and 0 <= gamma < math.inf):
        raise ValueError(f"sparsity wants a finite beta and a finite gamma of at least 0, not {beta} and {gamma}")
    if n is not None and (kind != "exp" or n < 1):
        raise ValueError(f"sparsity wants n with exp alone and of at least 1, not {n} with {kind!r}")
    if kind == "exp":
        if n is None:
            return math.exp(-gamma * gamma / 2)
        edge = math.sqrt(2 * math.log(n))
        if gamma <= edge / 2:
            return math.exp(-gamma * gamma / 2)
        return math.exp((gamma * gamma - 2 * gamma * edge + edge * edge / 2) / 2) if gamma < edge else n**-0.5
    if kind == "linear":
        if beta <= 0:
            raise ValueError(f"sparsity wants beta above 0 for features that are nowhere negative, not {beta}")
        return 1 / math.hypot(1, gamma / beta)
    if gamma == 0 and (beta == 0 or (kind == "relu2" and beta < 0)):
        raise ValueError(f"sparsity wants weights that are not all 0, not beta {beta} and gamma {gamma} with {kind!r}")
    if kind == "identity":
        if gamma == 0:
            return 1.0
        r = beta / gamma
        return (math.sqrt(2 / math.pi) * math.exp(-r * r / 2) + r * math.erf(r / math.sqrt(2))) / math.hypot(r, 1)
    if kind == "relu2":
        return _rectified(beta / gamma) if gamma > 0 else 1.0
    raise ValueError(f"sparsity wants a kind among {', '.join(_KINDS)}, not {kind!r}")


def decay_sparsity(decay: float, length: int) -> float:
    r"""S of a row whose weights fall off with distance alone.

    .. math:: S = \sqrt{\frac{(1 - \lambda^n)(1 + \lambda)}{n\,(1 - \lambda)(1 + \lambda^n)}}

    Args:
        decay: λ, the weight of a token over that of the next, from 0 to 1.
        length: n, tokens, at least 1.
    Returns S.   Raises ValueError: an argument out of range.   Source: kexue.fm/archives/9889.
    """
    if not (0 <= decay <= 1 and length >= 1):
        raise ValueError(f"decay_sparsity wants decay from 0 to 1 and length of at least 1, not {decay} and {length}")
    if decay == 1:
        return 1.0
    left = decay**length
    return math.sqrt((1 - left) * (1 + decay) / (length * (1 - decay) * (1 + left)))


def _rectified(r: float) -> float:
    """E x² / sqrt(E x⁴) of x = max(r + a normal variable, 0)."""
    if r > _STEEP:
        passed, density = math.erfc(-r / math.sqrt(2)) / 2, math.exp(-r * r / 2) / math.sqrt(2 * math.pi)
        two = (1 + r * r) * passed + r * density
        four = (r**4 + 6 * r * r + 3) * passed + (r**3 + 5 * r) * density
        return two / math.sqrt(four)
    nodes, weights = np.polynomial.laguerre.laggauss(60)  # x = v / |r|, under φ(r) exp(-v - v² / 2 r²)
    left = weights * np.exp(-((nodes / r) ** 2) / 2)
    two, four = float(left @ nodes**2), float(left @ nodes**4)
    return math.exp(-r * r / 4) * two / math.sqrt(math.sqrt(2 * math.pi) * -r * four)
