"""How large the base of rotary positions must be for a wanted context."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
from numba import njit

_kernel: Callable[..., Any] = njit(nogil=True, cache=True, fastmath={"contract", "reassoc", "nsz"}, error_model="numpy")
_AFRESH = 512  # distances after which turned angles are computed anew
_REMEMBERED = 16  # distances that excluded bases lately and are asked first
_RATIO = 1.002  # of neighbouring bases in the sweep


class RopeBaseBound(NamedTuple):
    """base: the least admissible one; witness: the distance that excluded the last one below it (0: none was needed);
    gap: the sum of ln-intervals that were stepped over without a certificate."""

    base: float
    witness: int
    gap: float


def rope_margin(base: float, dim: int, length: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    r"""What sets a similar token apart from a random one, by distance.

    .. math:: B_m = \sum_{i=0}^{d/2-1} \cos\big(m\, b^{-2i/d}\big), \qquad m = 0..L-1

    If a key is the query plus noise, its expected score exceeds a random key's by 2 σ² B_m at distance m.

    Args:
        base: b, above 1.
        dim: d, channels of a head; even.
        length: L, at least 1.
    Returns B: (L,). Raises ValueError: an argument out of range. Cost: L d / 2 cosines.
    Source: arXiv:2405.14591, theorem 1.
    """
    _check(dim, length, base)
    rates = _rates(math.log(base), dim)
    return np.array([np.cos(m * rates).sum() for m in range(length)])


def rope_context(base: float, dim: int = 128, max_length: int = 1 << 20) -> int:
    r"""The context that a base serves: the first distance m with B_m < 0, or ``max_length`` if there is none below it.

    Arguments as for `rope_margin`. Cost: d / 2 rotations per distance up to the answer.
    Source: arXiv:2405.14591, section 4.
    """
    _check(dim, max_length, base)
    m, _ = _scan(_rates(math.log(base), dim), max_length, True)
    return int(m) or max_length


def rope_base_bound(
    length: int, dim: int = 128, rtol: float = 1e-7, method: Literal["certified", "sweep"] = "certified"
) -> RopeBaseBound:
    r"""The least base whose margin stays positive over a context.

    .. math:: b^*(L) = \inf\,\{\, b > 1 : \min_{0 \le m < L} B_m(b) \ge 0 \,\}

    The admissible bases are no interval, so halving finds a wrong one. Instead, with λ = ln b, a distance with B_m < 0
    excludes all bases up to λ + |B_m| / (m w), because |∂B_m/∂λ| <= m w(λ), w = Σ (2i/d) b^{-2i/d}, and w falls with
    λ; the search goes up from b = 1 by such jumps. Where the best jump is below ``rtol`` it steps by ``rtol``, and that
    step is counted in ``gap``: an admissible window narrower than it could hide there.

    Args:
        length: L, tokens, at least 1.
        dim: d, channels of a head; even.
        rtol: least step in ln b, above 0.
        method: "certified", or "sweep": a grid of ratio 1.002 upwards from L / 0.62, which misses narrow windows.
    Returns RopeBaseBound(base, witness, gap). Raises ValueError: an argument out of range.
    Cost: a scan of all distances, L d / 2 rotations, per new witness; tens to thousands of them.
    Source: arXiv:2405.14591, section 4, which searches a grid; the certificate is ours.
    """
    _check(dim, length)
    if not 0 < rtol < 1:
        raise ValueError(f"rope_base_bound wants rtol between 0 and 1, not {rtol}")
    if method not in ("certified", "sweep"):
        raise ValueError(f'rope_base_bound wants method to be "certified" or "sweep", not {method!r}')
    start, step = (0.0, rtol) if method == "certified" else (math.log(max(length / 0.62, _RATIO)), math.log(_RATIO))
    found, witness, gap = _search(start, step, length, dim, method == "certified")
    return RopeBaseBound(math.exp(found), int(witness), float(gap))


@_kernel
def _turned(rates: Any, m: Any) -> Any:
    total = 0.0
    for i in range(rates.size):
        total += np.cos(m * rates[i])
    return total


@_kernel
def _rates_into(rates: Any, log_base: Any) -> Any:
    """Fill rates with b^{-2i/d}; returns w, the bound on the slope of B_m / m."""
    slope = 0.0
    for i in range(rates.size):
        share = i / rates.size
        rates[i] = np.exp(-log_base * share)
        slope += share * rates[i]
    return slope


@_kernel
def _scan(rates: Any, length: Any, first: Any) -> Any:
    """The first m with B_m < 0, or the one with the largest -B_m / m, and that quotient; 0 and 0 if there is none."""
    n = rates.size
    c, s, turn_c, turn_s = np.empty(n), np.empty(n), np.cos(rates), np.sin(rates)
    best, place = 0.0, 0
    for m in range(1, length):
        total = 0.0
        if m % _AFRESH == 1:
            for i in range(n):
                c[i] = np.cos(m * rates[i])
                s[i] = np.sin(m * rates[i])
                total += c[i]
        else:
            for i in range(n):
                ahead = c[i] * turn_c[i] - s[i] * turn_s[i]
                s[i] = s[i] * turn_c[i] + c[i] * turn_s[i]
                c[i] = ahead
                total += ahead
        if total < 0:
            if first:
                return m, -total / m
            if -total > best * m:
                best, place = -total / m, m
    return place, best


@_kernel
def _search(start: Any, step: Any, length: Any, dim: Any, certified: Any) -> Any:
    rates = np.empty(dim // 2)
    remembered = np.zeros(_REMEMBERED, np.int64)
    log_base, witness, gap, used = start, 0, 0.0, 0
    while True:
        slope = _rates_into(rates, log_base)
        best, place = 0.0, 0
        for k in range(min(used, _REMEMBERED)):
            m = remembered[k]
            total = _turned(rates, m)
            if -total > best * m:
                best, place = -total / m, m
                if not certified:
                    break
        if place == 0 or (certified and best < step * slope):
            m, quotient = _scan(rates, length, not certified)
            if m == 0:
                return log_base, witness, gap
            if quotient > best:
                best, place = quotient, m
                remembered[used % _REMEMBERED] = m
                used += 1
        witness = place
        if certified and best >= step * slope:
            log_base += best / slope
        else:
            log_base += step
            gap += step


def _rates(log_base: float, dim: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.exp(-log_base * np.arange(dim // 2) / (dim // 2))


def _check(dim: int, length: int, base: float = 2.0) -> None:
    if dim < 2 or dim % 2:
        raise ValueError(f"rotary positions want an even dim of at least 2, not {dim}")
    if length < 1:
        raise ValueError(f"a context has at least 1 token, not {length}")
    if not 1 < base < math.inf:
        raise ValueError(f"rotary positions want a finite base above 1, not {base}")
