"""mqar: k_1 v_1 .. k_K v_K, then each key once among random tokens; the answer is its value."""

import re

import pytest
import torch

from carrel.tasks import mqar


def made(batch=200, seed=0, **options):
    sizes = {"length": 64, "keys": 8, "vocab": 64, "alpha": 0.1} | options
    return mqar(batch, **sizes, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    "sizes", [{}, {"length": 32, "vocab": 18}, {"keys": 1, "length": 4, "vocab": 5}, {"alpha": 1.0, "keys": 16}]
)
def test_an_oracle_with_a_dictionary_is_always_right(sizes):
    x, y, mask = made(**sizes)
    keys = sizes.get("keys", 8)
    assert (mask.sum(1) == keys).all()
    for tokens, answers, asked in zip(x.tolist(), y.tolist(), mask.tolist(), strict=True):
        value_of = dict(zip(tokens[: 2 * keys : 2], tokens[1 : 2 * keys : 2], strict=True))
        queried = [t for t in range(len(tokens)) if asked[t]]
        assert [answers[t] for t in queried] == [value_of[tokens[t]] for t in queried]
        assert len(value_of) == len(set(value_of.values())) == keys
        assert {tokens[t] for t in queried} == value_of.keys()


def test_keys_and_values_have_halves_of_the_tokens_and_queries_even_places():
    x, y, mask = made(2000)
    keys, values = x[:, :16:2], x[:, 1:16:2]
    assert (keys.min(), keys.max(), values.min(), values.max()) == (1, 31, 32, 63)
    assert not mask[:, :16].any()
    assert not mask[:, 1::2].any()
    assert (y[~mask] == 0).all()
    assert (x.min(), x.max()) == (0, 63)


def test_pairs_are_drawn_evenly_and_keys_say_nothing_of_their_values():
    batch = 20_000
    x, _, _ = made(batch, keys=2, length=8, vocab=8)  # keys 1 to 3, values 4 to 7
    pairs = (x[:, 0] - 1) * 4 + x[:, 1] - 4
    shares = pairs.bincount(minlength=12) / batch
    assert (shares - 1 / 12).abs().max() < 4.5 * (1 / 12 * 11 / 12 / batch) ** 0.5


@pytest.mark.parametrize("alpha", [0.1, 1.0])
def test_slots_are_drawn_by_a_power_law(alpha):
    """One query: the chance of slot s is s^(alpha - 1) over their sum."""
    batch = 40_000
    _, _, mask = made(batch, keys=1, length=22, alpha=alpha)
    shares = mask[:, 2::2].double().mean(0)
    p = torch.arange(1, 11, dtype=torch.float64) ** (alpha - 1)
    p = p / p.sum()
    assert ((shares - p).abs() < 4.5 * (p * (1 - p) / batch).sqrt()).all()


def test_two_slots_are_drawn_without_replacement():
    """The chance that s is among two draws is p_s + sum over r of p_r p_s / (1 - p_r)."""
    batch = 40_000
    _, _, mask = made(batch, keys=2, length=16, alpha=0.3)
    p = torch.arange(1, 7, dtype=torch.float64) ** -0.7
    p = p / p.sum()
    both = p[:, None] * p / (1 - p[:, None])
    wanted = p + both.sum(0) - both.diagonal()
    shares = mask[:, 4::2].double().mean(0)
    assert ((shares - wanted).abs() < 4.5 * (wanted * (1 - wanted) / batch).sqrt()).all()


def test_data_are_a_function_of_the_arguments_and_the_seed():
    for a, b in zip(made(), made(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(made()[0], made(seed=1)[0])


@pytest.mark.parametrize(
    ("sizes", "sentence"),
    [
        ({"length": 63}, "an even length of at least 4 keys, not batch=200, keys=8, length=63"),
        ({"length": 30}, "an even length of at least 4 keys, not batch=200, keys=8, length=30"),
        ({"keys": 0}, "keys >= 1"),
        ({"batch": -1}, "batch >= 0"),
        ({"vocab": 17}, "a vocab of at least 2 keys + 2 = 18, not 17"),
        ({"alpha": 0.0}, "alpha above 0, not 0.0"),
        ({"alpha": float("nan")}, "alpha above 0, not nan"),
    ],
)
def test_bad_sizes_are_named(sizes, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        made(**sizes)
