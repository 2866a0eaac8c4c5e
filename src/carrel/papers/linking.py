"""Which papers speak of which methods, in the tables: made as papers come in, made again when the aliases change."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from datetime import date
from typing import Any, TypeVar

import sqlalchemy as sa

from . import fold
from .bridge import Bridge
from .model import Paper
from .tables import index_outbox, meta, paper, paper_method, paper_of
from .text import plain

T = TypeVar("T")

BATCH = 2000  # papers or records handled at once; as many keys fit one statement of any database
_ALIASES = "aliases"  # the row of `meta` that holds the digest of the aliases all links were made with
_STALE = ""  # its value once papers came in under other aliases


def pieces(items: Iterable[T], size: int = BATCH) -> Iterator[list[T]]:
    """``items`` in lists of ``size``."""
    piece: list[T] = []
    for item in items:
        piece.append(item)
        if len(piece) == size:
            yield piece
            piece = []
    if piece:
        yield piece


def links(bridge: Bridge, seen: Paper, day: date) -> list[dict[str, Any]]:
    """The rows of `paper_method` of one paper."""
    return [{"key": seen.key, "slug": slug, "day": day} for slug in sorted(bridge.methods(seen, plain))]


def relink(connection: sa.Connection, bridge: Bridge) -> int:
    """Make every link again where it was made with other aliases; returns how many papers changed theirs."""
    if stored_digest(connection) == bridge.digest:
        return 0
    changed = 0
    after_key = ""
    while True:
        query = sa.select(paper).where(paper.c.key > after_key).order_by(paper.c.key).limit(BATCH)
        papers = [paper_of(row) for row in connection.execute(query)]
        if not papers:
            break
        after_key = papers[-1].key
        before = methods_of(connection, [p.key for p in papers])
        wanted = {p.key: links(bridge, p, fold.day_of(p)) for p in papers}
        stale = [key for key, rows in wanted.items() if before.get(key, ()) != tuple(r["slug"] for r in rows)]
        changed += len(stale)
        if stale:
            connection.execute(sa.delete(paper_method).where(paper_method.c.key.in_(stale)))
            if rows := [row for key in stale for row in wanted[key]]:
                connection.execute(sa.insert(paper_method), rows)
            connection.execute(sa.insert(index_outbox), [{"key": key} for key in stale])  # method: is searched, too
    remember(connection, _ALIASES, bridge.digest)
    return changed


def methods_of(connection: sa.Connection, keys: Collection[str]) -> dict[str, tuple[str, ...]]:
    """The slugs of each paper that has any, in order."""
    found: dict[str, list[str]] = defaultdict(list)
    for piece in pieces(keys):
        query = sa.select(paper_method.c.key, paper_method.c.slug).where(paper_method.c.key.in_(piece))
        for key, slug in connection.execute(query.order_by(paper_method.c.key, paper_method.c.slug)):
            found[key].append(slug)
    return {key: tuple(slugs) for key, slugs in found.items()}


def stored_digest(connection: sa.Connection) -> str:
    """The digest of the aliases that all links were made with, "" where they differ."""
    found = connection.execute(sa.select(meta.c.value).where(meta.c.name == _ALIASES)).scalar()
    return found or _STALE


def remember(connection: sa.Connection, name: str, value: str) -> None:
    """Write one row of `meta`."""
    connection.execute(sa.delete(meta).where(meta.c.name == name))
    connection.execute(sa.insert(meta).values(name=name, value=value))


def doubt(connection: sa.Connection, bridge: Bridge | None) -> None:
    """Papers came in under other aliases than the rest: the next relink must look at all."""
    stored = stored_digest(connection)
    if stored not in (_STALE, bridge.digest if bridge else _STALE):
        remember(connection, _ALIASES, _STALE)
