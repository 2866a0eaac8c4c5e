"""The query language: what is typed becomes a tree; what is not understood becomes words and a notice."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carrel.papers.query import HELP, AllOf, Among, AnyOf, Not, Phrase, Within, Words, parse


def day(text: str) -> int:
    return date.fromisoformat(text).toordinal()


TREES = [
    ("mamba", Words("mamba")),
    ("state space", AllOf((Words("state"), Words("space")))),
    ("state AND space", AllOf((Words("state"), Words("space")))),
    ('"state space"', Phrase("state space")),
    ('"state spa"*', Phrase("state spa", prefix=True)),
    ("transf*", Phrase("transf", prefix=True)),
    ("“state space”", Phrase("state space")),
    ("-image", Not(Words("image"))),
    ("NOT image", Not(Words("image"))),
    ("diffusion -image", AllOf((Words("diffusion"), Not(Words("image"))))),
    ("NOT -image", Words("image")),
    ('-"two words"', Not(Phrase("two words"))),
    ("a OR b", AnyOf((Words("a"), Words("b")))),
    ("a b OR c d", AnyOf((AllOf((Words("a"), Words("b"))), AllOf((Words("c"), Words("d")))))),
    ("(a OR b) c", AllOf((AnyOf((Words("a"), Words("b"))), Words("c")))),
    ("-(a b)", Not(AllOf((Words("a"), Words("b"))))),
    ("a or b", AllOf((Words("a"), Words("or"), Words("b")))),
    ("OR a OR", Words("a")),
    ("pre-training", Words("pre-training")),
    ("c++ x^2 3.5", AllOf((Words("c++"), Words("x^2"), Words("3.5")))),
    ("title:mamba", Words("mamba", "title")),
    ("TI:mamba", Words("mamba", "title")),
    ('title:"state space"', Phrase("state space", "title")),
    ("title:(a OR b)", AnyOf((Words("a", "title"), Words("b", "title")))),
    ("-title:mamba", Not(Words("mamba", "title"))),
    ("abs:recall", Words("recall", "abs")),
    ('author:"Yoshua Bengio"', Phrase("Yoshua Bengio", "author")),
    ("author：张三", Words("张三", "author")),
    ("（图网络）", Words("图网络")),
    ("venue:ICLR.2024", Words("ICLR.2024", "venue")),
    ("cat:cs.LG", Among("cat", frozenset({"cs.LG"}))),
    ("cat:cs.NA", Among("cat", frozenset({"math.NA"}))),
    ("cat:cs.LG+cs.CL-cs.CV", Among("cat", frozenset({"cs.LG", "cs.CL"}), frozenset({"cs.CV"}))),
    ("-cat:cs.LG", Not(Among("cat", frozenset({"cs.LG"})))),
    ("method:LRU", Among("method", frozenset({"lru"}))),
    ("id:2401.6769", Among("id", frozenset({"2401.06769"}))),
    ("id:arXiv:2401.06769v2", Among("id", frozenset({"2401.06769"}))),
    ("id:math.CA/0611800", Among("id", frozenset({"math/0611800"}))),
    ("id:10.1000/ABC", Among("id", frozenset({"10.1000/abc"}))),
    ("year:2023", Within("year", 2023, 2023)),
    ("year:2020..2023", Within("year", 2020, 2023)),
    ("year:2023..2020", Within("year", 2020, 2023)),
    ("year:2020..", Within("year", 2020, None)),
    ("year:..2020", Within("year", None, 2020)),
    ("date:2024-01..2024-06", Within("date", day("2024-01-01"), day("2024-06-30"))),
    ("date:2024-02", Within("date", day("2024-02-01"), day("2024-02-29"))),
    ("date:2024-02-29", Within("date", day("2024-02-29"), day("2024-02-29"))),
    ("date:2024", Within("date", day("2024-01-01"), day("2024-12-31"))),
    ("submitted:2024-1-5..", Within("submitted", day("2024-01-05"), None)),
    ("announced:..2024", Within("announced", None, day("2024-12-31"))),
]


@pytest.mark.parametrize(("text", "tree"), TREES)
def test_what_is_typed_becomes_this_tree(text, tree):
    query = parse(text)
    assert query.node == tree
    assert query.notices == []


@pytest.mark.parametrize(
    ("text", "tree", "notice"),
    [
        ("cat:cs.LGG x", AllOf((Words("cs.LGG"), Words("x"))), "did you mean 'cs.LG'"),
        ("colour:red", AllOf((Words("colour"), Words("red"))), "no field 'colour'"),
        ("year:soon", Words("soon"), "a year such as 2023"),
        ("date:2024-13", Words("2024-13"), "a day, month or year"),
        ("date:2023-02-29", Words("2023-02-29"), "a day, month or year"),
        ("date:0000", Words("0000"), "a day, month or year"),
        ("year:..", Words(".."), "at least one end"),
        ('year:"" x', Words("x"), "wants a value"),
        ('submitted:"" x', Words("x"), "wants a value"),
        ("year:(2023)", Words("2023"), "wants a value"),
        ('state "space', AllOf((Words("state"), Words("space"))), "quotation mark"),
    ],
)
def test_what_is_not_understood_is_searched_as_words_and_said(text, tree, notice):
    query = parse(text)
    assert query.node == tree
    assert any(notice in said for said in query.notices), query.notices


@pytest.mark.parametrize("text", ["", "   ", "()", '"', '""', "(((", ")))", "OR", "AND OR NOT", "(-)(", '"" ()'])
def test_where_nothing_is_asked_there_is_no_tree(text):
    assert parse(text).node in (None, Words("-"))


def test_only_500_characters_are_read():
    query = parse("x" * 10_000)
    assert query.node == Words("x" * 500)
    assert "500 characters" in query.notices[0]


def test_only_32_clauses_are_used():
    query = parse(" ".join(f"w{i}" for i in range(60)))
    assert isinstance(query.node, AllOf)
    assert len(query.node.nodes) == 32
    assert query.notices == ["Only the first 32 words and conditions were used."]


def test_every_example_of_the_help_is_understood_and_stands_in_the_docs():
    page = (Path(__file__).parents[2] / "docs" / "search.md").read_text(encoding="utf-8")
    for example, meaning in HELP:
        query = parse(example)
        assert query.node is not None
        assert query.notices == []
        assert f"| `{example}` | {meaning.split(';')[0].split(':')[0]}" in page


TYPED = """ " ( ) - * : OR AND NOT title: cat: year: date: id: author: .. a cs.LG 2024 注意 + ~ \\ $x$ 10.1000/x
2401.06769 """
PIECES = st.lists(
    st.sampled_from([*TYPED.split(), " ", "  ", "\x00", "\ud800"])
    | st.text(alphabet=st.characters(codec=None), max_size=3),
    max_size=30,
).map("".join)


@given(PIECES)
def test_no_text_is_an_error(text):
    query = parse(text)
    assert all(isinstance(notice, str) and len(notice) < 800 for notice in query.notices)


@pytest.mark.parametrize("text", ["(" * 400 + "x", "-" * 400 + "x", "NOT " * 120 + "x", "title:" * 80 + "x", '"' * 499])
def test_nesting_has_no_depth_that_breaks(text):
    parse(text)
