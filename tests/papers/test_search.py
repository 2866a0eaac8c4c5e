"""Search: which papers a query finds, in which order, and that no text breaks it."""

from __future__ import annotations

from datetime import UTC, date, datetime

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from carrel.papers.model import Paper
from carrel.papers.search import open_index

PAPERS = [
    Paper(
        key="arxiv:2312.00752",
        source="starter",
        title="Mamba: Linear-Time Sequence Modeling with Selective State Spaces",
        authors=("Albert Gu", "Tri Dao"),
        categories=("cs.LG", "cs.AI"),
        submitted=datetime(2023, 12, 1, 12, tzinfo=UTC),
        remark="A recurrence whose gates look at the input.",
    ),
    Paper(
        key="arxiv:2303.06349",
        source="daily",
        title="Resurrecting Recurrent Neural Networks for Long Sequences",
        abstract="We show that careful design of deep RNNs with $\\lambda$-initialisation recovers the performance of "
        "state space models. Pre-training is not needed. Schr\u00f6dinger is not involved.",
        authors=("Antonio Orvieto", "Yoshua Bengio", "\u5f20\u4e09"),
        categories=("cs.LG",),
        announced=date(2023, 3, 14),
        comment="30 pages, ICML camera ready",
    ),
    Paper(
        key="arxiv:hep-th/9901001",
        source="kaggle",
        title="A $\\beta$-VAE for M$^2$E strings in C++ and GPT-4",
        abstract="State the state of the art. It is what it is.",
        authors=("J\u00fcrgen O'Brien",),
        categories=("hep-th", "math-ph"),
        announced=date(1999, 1, 4),
        doi="10.1000/ABC",
    ),
    Paper(
        key="bibtex:zhang2021",
        source="bibtex",
        title="\u57fa\u4e8e\u6ce8\u610f\u529b\u673a\u5236\u7684\u56fe\u795e\u7ecf\u7f51\u7edc\u63a8\u8350\u65b9\u6cd5",
        abstract="\u672c\u6587\u7814\u7a76 Transformer \u5728\u63a8\u8350\u7cfb\u7edf\u4e2d\u7684\u5e94\u7528\u3002",
        authors=("\u674e\u56db",),
        year=2021,
        venue="ICLR",
    ),
    Paper(
        key="doi:10.1000/xyz", source="bibtex", title="On the the of and", year=2020, venue="Journal of Strings 2020"
    ),
]


MAMBA, RNNS, STRINGS, GRAPHS, LITTLE = (paper.key for paper in PAPERS)


@pytest.fixture(scope="module")
def index(tmp_path_factory, new_shelf):
    shelf = new_shelf()
    shelf.methods[RNNS] = ("lru",)
    shelf.put(*PAPERS)
    index = open_index(tmp_path_factory.mktemp("index"))
    index.update(shelf)
    return index


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("recurrent networks", {RNNS}),
        ("RECURRENT network", {RNNS}),
        ("sequence", {MAMBA, RNNS}),
        ("schrodinger", {RNNS}),
        ("Schr\u00f6dinger", {RNNS}),
        ('"state space"', {MAMBA, RNNS}),
        ('"space state"', set()),
        ('"recurrent neural netw"*', {RNNS}),
        ("resurr*", {RNNS}),
        ('"transform"*', {GRAPHS}),
        ("transformers*", {GRAPHS}),
        ("sequence -mamba", {RNNS}),
        ("sequence NOT mamba", {RNNS}),
        ("mamba OR strings", {MAMBA, STRINGS, LITTLE}),
        ("(mamba OR recurrent) gu", {MAMBA}),
        ("title:sequences", {MAMBA, RNNS}),
        ("title:performance", set()),
        ("abs:performance", {RNNS}),
        ("title:(linear OR recurrent)", {MAMBA, RNNS}),
        ("author:bengio", {RNNS}),
        ('author:"Albert Gu"', {MAMBA}),
        ('author:"Gu Albert"', set()),
        ("author:linear", set()),
        ("author:jurgen", {STRINGS}),
        ("obrien", {STRINGS}),
        ("O'Brien", {STRINGS}),
        ("author:\u5f20\u4e09", {RNNS}),
        ("tri dao", {MAMBA}),
        ("icml", {RNNS}),
        ("gates look", {MAMBA}),
        ("cat:cs.LG", {MAMBA, RNNS}),
        ("cat:cs.LG-cs.AI", {RNNS}),
        ("cat:hep-th", {STRINGS}),
        ("cat:math", {STRINGS}),
        ("-cat:cs.LG", {STRINGS, GRAPHS, LITTLE}),
        ("cat:cs.LG sequence -author:gu", {RNNS}),
        ("year:2023", {MAMBA, RNNS}),
        ("year:2020..2022", {GRAPHS, LITTLE}),
        ("year:..1999", {STRINGS}),
        ("date:2023-03", {RNNS}),
        ("date:2023-12-01", {MAMBA}),
        ("date:1999..2001", {STRINGS}),
        ("date:2023-03-15..2023-11-30", set()),
        ("submitted:2023-12-01", {MAMBA}),
        ("submitted:2023-12..", {MAMBA}),
        ("submitted:..2023-11-30", set()),
        ("submitted:0001..9999", {MAMBA}),
        ("announced:2023-03-14", {RNNS}),
        ("method:LRU", {RNNS}),
        ("method:mamba", set()),
        ("source:bibtex", {GRAPHS, LITTLE}),
        ("venue:ICLR.2021", {GRAPHS}),
        ("venue:iclr", {GRAPHS}),
        ('venue:"journal of strings"', {LITTLE}),
        ("id:2303.06349", {RNNS}),
        ("id:2303.6349", {RNNS}),
        ("id:10.1000/abc", {STRINGS}),
        ("pre-training", {RNNS}),
        ("pretraining", {RNNS}),
        ("pre training", {RNNS}),
        ("\u03bb-initialisation", {RNNS}),
        ("lambda", {RNNS}),
        ("\u03bb", {RNNS}),
        ("beta-VAE", {STRINGS}),
        ("\u03b2-VAE", {STRINGS}),
        ("betavae", {STRINGS}),
        ("M2E", {STRINGS}),
        ("M^2E", {STRINGS}),
        ("c++", {STRINGS}),
        ("C++,", {STRINGS}),
        ("gpt-4", {STRINGS}),
        ("gpt4", {STRINGS}),
        ("the mamba", {MAMBA}),
        ("of the", {LITTLE, RNNS, STRINGS}),
        ('"the of and"', {LITTLE}),
        ("\u6ce8\u610f\u529b\u673a\u5236", {GRAPHS}),
        ("\u6ce8\u610f\u529b", {GRAPHS}),
        ("Transformer\u63a8\u8350\u7cfb\u7edf", {GRAPHS}),
        ("title:\u56fe\u795e\u7ecf\u7f51\u7edc", {GRAPHS}),
        ("xyzzyplugh", set()),
        ("!!! ???", set()),
        ("- -", set()),
        ("- - year:2021", {GRAPHS}),
    ],
)
def test_a_query_finds_these_papers(index, text, keys):
    strict = index.search(text, sort="newest")  # sorted by day, nothing is added that has only some of the words
    assert set(strict.keys) == keys
    assert strict.total == len(keys)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("2303.06349", RNNS),
        ("arXiv:2303.06349v2", RNNS),
        ("https://arxiv.org/abs/2303.06349", RNNS),
        ("2303.6349", RNNS),
        ("hep-th/9901001", STRINGS),
        ("10.1000/abc", STRINGS),
        ("https://doi.org/10.1000/ABC", STRINGS),
        ("10.1000/xyz", LITTLE),
    ],
)
def test_an_identifier_leads_straight_to_its_paper(index, text, key):
    found = index.search(text)
    assert (found.exact, found.keys, found.total) == (key, [key], 1)


def test_an_identifier_that_is_not_here_is_said_to_be_missing(index):
    found = index.search("2401.06769")
    assert found.exact is None
    assert "arXiv:2401.06769 is not on this shelf." in found.notices


def test_papers_with_all_words_come_before_those_with_some(index):
    found = index.search("recurrent mamba sequences bengio")
    assert found.total > 1
    assert "some of them" in found.notices[-1]
    assert index.search("sequence performance").keys[0] == RNNS
    assert set(index.search("sequence performance").keys) == {RNNS, MAMBA}


def test_all_words_in_a_remark_come_before_one_in_every_title_and_similar_ones_between(tmp_path, new_shelf):
    shelf = new_shelf()
    filler = " ".join(f"filler{i}" for i in range(200))
    for number in range(6):
        shelf.put(Paper(key=f"one{number}", source="s", title="zebra", abstract="zebra zebra zebra", remark="zebra"))
    shelf.put(Paper(key="similar", source="s", title="flamingos", remark=f"zebra {filler}"))
    shelf.put(Paper(key="all", source="s", title=filler, abstract=filler, remark=f"zebra {filler} flaminga"))
    index = open_index(tmp_path)
    index.update(shelf)
    found = index.search("flaminga zebra")
    assert found.keys[:2] == ["all", "similar"]
    assert found.total == 8
    assert len(found.notices) == 2


def test_chinese_falls_back_to_its_pairs(index):
    found = index.search("\u56fe\u795e\u7ecf\u7f51\u7edc\u6a21\u578b")
    assert found.keys == [GRAPHS]
    assert found.notices == ["No paper has all of these; here are papers with some of them."]


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("recurent", {RNNS}),
        ("mmaba", {MAMBA}),
        ("selectve spaces", {MAMBA, RNNS}),
        ("resurecting", {RNNS}),
        ("transfromr", {GRAPHS}),
        ("author:orvietto", {RNNS}),
        ("begnio", {RNNS}),
    ],
)
def test_misspelt_words_find_similar_ones_and_say_so(index, text, keys):
    found = index.search(text)
    assert keys & set(found.keys)
    assert found.keys[0] in keys
    assert "Similar spellings" in found.notices[0]


def test_no_more_than_three_words_are_taken_for_misspelt(index):
    found = index.search("mmaba recurent begnio orvietto")
    assert found.notices[0].count("\u201c") == 3
    assert found.notices[1] == "No more than 3 words of a query are taken for misspelt ones."


@pytest.mark.parametrize("text", ["vea", "123456789", "abs:xyzzyplughq", "-mmaba strings", '"mmaba"'])
def test_short_words_numbers_exclusions_and_phrases_are_not_guessed_at(index, text):
    assert not any("Similar" in notice for notice in index.search(text).notices)


def test_sorted_by_day_the_newest_or_the_oldest_comes_first(index):
    everything = "-xyzzyplugh"
    assert index.search(everything, sort="newest").keys == [MAMBA, RNNS, GRAPHS, LITTLE, STRINGS]
    assert index.search(everything, sort="oldest").keys == [STRINGS, LITTLE, GRAPHS, RNNS, MAMBA]


def test_within_a_day_newest_first_keeps_the_order_of_the_announcement(tmp_path, new_shelf):
    shelf = new_shelf()
    for place in (2, 0, 1):
        shelf.put(Paper(key=f"p{place}", source="s", title="same", announced=date(2024, 1, 1), announced_seq=place))
    shelf.put(Paper(key="later", source="s", title="same", announced=date(2024, 1, 2), announced_seq=9))
    index = open_index(tmp_path)
    index.update(shelf)
    assert index.search("same", sort="newest").keys == ["later", "p0", "p1", "p2"]


def test_the_title_counts_more_than_the_abstract_and_that_more_than_remarks(tmp_path, new_shelf):
    shelf = new_shelf()
    filler = " ".join(f"filler{i}" for i in range(12))
    shelf.put(Paper(key="remark", source="s", title=filler, abstract=filler, remark=f"zebra {filler}"))
    shelf.put(Paper(key="abstract", source="s", title=filler, abstract=f"zebra {filler}", remark=filler))
    shelf.put(Paper(key="title", source="s", title=f"zebra {filler}", abstract=filler, remark=filler))
    index = open_index(tmp_path)
    index.update(shelf)
    assert index.search("zebra").keys == ["title", "abstract", "remark"]


def test_pages_follow_each_other_without_gap_or_overlap(index):
    whole = index.search("-xyzzyplugh", limit=5).keys
    assert [index.search("-xyzzyplugh", limit=1, offset=i).keys[0] for i in range(5)] == whole
    assert index.search("-xyzzyplugh", limit=3, offset=3).keys == whole[3:]
    beyond = index.search("-xyzzyplugh", offset=100)
    assert (beyond.keys, beyond.total) == ([], 5)


@pytest.mark.parametrize(("limit", "offset"), [(0, 0), (-5, -5), (10**9, 0), (20, 10**15), (10**9, 10**9)])
def test_no_page_is_too_long_or_too_deep(index, limit, offset):
    found = index.search("sequence", limit=limit, offset=offset)
    assert found.total == 2
    assert len(found.keys) <= 2


def test_terms_are_what_to_highlight_but_not_what_is_excluded(index):
    assert index.search("recurrent networks -bengio").terms == ["recurr", "network"]
    assert index.search('"state space"').terms == ["state space"]
    assert index.search("pre-training").terms == ["pre train", "pretrain"]


@pytest.mark.parametrize(
    "text",
    [
        '"(((',
        "x" * 10_000,
        "\x00",
        "\ud800\udfff",
        '"' * 7,
        "(" * 5_000,
        "a OR " * 3_000,
        "\u202e",
        "*",
        'year:""',
        "10.1000/x\ud800",
    ],
)
def test_hostile_text_is_answered(index, text):
    found = index.search(text)
    assert found.total >= 0
    assert not any("damaged" in notice for notice in found.notices)


TYPED = """ " ( ) - * : OR AND NOT title: cat: year: date: id: author: venue: method: .. a cs.LG 2024 + ~ \\
\u6ce8\u610f c++ the mamba recurrent mmaba sequence bengio \u03b2 ^ _ ' 0001 9999-12-31 10.1000/x 2401.06769 """
PIECES = st.lists(
    st.sampled_from([*TYPED.split(), " ", " ", "\x00", "\ud800"])
    | st.text(alphabet=st.characters(codec=None), max_size=3),
    max_size=25,
).map("".join)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(PIECES, st.sampled_from(["relevance", "newest", "oldest"]))
def test_no_text_is_an_error(index, text, sort):
    found = index.search(text, sort=sort)
    assert not any("damaged" in notice for notice in found.notices)
    assert len(found.keys) == len(set(found.keys)) <= found.total
