"""The arXiv snapshot on Kaggle: JSON lines, one for each paper of arXiv, with the dates of its versions."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from datetime import UTC, date, datetime
from email.utils import parsedate_to_datetime
from operator import itemgetter
from typing import Any

from carrel.papers.fold import Announcement, Record
from carrel.papers.model import Paper
from carrel.papers.text import clean

from . import arxiv
from .report import Rejected, Remark
from .schedule import estimated_announcement
from .streams import Line

SOURCE = "kaggle"
_VERSIONS = range(1, 1000)


def matches(row: dict[str, Any]) -> bool:
    """Whether a JSON object is a row of the snapshot."""
    return "id" in row and bool(row.keys() & {"versions", "update_date", "authors_parsed"})


def read(lines: Iterable[Line]) -> Iterator[Record | Remark]:
    """A record or a rejection for each line, and remarks.

    ``update_date`` says as of when a row is current. The snapshot does not tell when a paper was announced: that is
    estimated from the first version's date, and the id gives the place within the day.
    """
    for line in lines:
        try:
            row = arxiv.json_object(line)
            identifier = arxiv.identifier(row)
            title = arxiv.title(row)
        except Rejected as error:
            yield Remark(line.number, str(error), line.text.decode(errors="replace"))
            continue
        codes, odd = arxiv.categories(row.get("categories"))
        versions, lost = _versions(row.get("versions"))
        if odd or lost:
            reason = "; ".join(filter(None, (odd, lost)))
            yield Remark(line.number, reason, line.text.decode(errors="replace"), kept=True)
        mark = hashlib.blake2b(line.text, digest_size=16).digest()
        yield _record(row, identifier.key, identifier.id, title, codes, versions, mark)


def _record(
    row: dict[str, Any],
    key: str,
    identifier: str,
    title: str,
    codes: tuple[str, ...],
    versions: list[tuple[int, datetime | None]],
    mark: bytes,
) -> Record:
    submitted = next((at for number, at in versions if number == 1), None)
    announced = None
    if submitted is not None:
        place = int(identifier.rpartition("/")[2].replace(".", ""))  # ids of one day rise in the order of its list
        announced = Announcement(estimated_announcement(submitted), place, estimated=True)
    as_of = _as_of(row.get("update_date"), versions)

    def build() -> Paper:
        comment = arxiv.text(row.get("comments"))
        return Paper(
            key=key,
            source=SOURCE,
            as_of=as_of,
            title=arxiv.text(title) or title.strip(),
            abstract=arxiv.abstract(row.get("abstract")),
            authors=_authors(row),
            categories=codes,
            version=max((number for number, _ in versions), default=None),
            submitted=submitted,
            updated=max(versions, key=itemgetter(0))[1] if versions else None,
            comment=comment,
            journal_ref=arxiv.text(row.get("journal-ref")),
            doi=arxiv.text(row.get("doi")),
            license=arxiv.text(row.get("license")),
            withdrawn=arxiv.withdrawn(comment),
            announced=announced.day if announced else None,
            announced_seq=announced.seq if announced else 0,
            announced_estimated=announced is not None,
        )

    return Record(key, SOURCE, as_of, mark, announced, build)


def _versions(value: Any) -> tuple[list[tuple[int, datetime | None]], str | None]:
    """(number, instant) of each version, and what was wrong."""
    found: list[tuple[int, datetime | None]] = []
    for entry in value if isinstance(value, list) else ():
        if not isinstance(entry, dict):
            return found, "a version is no object and was left out"
        name, created = entry.get("version"), entry.get("created")
        try:
            number = int(str(name).removeprefix("v"))
        except ValueError:
            number = 0
        if number not in _VERSIONS:
            return found, f"a version is called {name!r:.40} and was left out"
        try:
            found.append((number, _instant(str(created))))
        except (TypeError, ValueError, OverflowError):
            return [*found, (number, None)], f"the date of version {number} cannot be read: {created!r:.60}"
    return found, None


def _instant(text: str) -> datetime:
    instant = parsedate_to_datetime(text)
    if not arxiv.is_sensible(instant):
        raise ValueError
    return instant.replace(tzinfo=UTC) if instant.tzinfo is None else instant.astimezone(UTC)


def _as_of(update_date: Any, versions: list[tuple[int, datetime | None]]) -> str:
    try:
        return date.fromisoformat(update_date).isoformat()
    except (TypeError, ValueError):
        return max((at.date().isoformat() for _, at in versions if at is not None), default="")


def _authors(row: dict[str, Any]) -> tuple[str, ...]:
    parsed = row.get("authors_parsed")
    names = []
    for parts in parsed if isinstance(parsed, list) else ():
        if isinstance(parts, list) and len(parts) >= 2:
            last, first, *suffix = (part.strip() if isinstance(part, str) else "" for part in parts[:3])
            names.append(clean(" ".join(filter(None, (first, last, *suffix))), one_line=True))
    return tuple(filter(None, names)) or arxiv.authors(row.get("authors"))
