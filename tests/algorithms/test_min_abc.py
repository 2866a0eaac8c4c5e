"""min over ab + c = N of a + b + c: against trying everything, the compiled walk, and its proven bound."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from carrel.algorithms import MinABC, min_abc, min_abc_batch

sizes = st.integers(0, 24).flatmap(lambda k: st.integers(0, 10**k))


def steps_bound(N: int) -> float:
    return math.sqrt(4 * math.sqrt(N) + 1) + 2


def by_trying_everything(N: int) -> tuple[int, int]:
    """The least sum, and the least a + b that reaches it."""
    sums = [(a + b + N - a * b, a + b) for a in range(N + 1) for b in range(N // a + 1 if a else 1) if a >= b]
    return min(sums)


def test_it_equals_trying_every_a_and_b_for_small_n_ties_going_to_the_least_a_plus_b():
    for N in range(400):
        found = min_abc(N)
        assert (found.total, found.a + found.b) == by_trying_everything(N), N


def test_it_equals_trying_every_a_with_its_best_b_up_to_100000():
    N = np.arange(100_001)
    best = N.copy()  # a = b = 0
    for a in range(1, 320):
        # one b less costs a - 1 more, so the best b of each a is the largest
        best = np.minimum(best, np.where(a <= N, a + N // a + N % a, best))
    np.testing.assert_array_equal(min_abc_batch(N).total, best)


@settings(deadline=None)
@given(sizes)
def test_a_b_and_c_make_up_n_and_the_total(N):
    total, a, b, c, steps = min_abc(N)
    assert a * b + c == N
    assert a + b + c == total
    assert a >= b >= 0
    assert c >= 0
    assert 0 <= steps <= steps_bound(N)


@settings(deadline=None)
@given(sizes)
def test_the_total_is_within_two_fourth_roots_of_the_least_possible_s(N):
    s0 = math.isqrt(4 * N - 1) + 1 if N else 0
    assert s0 - 1 <= min_abc(N).total <= s0 + 2 * N**0.25 + 2


@settings(deadline=None)
@given(st.integers(0, 10**24))
def test_no_neighbouring_choice_of_a_is_better(N):
    total, a, b, _, _ = min_abc(N)
    for near in (a - 1, a + 1, b + 1, math.isqrt(N), math.isqrt(N) + 1):
        if near > 0:
            assert total <= near + N // near + N % near


@settings(deadline=None)
@given(st.integers(3, 10**40))  # up to 4 nothing is less than N itself, and 2 * 2 only equals it
def test_squares_and_oblong_numbers_need_no_c(k):
    assert min_abc(k * k)[:4] == (2 * k, k, k, 0)
    assert min_abc(k * (k + 1))[:4] == (2 * k + 1, k + 1, k, 0)


def test_known_values():
    assert min_abc(0) == MinABC(total=0, a=0, b=0, c=0, steps=0)
    assert min_abc(1)[:4] == (1, 0, 0, 1)
    assert min_abc(130)[:4] == (23, 13, 10, 0)
    assert min_abc(89743).steps == 32  # the most for N up to 100,000


@settings(max_examples=60, deadline=None)
@given(st.lists(sizes.filter(lambda N: N < 2**63), min_size=1, max_size=50))
def test_compiled_and_python_integers_agree_in_all_five_columns(values):
    columns = min_abc_batch(values)
    assert [MinABC(*(int(v) for v in row)) for row in zip(*columns, strict=True)] == [min_abc(N) for N in values]


@pytest.mark.parametrize(
    "N", [2 * 10**18, 2 * 10**18 - 1, 2 * 10**18 + 1, 2**63 - 1, 1414213562**2, 2**60 + 12345, 10**18]
)
def test_compiled_and_python_integers_agree_where_64_bits_end(N):
    assert tuple(int(column[0]) for column in min_abc_batch([N])) == min_abc(N)


@pytest.mark.parametrize("offset", [-2, -1, 0, 1, 2])
def test_the_compiled_root_is_exact_around_large_squares(offset):
    # 4N beside a square: where a root from floats goes wrong
    N = np.array([k * k + offset for k in range(1414213562 - 200, 1414213562)], dtype=np.int64)
    assert min_abc_batch(N).total.tolist() == [min_abc(int(n)).total for n in N]


def test_steps_never_pass_the_proven_bound():
    N = np.arange(200_000)
    steps = min_abc_batch(N).steps
    assert (steps <= np.sqrt(4 * np.sqrt(N) + 1) + 2).all()
    assert steps.max() >= 32


def test_a_batch_keeps_its_shape_and_takes_any_integer_type():
    N = np.arange(12, dtype=np.uint8).reshape(3, 4)
    batch = min_abc_batch(N)
    assert all(column.shape == (3, 4) and column.dtype == np.int64 for column in batch)
    np.testing.assert_array_equal(batch.a * batch.b + batch.c, N)
    assert min_abc_batch([]).total.shape == (0,)
    assert min_abc_batch(np.zeros((0, 2), dtype=np.int32)).steps.shape == (0, 2)
    assert min_abc_batch(np.array([2**62], dtype=np.uint64)).total[0] == min_abc(2**62).total
    assert min_abc_batch(130).total == 23
    assert min_abc(np.int32(130)).total == 23


@pytest.mark.parametrize("N", [True, np.True_, 3.0, 1.5, "7", None, [1, 2], float("nan"), np.array([1, 2])])
def test_what_is_not_a_whole_number_is_refused(N):
    with pytest.raises(ValueError, match="N must be a whole number, got"):
        min_abc(N)


def test_negative_numbers_are_refused():
    with pytest.raises(ValueError, match=r"N must be 0 or more, got -1$"):
        min_abc(-1)
    with pytest.raises(ValueError, match=r"N must be 0 or more, got -5$"):
        min_abc_batch([3, -5])


@pytest.mark.parametrize(
    ("N", "said"),
    [
        ([1.0, 2.0], "N must hold whole numbers, got an array of float64"),
        ([True, False], "N must hold whole numbers, got an array of bool"),
        (np.array([]), "N must hold whole numbers, got an array of float64"),
        (["7"], "N must hold whole numbers, got an array of"),
        ([2**63], r"N must be below 2\*\*63 in a batch, got 9223372036854775808"),
        ([10**30, 1], r"N must be below 2\*\*63 in a batch"),
        ([None, 3], "N must be a whole number, got None"),
        ([-(10**30)], "N must be 0 or more"),
    ],
)
def test_bad_batches_are_refused_with_one_sentence(N, said):
    with pytest.raises(ValueError, match=said):
        min_abc_batch(N)


def test_importing_the_algorithms_loads_neither_numba_nor_numpy_nor_torch():
    code = "import carrel.algorithms, sys; print([m for m in ('numba', 'numpy', 'torch') if m in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
