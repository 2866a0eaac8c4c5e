"""The visible paper is a function of the set of records: order, repetition and batches do not matter."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from carrel.papers import fold
from carrel.papers.fold import Announcement
from carrel.papers.model import Paper
from carrel.papers.store import Counts, Store, open_store

KEY = "arxiv:2401.00001"


def record(source: str = "kaggle", **said: object) -> Paper:
    return Paper(**{"key": KEY, "source": source, "title": "t", **said})


def test_the_newest_record_speaks_first_and_older_ones_fill_what_it_leaves_empty() -> None:
    old = record("kaggle", as_of="2024-01-01", title="old", doi="10.1/x", version=1, authors=("A",))
    new = record("daily", as_of="2024-02-01", title="new", authors=("A", "B"))
    told = fold.fold([old, new])
    assert (told.title, told.doi, told.version, told.authors) == ("new", "10.1/x", 1, ("A", "B"))
    assert (told.source, told.as_of) == ("daily", "2024-02-01")


def test_a_record_without_a_date_comes_last() -> None:
    starter = record("starter", title="ours", remark="A remark.", year=2024)
    told = fold.fold([starter, record("daily", as_of="2024-01-01", title="theirs")])
    assert (told.title, told.remark, told.year) == ("theirs", "A remark.", 2024)


def test_only_sources_that_know_of_withdrawals_take_one_back() -> None:
    withdrawn = record("kaggle", as_of="2024-01-01", withdrawn=True)
    assert fold.fold([withdrawn, record("bibtex", as_of="2025-01-01")]).withdrawn
    assert not fold.fold([withdrawn, record("daily", as_of="2025-01-01")]).withdrawn


@pytest.mark.parametrize(
    ("seen", "computed", "kept"),
    [
        (date(2024, 1, 10), date(2024, 1, 9), "seen"),  # the schedule is a day off at times
        (date(2024, 1, 8), date(2024, 1, 9), "seen"),
        (date(2024, 6, 1), date(2024, 1, 9), "computed"),  # listed again months later, as a replacement
    ],
)
def test_a_day_that_was_seen_beats_one_computed_unless_it_came_months_later(
    seen: date, computed: date, kept: str
) -> None:
    days = {"seen": Announcement(seen, 3, False), "computed": Announcement(computed, 9, True)}
    assert fold.first_announcement(days.values()) == days[kept]
    assert fold.first_announcement([*days.values(), None][::-1]) == days[kept]


def test_the_earliest_day_and_place_is_kept() -> None:
    later, first = Announcement(date(2024, 1, 2), 0, False), Announcement(date(2024, 1, 1), 5, False)
    place = Announcement(date(2024, 1, 1), 4, False)
    assert fold.earliest([later, first, place, None]) == place
    assert fold.earliest([None]) is None


def test_content_survives_being_written_down() -> None:
    paper = record(
        as_of="2024-01-01",
        authors=("Ä", "B"),
        categories=("cs.LG",),
        submitted=datetime(2024, 1, 1, 5, 6, 7, tzinfo=UTC),
        withdrawn=True,
        announced=date(2024, 1, 2),
        announced_seq=4,
    )
    assert fold.load(KEY, "kaggle", "2024-01-01", fold.dump(paper), fold.announcement_of(paper)) == paper


@pytest.mark.parametrize(
    ("paper", "day"),
    [
        (record(announced=date(2024, 1, 9), year=2023), date(2024, 1, 9)),
        (record(submitted=datetime(2024, 1, 5, 23, tzinfo=UTC), year=2023), date(2024, 1, 5)),
        (record(year=2024), date(2024, 1, 1)),
        (replace(record(), key="arxiv:2312.12345", year=2024), date(2023, 12, 1)),
        (replace(record(), key="arxiv:hep-th/9912001"), date(1999, 12, 1)),
        (replace(record(), key="bibtex:x", year=1950), date(1950, 1, 1)),
        (replace(record(), key="bibtex:2401.00001"), date.min),
    ],
)
def test_papers_are_sorted_by_the_best_date_known(paper: Paper, day: date) -> None:
    assert fold.day_of(paper) == day


INSTANTS = st.sampled_from([None, datetime(2024, 1, 1, tzinfo=UTC), datetime(2024, 2, 1, 3, 4, 5, tzinfo=UTC)])
RECORDS = st.builds(
    Paper,
    key=st.sampled_from([KEY, "arxiv:2401.00002"]),
    source=st.sampled_from(["daily", "kaggle", "starter"]),
    title=st.sampled_from(["linear recurrent unit", "b"]),
    as_of=st.sampled_from(["", "2024-01-01", "2024-01-02"]),
    abstract=st.sampled_from(["", "x"]),
    authors=st.sampled_from([(), ("A",)]),
    categories=st.sampled_from([(), ("cs.LG",), ("cs.CL", "cs.LG")]),
    version=st.sampled_from([None, 1, 2]),
    submitted=INSTANTS,
    announced=st.sampled_from([None, date(2024, 1, 1), date(2024, 1, 2), date(2024, 6, 1)]),
    announced_seq=st.integers(0, 2),
    announced_estimated=st.booleans(),
    doi=st.sampled_from([None, "10.1/x"]),
    withdrawn=st.booleans(),
)


def normal(paper: Paper) -> Paper:
    return paper if paper.announced else replace(paper, announced_seq=0, announced_estimated=False)


def tables(store: Store) -> dict[str, list[tuple[object, ...]]]:
    """Everything that is kept, but for the index's outbox."""
    with store._engine.connect() as connection:
        return {
            name: sorted(map(tuple, connection.execute(sa.text(f"SELECT * FROM {name}"))), key=repr)
            for name in ("paper", "paper_source", "paper_category", "paper_method", "meta")
        }


@pytest.fixture(scope="module")
def shelves():
    pair = [open_store("sqlite://", aliases={"lru": ["linear recurrent unit"]}) for _ in range(2)]
    yield pair
    for store in pair:
        store.close()


def clear(store: Store) -> None:
    with store._engine.begin() as connection:
        for name in ("index_outbox", "meta", "paper"):
            connection.execute(sa.text(f"DELETE FROM {name}"))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(records=st.lists(RECORDS.map(normal), min_size=1, max_size=7), data=st.data())
def test_the_end_state_is_that_of_the_set_of_records_in_any_order_and_batches(
    shelves: list[Store], records: list[Paper], data: st.DataObject
) -> None:
    at_once, shuffled = shelves
    clear(at_once)
    clear(shuffled)
    assert not any(tables(at_once).values())
    with at_once.begin() as papers:
        papers.put(records)
    for piece in data.draw(st.permutations(records)):
        with shuffled.begin() as papers:
            papers.put([piece])
    assert tables(at_once) == tables(shuffled)

    with at_once.begin() as papers:  # and it is the fold of what each source said last
        for key in {r.key for r in records}:
            last = []
            for source in {r.source for r in records if r.key == key}:
                said = [r for r in records if (r.key, r.source) == (key, source)]
                newest = max(said, key=lambda r: (r.as_of, fold.content_hash(r)))
                last.append(fold.with_announcement(newest, fold.earliest(map(fold.announcement_of, said))))
            assert papers.get(key) == fold.fold(last)

    with shuffled.begin() as papers:
        waiting = papers.outbox()
        keys = {r.key for r in records}
        assert papers.put(records[::-1]) == Counts(unchanged=len(keys))
        assert papers.outbox() == waiting
    assert tables(at_once) == tables(shuffled)
