"""Text and formulas become HTML in which nothing is lost and nothing is let through."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lxml import html

from carrel.web.mathtext import typeset

PIECES = [*"ab 5$\\()[]^_{}<>&\"'\n", "\\begin{align}", "\\end{align}", "论", "$x$", "</span>"]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=40).map("".join)


@given(TEXTS, st.lists(st.sampled_from(["a", "ab", "5", "论", "b $", ""]), max_size=3))
def test_a_reader_without_javascript_sees_the_text_and_only_our_elements_are_there(text: str, terms: list[str]) -> None:
    text = f"x{text}x"  # the parser drops blanks at the ends
    tree = html.fragment_fromstring(str(typeset(text, terms)), create_parent="p")
    assert tree.text_content().replace("\\$", "$") == text.replace("\\$", "$")
    assert {element.tag for element in tree.iter()} <= {"p", "span", "mark"}
    assert {name for element in tree.iter() for name in element.attrib} <= {"class", "translate"}


@pytest.mark.parametrize(
    ("text", "formulas"),
    [
        ("a $x$ b", ["$x$"]),
        ("$x$-axis, $y$.", ["$x$", "$y$"]),
        (r"\(a\) and \[b\] and $$c$$", [r"\(a\)", r"\[b\]", "$$c$$"]),
        ("from $5 to $6 a piece", []),
        ("it costs $5", []),
        (r"US\$5 and \$6", []),
        (r"\begin{equation}x\end{equation}", [r"\begin{equation}x\end{equation}"]),
        (r"\begin{itemize}\item x\end{itemize}", []),
        ("在$n$很大时", ["$n$"]),
        ("$a<b$ & more", ["$a<b$"]),
    ],
)
def test_what_is_a_formula(text: str, formulas: list[str]) -> None:
    tree = html.fragment_fromstring(str(typeset(text)), create_parent="p")
    assert [tex.text for tex in tree.cssselect(".tex")] == formulas


def test_displayed_formulas_have_their_own_box() -> None:
    tree = html.fragment_fromstring(str(typeset(r"\[a\] $b$ $$c$$ \begin{align*}d\end{align*}")), create_parent="p")
    assert ["display" in tex.get("class") for tex in tree.cssselect(".tex")] == [True, False, True, True]


def test_words_are_marked_in_the_text_and_never_inside_a_formula() -> None:
    marked = str(typeset("A model $model$ of <model>", ["model"]))
    assert marked.count("<mark>model</mark>") == 2
    assert ">$model$<" in marked


def test_a_pathological_text_takes_no_time() -> None:
    start = time.perf_counter()
    typeset("$ " * 20_000 + "\\(" * 5_000 + "\\begin{align}" * 2_000)
    assert time.perf_counter() - start < 2.0
