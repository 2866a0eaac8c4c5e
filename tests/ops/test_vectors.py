"""Vectors of numbers in numba kernels say what the same sums over numpy arrays say."""

from __future__ import annotations

import numpy as np
import pytest
from numba import njit

from carrel.ops._vectors import every, kept, lanes, load, over, plus, same, store, times, times_plus, total


@njit(cache=False)
def _all_of_them(a, b, out):
    for i in range(0, len(a), lanes(a)):
        x, y = load(a, i), load(b, i)
        store(out[0], i, plus(x, y))
        store(out[1], i, times(x, y))
        store(out[2], i, times_plus(x, y, same(b, 1)))
        store(out[3], i, kept(x, y))
        store(out[4], i, every(total(x)))
        store(out[5], i, over(x, y))
    return lanes(a)


@pytest.fixture(scope="module", params=["float32", "float64"])
def found(request):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 24)).astype(request.param)
    out = np.zeros((6, 24), request.param)
    return a, b, out, _all_of_them(a, b, out)


def test_a_vector_fills_32_bytes(found):
    a, _, _, count = found
    assert count * a.itemsize == 32


def test_lanes_are_added_and_multiplied_each_with_its_own(found):
    a, b, out, _ = found
    np.testing.assert_array_equal(out[0], a + b)
    np.testing.assert_array_equal(out[1], a * b)
    np.testing.assert_array_equal(out[5], a / b)
    np.testing.assert_allclose(out[2], a * b + b[1], rtol=1e-6, atol=1e-6)


def test_kept_is_a_where_b_is_above_0_and_0_at_nan():
    b = np.array([1, 0, -1, np.nan] * 6, "float32")
    a, out = np.arange(1, 25, dtype="float32"), np.zeros((6, 24), "float32")
    _all_of_them(a, b, out)
    np.testing.assert_array_equal(out[3], np.where(b > 0, a, 0))


def test_a_total_is_the_sum_of_the_lanes(found):
    a, _, out, count = found
    sums = a.reshape(-1, count).sum(1).repeat(count)
    np.testing.assert_allclose(out[4], sums, rtol=1e-5, atol=1e-6)
