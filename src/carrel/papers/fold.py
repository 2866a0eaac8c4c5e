"""How several records of one paper become the paper one sees: functions of the set of records, not of their order."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import orjson

from .model import Paper

# What a record says; the rest (key, source, as_of and the announcement) says when and where it was said.
CONTENT = (
    "title",
    "abstract",
    "authors",
    "categories",
    "version",
    "submitted",
    "updated",
    "year",
    "venue",
    "comment",
    "journal_ref",
    "doi",
    "license",
    "remark",
    "withdrawn",
)
_EMPTY: tuple[Any, ...] = (None, "", ())
# A feed that lists a paper this long after its estimated day was showing a replacement, not the first announcement.
_RELISTED = timedelta(days=60)
# These know nothing of withdrawals.
_SILENT_ON_WITHDRAWAL = frozenset({"starter", "bibtex"})


@dataclass(frozen=True, slots=True)
class Announcement:
    """arXiv's day, the place within it, and whether the day was computed instead of seen."""

    day: date
    seq: int
    estimated: bool


@dataclass(frozen=True, slots=True)
class Record:
    """What a source said of a paper, read but not cleaned: ``build`` does the slow part, and only where it can matter.

    ``mark`` is a hash of the untouched text without ``as_of``: equal marks of one source mean equal content.
    """

    key: str
    source: str
    as_of: str
    mark: bytes
    announcement: Announcement | None
    build: Callable[[], Paper]

    @classmethod
    def of(cls, paper: Paper) -> Record:
        """The record that says exactly what ``paper`` says."""
        paper = in_utc(paper)
        return cls(paper.key, paper.source, paper.as_of, content_hash(paper), announcement_of(paper), lambda: paper)


def announcement_of(paper: Paper) -> Announcement | None:
    """When the paper was announced, or None."""
    if paper.announced is None:
        return None
    return Announcement(paper.announced, paper.announced_seq, paper.announced_estimated)


def with_announcement(paper: Paper, announcement: Announcement | None) -> Paper:
    """The same paper, announced at another time."""
    if announcement is None:
        return replace(paper, announced=None, announced_seq=0, announced_estimated=False)
    return replace(
        paper,
        announced=announcement.day,
        announced_seq=announcement.seq,
        announced_estimated=announcement.estimated,
    )


def in_utc(paper: Paper) -> Paper:
    """The same paper with its instants in UTC. Raises ValueError for an instant without a time zone."""
    changed: dict[str, Any] = {}
    for name in ("submitted", "updated"):
        instant = getattr(paper, name)
        if instant is None or instant.tzinfo is UTC:
            continue
        if instant.tzinfo is None:
            raise ValueError(f"{paper.key}: {name} must be an instant with a time zone, not {instant.isoformat()}")
        changed[name] = instant.astimezone(UTC)
    return replace(paper, **changed) if changed else paper


def content_hash(paper: Paper) -> bytes:
    """Sixteen bytes that differ where the content differs; the announcement and ``as_of`` are not content."""
    return hashlib.blake2b(orjson.dumps([getattr(paper, name) for name in CONTENT]), digest_size=16).digest()


def dump(paper: Paper) -> str:
    """The content as one JSON line."""
    return orjson.dumps({n: v for n in CONTENT if (v := getattr(paper, n)) not in _EMPTY and v is not False}).decode()


def load(key: str, source: str, as_of: str, text: str, announcement: Announcement | None) -> Paper:
    """The inverse of `dump`."""
    values: dict[str, Any] = orjson.loads(text)
    for name in ("authors", "categories"):
        values[name] = tuple(values.get(name, ()))
    for name in ("submitted", "updated"):
        if name in values:
            values[name] = datetime.fromisoformat(values[name]).astimezone(UTC)
    return with_announcement(Paper(key=key, source=source, as_of=as_of, **values), announcement)


def earliest(announcements: Iterable[Announcement | None]) -> Announcement | None:
    """The first of one source: seen before computed, then the earliest day and place."""
    return min((a for a in announcements if a is not None), key=lambda a: (a.estimated, a.day, a.seq), default=None)


def first_announcement(announcements: Iterable[Announcement | None]) -> Announcement | None:
    """The first over all sources: a day that was seen beats one computed, unless it came two months after it."""
    known = [a for a in announcements if a is not None]
    seen = earliest(a for a in known if not a.estimated)
    computed = earliest(a for a in known if a.estimated)
    if seen is None or computed is None:
        return seen or computed
    return computed if seen.day - computed.day > _RELISTED else seen


def fold(records: Sequence[Paper]) -> Paper:
    """The paper as one sees it, from the newest record of each source.

    The newest (by ``as_of``, then content) speaks first; a field that it leaves empty is filled from the next.

    Args:
        records: one per source, at least one, all of one key.
    """
    if len(records) == 1:
        return records[0]
    order = sorted(records, key=lambda r: (r.as_of, content_hash(r), r.source), reverse=True)
    newest = order[0]
    values = {}
    for name in CONTENT:
        spoken = (v for r in order if (v := getattr(r, name)) not in _EMPTY)
        values[name] = next(spoken, getattr(newest, name))
    knowing = next((r for r in order if r.source not in _SILENT_ON_WITHDRAWAL), newest)
    values["withdrawn"] = knowing.withdrawn
    return with_announcement(replace(newest, **values), first_announcement(map(announcement_of, order)))


def day_of(paper: Paper) -> date:
    """The day to sort by: announced, else submitted, else from the arXiv id or the year, else the first day of all."""
    if paper.announced is not None:
        return paper.announced
    if paper.submitted is not None:
        return paper.submitted.date()
    digits = (paper.arxiv_id or "").rpartition("/")[2][:4]
    if len(digits) == 4 and digits.isdigit() and 1 <= int(digits[2:]) <= 12:
        short = int(digits[:2])
        return date((1900 if short >= 91 else 2000) + short, int(digits[2:]), 1)
    if paper.year is not None and 1 <= paper.year <= 9999:
        return date(paper.year, 1, 1)
    return date.min


def dated(paper: Paper, as_of: str, source: str) -> Paper:
    """The same text, said by ``source`` at ``as_of``."""
    return paper if (paper.as_of, paper.source) == (as_of, source) else replace(paper, as_of=as_of, source=source)
