"""Text: clean keeps the source's TeX and math, plain writes it out, authors come one by one."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carrel.papers.tex import segments
from carrel.papers.text import clean, plain, split_authors

GOLDEN = json.loads((Path(__file__).parent / "vectors" / "text.json").read_text(encoding="utf-8"))
# pieces that TeX, XML and mail folding react to, so that random texts are nasty and not only random
COMMANDS = r"\ \\ \" \' \v \c \H \o \ss \i \{ { } $ $ $$ \( \) \[ \] \$ \begin{a} \end{a} \cite{ \frac{1}{2} \href{"
BETWEEN = (
    "o",
    "e",
    "s",
    "c ",
    " ",
    "  ",
    "\n",
    "\n  ",
    "\n\n",
    "5",
    "x^2",
    "~",
    "--",
    "``",
    "\u0301",
    "\u202e",
    "\x00",
)
NASTY = st.lists(st.sampled_from((*COMMANDS.split(), *BETWEEN)) | st.text(max_size=3), max_size=20).map("".join)


@pytest.mark.parametrize(("source", "expected"), GOLDEN["clean"])
def test_clean_keeps_the_tex_and_drops_what_came_from_transport(source, expected):
    assert clean(source) == expected


@pytest.mark.parametrize(("source", "expected"), GOLDEN["line"])
def test_a_title_is_one_line(source, expected):
    assert clean(source, one_line=True) == expected


@pytest.mark.parametrize(("source", "expected"), GOLDEN["plain"])
def test_plain_writes_simple_math_in_unicode_and_drops_commands(source, expected):
    assert plain(source) == expected


@pytest.mark.parametrize(("source", "names"), GOLDEN["authors"])
def test_authors_come_one_by_one_without_affiliations(source, names):
    assert split_authors(source) == tuple(names)


@pytest.mark.parametrize(("text", "math"), GOLDEN["segments"])
def test_math_is_found_and_prices_are_not(text, math):
    assert [piece for piece, is_math in segments(text) if is_math] == math


def test_the_golden_texts_are_many():
    assert sum(len(GOLDEN[kind]) for kind in ("clean", "line", "plain", "authors", "segments")) >= 150


@pytest.mark.parametrize("source", [source for source, _ in GOLDEN["clean"] if "&" not in source])
def test_cleaning_a_clean_golden_text_changes_nothing(source):
    assert clean(clean(source)) == clean(source)


@given(NASTY)
def test_cleaning_twice_is_cleaning_once_where_no_entity_is_left(text):
    once = clean(text)
    if not re.search(r"&#?\w+;", once):
        assert clean(once) == once


@given(NASTY)
def test_cleaning_a_line_twice_is_cleaning_it_once(text):
    once = clean(text.replace("&", ""), one_line=True)
    assert clean(once, one_line=True) == once
    assert "\n" not in once


def test_each_pass_decodes_one_level_of_entities():
    assert clean("&amp;amp;lt;") == "&amp;lt;"


@given(NASTY)
def test_the_pieces_joined_are_the_text(text):
    assert "".join(piece for piece, _ in segments(text)) == text


MATH = st.text(alphabet="abxyz0123 +-=^_{}()<>.,\\'\"`~", min_size=1, max_size=12).filter(
    lambda inner: inner.strip() == inner and inner[0] not in "0123456789" and not re.search(r"\\(?![a-z])|\\\Z", inner)
)


@given(st.lists(st.tuples(st.text(alphabet='ab \\"oe', max_size=8), MATH, st.booleans()), min_size=1, max_size=5))
def test_math_comes_through_clean_untouched(parts):
    wrapped = [f"${inner}$" if dollars else rf"\({inner}\)" for _, inner, dollars in parts]
    text = "".join(
        words.replace("\\", r"\"o") + " " + math + " " for (words, *_), math in zip(parts, wrapped, strict=True)
    )
    assert [piece for piece, is_math in segments(clean(text)) if is_math] == wrapped


@given(NASTY | st.text(alphabet=st.characters(codec=None)))
def test_no_control_character_no_override_no_surrogate_comes_through(text):
    for result in (clean(text), *split_authors(text)):
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", result)
        result.encode()


@given(NASTY | st.text())
def test_plain_takes_any_text(text):
    assert plain(clean(text)).strip() == plain(clean(text))


@pytest.mark.parametrize(
    "hostile", [r"\(", r"\[", "$", r"\begin{a}", "{", "}", "(", r"\'", "\\", "&amp", r"\frac{", "``", " and "]
)
def test_hostile_repetition_takes_linear_time(hostile):
    text = f"x{hostile * 40_000}x"
    began = time.perf_counter()
    plain(clean(text))
    split_authors(text)
    assert time.perf_counter() - began < 5.0  # quadratic work would take minutes


def test_distinct_environments_take_linear_time():
    text = "".join(rf"\begin{{{'a' * (i % 50)}{chr(97 + i % 26)}}}" for i in range(5_000))
    began = time.perf_counter()
    clean(text)
    assert time.perf_counter() - began < 5.0


def test_real_records_come_out_clean_and_stay_so(daily_rows):
    for row in daily_rows[::7]:
        for text in (clean(row["title"], one_line=True), clean(row["summary"])):
            assert clean(text) == text
            assert not re.search(r"\\(?:textbf|emph|cite|href)\b|\$\\", plain(text)) or "$" in text
        assert "\n" not in clean(row["title"], one_line=True)


def test_authors_of_the_real_listings_survive_joining_and_splitting(daily_rows):
    wrong = [
        row["authors"]
        for row in daily_rows[::5]
        if split_authors(", ".join(row["authors"])) != tuple(clean(name, one_line=True) for name in row["authors"])
    ]
    assert len(wrong) / len(daily_rows[::5]) < 0.005, wrong[:5]
