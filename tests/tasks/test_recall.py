"""copy_first_symbol: x_0 = e_y, x_t = σ ε_t; the answer is y."""

import re

import pytest
import torch

from carrel.tasks import copy_first_symbol


def made(seed=0, **options):
    sizes = {"batch": 200, "length": 9} | options
    x, y, mask = copy_first_symbol(**sizes, generator=torch.Generator().manual_seed(seed))
    assert y.shape == mask.shape == x.shape[:2]
    assert (y[:, :-1] == 0).all()
    assert mask[:, -1].all()
    assert not mask[:, :-1].any()
    return x, y[:, -1]


def test_an_oracle_that_reads_the_first_token_is_always_right():
    for classes in (2, 10):
        x, y = made(classes=classes)
        assert x.shape == (200, 10, classes)
        assert (x[:, 0].sum(1) == 1).all()
        assert torch.equal(x[:, 0].argmax(1), y)


def test_nothing_after_the_first_token_speaks_of_the_symbol():
    x, y = made(batch=20_000, length=3, noise=0.5)
    own = x[torch.arange(20_000), 1:, y]
    assert abs(own.mean()) < 4 * 0.5 / (3 * 20_000) ** 0.5
    assert abs(x[:, 1:].std() - 0.5) < 0.005
    guesses = (x[:, 1:].sum(1).argmax(1) == y).double().mean()
    assert abs(guesses - 0.1) < 4 * (0.1 * 0.9 / 20_000) ** 0.5


def test_symbols_are_equally_frequent():
    _, y = made(batch=20_000, length=1)
    counts = torch.bincount(y, minlength=10)
    assert len(counts) == 10
    assert (counts - 2000).abs().max() < 4.5 * (20_000 * 0.1 * 0.9) ** 0.5


def test_the_generator_is_the_only_source_of_chance():
    torch.manual_seed(1)
    first = made()
    torch.manual_seed(2)
    again, other = made(), made(seed=1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


def test_no_noise_leaves_zeros():
    assert (made(noise=0.0)[0][:, 1:] == 0).all()


@pytest.mark.parametrize(
    "wrong", [{"length": 0}, {"classes": 1}, {"noise": -0.1}, {"batch": -1}, {"noise": float("nan")}]
)
def test_bad_sizes_are_named(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=re.escape(f"{name}={value}")):
        made(**wrong)
