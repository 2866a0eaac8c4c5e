"""Similar spellings: edits are letters left out, added, replaced, or two neighbours swapped."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carrel.papers.spelling import distance, one_edit_away

WORD = st.text(alphabet="abc", max_size=6)


def by_definition(one, other):
    """min over the last edit, written as the recurrence."""

    @cache
    def edits(i, j):
        if i == 0 or j == 0:
            return i + j
        least = min(edits(i - 1, j) + 1, edits(i, j - 1) + 1, edits(i - 1, j - 1) + (one[i - 1] != other[j - 1]))
        if i > 1 and j > 1 and one[i - 1] == other[j - 2] and one[i - 2] == other[j - 1]:
            least = min(least, edits(i - 2, j - 2) + 1)
        return least

    return edits(len(one), len(other))


@pytest.mark.parametrize(
    ("one", "other", "edits"),
    [
        ("mamba", "mamba", 0),
        ("mamba", "mmaba", 1),
        ("mamba", "mamb", 1),
        ("mamba", "mambas", 1),
        ("mamba", "samba", 1),
        ("transform", "tarnsfrom", 2),
        ("abc", "", 3),
    ],
)
def test_distances_worked_by_hand(one, other, edits):
    assert distance(one, other, 9) == edits


@given(WORD, WORD, st.integers(1, 3))
def test_distance_is_the_recurrence_up_to_its_limit(one, other, most):
    edits = by_definition(one, other)
    got = distance(one, other, most)
    assert got == edits if edits <= most else got > most


@given(WORD)
def test_words_one_edit_away_are_those_at_distance_one_each_once(word):
    around = list(one_edit_away(word))
    assert len(around) == len(set(around))
    assert all(distance(word, other, 2) == 1 for other in around)
    letters = "abcdefghijklmnopqrstuvwxyz"
    assert word + "z" in around
    assert {word[:i] + letter + word[i:] for i in range(len(word) + 1) for letter in letters} <= set(around)
