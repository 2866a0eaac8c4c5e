"""The tables: SQLite by default, PostgreSQL for many users. Only `store`, `shelving` and `linking` read them."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any

import orjson
import sqlalchemy as sa

from .model import Paper


class UTCDateTime(sa.types.TypeDecorator[datetime]):
    """Aware instants in and out; stored in UTC without zone, which every database can compare."""

    impl = sa.DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"an instant needs a time zone, got {value.isoformat()}")
        return value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        return None if value is None else value.replace(tzinfo=UTC)


metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
    }
)

# The paper as one sees it: the fold of its sources.
paper = sa.Table(
    "paper",
    metadata,
    sa.Column("key", sa.String(200), primary_key=True),
    sa.Column("source", sa.String(40), nullable=False),
    sa.Column("as_of", sa.String(40), nullable=False),
    sa.Column("day", sa.Date, nullable=False),  # what lists are sorted by, see fold.day_of
    sa.Column("announced", sa.Date),
    sa.Column("announced_seq", sa.Integer, nullable=False),
    sa.Column("announced_estimated", sa.Boolean, nullable=False),
    sa.Column("version", sa.Integer),
    sa.Column("submitted", UTCDateTime),
    sa.Column("updated", UTCDateTime),
    sa.Column("year", sa.Integer),
    sa.Column("withdrawn", sa.Boolean, nullable=False),
    sa.Column("categories", sa.Text, nullable=False),  # codes parted by blanks, the primary one first
    sa.Column("authors", sa.Text, nullable=False),  # a JSON list
    sa.Column("title", sa.Text, nullable=False),
    sa.Column("abstract", sa.Text, nullable=False),
    sa.Column("remark", sa.Text, nullable=False),
    sa.Column("comment", sa.Text),
    sa.Column("venue", sa.Text),
    sa.Column("journal_ref", sa.Text),
    sa.Column("doi", sa.Text),
    sa.Column("license", sa.Text),
    sa.Index(None, "announced"),
    sa.Index(None, "day", "key"),
)

# The newest record of each source. `record` is NULL while a paper has one source: it is then the row in `paper`.
paper_source = sa.Table(
    "paper_source",
    metadata,
    sa.Column("key", sa.ForeignKey("paper.key", ondelete="CASCADE"), primary_key=True),
    sa.Column("source", sa.String(40), primary_key=True),
    sa.Column("as_of", sa.String(40), nullable=False),
    sa.Column("content_hash", sa.LargeBinary(16), nullable=False),
    sa.Column("mark", sa.LargeBinary(16), nullable=False),
    sa.Column("announced", sa.Date),
    sa.Column("announced_seq", sa.Integer, nullable=False),
    sa.Column("announced_estimated", sa.Boolean, nullable=False),
    sa.Column("record", sa.Text),
    sqlite_with_rowid=False,
)

# The day repeats paper.announced, so that a day's list and the days themselves come from one index.
paper_category = sa.Table(
    "paper_category",
    metadata,
    sa.Column("key", sa.ForeignKey("paper.key", ondelete="CASCADE"), primary_key=True),
    sa.Column("code", sa.String(40), primary_key=True),
    sa.Column("announced", sa.Date),
    sa.Index("ix_paper_category_code_day", "code", "announced"),
    sa.Index("ix_paper_category_day_code", "announced", "code"),
    sqlite_with_rowid=False,
)

paper_method = sa.Table(
    "paper_method",
    metadata,
    sa.Column("key", sa.ForeignKey("paper.key", ondelete="CASCADE"), primary_key=True),
    sa.Column("slug", sa.String(100), primary_key=True),
    sa.Column("day", sa.Date, nullable=False),
    sa.Index("ix_paper_method_slug_day", "slug", "day", "key"),
    sa.Index("ix_paper_method_day_key", "day", "key"),
    sqlite_with_rowid=False,
)

# Papers whose text changed since the search index last looked; written in the transaction that changed them.
index_outbox = sa.Table(
    "index_outbox",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("key", sa.String(200), nullable=False),
    sqlite_autoincrement=True,  # a number is never given twice, even after its row is gone
)

meta = sa.Table(
    "meta",
    metadata,
    sa.Column("name", sa.String(40), primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
)


def row_of(seen: Paper, day: date) -> dict[str, Any]:
    """The row of a paper in `paper`."""
    return {
        "key": seen.key,
        "source": seen.source,
        "as_of": seen.as_of,
        "day": day,
        "announced": seen.announced,
        "announced_seq": seen.announced_seq,
        "announced_estimated": seen.announced_estimated,
        "version": seen.version,
        "submitted": seen.submitted,
        "updated": seen.updated,
        "year": seen.year,
        "withdrawn": seen.withdrawn,
        "categories": " ".join(seen.categories),
        "authors": orjson.dumps(seen.authors).decode(),
        "title": seen.title,
        "abstract": seen.abstract,
        "remark": seen.remark,
        "comment": seen.comment,
        "venue": seen.venue,
        "journal_ref": seen.journal_ref,
        "doi": seen.doi,
        "license": seen.license,
    }


def paper_of(row: sa.Row[Any]) -> Paper:
    """The paper of a row of `paper`."""
    values = dict(row._mapping)
    del values["day"]
    values["categories"] = tuple(values["categories"].split())
    values["authors"] = tuple(orjson.loads(values["authors"]))
    return Paper(**values)
