"""The shelf: papers, their sources, categories and methods, and the search index's outbox."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "paper",
        sa.Column("key", sa.String(200), nullable=False),
        sa.Column("source", sa.String(40), nullable=False),
        sa.Column("as_of", sa.String(40), nullable=False),
        sa.Column("day", sa.Date, nullable=False),
        sa.Column("announced", sa.Date),
        sa.Column("announced_seq", sa.Integer, nullable=False),
        sa.Column("announced_estimated", sa.Boolean, nullable=False),
        sa.Column("version", sa.Integer),
        sa.Column("submitted", sa.DateTime),
        sa.Column("updated", sa.DateTime),
        sa.Column("year", sa.Integer),
        sa.Column("withdrawn", sa.Boolean, nullable=False),
        sa.Column("categories", sa.Text, nullable=False),
        sa.Column("authors", sa.Text, nullable=False),
        sa.Column("title", sa.Text, nullable=False),
        sa.Column("abstract", sa.Text, nullable=False),
        sa.Column("remark", sa.Text, nullable=False),
        sa.Column("comment", sa.Text),
        sa.Column("venue", sa.Text),
        sa.Column("journal_ref", sa.Text),
        sa.Column("doi", sa.Text),
        sa.Column("license", sa.Text),
        sa.PrimaryKeyConstraint("key", name="pk_paper"),
    )
    op.create_index("ix_paper_announced", "paper", ["announced"])
    op.create_index("ix_paper_day_key", "paper", ["day", "key"])
    op.create_table(
        "paper_source",
        sa.Column("key", sa.String(200), nullable=False),
        sa.Column("source", sa.String(40), nullable=False),
        sa.Column("as_of", sa.String(40), nullable=False),
        sa.Column("content_hash", sa.LargeBinary(16), nullable=False),
        sa.Column("mark", sa.LargeBinary(16), nullable=False),
        sa.Column("announced", sa.Date),
        sa.Column("announced_seq", sa.Integer, nullable=False),
        sa.Column("announced_estimated", sa.Boolean, nullable=False),
        sa.Column("record", sa.Text),
        sa.PrimaryKeyConstraint("key", "source", name="pk_paper_source"),
        sa.ForeignKeyConstraint(["key"], ["paper.key"], name="fk_paper_source_key", ondelete="CASCADE"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "paper_category",
        sa.Column("key", sa.String(200), nullable=False),
        sa.Column("code", sa.String(40), nullable=False),
        sa.Column("announced", sa.Date),
        sa.PrimaryKeyConstraint("key", "code", name="pk_paper_category"),
        sa.ForeignKeyConstraint(["key"], ["paper.key"], name="fk_paper_category_key", ondelete="CASCADE"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_paper_category_code_day", "paper_category", ["code", "announced"])
    op.create_index("ix_paper_category_day_code", "paper_category", ["announced", "code"])
    op.create_table(
        "paper_method",
        sa.Column("key", sa.String(200), nullable=False),
        sa.Column("slug", sa.String(100), nullable=False),
        sa.Column("day", sa.Date, nullable=False),
        sa.PrimaryKeyConstraint("key", "slug", name="pk_paper_method"),
        sa.ForeignKeyConstraint(["key"], ["paper.key"], name="fk_paper_method_key", ondelete="CASCADE"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_paper_method_slug_day", "paper_method", ["slug", "day", "key"])
    op.create_index("ix_paper_method_day_key", "paper_method", ["day", "key"])
    op.create_table(
        "index_outbox",
        sa.Column("seq", sa.Integer, autoincrement=True, nullable=False),
        sa.Column("key", sa.String(200), nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_index_outbox"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "meta",
        sa.Column("name", sa.String(40), nullable=False),
        sa.Column("value", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_meta"),
    )


def downgrade() -> None:
    for table in ("meta", "index_outbox", "paper_method", "paper_category", "paper_source", "paper"):
        op.drop_table(table)
