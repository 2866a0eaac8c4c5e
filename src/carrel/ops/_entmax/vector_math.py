"""A logarithm that LLVM turns into vector code inside a numba loop."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from .._selective_scan.vector_math import _EXACT, _bits


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
