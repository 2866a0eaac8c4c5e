r"""The least a + b + c with ab + c = N.

With s = a + b and d = \|a - b\|, of the same parity, 4ab = s^2 - d^2, so c = (d^2 - D)/4 with D = s^2 - 4N. For one s
the least c >= 0 comes from the least d of s's parity with d^2 >= D. Let s0 be the smallest s with s^2 >= 4N.

Below s0, D is negative: the best d is s mod 2, and the sum F(s) = s + N - floor(s^2/4) obeys F(s + 1) - F(s) =
1 - floor((s + 1)/2), which is never positive from s = 1 on. So of all s < s0 only s0 - 1 and s = 0 (the sum N) count.

From s0 on every s is tried while s < best: as c >= 0 the sum is at least s, so no later s can be strictly better. Each
of them is one step. At s0, D < 4 sqrt(N) + 1 and c < sqrt(D) + 1, which bounds the steps by sqrt(4 sqrt(N) + 1) + 2,
about 2 N^(1/4). As c at s0 + k lies about evenly in [0, 2 N^(1/4) sqrt(k)], there are 1.18 N^(1/6) on average.
"""

from __future__ import annotations

import math
import operator
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# s^2 <= 4N + 8 N^(3/4) + 16 sqrt(N) + 16 stays within 63 bits up to here
_COMPILED = 2 * 10**18


class MinABC(NamedTuple):
    """The least sum, where it is reached (a >= b), and how many values of a + b were tried."""

    total: int
    a: int
    b: int
    c: int
    steps: int


class MinABCBatch(NamedTuple):
    """The same for many N: int64 arrays in the shape of the input."""

    total: NDArray[np.int64]
    a: NDArray[np.int64]
    b: NDArray[np.int64]
    c: NDArray[np.int64]
    steps: NDArray[np.int64]


def min_abc(N: int) -> MinABC:
    r"""The least a + b + c over non-negative whole numbers with ab + c = N, exactly.

    .. math:: \min_{ab + c = N} a + b + c

    Args:
        N: a whole number, 0 or more, of any size.
    Returns the sum, a >= b, c and the number of steps. Of several minima the one with the smallest a + b.
    Raises ValueError if N is negative or not a whole number; True and 3.0 are not.
    Cost: 1.18 N^(1/6) steps on average and about 2 N^(1/4) at most; 0.8 ms at 10^18.
    Source: the puzzle of kexue.fm/archives/9775 (2023); letters as there, s = a + b, d = \|a - b\|.
    """
    N = _whole(N)
    s = _ceil_sqrt(4 * N)
    best, best_s, best_d = N, 0, 0
    if s >= 1:
        below = s - 1
        total = below + N - below * below // 4
        if total < best:
            best, best_s, best_d = total, below, below & 1
    steps, D = 0, s * s - 4 * N
    while s < best:
        d = _ceil_sqrt(D)
        d += (s ^ d) & 1
        total = s + (d * d - D) // 4
        if total < best:
            best, best_s, best_d = total, s, d
        D += 2 * s + 1
        s += 1
        steps += 1
    a, b = (best_s + best_d) // 2, (best_s - best_d) // 2
    return MinABC(best, a, b, best - best_s, steps)


def min_abc_batch(N: Any) -> MinABCBatch:
    """``min_abc`` for an array of whole numbers, compiled for N up to 2 * 10^18.

    Args:
        N: anything that numpy reads as an array of integers, every one in 0..2^63 - 1.
    Returns five int64 arrays in the shape of N.
    Raises ValueError if N holds anything but whole numbers, a negative one, or one of 2^63 or more.
    Cost: about 1 microsecond per N at 10^12 and 5 at 10^18; the first call compiles, about a second.
    Source: as ``min_abc``.
    """
    import numpy as np

    from carrel.algorithms.min_abc_kernel import fill

    given = np.asarray(N)
    if given.size == 0 and not isinstance(N, np.ndarray):
        given = given.astype(np.int64)
    if given.dtype == object or given.dtype == np.uint64:
        flat = [_whole(value) for value in given.ravel().tolist()]
        if any(value >= 2**63 for value in flat):
            raise ValueError(
                f"N must be below 2**63 in a batch, got {max(flat)}; min_abc takes whole numbers of any size"
            )
        given = np.array(flat, dtype=np.int64).reshape(given.shape)
    if given.dtype.kind not in "iu":
        raise ValueError(f"N must hold whole numbers, got an array of {given.dtype}")
    values = given.astype(np.int64).ravel()
    if values.size and values.min() < 0:
        raise ValueError(f"N must be 0 or more, got {values.min()}")
    columns = np.empty((5, values.size), dtype=np.int64)
    fill(values, columns, _COMPILED)
    for k in np.flatnonzero(values > _COMPILED):
        columns[:, k] = min_abc(int(values[k]))
    return MinABCBatch(*(column.reshape(given.shape) for column in columns))


def _whole(N: Any) -> int:
    """N as a Python integer, if it is a whole number of 0 or more."""
    # numpy's bool has no __index__ and falls through to the same sentence
    if isinstance(N, bool) or not hasattr(N, "__index__"):
        raise ValueError(f"N must be a whole number, got {N!r}")
    try:
        n = operator.index(N)
    except TypeError:  # an array of several
        raise ValueError(f"N must be a whole number, got {N!r}") from None
    if n < 0:
        raise ValueError(f"N must be 0 or more, got {n}")
    return n


def _ceil_sqrt(n: int) -> int:
    """The least r with r^2 >= n."""
    r = math.isqrt(n)
    return r if r * r == n else r + 1
