"""listops: the value of a nested expression of MIN, MAX, MED and SM."""

import re
import statistics

import pytest
import torch

from carrel.tasks import evaluate, listops
from carrel.tasks.listops import TOKENS

SMALL = {"max_depth": 4, "max_args": 4, "min_length": 8, "max_length": 64}


def made(batch=300, seed=0, **options):
    return listops(batch, **(SMALL | options), generator=torch.Generator().manual_seed(seed))


def oracle(tokens):
    """Rewrites the expression as Python's own and lets Python work it out."""
    text = " ".join(TOKENS[token] for token in tokens).strip()
    text = re.sub(r"\[(\w+)", r"\1([", text).replace("]", "])")
    text = re.sub(r"(?<=[\d)]) +(?=[\dA-Z])", ", ", text)
    names = {"MIN": min, "MAX": max, "MED": lambda v: int(statistics.median(v)), "SM": lambda v: sum(v) % 10}
    return eval(text, {"__builtins__": {}}, names)


def test_an_oracle_that_is_python_is_always_right():
    for sizes in ({}, {"max_depth": 10, "max_args": 10, "min_length": 50, "max_length": 200}):
        x, y, mask = made(**sizes)
        assert x.shape == y.shape == mask.shape
        for tokens, answer in zip(x.tolist(), y[:, -1].tolist(), strict=True):
            assert oracle(tokens) == evaluate(tokens) == answer


def test_values_worked_by_hand():
    def value(text):
        return evaluate([TOKENS.index(word) for word in text.split()])

    assert value("7") == 7
    assert value("[MAX 4 [MIN 2 7 ] 0 ]") == 4
    assert value("[MED 1 8 3 ]") == 3
    assert value("[MED 1 8 3 4 ]") == 3  # 3.5, rounded down
    assert value("[SM 9 8 [SM 5 5 ] ]") == 7
    assert value("[MIN [MAX 0 9 ] [MED 5 6 ] ]") == 5


def depth(tokens):
    level = deepest = 1
    for token in tokens:
        level += (10 <= token < 14) - (token == 14)
        deepest = max(deepest, level)
    return deepest


def arguments(tokens):
    """How many children each operator has."""
    counts, open_ = [], [0]
    for token in tokens:
        if token == 14:
            counts.append(open_.pop())
        elif token < 14:
            open_[-1] += 1
            if token >= 10:
                open_.append(0)
    return counts


def test_lengths_depths_and_arguments_stay_within_what_was_asked():
    x, _, _ = made(1000)
    lengths = (x != 15).sum(1)
    assert (lengths.min(), x.shape[1]) == (8, 64)
    assert lengths.max() <= 64
    assert max(depth(row) for row in x.tolist()) == 4
    assert {count for row in x.tolist() for count in arguments(row)} == {2, 3, 4}
    for row, length in zip(x.tolist(), lengths.tolist(), strict=True):
        assert all(token == 15 for token in row[: 64 - length])


def test_only_the_last_token_is_scored():
    _, y, mask = made()
    assert mask[:, -1].all()
    assert mask.sum() == 300
    assert (y[~mask] == 0).all()


def test_trees_have_the_shares_they_are_drawn_with():
    """Depth 2 without a bound on length: a digit, or an operator over digits."""
    batch = 20_000
    x, _, _ = made(batch, max_depth=2, max_args=3, min_length=1, max_length=5)
    lengths = (x != 15).sum(1)
    for length, p in ((1, 3 / 4), (4, 1 / 8), (5, 1 / 8)):
        share = (lengths == length).double().mean()
        assert abs(share - p) < 4 * (p * (1 - p) / batch) ** 0.5
    grown = x[lengths > 1]
    operators = grown[(grown >= 10) & (grown < 14)].bincount(minlength=14)[10:] / len(grown)
    assert (operators - 1 / 4).abs().max() < 4 * (1 / 4 * 3 / 4 / len(grown)) ** 0.5
    digits = x[x < 10].bincount() / (x < 10).sum()
    assert (digits - 1 / 10).abs().max() < 4.5 * (0.09 / int((x < 10).sum())) ** 0.5


def test_giving_up_early_on_long_trees_changes_no_tree():
    """Trees are cut off once they are too long; those that fit are as frequent as among all that are drawn."""
    batch = 20_000
    free = (made(batch, max_depth=3, max_args=3, min_length=1, max_length=100)[0] != 15).sum(1)
    bound = (made(batch, max_depth=3, max_args=3, min_length=1, max_length=8, seed=1)[0] != 15).sum(1)
    fitting = free[free <= 8]
    for length in range(1, 9):
        p = (fitting == length).double().mean()
        share = (bound == length).double().mean()
        assert abs(share - p) < 4.5 * (2 * p * (1 - p) / len(fitting)) ** 0.5 + 1e-9


def test_data_are_a_function_of_the_arguments_and_the_seed():
    for a, b in zip(made(), made(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(made()[0], made(seed=1)[0])
    generator = torch.Generator().manual_seed(0)
    first, second = (listops(20, **SMALL, generator=generator)[0] for _ in range(2))
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    "sizes",
    [
        {"max_args": 1},
        {"max_depth": 1},
        {"min_length": 64},
        {"min_length": 0},
        {"batch": -1},
    ],
)
def test_bad_sizes_are_named(sizes):
    sentence = "listops wants batch >= 0, max_depth >= 2, max_args >= 2 and 1 <= min_length < max_length, not batch="
    with pytest.raises(ValueError, match=re.escape(sentence)):
        made(**sizes)


def test_a_range_without_any_tree_is_given_up_after_a_million():
    sentence = "drew 1000000 trees of depth 2 with up to 2 arguments, and none had 5 to 9 tokens"
    with pytest.raises(ValueError, match=re.escape(sentence)):
        made(1, max_depth=2, max_args=2, min_length=5, max_length=9)


@pytest.mark.parametrize("text", ["", "1 2", "[MAX 1", "]", "[MAX ]", "1 ]", "[MIN 1 ] 3"])
def test_what_is_no_expression_is_named(text):
    with pytest.raises(ValueError, match="is no expression"):
        evaluate([TOKENS.index(word) for word in text.split()])
