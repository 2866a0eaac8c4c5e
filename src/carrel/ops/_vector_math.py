"""Exponentials and logarithms that LLVM turns into vector code in a numba loop, as no call of the C library can be.

Exponentials are for arguments that are at most 0 or made so: a decay and a sigmoid need no other. All are compiled
without the freedom to reassociate: rounding by adding and taking away a large number is what it would undo first.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic, overload

LOG2E = 1 / math.log(2)
_EXACT: Any = {"fastmath": {"contract"}, "error_model": "numpy"}


# Coefficients of q, highest first, in 2^r = 1 + r q(r) for |r| <= 1/2, which is exact at 0, where slow decays live:
# a fit for float32, and for float64, where monomials are too poorly conditioned for one, the Taylor series.
_R = np.cos(np.pi * (np.arange(400) + 0.5) / 400) / 2
_SINGLE = [float(c) for c in np.polynomial.polynomial.polyfit(_R, np.expm1(_R * math.log(2)) / _R, 5)[::-1]]
_DOUBLE = [math.log(2) ** k / math.factorial(k) for k in range(13, 0, -1)]


def _reinterpret(context: Any, x: Any) -> Any:
    """The number's bits as a whole number of the same size, and the other way round."""
    pairs: Any = {types.float32: types.int32, types.float64: types.int64}
    target = {**pairs, **{whole: real for real, whole in pairs.items()}}[x]

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], context.get_value_type(target))

    return target(x), generate


_bits: Any = intrinsic(_reinterpret)


def _exp2_of(real: Any, whole: Any, mantissa: int, bias: int, coefficients: list[float]) -> Callable[..., Any]:
    lowest, one = real(-bias), real(1)
    # adding this leaves x, rounded, plus the exponent's bias in the lowest bits
    large = real(1.5 * 2.0**mantissa + bias)
    places = whole(mantissa)
    c = tuple(real(value) for value in coefficients)
    if len(c) == 6:

        def exp2(x: Any) -> Any:
            x = max(x, lowest)  # there the exponent's bits are 0, and so is the result
            t = x + large
            r = x - (t - large)
            q = ((((c[0] * r + c[1]) * r + c[2]) * r + c[3]) * r + c[4]) * r + c[5]
            return (q * r + one) * _bits(whole(_bits(t) << places))

    else:

        def exp2(x: Any) -> Any:
            x = max(x, lowest)
            t = x + large
            r = x - (t - large)
            q = (((((c[0] * r + c[1]) * r + c[2]) * r + c[3]) * r + c[4]) * r + c[5]) * r + c[6]
            q = (((((q * r + c[7]) * r + c[8]) * r + c[9]) * r + c[10]) * r + c[11]) * r + c[12]
            return (q * r + one) * _bits(whole(_bits(t) << places))

    return exp2


_exp2_single = _exp2_of(np.float32, np.int32, 23, 127, _SINGLE)
_exp2_double = _exp2_of(np.float64, np.int64, 52, 1023, _DOUBLE)


def exp2(x: Any) -> Any:
    """2^x for x <= 0, to 1e-7 in float32 and 1e-15 in float64; exactly 0 below the smallest normal number."""
    return np.exp2(x)


@overload(exp2, jit_options=_EXACT)
def _exp2(x: Any) -> Any:
    return {types.float32: _exp2_single, types.float64: _exp2_double}[x]


def log1p_unit(x: Any) -> Any:
    """log(1 + x) for 0 <= x <= 1, by 2 artanh(x / (2 + x))."""
    return np.log1p(x)


def _log1p_of(real: Any, terms: int) -> Callable[..., Any]:
    two = real(2)
    odd = tuple(real(2 / (2 * k + 1)) for k in range(terms))
    if terms == 8:

        def log1p_unit(x: Any) -> Any:
            s = x / (two + x)
            w = s * s
            p = (((odd[7] * w + odd[6]) * w + odd[5]) * w + odd[4]) * w + odd[3]
            return s * (((p * w + odd[2]) * w + odd[1]) * w + odd[0])

    else:

        def log1p_unit(x: Any) -> Any:
            s = x / (two + x)
            w = s * s
            p = (((odd[17] * w + odd[16]) * w + odd[15]) * w + odd[14]) * w + odd[13]
            p = (((((p * w + odd[12]) * w + odd[11]) * w + odd[10]) * w + odd[9]) * w + odd[8]) * w + odd[7]
            p = (((((p * w + odd[6]) * w + odd[5]) * w + odd[4]) * w + odd[3]) * w + odd[2]) * w + odd[1]
            return s * (p * w + odd[0])

    return log1p_unit


_log1p_single = _log1p_of(np.float32, 8)
_log1p_double = _log1p_of(np.float64, 18)


@overload(log1p_unit, jit_options=_EXACT)
def _log1p(x: Any) -> Any:
    return {types.float32: _log1p_single, types.float64: _log1p_double}[x]


def _log2_of(real: Any, whole: Any, mantissa: int, bias: int, terms: int) -> Callable[..., Any]:
    one, half, edge = real(1), real(0.5), real(math.sqrt(2))
    places, ones = whole(mantissa), whole((1 << mantissa) - 1)
    at_one = whole(bias << mantissa)
    # exponents as numbers: their bits below those of this power of two, then the power taken away
    carrier = whole((mantissa + bias) << mantissa)
    offset = real(2.0**mantissa + bias)
    odd = tuple(real(2 / math.log(2) / (2 * k + 1)) for k in range(terms))
    if terms == 5:

        def log2(x: Any) -> Any:
            i = _bits(x)
            e = _bits(whole((i >> places) | carrier)) - offset
            m = _bits(whole((i & ones) | at_one))
            upper = m > edge
            m = m * half if upper else m
            e = e + one if upper else e
            s = (m - one) / (m + one)
            w = s * s
            return e + s * ((((odd[4] * w + odd[3]) * w + odd[2]) * w + odd[1]) * w + odd[0])

    else:

        def log2(x: Any) -> Any:
            i = _bits(x)
            e = _bits(whole((i >> places) | carrier)) - offset
            m = _bits(whole((i & ones) | at_one))
            upper = m > edge
            m = m * half if upper else m
            e = e + one if upper else e
            s = (m - one) / (m + one)
            w = s * s
            q = ((((odd[10] * w + odd[9]) * w + odd[8]) * w + odd[7]) * w + odd[6]) * w + odd[5]
            return e + s * (((((q * w + odd[4]) * w + odd[3]) * w + odd[2]) * w + odd[1]) * w + odd[0])

    return log2


_log2_single = _log2_of(np.float32, np.int32, 23, 127, 5)
_log2_double = _log2_of(np.float64, np.int64, 52, 1023, 11)


def log2(x: Any) -> Any:
    """The logarithm to base 2 of a positive normal number, to the last places."""
    return np.log2(x)


@overload(log2, jit_options=_EXACT)
def _log2(x: Any) -> Any:
    return {types.float32: _log2_single, types.float64: _log2_double}[x]
