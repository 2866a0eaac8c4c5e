"""Opening the database: its engine, SQLite's settings, and the migrations that bring it to this version's tables."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from .migrations import HEAD

# WAL lets pages be read while an import writes; NORMAL loses no committed paper to a crash of the process.
_PRAGMAS = (
    "PRAGMA busy_timeout = 5000",
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = NORMAL",
    "PRAGMA foreign_keys = ON",
    "PRAGMA cache_size = -16000",
    "PRAGMA temp_store = MEMORY",
)


_PATIENCE = 6  # how often a writer waits those five seconds


class StoreError(ValueError):
    """The store cannot be opened; the message says which file and why."""


def connect(where: str | Path) -> tuple[sa.Engine, Path | None]:
    """An engine whose tables are this version's, and the folder the database lies in (None for a server or memory).

    Args:
        where: a file, a folder (where it is ``carrel.sqlite3``; a new path without an ending is one), or an SQLAlchemy
            URL.
    Raises StoreError: the folder cannot be written, the file is no database, or a newer Carrel made it.
    """
    url, folder = _url(where)
    if folder is not None:
        _make(folder, url)
    options: dict[str, Any] = {}
    if url.get_backend_name() == "sqlite" and folder is None:
        options = {"poolclass": sa.StaticPool, "connect_args": {"check_same_thread": False}}
    engine = sa.create_engine(url, **options)
    if url.get_backend_name() == "sqlite":
        sa.event.listen(engine, "connect", _settle)
    try:
        with engine.connect() as connection:
            _migrate(connection, str(url.database or url))
    except sa.exc.DBAPIError as error:
        engine.dispose()
        raise StoreError(f"the store {url.database or url} cannot be opened: {error.orig}") from error
    except BaseException:
        engine.dispose()
        raise
    return engine, folder


def begin(connection: sa.Connection, *, writing: bool) -> None:
    """Begin a transaction; a writer waits here for other writers, where waiting is safe, not at its first write."""
    if connection.dialect.name != "sqlite":
        return
    if not writing:
        connection.exec_driver_sql("BEGIN")
        return
    for attempt in range(_PATIENCE):
        try:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        except sa.exc.OperationalError as error:
            if not _busy(error) or attempt == _PATIENCE - 1:
                raise
        else:
            return


@contextmanager
def plainly(engine: sa.Engine) -> Iterator[None]:
    """Turn what the database refuses into one sentence."""
    try:
        yield
    except sa.exc.DatabaseError as error:
        if isinstance(error, sa.exc.IntegrityError | sa.exc.ProgrammingError):
            raise  # our mistake, not the database's state
        name = engine.url.database or engine.url
        reason = "another program is writing to it; try again when that is done" if _busy(error) else error.orig
        raise StoreError(f"the store {name} cannot be used: {reason}") from error


def _busy(error: sa.exc.DatabaseError) -> bool:
    return "locked" in str(error.orig)


def _url(where: str | Path) -> tuple[sa.URL, Path | None]:
    if isinstance(where, str) and "://" in where:
        url = sa.make_url(where)
        if url.get_backend_name() != "sqlite" or url.database in (None, "", ":memory:"):
            return url, None
        path = Path(str(url.database))
    else:
        path = Path(where)
        if path.is_dir() or not (path.suffix or path.exists()):
            path = path / "carrel.sqlite3"
    path = path.absolute()
    return sa.URL.create("sqlite", database=str(path)), path.parent


def _make(folder: Path, url: sa.URL) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = Path(str(url.database))
        if not os.access(file if file.exists() else folder, os.W_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        raise StoreError(f"the data folder {folder} cannot be written: {error.strerror or error}") from error


def _settle(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # we say BEGIN ourselves; the driver would wait until the first write
    for pragma in _PRAGMAS:
        connection.execute(pragma)


def _migrate(connection: sa.Connection, name: str) -> None:
    begin(connection, writing=False)
    if _revision(connection) == HEAD:
        connection.rollback()
        return
    connection.rollback()
    begin(connection, writing=True)  # two first starts at once: the second waits, then finds the work done
    found = _revision(connection)
    if found != HEAD:
        _upgrade(connection, found, name)
    connection.commit()


def _revision(connection: sa.Connection) -> str | None:
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    found: str | None = connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()
    return found


def _upgrade(connection: sa.Connection, found: str | None, name: str) -> None:
    from alembic import command
    from alembic.script import ScriptDirectory

    config = alembic_config(connection)
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if found is not None and found not in known:
        raise StoreError(f"the store {name} was made by a newer Carrel (revision {found}); update Carrel to open it")
    command.upgrade(config, "head")


def alembic_config(connection: sa.Connection) -> Any:
    """Alembic's configuration for the scripts in this package, to run on ``connection``."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config
