"""M symbols in front of L tokens, or at random places among them, to be named in order at M markers."""

import re

import pytest
import torch

from carrel.tasks import copying, selective_copying

BOTH = pytest.mark.parametrize("task", [copying, selective_copying])


def made(batch=300, seed=0, task=selective_copying, **options):
    sizes = {"length": 12, "data": 4, "vocab": 8} | options
    return task(batch, **sizes, generator=torch.Generator().manual_seed(seed))


@BOTH
def test_an_oracle_that_drops_the_blanks_is_always_right(task):
    x, y, mask = made(task=task)
    assert x.shape == y.shape == mask.shape == (300, 16)
    for tokens, answers, asked in zip(x.tolist(), y, mask, strict=True):
        read = [token for token in tokens[:12] if token != 8]
        assert len(read) == 4
        assert tokens[12:] == [9] * 4
        assert answers[asked].tolist() == read


def test_what_is_copied_stood_a_fixed_time_before():
    x, y, mask = made(task=copying, length=9, data=3)
    assert torch.equal(y[mask].reshape(300, 3), x[:, :3])
    assert torch.equal(y[:, 9:], x[:, :3])
    assert (x[:, 3:9] == 8).all()


@BOTH
def test_only_markers_are_scored(task):
    x, y, mask = made(task=task)
    assert torch.equal(mask, x == 9)
    assert (y[~mask] == 0).all()


def test_every_place_comes_up_equally_often():
    x, _, _ = made(20_000)
    places = (x[:, :12] != 8).double().mean(0)
    four_errors = 4 * (1 / 3 * 2 / 3 / 20_000) ** 0.5
    assert (places - 1 / 3).abs().max() < four_errors


@BOTH
def test_every_symbol_comes_up_equally_often(task):
    _, y, _ = made(20_000, task=task)
    shares = torch.bincount(y[:, 12:].flatten(), minlength=8) / 80_000
    assert (shares - 1 / 8).abs().max() < 4 * (1 / 8 * 7 / 8 / 80_000) ** 0.5


@BOTH
def test_data_are_a_function_of_the_arguments_and_the_seed(task):
    for a, b in zip(made(task=task), made(task=task), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(made(task=task)[0], made(task=task, seed=1)[0])
    state = torch.random.get_rng_state()
    made(task=task)
    assert torch.equal(state, torch.random.get_rng_state())


@BOTH
def test_as_many_symbols_as_places_leave_no_blank(task):
    x, _, _ = made(task=task, data=12)
    assert (x[:, :12] < 8).all()


@pytest.mark.parametrize("sizes", [{"data": 13}, {"data": 0}, {"vocab": 1}, {"batch": -1}])
@BOTH
def test_bad_sizes_are_named(task, sizes):
    sentence = f"{task.__name__} wants batch >= 0, vocab >= 2 and 1 <= data <= length, not batch="
    with pytest.raises(ValueError, match=re.escape(sentence)):
        made(task=task, **sizes)
