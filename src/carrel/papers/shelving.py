"""Putting records on the shelf: compare with what is known, fold what changed, write it all in one transaction."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from . import fold, linking
from .bridge import Bridge
from .fold import Announcement, Record
from .model import Paper
from .tables import index_outbox, paper, paper_category, paper_method, paper_of, paper_source, row_of


@dataclass(frozen=True, slots=True)
class Counts:
    """What `put` did, in papers; a paper named twice at once counts once."""

    new: int = 0
    updated: int = 0
    unchanged: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.new + other.new, self.updated + other.updated, self.unchanged + other.unchanged)


@dataclass(slots=True)
class _Source:
    """The newest record of one source: as it is known, or as a batch leaves it."""

    as_of: str
    hash: bytes
    mark: bytes
    announcement: Announcement | None
    paper: Paper | None = None  # None where the known text still stands and was not read

    @property
    def rank(self) -> tuple[str, bytes]:
        return self.as_of, self.hash


def shelve(connection: sa.Connection, records: Iterable[Record], bridge: Bridge | None) -> Counts:
    """Put records on the shelf; the end state depends on the set of records alone.

    Cost: a record older than what is known, or with a known mark, costs a comparison; any other is built and written.
    """
    total = Counts()
    for piece in linking.pieces(records):
        total += _Batch(connection, piece, bridge).write()
    if total.new or total.updated:
        linking.doubt(connection, bridge)
    return total


def is_known(connection: sa.Connection, records: Sequence[Record]) -> bool:
    """Whether putting these records would change nothing."""
    return all(_Batch(connection, piece, None).is_known() for piece in linking.pieces(records))


class _Batch:
    """One batch of records against what is known of their papers."""

    def __init__(self, connection: sa.Connection, records: Sequence[Record], bridge: Bridge | None) -> None:
        self.connection = connection
        self.bridge = bridge
        self.groups: dict[str, dict[str, list[Record]]] = defaultdict(lambda: defaultdict(list))
        for record in records:
            self.groups[record.key][record.source].append(record)
        self.known = _known(connection, list(self.groups))
        self.inserts: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.moved: list[dict[str, Any]] = []  # same text, later as_of: the cheapest change
        self.changed: dict[str, dict[str, _Source]] = {}  # key -> the sources that changed, where more than as_of did
        self.counts = Counts()

    def is_known(self) -> bool:
        for key, sources in self.groups.items():
            self._compare(key, sources)
        return not self.moved and not self.changed

    def write(self) -> Counts:
        for key, sources in self.groups.items():
            self._compare(key, sources)
        self._write_moved()
        self._write_changed()
        touched = self.counts.new + self.counts.updated
        return Counts(self.counts.new, self.counts.updated, len(self.groups) - touched)

    def _compare(self, key: str, sources: Mapping[str, Sequence[Record]]) -> None:
        known = self.known.get(key, {})
        changed: dict[str, _Source] = {}
        for source, records in sources.items():
            before = known.get(source)
            after = newest(records, before)
            if before is not None and after.rank == before.rank and after.announcement == before.announcement:
                if after.mark != before.mark:
                    self.moved.append({"k": key, "s": source, "as_of": after.as_of, "mark": after.mark})
                continue
            alone = before is not None and len(known) == len(sources) == 1
            if alone and after.hash == before.hash and after.announcement == before.announcement:  # type: ignore[union-attr]
                self.moved.append({"k": key, "s": source, "as_of": after.as_of, "mark": after.mark})
            else:
                changed[source] = after
        if changed:
            self.changed[key] = changed

    def _write_moved(self) -> None:
        if not self.moved:
            return
        source = (
            sa.update(paper_source)
            .where(paper_source.c.key == sa.bindparam("k"), paper_source.c.source == sa.bindparam("s"))
            .values(as_of=sa.bindparam("as_of"), mark=sa.bindparam("mark"))
        )
        seen = (
            sa.update(paper)
            .where(paper.c.key == sa.bindparam("k"), paper.c.source == sa.bindparam("s"))
            .where(paper.c.as_of < sa.bindparam("as_of"))
            .values(as_of=sa.bindparam("as_of"))
        )
        self.connection.execute(source, self.moved)
        self.connection.execute(seen, [{n: row[n] for n in ("k", "s", "as_of")} for row in self.moved])

    def _write_changed(self) -> None:
        if not self.changed:
            return
        old = [key for key in self.changed if key in self.known]
        shelf = {p.key: p for p in _papers(self.connection, old)}
        records = _records(self.connection, [key for key in old if len(self.known[key]) > 1])
        for key, changed in self.changed.items():
            before = shelf.get(key)
            said: dict[str, Paper] = dict(records.get(key, {}))
            if before is not None and not said:
                (only,) = self.known[key]
                said[only] = before
            for source, after in changed.items():
                text = after.paper or said[source]
                said[source] = fold.with_announcement(_dated(text, after.as_of), after.announcement)
            self._write_sources(key, said, changed)
            self._write_paper(before, fold.fold(list(said.values())))
        self._flush()

    def _write_sources(self, key: str, said: Mapping[str, Paper], changed: Mapping[str, _Source]) -> None:
        alone = len(said) == 1
        known = self.known.get(key, {})
        for source in said if not alone and len(known) < 2 else changed:
            state = changed.get(source) or known[source]
            at = state.announcement
            self.inserts["source"].append(
                {
                    "key": key,
                    "source": source,
                    "as_of": state.as_of,
                    "content_hash": state.hash,
                    "mark": state.mark,
                    "announced": at.day if at else None,
                    "announced_seq": at.seq if at else 0,
                    "announced_estimated": at.estimated if at else False,
                    "record": None if alone else fold.dump(said[source]),
                }
            )

    def _write_paper(self, before: Paper | None, after: Paper) -> None:
        if before == after:
            return
        day = fold.day_of(after)
        self.inserts["paper" if before is None else "again"].append(row_of(after, day))
        if before is not None and _dated(before, after.as_of, after.source) == after:
            return  # the same to a reader: another source now says it, or says it later
        self.counts += Counts(new=1) if before is None else Counts(updated=1)
        self.inserts["outbox"].append({"key": after.key})
        if before is not None:
            self.inserts["stale"].append({"k": after.key})
        self.inserts["category"] += [
            {"key": after.key, "code": code, "announced": after.announced} for code in dict.fromkeys(after.categories)
        ]
        if self.bridge is not None:
            self.inserts["method"] += linking.links(self.bridge, after, day)

    def _flush(self) -> None:
        rows = self.inserts
        again = sa.update(paper).where(paper.c.key == sa.bindparam("k"))
        steps: list[tuple[sa.Executable, list[dict[str, Any]]]] = [
            (sa.insert(paper), rows["paper"]),
            (
                again.values({c: sa.bindparam(c.name) for c in paper.c if c.name != "key"}),
                [{"k": row.pop("key"), **row} for row in rows["again"]],
            ),
            (
                sa.delete(paper_source).where(
                    paper_source.c.key == sa.bindparam("k"), paper_source.c.source == sa.bindparam("s")
                ),
                [{"k": row["key"], "s": row["source"]} for row in rows["source"] if row["key"] in self.known],
            ),
            (sa.insert(paper_source), rows["source"]),
            (sa.delete(paper_category).where(paper_category.c.key == sa.bindparam("k")), rows["stale"]),
            (sa.insert(paper_category), rows["category"]),
            (sa.delete(paper_method).where(paper_method.c.key == sa.bindparam("k")), rows["stale"]),
            (sa.insert(paper_method), rows["method"]),
            (sa.insert(index_outbox), rows["outbox"]),
        ]
        for statement, values in steps:
            if values:
                self.connection.execute(statement, values)


def newest(records: Sequence[Record], before: _Source | None) -> _Source:
    """What a source says after ``records``, by (as_of, content) whatever their order; builds as few as it can."""
    as_of = max(r.as_of for r in records)
    if before is not None:
        as_of = max(as_of, before.as_of)
    found: list[_Source] = [before] if before is not None and before.as_of == as_of else []
    for mark, record in {r.mark: r for r in records if r.as_of == as_of}.items():
        if before is not None and mark == before.mark:
            found.append(_Source(as_of, before.hash, mark, None))
        else:
            text = record.build()
            found.append(_Source(as_of, fold.content_hash(text), mark, None, text))
    best = max(found, key=lambda s: (s.hash, s.mark))
    said = [r.announcement for r in records]
    if before is not None:
        said.append(before.announcement)
    text_of = best.paper
    if before is not None and best.hash == before.hash:
        text_of = None  # the known text stands
    return _Source(as_of, best.hash, best.mark, fold.earliest(said), text_of)


def _known(connection: sa.Connection, keys: Sequence[str]) -> dict[str, dict[str, _Source]]:
    columns = [c for c in paper_source.c if c.name != "record"]
    found: dict[str, dict[str, _Source]] = {}
    for key, source, as_of, content, mark, day, seq, estimated in connection.execute(
        sa.select(*columns).where(paper_source.c.key.in_(keys))
    ):
        at = None if day is None else Announcement(day, seq, estimated)
        found.setdefault(key, {})[source] = _Source(as_of, content, mark, at)
    return found


def _papers(connection: sa.Connection, keys: Sequence[str]) -> list[Paper]:
    return [
        paper_of(row)
        for piece in linking.pieces(keys)
        for row in connection.execute(sa.select(paper).where(paper.c.key.in_(piece)))
    ]


def _records(connection: sa.Connection, keys: Sequence[str]) -> dict[str, dict[str, Paper]]:
    """Every source's record of the papers that have several."""
    found: dict[str, dict[str, Paper]] = {}
    for row in connection.execute(sa.select(paper_source).where(paper_source.c.key.in_(keys))) if keys else ():
        at = None if row.announced is None else Announcement(row.announced, row.announced_seq, row.announced_estimated)
        found.setdefault(row.key, {})[row.source] = fold.load(row.key, row.source, row.as_of, row.record, at)
    return found


def _dated(seen: Paper, as_of: str, source: str | None = None) -> Paper:
    return fold.dated(seen, as_of, source or seen.source)
