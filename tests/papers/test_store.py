"""The store: what goes in comes out, in arXiv's order, whatever the order it came in."""

from __future__ import annotations

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa

from carrel.papers import database
from carrel.papers.database import StoreError
from carrel.papers.model import Paper, PaperNotFound
from carrel.papers.store import Counts, Store, open_store

FULL = Paper(
    key="arxiv:2303.06349",
    source="kaggle",
    as_of="2023-03-14",
    title="A title with $\\alpha$",
    abstract="First line.\n\nSecond, Schrödinger.",
    authors=("Ada Lovelace", "Alan Turing"),
    categories=("cs.LG", "stat.ML"),
    version=2,
    submitted=datetime(2023, 3, 11, 8, 0, 1, tzinfo=UTC),
    updated=datetime(2023, 3, 13, 9, 30, tzinfo=UTC),
    announced=date(2023, 3, 14),
    announced_seq=7,
    announced_estimated=True,
    year=2023,
    venue="ICML 2023",
    comment="30 pages",
    journal_ref="Proc. 40",
    doi="10.1000/182",
    license="http://creativecommons.org/licenses/by/4.0/",
    remark="Ours.",
    withdrawn=True,
)


@pytest.fixture
def store(tmp_path: Path):
    store = open_store(tmp_path)
    yield store
    store.close()


def listed(number: int, day: int | None, *categories: str, seq: int = 0, **more: object) -> Paper:
    return Paper(
        key=f"arxiv:2401.{number:05}",
        source="daily",
        title=f"Paper {number}",
        categories=categories,
        announced=None if day is None else date(2024, 1, day),
        announced_seq=seq,
        **more,
    )


def put(store: Store, *papers: Paper) -> Counts:
    with store.begin() as shelf:
        return shelf.put(papers)


def test_a_paper_comes_out_as_it_went_in(store: Store) -> None:
    assert put(store, FULL) == Counts(new=1)
    with store.begin() as papers:
        assert papers.get(FULL.key) == FULL


def test_a_paper_survives_closing_the_store(tmp_path: Path) -> None:
    for _ in range(2):
        store = open_store(tmp_path)
        put(store, FULL)
        store.close()
    store = open_store(tmp_path)
    with store.begin() as papers:
        assert papers.get(FULL.key) == FULL
        assert papers.count() == 1
    store.close()


def test_putting_the_same_again_changes_nothing(store: Store) -> None:
    put(store, FULL)
    with store.begin() as papers:
        papers.outbox_done(papers.outbox()[-1][0])
    assert put(store, FULL) == Counts(unchanged=1)
    with store.begin() as papers:
        assert papers.outbox() == []


def test_an_unknown_key_is_not_found(store: Store) -> None:
    with store.begin() as papers, pytest.raises(PaperNotFound, match="arxiv:1"):
        papers.get("arxiv:1")


def test_an_error_undoes_the_whole_transaction(store: Store) -> None:
    def fail() -> None:
        with store.begin() as papers:
            papers.put([FULL])
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    with store.begin() as papers:
        assert papers.count() == 0
        assert papers.outbox() == []


def test_an_instant_without_a_zone_is_refused(store: Store) -> None:
    naive = datetime(2023, 1, 1)
    with pytest.raises(ValueError, match="submitted must be an instant with a time zone"):
        put(store, Paper(key="doi:1", source="bibtex", title="t", submitted=naive))


def test_many_come_in_the_order_asked_and_the_missing_are_left_out(store: Store) -> None:
    put(store, *(listed(n, 2, "cs.LG") for n in range(5)))
    with store.begin() as papers:
        keys = ["arxiv:2401.00003", "arxiv:none", "arxiv:2401.00001"]
        assert [p.key for p in papers.get_many(keys)] == [keys[0], keys[2]]


def test_a_day_lists_included_categories_without_the_excluded_in_announcement_order(store: Store) -> None:
    put(
        store,
        listed(1, 2, "cs.LG", seq=5),
        listed(2, 2, "cs.CL", "cs.LG", seq=1),
        listed(3, 2, "cs.CV", "cs.LG", seq=0),
        listed(4, 3, "cs.LG"),
        listed(5, 2, "math.CO"),
        listed(6, None, "cs.LG"),
    )
    with store.begin() as papers:

        def numbers(expression: str | None) -> list[int]:
            return [int(p.key[-1]) for p in papers.on(date(2024, 1, 2), expression)]

        assert numbers("cs.LG") == [3, 2, 1]
        assert numbers("cs.LG-cs.CV") == [2, 1]
        assert numbers("cs.CL+cs.CV") == [3, 2]
        assert numbers("cs") == [3, 2, 1]
        assert numbers(None) == [3, 5, 2, 1]


def test_days_are_counted_newest_first(store: Store) -> None:
    put(
        store,
        listed(1, 2, "cs.LG"),
        listed(2, 2, "cs.CL", "cs.LG"),
        listed(3, 5, "cs.CV"),
        listed(4, 9, "cs.LG", "cs.CV"),
        listed(5, None, "cs.LG"),
    )
    first, fifth, ninth = date(2024, 1, 2), date(2024, 1, 5), date(2024, 1, 9)
    with store.begin() as papers:
        assert papers.days("cs.LG") == [(ninth, 1), (first, 2)]
        assert papers.days("cs.LG-cs.CV") == [(first, 2)]
        assert papers.days("cs.LG+cs.CL") == [(ninth, 1), (first, 2)]
        assert papers.days() == [(ninth, 1), (fifth, 1), (first, 2)]
        assert papers.days("cs", limit=2) == [(ninth, 1), (fifth, 1)]
        assert papers.days("cs", limit=9) == papers.days("cs")
        assert papers.days("cs", since=fifth, until=fifth) == [(fifth, 1)]
        assert papers.days("math", limit=2) == []
        assert papers.latest_day("cs.LG-cs.CV") == first
        assert papers.latest_day() == ninth
        assert papers.latest_day("math") is None
        assert papers.neighbour(first, "cs.LG", later=True) == ninth
        assert papers.neighbour(first, "cs.LG-cs.CV", later=True) is None
        assert papers.neighbour(ninth, "cs", later=False) == fifth
        assert papers.neighbour(first, later=False) is None


def test_days_with_a_limit_reach_far_back_where_papers_are_rare(store: Store) -> None:
    rare = [
        Paper(key=f"arxiv:{y}01.00001", source="s", title="t", categories=("cs.LG",), announced=date(2000 + y, 1, 5))
        for y in (10, 15, 24)
    ]
    put(store, *rare)
    with store.begin() as papers:
        assert [day.year for day, _ in papers.days("cs.LG", limit=3)] == [2024, 2015, 2010]


def test_recent_papers_come_newest_first_by_the_best_date_known(store: Store) -> None:
    put(
        store,
        listed(1, 2, "cs.LG"),
        listed(2, 9, "cs.LG"),
        Paper(key="arxiv:2303.00001", source="starter", title="by its id", year=2024),
        Paper(key="bibtex:old", source="bibtex", title="by its year", year=1950),
        Paper(key="bibtex:never", source="bibtex", title="no date at all"),
    )
    with store.begin() as papers:
        keys = ["arxiv:2401.00002", "arxiv:2401.00001", "arxiv:2303.00001", "bibtex:old", "bibtex:never"]
        assert [p.key for p in papers.recent(10)] == keys
        assert [p.key for p in papers.recent(2)] == keys[:2]
        assert list(papers.all_keys()) == sorted(keys)


def test_changes_wait_in_the_outbox_until_they_are_done(store: Store) -> None:
    put(store, listed(1, 2, "cs.LG"), listed(2, 2, "cs.LG"))
    put(store, listed(1, 2, "cs.LG", abstract="new", as_of="2024-02-01"))
    with store.begin() as papers:
        waiting = papers.outbox(10)
        assert [key[-1] for _, key in waiting] == ["1", "2", "1"]
        papers.outbox_done(waiting[1][0])
        assert papers.outbox(10) == waiting[2:]
        papers.outbox_done(waiting[2][0])
    put(store, listed(3, 2, "cs.LG"))
    with store.begin() as papers:
        (number, _) = papers.outbox(10)[0]
        assert number > waiting[2][0]


def test_reading_does_not_wait_for_a_writer(store: Store) -> None:
    put(store, FULL)
    with store.begin() as writer:
        writer.put([listed(1, 2, "cs.LG")])
        with store.begin() as reader:
            assert reader.count() == 1
        assert writer.count() == 2


def test_what_is_known_is_put_without_waiting_for_a_writer(store: Store) -> None:
    put(store, FULL)
    with store.begin() as writer:
        writer.put([listed(1, 2, "cs.LG")])
        assert put(store, FULL) == Counts(unchanged=1)


def test_reading_and_then_writing_in_one_transaction_survives_another_writer(store: Store) -> None:
    with store.begin() as papers:
        assert papers.count() == 0
        put(store, FULL)
        assert papers.put([listed(1, 2, "cs.LG")]) == Counts(new=1)
        assert papers.count() == 2


def test_writers_wait_for_each_other_and_none_fails(tmp_path: Path) -> None:
    stores = [open_store(tmp_path) for _ in range(4)]

    def write(number: int) -> None:
        for n in range(12):
            put(stores[number], listed(100 * number + n, 2, "cs.LG"), listed(9999, 2, "cs.LG", as_of=f"{n:04}"))

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(write, range(4)))
    with stores[0].begin() as papers:
        assert papers.count() == 4 * 12 + 1
        assert papers.get("arxiv:2401.09999").as_of == "0011"
    for store in stores:
        store.close()


def test_a_database_that_stays_locked_is_told_in_one_sentence(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "_PATIENCE", 2)
    with store._engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA busy_timeout = 10")  # the pool gives this connection out again
        other = sqlite3.connect(tmp_path / "carrel.sqlite3")
        other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match=r"carrel\.sqlite3 cannot be used: another program is writing to it"):
        put(store, FULL)
    other.close()
    assert put(store, FULL) == Counts(new=1)


def test_a_folder_that_is_a_file_is_refused_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"the data folder .*file.*cannot be written"):
        open_store(tmp_path / "file" / "carrel.sqlite3")


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "carrel.sqlite3").write_text("hello " * 1000)
    with pytest.raises(StoreError, match="cannot be opened: file is not a database"):
        open_store(tmp_path)


def test_a_newer_database_is_refused(tmp_path: Path) -> None:
    open_store(tmp_path).close()
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'carrel.sqlite3'}")
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    with pytest.raises(StoreError, match=r"made by a newer Carrel \(revision 9999\)"):
        open_store(tmp_path)


def test_a_store_can_live_in_memory() -> None:
    store = open_store("sqlite://")
    put(store, FULL)
    with store.begin() as papers:
        assert papers.get(FULL.key) == FULL
    store.close()
