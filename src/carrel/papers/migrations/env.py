"""Alembic's entry: runs on the connection it is handed, inside the transaction that is already open on it."""

from __future__ import annotations

from alembic import context

from carrel.papers.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,
    transactional_ddl=False,  # the caller's transaction holds every statement; SQLite rolls its DDL back too
)
context.run_migrations()
