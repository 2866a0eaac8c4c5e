"""b*(L) = inf { b : min_{m < L} sum_i cos(m b^(-2i/d)) >= 0 }, certified from below."""

from __future__ import annotations

import math

import numpy as np
import pytest

from carrel.theory import rope_base_bound, rope_context, rope_margin


def test_the_margin_is_its_sum_of_cosines():
    B = rope_margin(100.0, 6, 5)
    wanted = [sum(math.cos(m * 100.0 ** (-2 * i / 6)) for i in range(3)) for m in range(5)]
    np.testing.assert_allclose(B, wanted, atol=1e-14)


def test_turning_angles_finds_the_same_first_negative_margin_as_direct_cosines():
    for base in (1e3, 1e4, 3e4):
        B = rope_margin(base, 128, 6000)
        assert rope_context(base, 128, 6000) == (int(np.argmax(B < 0)) or 6000)
    assert (rope_context(1e4), rope_context(5e5)) == (1707, 18438)


@pytest.mark.parametrize(
    ("length", "base"), [(256, 889.8), (512, 2065), (1024, 4293), (2048, 11587), (4096, 26952), (8192, 83763)]
)
def test_the_bound_is_the_known_one_and_serves_its_context(length, base):
    found = rope_base_bound(length)
    assert int(found.base * 10 if base < 1000 else found.base) == (int(base * 10) if base < 1000 else base)
    assert rope_context(found.base, 128, length) == length
    assert rope_context(found.base * (1 - 1e-5), 128, length) < length
    assert found.gap < 1e-5
    assert 0 < found.witness < length


def test_no_base_of_a_fine_grid_below_the_bound_serves_the_context():
    bound = rope_base_bound(128, 16)
    for log_base in np.linspace(1e-4, math.log(bound.base) - 1e-5, 20_000):
        assert rope_context(math.exp(log_base), 16, 128) < 128


def test_the_bases_that_serve_a_context_are_no_interval():
    bound = rope_base_bound(16384).base
    above = [rope_context(bound * (1 + k * 1e-4), 128, 16384) for k in range(200)]
    assert above[0] == 16384
    assert min(above) < 16384


def test_the_bound_rises_with_length_and_the_sweep_is_never_below_it():
    bounds = [rope_base_bound(n, 64).base for n in (1, 2, 3, 10, 100, 200, 400)]
    assert bounds[0] == bounds[1] == 1  # cos is positive up to distance 1
    assert bounds == sorted(bounds)
    for n in (256, 2048):
        assert rope_base_bound(n, method="sweep").base >= rope_base_bound(n).base


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: rope_base_bound(0), "at least 1 token, not 0"),
        (lambda: rope_base_bound(10, 7), "even dim of at least 2, not 7"),
        (lambda: rope_base_bound(10, rtol=0), "rtol between 0 and 1, not 0"),
        (lambda: rope_base_bound(10, method="guess"), '"certified" or "sweep", not \'guess\''),
        (lambda: rope_context(1.0), "base above 1, not 1.0"),
        (lambda: rope_context(math.inf), "base above 1, not inf"),
    ],
)
def test_bad_input_is_one_sentence(call, words):
    with pytest.raises(ValueError, match=words):
        call()
