"""selective_copying: M symbols at random places among L blanks, to be named in order at M markers."""

import re

import pytest
import torch

from carrel.tasks import selective_copying


def made(batch=300, seed=0, **options):
    sizes = {"length": 12, "data": 4, "vocab": 8} | options
    return selective_copying(batch, **sizes, generator=torch.Generator().manual_seed(seed))


def test_an_oracle_that_drops_the_blanks_is_always_right():
    x, y, mask = made()
    assert x.shape == y.shape == mask.shape == (300, 16)
    for tokens, answers, asked in zip(x.tolist(), y, mask, strict=True):
        read = [token for token in tokens[:12] if token != 8]
        assert len(read) == 4
        assert tokens[12:] == [9] * 4
        assert answers[asked].tolist() == read


def test_only_markers_are_scored():
    x, y, mask = made()
    assert torch.equal(mask, x == 9)
    assert (y[~mask] == 0).all()


def test_every_symbol_and_every_place_comes_up_equally_often():
    x, y, _ = made(20_000)
    places = (x[:, :12] != 8).double().mean(0)
    four_errors = 4 * (1 / 3 * 2 / 3 / 20_000) ** 0.5
    assert (places - 1 / 3).abs().max() < four_errors
    shares = torch.bincount(y[:, 12:].flatten(), minlength=8) / 80_000
    assert (shares - 1 / 8).abs().max() < 4 * (1 / 8 * 7 / 8 / 80_000) ** 0.5


def test_data_are_a_function_of_the_arguments_and_the_seed():
    for a, b in zip(made(), made(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(made()[0], made(seed=1)[0])
    state = torch.random.get_rng_state()
    made()
    assert torch.equal(state, torch.random.get_rng_state())


def test_as_many_symbols_as_places_leave_no_blank():
    x, _, _ = made(data=12)
    assert (x[:, :12] < 8).all()


@pytest.mark.parametrize("sizes", [{"data": 13}, {"data": 0}, {"vocab": 1}, {"batch": -1}])
def test_bad_sizes_are_named(sizes):
    with pytest.raises(ValueError, match=re.escape("vocab >= 2 and 1 <= data <= length, not batch=")):
        made(**sizes)
