"""Daily listings: JSON lines, one for each paper and day it was listed, in the order of the day's list."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import date
from typing import Any

import orjson

from carrel.papers.fold import Announcement, Record
from carrel.papers.model import Paper

from . import arxiv
from .report import Rejected, Remark
from .streams import Line

SOURCE = "daily"


def matches(row: dict[str, Any]) -> bool:
    """Whether a JSON object is a row of a daily listing."""
    return row.keys() >= {"day", "id"}


def read(lines: Iterable[Line]) -> Iterator[Record | Remark]:
    """A record or a rejection for each line, and remarks.

    The day of a row is when the paper was announced (the first such day stays) and as of when its text is current (the
    last such day wins). The place within the day is that among the rows of the day in this file.
    """
    places: Counter[date] = Counter()
    for line in lines:
        try:
            row = arxiv.json_object(line)
            day = _day(row)
            place = places[day]
            places[day] += 1  # counted before anything can be rejected: a place depends on the file alone
            key = arxiv.identifier(row).key
            title = arxiv.title(row)
        except Rejected as error:
            yield Remark(line.number, str(error), line.text.decode(errors="replace"))
            continue
        codes, odd = arxiv.categories(row.get("categories"))
        if odd:
            yield Remark(line.number, odd, line.text.decode(errors="replace"), kept=True)
        yield _record(row, key, title, codes, Announcement(day, place, estimated=False))


def _record(row: dict[str, Any], key: str, title: str, codes: tuple[str, ...], at: Announcement) -> Record:
    said = [row.get(name) for name in ("title", "authors", "summary", "comment")]
    mark = hashlib.blake2b(orjson.dumps([codes, said]), digest_size=16).digest()
    as_of = at.day.isoformat()

    def build() -> Paper:
        comment = arxiv.text(row.get("comment"))
        return Paper(
            key=key,
            source=SOURCE,
            as_of=as_of,
            title=arxiv.text(title) or title.strip(),
            abstract=arxiv.abstract(row.get("summary")),
            authors=arxiv.authors(row.get("authors")),
            categories=codes,
            comment=comment,
            withdrawn=arxiv.withdrawn(comment),
            announced=at.day,
            announced_seq=at.seq,
        )

    return Record(key, SOURCE, as_of, mark, at, build)


def _day(row: dict[str, Any]) -> date:
    try:
        day = date.fromisoformat(row["day"])
        if not arxiv.is_sensible(day):
            raise ValueError
        return day
    except KeyError:
        raise Rejected("it has no day") from None
    except (TypeError, ValueError):
        raise Rejected(f"its day is no date such as 2024-01-31: {row['day']!r:.60}") from None
