"""The migrations make the tables that the code speaks of."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from carrel.papers import database
from carrel.papers.migrations import HEAD
from carrel.papers.tables import metadata


def test_the_migrations_lead_to_the_tables_of_the_code(tmp_path: Path) -> None:
    engine, _ = database.connect(tmp_path)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, metadata) == []
    engine.dispose()


def test_the_migrated_tables_are_laid_out_as_those_made_from_the_code(tmp_path: Path) -> None:
    """What autogenerate cannot see: tables without row ids, numbers never given twice."""
    engine, _ = database.connect(tmp_path)
    direct = sa.create_engine("sqlite://")
    metadata.create_all(direct)
    endings = []
    for one in (engine, direct):
        with one.connect() as connection:
            rows = connection.execute(sa.text("SELECT name, sql FROM sqlite_master WHERE type = 'table'"))
            endings.append({n: ("WITHOUT ROWID" in s, "AUTOINCREMENT" in s) for n, s in rows if n in metadata.tables})
        one.dispose()
    assert endings[0] == endings[1]
    assert endings[0].keys() == metadata.tables.keys()


def test_the_head_named_in_the_package_is_that_of_the_scripts(tmp_path: Path) -> None:
    engine, _ = database.connect(tmp_path)
    with engine.connect() as connection:
        assert ScriptDirectory.from_config(database.alembic_config(connection)).get_heads() == [HEAD]
    engine.dispose()


def test_one_can_go_down_and_up_again(tmp_path: Path) -> None:
    engine, _ = database.connect(tmp_path)
    with engine.connect() as connection:
        config = database.alembic_config(connection)
        database.begin(connection, writing=True)
        command.downgrade(config, "base")
        assert set(sa.inspect(connection).get_table_names()) == {"alembic_version"}
        command.upgrade(config, "head")
        connection.commit()
        assert set(sa.inspect(connection).get_table_names()) == {"alembic_version", *metadata.tables}
    engine.dispose()


def test_sqlite_is_set_up_for_reading_while_writing(tmp_path: Path) -> None:
    engine, _ = database.connect(tmp_path)
    with engine.connect() as connection:

        def pragma(name: str) -> object:
            return connection.exec_driver_sql(f"PRAGMA {name}").scalar()

        assert (pragma("journal_mode"), pragma("foreign_keys")) == ("wal", 1)
        assert (pragma("synchronous"), pragma("busy_timeout")) == (1, 5000)
    engine.dispose()
