"""induction_heads: x_p = x_{L-1} = V; the answer is x_{p+1}."""

import re

import pytest
import torch

from carrel.tasks import induction_heads


def made(batch=300, seed=0, **options):
    return induction_heads(batch, **({"length": 20} | options), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("length", [3, 4, 20])
def test_an_oracle_that_looks_for_the_same_token_is_always_right(length):
    x, y, mask = made(length=length)
    assert x.shape == y.shape == mask.shape == (300, length)
    for tokens, answer in zip(x.tolist(), y[:, -1].tolist(), strict=True):
        assert tokens[-1] == 16
        assert answer == tokens[tokens.index(tokens[-1]) + 1]


def test_the_special_token_stands_twice_and_only_the_end_is_scored():
    x, y, mask = made()
    assert ((x == 16).sum(1) == 2).all()
    assert mask[:, -1].all()
    assert mask.sum() == 300
    assert (y[~mask] == 0).all()
    assert x.min() >= 0


def test_places_and_answers_are_equally_frequent():
    batch = 20_000
    x, y, _ = made(batch, length=12)
    places = (x[:, :-1] == 16).double().mean(0)
    assert places[-1] == 0  # its neighbour would be the question itself
    assert (places[:-1] - 1 / 10).abs().max() < 4 * (0.1 * 0.9 / batch) ** 0.5
    shares = y[:, -1].bincount(minlength=16) / batch
    assert len(shares) == 16
    assert (shares - 1 / 16).abs().max() < 4 * (1 / 16 * 15 / 16 / batch) ** 0.5


def test_data_are_a_function_of_the_arguments_and_the_seed():
    for a, b in zip(made(), made(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(made()[0], made(seed=1)[0])


@pytest.mark.parametrize("sizes", [{"length": 2}, {"vocab": 1}, {"batch": -1}])
def test_bad_sizes_are_named(sizes):
    with pytest.raises(ValueError, match=re.escape("batch >= 0, length >= 3 and vocab >= 2, not batch=")):
        made(**sizes)
