"""Identifiers: the grammar YYMM.NNNN(N) and archive/YYMMNNN, what is mended, what is refused."""

from __future__ import annotations

import contextlib
import json
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carrel.papers.identifiers import ArxivId, BadIdentifier, find_arxiv_ids, parse_arxiv_id

VECTORS = json.loads((Path(__file__).parent / "vectors" / "arxiv_ids.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(("text", "identifier", "version"), VECTORS["parse"])
def test_every_spelling_leads_to_the_canonical_id(text, identifier, version):
    assert parse_arxiv_id(text) == ArxivId(identifier, version)


@pytest.mark.parametrize("text", VECTORS["refuse"])
def test_what_is_no_id_is_refused_with_a_reason(text):
    with pytest.raises(BadIdentifier, match="arXiv id"):
        parse_arxiv_id(text)


@pytest.mark.parametrize(("text", "expected"), VECTORS["find"])
def test_ids_are_found_in_running_text_in_order_and_once(text, expected):
    assert find_arxiv_ids(text) == [ArxivId(identifier, version) for identifier, version in expected]


def test_the_vectors_are_many_and_distinct():
    texts = [row[0] for row in VECTORS["parse"]] + VECTORS["refuse"]
    assert len(texts) == len(set(texts)) >= 150


def test_parsing_a_parsed_id_changes_nothing():
    for text, *_ in VECTORS["parse"]:
        once = parse_arxiv_id(text)
        assert parse_arxiv_id(str(once)) == once
        assert parse_arxiv_id(once.key) == ArxivId(once.id)


def test_a_key_has_no_version():
    assert parse_arxiv_id("https://arxiv.org/abs/math.CA/0611800v2").key == "arxiv:math/0611800"
    assert str(ArxivId("2401.06769", 2)) == "2401.06769v2"


@pytest.mark.parametrize("thing", [None, 2401.06769, b"2401.06769"])
def test_an_id_that_is_no_text_is_refused(thing):
    with pytest.raises(BadIdentifier, match="is text"):
        parse_arxiv_id(thing)


def test_a_page_of_text_is_refused_at_once():
    with pytest.raises(BadIdentifier, match="10000 characters"):
        parse_arxiv_id("9" * 10_000)


@given(st.text(alphabet=st.characters(codec=None), max_size=60))
def test_any_text_gives_an_id_or_bad_identifier(text):
    with contextlib.suppress(BadIdentifier):
        assert parse_arxiv_id(str(parse_arxiv_id(text)))
    find_arxiv_ids(text)


@given(
    st.integers(7, 90),
    st.integers(1, 12),
    st.integers(1, 9999),
    st.none() | st.integers(1, 999),
    st.sampled_from(["", "arXiv:", "https://arxiv.org/abs/", "10.48550/arXiv."]),
)
def test_a_new_id_survives_every_prefix_and_both_paddings(year, month, number, version, prefix):
    if (year, month) < (7, 4):
        return
    width = 4 if year < 15 else 5
    wanted = ArxivId(f"{year:02d}{month:02d}.{number:0{width}d}", version)
    other = 9 - width  # the padding of the other era
    suffix = "" if version is None else f"v{version}"
    assert parse_arxiv_id(prefix + str(wanted)) == wanted
    assert parse_arxiv_id(f"{prefix}{year:02d}{month:02d}.{number:0{other}d}{suffix}") == wanted
    assert find_arxiv_ids(f"compare {prefix}{wanted} there") == [wanted]


def test_every_id_of_the_real_listings_is_canonical(shared, daily_rows):
    ids = {row["id"] for row in daily_rows}
    assert len(ids) == 20_437
    assert all(str(parse_arxiv_id(identifier)) == identifier for identifier in ids)


def test_the_ids_of_the_real_abs_files_agree_with_their_paths(shared):
    seen = 0
    with tarfile.open(shared / "data/papers/arxiv/abs/abs_files.tar.xz") as files:
        for member in files:
            if not member.name.endswith(".abs"):
                continue
            archive, _, _, name = member.name.split("/")[-4:]
            stem = name.removesuffix(".abs")
            text = stem if archive == "arxiv" else f"{archive}/{stem}"
            got = parse_arxiv_id(text)
            assert text in (got.id, str(got))
            seen += 1
    assert seen > 800
