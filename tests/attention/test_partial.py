"""Softmax over keys read in pieces: m' = max(m_a, m_b), l' = l_a e^(m_a - m') + l_b e^(m_b - m'), o' likewise."""

import itertools
import math
from functools import reduce

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from carrel.attention import largest_part, softmax_part
from carrel.ops import sparse_softmax

REAL = torch.float64


def noise(*shape, size=3.0, seed=0):
    return size * torch.randn(*shape, dtype=REAL, generator=torch.Generator().manual_seed(seed))


def parts(scores, v, sizes):
    pieces = zip(scores.split(sizes, -1), v.split(sizes, -2), strict=True)
    return [softmax_part(x, own) for x, own in pieces]


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_the_order_of_merging_does_not_matter(order):
    scores, v = noise(2, 3, 40, size=30), noise(2, 3, 40, 5, seed=1)
    wanted = (torch.softmax(scores, -1).unsqueeze(-2) @ v).squeeze(-2)
    a, b, c, d = (parts(scores, v, [1, 20, 0, 19])[i] for i in order)
    for whole in (a.merge(b).merge(c).merge(d), a.merge(b).merge(c.merge(d)), a.merge(b.merge(c.merge(d)))):
        torch.testing.assert_close(whole.result(), wanted, atol=1e-12, rtol=0)
        torch.testing.assert_close(whole.log_mass(), torch.logsumexp(scores, -1), atol=1e-12, rtol=0)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=8), st.floats(0, 300), st.integers(0, 100))
def test_any_pieces_are_the_whole(sizes, size, seed):
    scores, v = noise(3, sum(sizes), size=size, seed=seed), noise(3, sum(sizes), 2, seed=seed + 1)
    whole = reduce(lambda a, b: a.merge(b), parts(scores, v, sizes))
    wanted = (torch.softmax(scores, -1).unsqueeze(-2) @ v).squeeze(-2)
    torch.testing.assert_close(whole.result(), wanted, atol=1e-12, rtol=0)


def test_hidden_keys_and_hidden_pieces_are_as_if_they_were_not_there():
    scores, v = noise(2, 10), noise(2, 10, 4, seed=1)
    scores[0, :6] = scores[0, 8] = -math.inf
    scores[1] = -math.inf
    scores.requires_grad_()
    whole = reduce(lambda a, b: a.merge(b), parts(scores, v, [5, 1, 4]))
    seen = [6, 7, 9]
    torch.testing.assert_close(whole.result()[0], torch.softmax(scores[0, seen], -1) @ v[0, seen], atol=1e-14, rtol=0)
    assert (whole.result()[1] == 0).all()
    assert whole.log_mass()[1] == -math.inf
    (dx,) = torch.autograd.grad(whole.result().square().sum(), scores)
    assert dx[0, seen].all()
    assert dx.isfinite().all()
    assert (dx[1] == 0).all()


def test_gradients_go_through_every_piece():
    scores, v = noise(2, 6).requires_grad_(), noise(2, 6, 3, seed=1).requires_grad_()

    def run(scores, v):
        whole = reduce(lambda a, b: a.merge(b), parts(scores, v, [2, 1, 3]))
        return whole.result(), whole.log_mass()

    assert torch.autograd.gradcheck(run, (scores, v))


def test_half_types_are_summed_in_float32():
    scores, v = noise(4, 30).to(torch.bfloat16), noise(4, 30, 2, seed=1).to(torch.bfloat16)
    part = softmax_part(scores, v)
    assert {t.dtype for t in part} == {torch.float32}
    wanted = (torch.softmax(scores.double(), -1).unsqueeze(-2) @ v.double()).squeeze(-2)
    torch.testing.assert_close(part.result().double(), wanted, atol=1e-5, rtol=0)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.integers(1, 12), st.randoms(use_true_random=False))
def test_the_largest_of_all_are_found_in_pieces_and_of_equal_ones_the_first(sizes, k, random):
    total = sum(sizes)
    scores = noise(3, total).round() / 2  # many equal ones
    starts = [0, *itertools.accumulate(sizes)]
    pieces = [largest_part(x, k, first) for x, first in zip(scores.split(sizes, -1), starts, strict=False)]
    random.shuffle(pieces)
    values, keys = reduce(lambda a, b: a.merge(b, k), pieces)
    assert values.shape == (3, min(k, total))
    if total:
        p = torch.zeros_like(scores).scatter(-1, keys, torch.softmax(values, -1))
        torch.testing.assert_close(p, sparse_softmax(scores, min(k, total)), atol=1e-15, rtol=0)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: softmax_part(torch.ones(2, 3), torch.ones(2, 4, 5)), r"v of shape \(..., 3, channels\), not"),
        (lambda: largest_part(torch.ones(2, 3), 0), "k of at least 1, not 0"),
    ],
)
def test_bad_input_is_one_sentence(call, words):
    with pytest.raises(ValueError, match=words):
        call()
