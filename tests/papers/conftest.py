"""Real records for the tests of `papers`, read from the folder beside the checkout."""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from carrel.papers.model import Paper
from carrel.papers.search import Index, open_index
from carrel.papers.text import clean


@pytest.fixture(scope="session")
def daily_rows(shared: Path) -> list[dict[str, Any]]:
    """The rows of the three daily listings, in order: day, id, categories, authors, title, comment, summary."""
    rows: list[dict[str, Any]] = []
    for path in sorted((shared / "data/papers/arxiv/daily").glob("*.jsonl.xz")):
        with lzma.open(path, "rt", encoding="utf-8") as lines:
            rows.extend(json.loads(line) for line in lines)
    return rows


class Shelf:
    """What search needs of a store, in memory: the papers, and the changes that the index has not taken up."""

    def __init__(self) -> None:
        self.papers: dict[str, Paper] = {}
        self.methods: dict[str, tuple[str, ...]] = {}
        self.waiting: list[tuple[int, str]] = []
        self.changes = 0

    def put(self, *papers: Paper) -> None:
        for paper in papers:
            self.papers[paper.key] = paper
            self.changed(paper.key)

    def remove(self, key: str) -> None:
        del self.papers[key]
        self.changed(key)

    def changed(self, key: str) -> None:
        self.changes += 1
        self.waiting.append((self.changes, key))

    @contextmanager
    def begin(self) -> Iterator[Shelf]:
        yield self

    def outbox(self, limit: int) -> list[tuple[int, str]]:
        return self.waiting[:limit]

    def outbox_done(self, up_to_seq: int) -> None:
        self.waiting = [change for change in self.waiting if change[0] > up_to_seq]

    def get_many(self, keys: Iterable[str]) -> list[Paper]:
        return [self.papers[key] for key in keys if key in self.papers]

    def methods_of(self, keys: Iterable[str]) -> dict[str, tuple[str, ...]]:
        return {key: self.methods[key] for key in keys if key in self.methods}

    def all_keys(self) -> Iterator[str]:
        return iter(sorted(self.papers))

    def count(self) -> int:
        return len(self.papers)


@pytest.fixture(scope="session")
def new_shelf() -> type[Shelf]:
    """Makes an empty shelf."""
    return Shelf


@pytest.fixture(scope="session")
def real_shelf(daily_rows: list[dict[str, Any]]) -> Shelf:
    """The 20 437 papers of the listings."""
    shelf = Shelf()
    for place, row in enumerate({row["id"]: row for row in daily_rows}.values()):
        shelf.put(
            Paper(
                key=f"arxiv:{row['id']}",
                source="daily",
                title=clean(row["title"], one_line=True),
                abstract=clean(row["summary"]),
                authors=tuple(clean(name, one_line=True) for name in row["authors"]),
                categories=tuple(row["categories"]),
                announced=date.fromisoformat(row["day"]),
                announced_seq=place % 1000,
                comment=clean(row["comment"] or "", one_line=True) or None,
            )
        )
    return shelf


@pytest.fixture(scope="session")
def real_index(real_shelf: Shelf, tmp_path_factory: pytest.TempPathFactory) -> Index:
    index = open_index(tmp_path_factory.mktemp("real") / "index")
    assert index.update(real_shelf) == 20_437
    return index
