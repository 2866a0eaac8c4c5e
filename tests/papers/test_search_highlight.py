"""Highlighting: the pieces joined are the text, matches are words or rows of words, math is never cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carrel.papers.highlight import mark
from carrel.papers.tex import segments


@pytest.mark.parametrize(
    ("text", "terms", "marked"),
    [
        ("Linear Attention is attentive", ["linear", "attent"], ["Linear", "Attention", "attentive"]),
        ("Networks of networking", ["network"], ["Networks", "networking"]),
        ("state space and space state", ["state space"], ["state space"]),
        ("pre-training, pretraining, training", ["pre train", "pretrain"], ["pre-training", "pretraining"]),
        ("long rows win: a b c, a b", ["a", "a b c"], ["a b c", "a"]),
        ("Schrödinger and schrodinger", ["schroding"], ["Schrödinger", "schrodinger"]),
        ("基于注意力机制", ["注 意 力"], ["注意力"]),
        ("注意与力", ["注 意 力"], []),
        ("$attention$ and \\(attention\\) and attention", ["attent"], ["attention"]),
        ("the linear $x$ attention", ["linear attent"], []),
        ("costs $5 linear", ["linear"], ["linear"]),
        ("<b>linear</b> & <script>", ["linear", "script"], ["linear", "script"]),
        ("nothing", [], []),
        ("", ["linear"], []),
    ],
)
def test_these_words_are_marked(text, terms, marked):
    pieces = mark(text, terms)
    assert [piece for piece, matches in pieces if matches] == marked
    assert "".join(piece for piece, _ in pieces) == text


@given(
    st.text(alphabet="ab $\\()<>&\"'\n注意", max_size=40), st.lists(st.sampled_from(["a", "b", "a b", "注 意", "ab"]))
)
def test_whatever_is_marked_the_pieces_are_the_text_and_math_is_whole(text, terms):
    pieces = mark(text, terms)
    assert "".join(piece for piece, _ in pieces) == text
    assert all(piece for piece, _ in pieces)
    whole = [piece for piece, is_math in segments(text) if is_math]
    assert [piece for piece, matches in pieces if piece in whole and not matches] == whole
