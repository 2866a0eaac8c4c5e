"""sparsity: E|a| / sqrt(E a^2) for weights of normal scores, and for endless or finitely many keys."""

from __future__ import annotations

import itertools
import math
import re

import pytest
import torch

from carrel.theory import decay_sparsity, sparsity

REAL = torch.float64
WEIGHT = {"exp": torch.exp, "identity": lambda s: s, "relu2": lambda s: torch.relu(s).square()}
every_kind = pytest.mark.parametrize("kind", WEIGHT)


def by_integral(kind, beta, gamma):
    """The same by a fine sum over scores, split where the weight has a corner."""
    z = torch.linspace(-40, 40, 200_001, dtype=REAL)
    x = beta + gamma * z
    log_density = -z.square() / 2
    a = WEIGHT[kind](x - x.max() if kind == "exp" else x).abs()
    one, two = (torch.logsumexp(log_density + m * a.log(), 0) for m in (1, 2))
    return float(torch.exp(one - (two + torch.logsumexp(log_density, 0)) / 2))


@every_kind
@pytest.mark.parametrize(
    ("beta", "gamma"), [(0, 1), (1, 1), (-1, 1), (-2, 1), (-3, 1), (-9, 2), (-12, 1), (3, 0.5), (0, 4)]
)
def test_the_closed_forms_are_the_integrals(kind, beta, gamma):
    assert sparsity(kind, beta, gamma) == pytest.approx(by_integral(kind, beta, gamma), rel=2e-7)


def test_known_values():
    known = {0: (0.4082, 0.7979), 1: (0.6128, 0.8249), -1: (0.2053, 0.8249), -2: (0.0720, 0.9020), -3: (0.0167, 0.9489)}
    for beta, (relu2, identity) in known.items():
        assert sparsity("relu2", beta, 1) == pytest.approx(relu2, abs=5e-5)
        assert sparsity("identity", beta, 1) == pytest.approx(identity, abs=5e-5)
        assert sparsity("exp", beta, 1) == pytest.approx(0.6065, abs=5e-5)
    assert [round(decay_sparsity(0.99, n), 3) for n in (100, 1000, 10_000)] == [0.961, 0.446, 0.141]


def test_both_ways_to_the_rectified_moments_meet():
    above, below = (sparsity("relu2", -3 + step, 1.0) for step in (1e-9, -1e-9))
    assert above == pytest.approx(below, rel=1e-8)
    assert sparsity("relu2", -20.0, 1.0) == pytest.approx(2.15272224355441e-45, rel=1e-12)  # by adaptive quadrature


def test_without_spread_a_row_is_flat_and_linear_attention_stays_near_that():
    assert [sparsity(kind, 1.0, 0.0) for kind in (*WEIGHT, "linear")] == [1.0] * 4
    least = min(sparsity("identity", beta / 10, 1.0) for beta in range(-50, 51))
    assert least == pytest.approx(math.sqrt(2 / math.pi), rel=1e-12)
    assert sparsity("linear", 3.0, 4.0) == pytest.approx(0.6)


def test_finitely_many_keys_leave_the_formula_at_half_the_edge_and_end_at_one_key():
    n = 4096
    edge = math.sqrt(2 * math.log(n))
    for gamma in (0.0, 0.5, edge / 2):
        assert sparsity("exp", 0.0, gamma, n) == sparsity("exp", 0.0, gamma)
    for gamma in (edge, 10.0):
        assert sparsity("exp", 0.0, gamma, n) == pytest.approx(1 / 64)
    gammas = [k * edge / 200 for k in range(240)]
    values = [sparsity("exp", 0.0, gamma, n) for gamma in gammas]
    assert values == sorted(values, reverse=True)
    jumps = [a - b for a, b in itertools.pairwise(values)]
    assert max(jumps) < 0.02  # no step at either joint
    assert sparsity("exp", 0.0, 0.7 * edge, n) == pytest.approx(n**-0.41, rel=1e-12)
    assert sparsity("exp", 0.0, 0.7 * edge) == pytest.approx(n**-0.49, rel=1e-12)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: sparsity("cosine", 0, 1), "a kind among exp, identity, relu2, linear, not 'cosine'"),
        (lambda: sparsity("exp", 0, -1), "a finite gamma of at least 0, not 0 and -1"),
        (lambda: sparsity("exp", math.nan, 1), "a finite beta"),
        (lambda: sparsity("linear", 0, 1), "beta above 0 for features that are nowhere negative, not 0"),
        (lambda: sparsity("relu2", -1, 0), "weights that are not all 0, not beta -1 and gamma 0 with 'relu2'"),
        (lambda: sparsity("identity", 0, 0), "weights that are not all 0"),
        (lambda: sparsity("relu2", 0, 1, 10), "n with exp alone and of at least 1, not 10 with 'relu2'"),
        (lambda: sparsity("exp", 0, 1, 0), "n with exp alone and of at least 1, not 0"),
        (lambda: decay_sparsity(1.5, 3), "decay from 0 to 1 and length of at least 1, not 1.5 and 3"),
    ],
)
def test_bad_input_is_one_clear_sentence(call, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        call()
