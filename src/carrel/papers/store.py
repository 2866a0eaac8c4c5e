"""The store: papers in, papers out. Rows never leave it (nor `shelving` and `linking`, its writing half)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from . import database, linking, shelving
from .bridge import Bridge
from .categories import CategoryExpression, parse_expression
from .database import StoreError as StoreError
from .fold import Record
from .model import Paper, PaperNotFound
from .shelving import Counts as Counts
from .tables import index_outbox, paper, paper_category, paper_method, paper_of

Expression = CategoryExpression | str | None


def open_store(where: str | Path, *, aliases: Mapping[str, Sequence[str]] | None = None) -> Store:
    """Open the papers kept at ``where``, making or migrating the tables as needed.

    Args:
        where: a file, a folder (where it is ``carrel.sqlite3``; a new path without an ending is one), or an SQLAlchemy
            URL such as ``sqlite://`` (memory).
        aliases: method slug to the phrases and keys it goes by; papers put in are linked to methods as they come.
    Raises StoreError (a ValueError): the folder cannot be written, the file is no database, a newer Carrel made it.
    """
    engine, folder = database.connect(where)
    return Store(engine, folder, None if aliases is None else Bridge(aliases))


class Store:
    """An open store; ``begin`` gives its papers within one transaction."""

    def __init__(self, engine: sa.Engine, folder: Path | None, bridge: Bridge | None) -> None:
        self._engine = engine
        self._bridge = bridge
        self.folder = folder

    @contextmanager
    def begin(self) -> Iterator[Papers]:
        """One transaction: kept at the end, undone on an error.

        Reading never waits for a writer. The first change waits for other writers, up to half a minute; what was read
        before it may have changed by then.

        Raises StoreError (a ValueError): the database refuses: locked for too long, disk full, file damaged.
        """
        with database.plainly(self._engine), self._engine.connect() as connection:
            papers = Papers(connection, self)
            try:
                yield papers
            except BaseException:
                connection.rollback()
                raise
            connection.commit()

    def close(self) -> None:
        """Let go of the database."""
        self._engine.dispose()


class Papers:
    """The papers of a store, within one transaction."""

    def __init__(self, connection: sa.Connection, store: Store) -> None:
        self._connection = connection
        self._store = store
        self._reading = False
        self._writing = False

    def get(self, key: str) -> Paper:
        """The paper of this key. Raises PaperNotFound."""
        row = self._read(sa.select(paper).where(paper.c.key == key)).first()
        if row is None:
            raise PaperNotFound(key)
        return paper_of(row)

    def get_many(self, keys: Iterable[str]) -> list[Paper]:
        """The papers of these keys in their order; those that are not here are left out."""
        wanted = list(dict.fromkeys(keys))
        found: dict[str, Paper] = {}
        for piece in linking.pieces(wanted):
            for row in self._read(sa.select(paper).where(paper.c.key.in_(piece))):
                found[row.key] = paper_of(row)
        return [found[key] for key in wanted if key in found]

    def put(self, papers: Iterable[Paper]) -> Counts:
        """Put papers on the shelf, each as its source says it; the newest record of a source wins.

        The end state depends on the set of papers put, not on their order; putting again what is known changes nothing.
        Raises ValueError for an instant without a time zone.
        """
        records = [Record.of(p) for p in papers]
        if not self._writing and shelving.is_known(self._read_only(), records):
            return Counts(unchanged=len({r.key for r in records}))  # without waiting for any writer
        return self.put_records(records)

    def put_records(self, records: Iterable[Record]) -> Counts:
        """`put` for records that are cleaned only where they can matter."""
        return shelving.shelve(self._write(), records, self._store._bridge)

    def count(self) -> int:
        """How many papers there are."""
        return int(self._read(sa.select(sa.func.count()).select_from(paper)).scalar_one())

    def all_keys(self) -> Iterator[str]:
        """Every key, in order; reads in pieces, so that a shelf of millions fits in memory."""
        after = ""
        while True:
            query = sa.select(paper.c.key).where(paper.c.key > after).order_by(paper.c.key).limit(5000)
            piece = list(self._read(query).scalars())
            if not piece:
                return
            yield from piece
            after = piece[-1]

    def recent(self, limit: int = 20) -> list[Paper]:
        """The newest papers of all categories, newest first."""
        query = sa.select(paper).order_by(paper.c.day.desc(), paper.c.key.desc()).limit(limit)
        return [paper_of(row) for row in self._read(query)]

    def on(self, day: date, expression: Expression = None) -> list[Paper]:
        """What arXiv announced that day, in its order: papers with an included category and no excluded one."""
        query = sa.select(paper)
        chosen = _expression(expression)
        if chosen is None:
            query = query.where(paper.c.announced == day)
        else:
            query = query.where(paper.c.key.in_(_listed(chosen, paper_category.c.announced == day)))
        return [paper_of(row) for row in self._read(query.order_by(paper.c.announced_seq, paper.c.key))]

    def days(
        self,
        expression: Expression = None,
        *,
        limit: int | None = None,
        since: date | None = None,
        until: date | None = None,
    ) -> list[tuple[date, int]]:
        """Days that have papers, and how many, newest first.

        Args:
            limit: at most so many days.
            since, until: the first and the last day to look at.
        """
        chosen = _expression(expression)
        if chosen is None or limit is None or since is not None:
            return self._days(chosen, since, until, limit)
        newest = self.neighbour(until + timedelta(1) if until else date.max, chosen, later=False)
        if newest is None:
            return []
        window = timedelta(2 * limit + 14)  # an index range that holds the wanted days, widened until it does
        while True:
            since = newest - window if newest - date.min > window else None
            found = self._days(chosen, since, until, limit)
            if since is None or len(found) >= limit:
                return found
            window *= 8

    def latest_day(self, expression: Expression = None) -> date | None:
        """The newest day that has papers, or None."""
        return self.neighbour(date.max, expression, later=False)

    def neighbour(self, day: date, expression: Expression = None, *, later: bool) -> date | None:
        """The nearest day before (or after) ``day`` that has papers, or None."""
        chosen = _expression(expression)
        pick = sa.func.min if later else sa.func.max
        if chosen is None:
            edge = paper.c.announced > day if later else paper.c.announced < day
            return self._read(sa.select(pick(paper.c.announced)).where(edge)).scalar()
        codes = {f"code{n}": code for n, code in enumerate(sorted(chosen.include))}
        nearest = _nearest(len(codes), later)
        while True:
            found: date | None = self._read(nearest, {"day": day, **codes}).scalar()
            if found is None or not chosen.exclude:
                return found
            if self._read(_listed(chosen, paper_category.c.announced == found).limit(1)).first():
                return found
            day = found

    def categories_on(self, day: date) -> list[tuple[str, int]]:
        """The categories that have papers on a day, and how many, the fullest first."""
        count = sa.func.count()
        query = sa.select(paper_category.c.code, count).where(paper_category.c.announced == day)
        rows = self._read(query.group_by(paper_category.c.code).order_by(count.desc(), paper_category.c.code))
        return [(row[0], row[1]) for row in rows]

    def methods_of(self, keys: Iterable[str]) -> dict[str, tuple[str, ...]]:
        """The methods that each of these papers speaks of; papers that speak of none are left out."""
        return linking.methods_of(self._read_only(), list(keys))

    def speaking_of(self, slug: str, *, limit: int = 20) -> list[Paper]:
        """The papers that speak of a method, newest first."""
        newest = (
            sa.select(paper_method.c.key)
            .where(paper_method.c.slug == slug)
            .order_by(paper_method.c.day.desc(), paper_method.c.key.desc())
            .limit(limit)
        )
        return self.get_many(self._read(newest).scalars())

    def speaking(self, *, limit: int = 20) -> list[Paper]:
        """The papers that speak of any method, newest first."""
        columns = paper_method.c.day, paper_method.c.key
        newest = sa.select(*columns).distinct().order_by(*(column.desc() for column in columns)).limit(limit)
        return self.get_many(row.key for row in self._read(newest))

    def speaking_counts(self) -> dict[str, int]:
        """How many papers speak of each method; methods of which none does are left out."""
        query = sa.select(paper_method.c.slug, sa.func.count()).group_by(paper_method.c.slug)
        return {row[0]: row[1] for row in self._read(query.order_by(paper_method.c.slug))}

    def relink(self, aliases: Mapping[str, Sequence[str]]) -> int:
        """Use these aliases from now on; all links are made again where they differ from those last used.

        Returns how many papers changed their methods. Cost: none if the aliases are the same, else a pass over all.
        """
        bridge = Bridge(aliases)
        self._store._bridge = bridge
        if linking.stored_digest(self._read_only()) == bridge.digest:
            return 0
        return linking.relink(self._write(), bridge)

    def outbox(self, limit: int = 1000) -> list[tuple[int, str]]:
        """The next changes that the search index has not taken up: (number, key), oldest first."""
        query = sa.select(index_outbox.c.seq, index_outbox.c.key).order_by(index_outbox.c.seq).limit(limit)
        return [(row[0], row[1]) for row in self._read(query)]

    def outbox_done(self, up_to_seq: int) -> None:
        """Forget the changes up to this number: the index has them."""
        self._write().execute(sa.delete(index_outbox).where(index_outbox.c.seq <= up_to_seq))

    def _days(
        self, chosen: CategoryExpression | None, since: date | None, until: date | None, limit: int | None
    ) -> list[tuple[date, int]]:
        column = paper.c.announced if chosen is None else paper_category.c.announced
        if chosen is None:
            query = sa.select(column, sa.func.count())
        elif len(chosen.include) == 1:
            query = sa.select(column, sa.func.count()).where(_listing(chosen))
        else:
            query = sa.select(column, sa.func.count(paper_category.c.key.distinct())).where(_listing(chosen))
        query = query.where(column >= since if since else column.is_not(None))
        if until is not None:
            query = query.where(column <= until)
        rows = self._read(query.group_by(column).order_by(column.desc()).limit(limit))
        return [(row[0], row[1]) for row in rows]

    def _read(self, query: sa.Executable, values: Mapping[str, Any] | None = None) -> Any:
        return self._read_only().execute(query, values)

    def _read_only(self) -> sa.Connection:
        if not self._reading:
            database.begin(self._connection, writing=False)
            self._reading = True
        return self._connection

    def _write(self) -> sa.Connection:
        if not self._writing:
            if self._reading:
                self._connection.rollback()  # SQLite cannot turn a reader into a writer once another has written
            database.begin(self._connection, writing=True)
            self._reading = self._writing = True
        return self._connection


@lru_cache(maxsize=256)
def _nearest(codes: int, later: bool) -> sa.TextualSelect:
    """The nearest day of so many codes: one step down the index for each, where IN would walk every day of each."""
    pick, beyond = ("min", ">") if later else ("max", "<")
    wanted = ", ".join(f"(:code{n})" for n in range(codes))
    text = sa.text(
        f"SELECT {pick}(day) AS day FROM (SELECT (SELECT {pick}(announced) FROM paper_category"
        f" WHERE code = wanted.column1 AND announced {beyond} :day) AS day FROM (VALUES {wanted}) AS wanted) AS days"
    )
    return text.bindparams(sa.bindparam("day", type_=sa.Date)).columns(day=sa.Date)


def _expression(expression: Expression) -> CategoryExpression | None:
    return parse_expression(expression) if isinstance(expression, str) else expression


def _listing(chosen: CategoryExpression) -> sa.ColumnElement[bool]:
    """Whether a row of paper_category puts its paper on the list."""
    listed: sa.ColumnElement[bool] = paper_category.c.code.in_(sorted(chosen.include))
    if chosen.exclude:
        other = paper_category.alias("other")
        listed &= ~sa.exists().where(other.c.key == paper_category.c.key, other.c.code.in_(sorted(chosen.exclude)))
    return listed


def _listed(chosen: CategoryExpression, *conditions: sa.ColumnElement[bool]) -> sa.Select[Any]:
    return sa.select(paper_category.c.key).where(_listing(chosen), *conditions)
