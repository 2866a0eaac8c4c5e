"""The starter shelf: identifiers, names and remarks in order, and every paper that a method cites on it."""

from __future__ import annotations

import csv
import gzip
import json
import lzma
import re
import tomllib
from collections import Counter
from importlib.resources import files
from typing import Any

import pytest

from carrel.papers.categories import canonical, taxonomy
from carrel.papers.identifiers import parse_arxiv_id

DOI = re.compile(r"10\.\d{4,9}/\S+")
# An arXiv id as the notes on the methods write it: yymm.nnnn or yymm.nnnnn with a month that exists.
CITED = re.compile(r"(?<![\d.])(?:0[7-9]|1\d|2\d)(?:0[1-9]|1[0-2])\.\d{4,5}(?![\d.]*\d)")
# Ids that the notes mention though they do not mean that paper.
NOT_MEANT = {
    "1602.02830": "named only as a wrong link for sparsemax, which is 1602.02068",
    "2105.08710": "named as unchecked; it is Fast and Slow Learning of Recurrent Independent Mechanisms, not EXACT",
    "2405.10512": "In-context Contrastive Learning for Event Causality Identification; sparse softmax is 2112.12433",
    "1906.03193": "Fighting Quantization Bias with Bias; the copying task meant is that of 1706.02761",
}
# Papers that came to arXiv after their conference.
LATE_ON_ARXIV = {"1904.09237"}


@pytest.fixture(scope="module")
def shelf() -> list[dict[str, Any]]:
    return tomllib.loads(files("carrel.papers").joinpath("starter.toml").read_text(encoding="utf-8"))["paper"]


def _name(paper: dict[str, Any]) -> str:
    return paper.get("id") or paper.get("doi") or paper["key"]


def test_the_shelf_holds_about_a_hundred_and_fifty_papers(shelf):
    assert 140 <= len(shelf) <= 180


def test_no_paper_stands_twice(shelf):
    for field in (_name, lambda paper: paper["title"].casefold()):
        counts = Counter(map(field, shelf))
        assert [value for value, times in counts.items() if times > 1] == []


def test_every_paper_has_the_same_few_fields_and_exactly_one_identity(shelf):
    required = {"title", "authors", "year", "remark"}
    allowed = required | {"id", "doi", "key", "categories", "venue"}
    for paper in shelf:
        assert required <= paper.keys() <= allowed, _name(paper)
        assert len(paper.keys() & {"id", "doi", "key"}) == 1, _name(paper)


def test_an_arxiv_id_is_written_as_arxiv_writes_it_and_says_the_year(shelf):
    for paper in shelf:
        if "id" in paper:
            parsed = parse_arxiv_id(paper["id"])
            assert (parsed.id, parsed.version) == (paper["id"], None)
            assert paper["year"] == 2000 + int(paper["id"][:2]), paper["id"]


def test_a_paper_outside_arxiv_has_a_doi_or_a_key_and_says_where_it_appeared(shelf):
    outside = [paper for paper in shelf if "id" not in paper]
    assert outside
    for paper in outside:
        assert DOI.fullmatch(paper["doi"]) if "doi" in paper else re.fullmatch(r"[a-z]+\d{4}", paper["key"])
        assert str(paper["year"]) in paper["venue"], _name(paper)
        assert "categories" not in paper, _name(paper)
        assert 1900 < paper["year"] < 2030


def test_categories_are_canonical_and_differ(shelf):
    for paper in shelf:
        if "id" in paper:
            categories = paper["categories"]
            assert len(categories) == len(set(categories)) > 0, paper["id"]
            assert [canonical(code) for code in categories] == categories, paper["id"]
            assert set(categories) <= taxonomy().keys(), paper["id"]


def test_authors_are_people_named_once_each(shelf):
    collective = {"DeepSeek-AI"}
    for paper in shelf:
        authors = paper["authors"]
        assert len(authors) == len(set(authors)) > 0, _name(paper)
        for author in authors:
            assert author == " ".join(author.split()), (_name(paper), author)
            assert " " in author or author in collective, (_name(paper), author)
            assert not re.search(r"\bet al|\bothers\b|[,;\\{}&]|\d", author), (_name(paper), author)


def test_a_venue_that_names_a_year_does_not_come_before_the_preprint(shelf):
    for paper in shelf:
        for year in re.findall(r"\b(?:19|20)\d\d\b", paper.get("venue", "")):
            earliest = paper["year"] - (_name(paper) in LATE_ON_ARXIV)
            assert earliest <= int(year) <= paper["year"] + 3, _name(paper)


def test_remarks_are_one_or_two_short_plain_sentences(shelf):
    for paper in shelf:
        remark = paper["remark"]
        assert 40 <= len(remark) <= 220, (_name(paper), len(remark))
        assert remark[0].isupper(), _name(paper)
        assert remark.endswith("."), _name(paper)
        assert 1 <= len(re.findall(r"\.(?=\s|$)", remark)) <= 2, _name(paper)
        assert not re.search(r"\b(?:we|our|novel|state-of-the-art)\b", remark, re.IGNORECASE), _name(paper)
    assert len({paper["remark"] for paper in shelf}) == len(shelf)


def test_every_paper_that_the_notes_on_the_methods_cite_is_on_the_shelf(shelf, shared):
    on_shelf = {paper["id"] for paper in shelf if "id" in paper}
    cited: set[str] = set()
    for room in ("attention", "recurrent", "generative", "discrete"):
        cited |= set(CITED.findall((shared / "spec" / f"{room}.md").read_text(encoding="utf-8")))
    assert len(cited) > 90
    assert cited - on_shelf == NOT_MEANT.keys()
    assert not NOT_MEANT.keys() & on_shelf


def test_the_shelf_agrees_with_arxivs_own_records_where_they_lie_at_hand(shelf, shared):
    mine = {paper["id"]: paper for paper in shelf if "id" in paper}
    compared = 0
    with lzma.open(shared / "data/papers/arxiv/bulk/cs.NE.tsv.xz", "rt", encoding="utf-8", newline="") as rows:
        for row in csv.DictReader(rows, delimiter="\t"):
            paper = mine.get(row["arxiv_id"])
            if paper is not None:
                compared += 1
                assert paper["title"] == " ".join(row["title"].split())
                assert ", ".join(paper["authors"]) == row["author_text"]
                assert sorted(paper["categories"]) == sorted(row["categories"].split(","))
                assert paper["categories"][0] == row["primary_cat"]
    assert compared == 4


@pytest.mark.parametrize(("venue", "expected"), [("ICLR 2018", 3), ("ICLR 2021", 4)])
def test_papers_of_a_conference_are_in_its_list_of_accepted_papers(shelf, shared, venue, expected):
    def folded(title: str) -> str:
        return re.sub(r"[\W_]", "", title).casefold()

    path = shared / "data/papers/conference" / f"{venue.replace(' ', '').lower()}.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        listed = {folded(row["title"]): row for row in map(json.loads, lines)}
    papers = [paper for paper in shelf if paper.get("venue") == venue]
    assert len(papers) == expected
    for paper in papers:
        row = listed[folded(paper["title"])]
        assert "reject" not in str(row.get("status", row.get("decision"))).lower()
        if "author" in row:
            assert ";".join(paper["authors"]) == row["author"]
