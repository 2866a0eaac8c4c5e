"""argmax_j (x_j + g_j) is a draw from softmax(x); softened, softmax((x + g) / tau)."""

from __future__ import annotations

import math
import re

import pytest
import torch

from carrel.attention import gumbel, gumbel_max, gumbel_softmax

REAL = torch.float64
X = torch.tensor([1.2, 0.3, -0.5, 2.0, 0.0], dtype=REAL)


def rows(n=6, count=4):
    return torch.randn(count, n, generator=torch.Generator().manual_seed(0), dtype=REAL)


def drawn(x, seed, k=1, times=1):
    generator = torch.Generator().manual_seed(seed)
    return gumbel_max(x.expand(times, -1), generator, k)


def test_draws_follow_softmax():
    draws = 200_000
    found = torch.bincount(drawn(X, 0, times=draws)[:, 0], minlength=5) / draws
    p = torch.softmax(X, -1)
    assert ((found - p).abs() <= 4 * (p * (1 - p) / draws).sqrt()).all()


def test_several_are_drawn_as_if_one_by_one_without_putting_back():
    draws = 200_000
    chosen = drawn(X, 1, k=3, times=draws)
    p = torch.softmax(X, -1)
    counts = torch.zeros(5, 5, 5, dtype=REAL).index_put_(
        tuple(chosen.T), torch.ones(draws, dtype=REAL), accumulate=True
    )
    for i, j, k in ((3, 0, 1), (0, 3, 4), (2, 3, 0), (4, 1, 2)):
        wanted = float(p[i] * p[j] / (1 - p[i]) * p[k] / (1 - p[i] - p[j]))
        assert abs(float(counts[i, j, k]) / draws - wanted) <= 4 * math.sqrt(wanted / draws)
    assert counts.diagonal(dim1=0, dim2=1).sum() + counts.diagonal(dim1=1, dim2=2).sum() == 0


def test_draws_of_rows_and_calls_are_independent():
    x = torch.zeros(100_000, 2)
    generator = torch.Generator().manual_seed(0)
    first, second = (gumbel_max(x, generator)[:, 0].double() for _ in range(2))
    for a, b in ((first[1:], first[:-1]), (first, second)):
        assert abs(float(torch.corrcoef(torch.stack([a, b]))[0, 1])) < 4 / math.sqrt(len(a))


@pytest.mark.parametrize("cuts", [[1000], [0, 1, 499, 500], [7] * 142 + [6]])
@pytest.mark.parametrize("k", [1, 5])
def test_any_split_of_a_row_draws_the_same(cuts, k, monkeypatch):
    x = rows(n=1000, count=6).float()
    whole = gumbel_max(x, torch.Generator().manual_seed(3), k)
    monkeypatch.setattr(gumbel, "_HELD", 100)
    pieces = (piece for piece in x.split(cuts, -1))
    assert torch.equal(gumbel_max(pieces, torch.Generator().manual_seed(3), k), whole)
    assert whole.shape == (6, k)


def test_hidden_entries_are_never_drawn():
    x = torch.tensor([0.0, -math.inf, 0.0]).expand(2000, 3)
    assert (gumbel_max(x, torch.Generator().manual_seed(0), 2) != 1).all()


def test_the_hard_sample_is_the_draw_and_its_gradient_that_of_the_soft_one():
    x = rows(n=9, count=5).requires_grad_()
    state = [torch.Generator().manual_seed(4) for _ in range(3)]
    soft = gumbel_softmax(x, 0.5, generator=state[0])
    hard = gumbel_softmax(x, 0.5, True, generator=state[1])
    torch.testing.assert_close(soft.sum(-1), torch.ones(5, dtype=REAL), atol=1e-14, rtol=0)
    assert torch.equal(hard.argmax(-1, keepdim=True), gumbel_max(x, state[2]))
    assert torch.equal(hard.sort(-1).values[:, :-1].abs() < 1e-15, torch.ones(5, 8, dtype=torch.bool))
    g = rows(n=9, count=5).cos()
    assert torch.equal(torch.autograd.grad(hard, x, g)[0], torch.autograd.grad(soft, x, g)[0])


def test_a_soft_sample_sharpens_as_tau_falls_and_runs_along_any_axis():
    x = rows(n=6, count=500)
    tops = [gumbel_softmax(x, tau, generator=torch.Generator().manual_seed(0)).amax(-1).mean() for tau in (5, 1, 0.01)]
    assert tops[0] < tops[1] < tops[2]
    assert tops[2] > 0.95
    across = gumbel_softmax(x.T, 1.0, generator=torch.Generator().manual_seed(0), dim=0)
    assert torch.equal(across.T, gumbel_softmax(x, 1.0, generator=torch.Generator().manual_seed(0)))


def test_gradients_pass_through_a_soft_sample():
    x = rows(n=3, count=2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: gumbel_softmax(x, 0.8, generator=torch.Generator().manual_seed(0)), (x,))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: gumbel_max(X, k=0), "k of at least 1, not 0"),
        (lambda: gumbel_max(X, k=6), "k of at most the entries of a row, 5, not 6"),
        (lambda: gumbel_max([]), "k of at most the entries of a row, 0, not 1"),
        (lambda: gumbel_max(X.long()), "scores (..., n) of floating point, not torch.int64 of shape (5,)"),
        (lambda: gumbel_softmax(X, 0.0), "a finite tau above 0, not 0.0"),
        (lambda: gumbel_softmax(X.long()), "x to be floating point, not torch.int64"),
        (
            lambda: gumbel_max([X, X[None]]),
            "pieces (..., n) with one (...), here (), not torch.float64 of shape (1, 5)",
        ),
        (
            lambda: gumbel_max(torch.tensor([0.0, -math.inf]), k=2),
            "at least 2 scores above -inf in every row, to draw 2",
        ),
        (lambda: gumbel_softmax(X[:0]), "an axis of x that is not empty, not -1 of (0,)"),
    ],
)
def test_bad_input_is_one_clear_sentence(call, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        call()
