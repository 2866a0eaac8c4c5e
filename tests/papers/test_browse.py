"""What pages show: days with their neighbours, the front page, a paper, finds."""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa

from carrel.papers.browse import Browse, paper_json
from carrel.papers.categories import UnknownCategory
from carrel.papers.model import Paper, PaperNotFound
from carrel.papers.store import open_store


@dataclass
class Found:
    keys: list[str] = field(default_factory=list)
    total: int = 0
    notices: list[str] = field(default_factory=list)
    terms: list[str] = field(default_factory=list)
    exact: str | None = None


class FakeIndex:
    def __init__(self) -> None:
        self.found = Found()
        self.asked: tuple[object, ...] = ()

    def search(self, text: str, *, limit: int, offset: int, sort: str) -> Found:
        self.asked = (text, limit, offset, sort)
        return self.found


def paper(number: int, day: int | None, *categories: str, **said: object) -> Paper:
    announced = date(2024, 1, day) if day else None
    base = {"source": "daily", "title": f"Paper {number}", "categories": categories, "announced": announced}
    return Paper(**{"key": f"arxiv:2401.{number:05}", "announced_seq": number, **base, **said})


PAPERS = [
    paper(1, 2, "cs.LG"),
    paper(2, 4, "cs.LG", "cs.CL"),
    paper(3, 4, "cs.CL", "cs.LG", title="On Mamba"),
    paper(4, 4, "cs.CV", "cs.LG"),
    paper(5, 9, "cs.LG"),
    paper(6, 10, "cs.CL"),
    Paper(key="doi:10.1/x", source="bibtex", title="Elsewhere", year=1990),
]


@pytest.fixture
def browse(tmp_path: Path):
    store = open_store(tmp_path, aliases={"mamba": ["Mamba"]})
    with store.begin() as papers:
        papers.put(PAPERS)
    yield Browse(store, FakeIndex(), followed=("cs.LG", "cs.CL", "math.CO"))
    store.close()


def test_a_day_shows_its_papers_methods_and_neighbours(browse: Browse) -> None:
    shown = browse.day("cs.LG", date(2024, 1, 4))
    assert [p.title for p in shown.papers] == ["Paper 2", "On Mamba", "Paper 4"]
    assert shown.methods == {"arxiv:2401.00003": ("mamba",)}
    assert (shown.previous, shown.next) == (date(2024, 1, 2), date(2024, 1, 9))
    assert (shown.new, shown.cross) == (1, 2)
    assert shown.expression.text == "cs.LG"


def test_without_a_day_the_newest_is_shown(browse: Browse) -> None:
    assert browse.day("cs.LG").day == date(2024, 1, 9)
    shown = browse.day("cs.LG+cs.CL")
    assert (shown.day, shown.previous, shown.next) == (date(2024, 1, 10), date(2024, 1, 9), None)


def test_neighbours_heed_what_is_taken_away(browse: Browse) -> None:
    shown = browse.day("cs.CL-cs.LG", date(2024, 1, 11))
    assert (shown.papers, shown.previous, shown.next) == ((), date(2024, 1, 10), None)
    assert browse.day("cs.CL-cs.LG").previous is None


def test_an_expression_without_papers_has_no_day(browse: Browse) -> None:
    shown = browse.day("math.CO")
    assert (shown.day, shown.papers, shown.new, shown.cross) == (None, (), 0, 0)


def test_an_unknown_category_is_told(browse: Browse) -> None:
    with pytest.raises(UnknownCategory, match=r"cs\.XX"):
        browse.day("cs.XX")


def test_a_month_counts_its_days_for_the_calendar(browse: Browse) -> None:
    assert browse.month("cs.LG", 2024, 1) == [(date(2024, 1, 2), 1), (date(2024, 1, 4), 3), (date(2024, 1, 9), 1)]
    assert browse.month(None, 2024, 1)[-1] == (date(2024, 1, 10), 1)
    assert browse.month("cs.LG", 2024, 2) == []
    assert browse.categories_on(date(2024, 1, 4)) == [("cs.LG", 3), ("cs.CL", 2), ("cs.CV", 1)]


def test_the_front_page_shows_followed_categories_and_the_newest_papers(browse: Browse) -> None:
    home = browse.home()
    assert home.count == 7
    assert [(s.expression.text, s.day.day, s.count) for s in home.followed] == [("cs.LG", 9, 1), ("cs.CL", 10, 1)]
    assert [p.title for p in home.recent][:2] == ["Paper 6", "Paper 5"]
    assert home.recent[-1].title == "Elsewhere"
    assert [p.title for p in home.speaking] == ["On Mamba"]
    assert home.methods == {"arxiv:2401.00003": ("mamba",)}


def test_an_empty_shelf_has_an_empty_front_page() -> None:
    store = open_store("sqlite://")
    home = Browse(store, FakeIndex()).home()
    assert (home.count, home.followed, home.recent, home.speaking) == (0, (), (), ())
    store.close()


@pytest.mark.parametrize("name", ["arxiv:2401.00003", "2401.00003v2", "https://arxiv.org/abs/2401.00003"])
def test_a_paper_is_shown_by_key_or_any_spelling_of_its_id(browse: Browse, name: str) -> None:
    shown = browse.paper(name)
    assert (shown.paper.title, shown.methods) == ("On Mamba", ("mamba",))


@pytest.mark.parametrize("name", ["arxiv:2401.99999", "doi:none", "anything"])
def test_a_paper_that_is_not_here_is_not_found(browse: Browse, name: str) -> None:
    with pytest.raises(PaperNotFound):
        browse.paper(name)


def test_finds_become_papers_in_their_order(browse: Browse) -> None:
    browse.index.found = Found(["arxiv:2401.00003", "arxiv:gone", "doi:10.1/x"], 17, ["A notice."], ["mamba"])
    shown = browse.search("mamba", limit=3, offset=6, sort="newest")
    assert browse.index.asked == ("mamba", 3, 6, "newest")
    assert [p.title for p in shown.papers] == ["On Mamba", "Elsewhere"]
    assert shown.methods == {"arxiv:2401.00003": ("mamba",)}
    assert (shown.total, shown.notices, shown.terms, shown.exact) == (17, ("A notice.",), ("mamba",), None)
    told = json.loads(json.dumps(shown.to_json()))
    assert told["papers"][0]["methods"] == ["mamba"]
    assert told["papers"][0]["announced"] == "2024-01-04"


def test_another_sort_is_refused(browse: Browse) -> None:
    with pytest.raises(ValueError, match="sort is 'relevance', 'newest' or 'oldest', not 'best'"):
        browse.search("mamba", sort="best")


def test_an_id_is_exact_only_if_the_paper_is_here(browse: Browse) -> None:
    browse.index.found = Found(exact="arxiv:2401.00003")
    assert browse.search("2401.00003").exact == "arxiv:2401.00003"
    browse.index.found = Found(exact="arxiv:2401.99999")
    shown = browse.search("2401.99999")
    assert shown.exact is None
    assert shown.notices == ("2401.99999 is the id of a paper that is not on this shelf.",)


def test_a_paper_as_json_has_only_what_is_known() -> None:
    told = paper_json(
        Paper(key="doi:1", source="s", title="t", submitted=datetime(2024, 1, 2, 3, tzinfo=UTC), withdrawn=True)
    )
    assert told == {
        "key": "doi:1",
        "source": "s",
        "title": "t",
        "submitted": "2024-01-02T03:00:00+00:00",
        "withdrawn": True,
    }


def test_lists_are_read_from_indexes_and_not_by_looking_at_every_paper(browse: Browse) -> None:
    seen: list[tuple[str, object]] = []

    @sa.event.listens_for(browse.store._engine, "before_cursor_execute")
    def note(conn: object, cursor: object, statement: str, parameters: object, *_: object) -> None:
        if statement.startswith("SELECT"):
            seen.append((statement, parameters))

    browse.day("cs-cs.CV", date(2024, 1, 4))
    browse.month("cs.LG", 2024, 1)
    browse.month(None, 2024, 1)
    browse.paper("arxiv:2401.00003")
    browse.home()
    sa.event.remove(browse.store._engine, "before_cursor_execute", note)
    assert len(seen) > 10
    with browse.store._engine.connect() as connection:
        for statement, parameters in seen:
            if "count(*) AS count_1 \nFROM paper" in statement and "WHERE" not in statement:
                continue  # how many papers there are: the one question that needs them all
            for step in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters):
                detail = step[-1]
                assert not re.match(r"SCAN (paper|other)", detail) or "INDEX" in detail, (detail, statement)


def test_a_list_of_a_hundred_papers_is_assembled_quickly(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    text = "An abstract of the usual length. " * 40
    rows = [paper(n, n % 28 + 1, "cs.LG", "cs.CL", abstract=text, authors=("A B",) * 5) for n in range(2800)]
    with store.begin() as papers:
        papers.put(rows)
    browse = Browse(store, FakeIndex())
    seconds = []
    for _ in range(5):
        start = time.process_time()
        shown = browse.day("cs.LG", date(2024, 1, 5))
        seconds.append(time.process_time() - start)
    assert len(shown.papers) == 100
    assert min(seconds) < 0.02
    store.close()
