"""Opens the fleet's database, and says how a transaction starts on each kind.

Invariants:
- on SQLite every connection has WAL, synchronous=FULL, foreign keys and a busy timeout, and the implicit
  BEGIN before a write is IMMEDIATE: a transaction waits for its turn once, at its start, and never fails
  in the middle because another one was faster;
- reads on SQLite take no lock, so a page that lists devices never holds up the ingest.
"""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from fleet_server.errors import ConfigError

BUSY_TIMEOUT_S = 30
"""How long a SQLite transaction waits for another one."""
MAX_CONNECTIONS = 32
"""Connections one process holds at most; a further caller waits POOL_TIMEOUT_S."""
POOL_TIMEOUT_S = 30
_WAL_RETRY_S = 0.02


def open_engine(url: str) -> Engine:
    """An engine for `url`: `sqlite:///FILE` (its folder is made) or `postgresql+psycopg://...`.

    Connects lazily. Raises ConfigError for a URL that no installed driver serves.
    """
    try:
        parsed = make_url(url)
        if parsed.get_backend_name() == "sqlite":
            return _open_sqlite(parsed.database, url)
        return create_engine(parsed, pool_size=MAX_CONNECTIONS, max_overflow=0, pool_timeout=POOL_TIMEOUT_S)
    except (ArgumentError, NoSuchModuleError):
        raise ConfigError(
            "database.url is not a database URL: use sqlite:///FILE or postgresql+psycopg://..."
        ) from None
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"database.url needs the driver {error.name!r}, for PostgreSQL: pip install 'edgefleet[postgresql]'"
        ) from None


def lock_for_write(connection: Connection, table: str) -> None:
    """Take the turn to write `table` before reading it, until the transaction ends.

    What is read afterwards in this transaction is the latest there is.
    """
    if connection.dialect.name == "sqlite":
        if not getattr(connection.connection.dbapi_connection, "in_transaction", False):
            connection.exec_driver_sql("BEGIN IMMEDIATE")
    else:
        name = connection.dialect.identifier_preparer.quote(table)
        connection.exec_driver_sql(f"LOCK TABLE {name} IN EXCLUSIVE MODE")


def _open_sqlite(path: str | None, url: str) -> Engine:
    if not path or path == ":memory:":
        raise ConfigError("database.url names no file: several threads and processes share it, use sqlite:///FILE")
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"database.url: cannot make the folder of {path}: {error.strerror}") from None
    engine = create_engine(
        url,
        pool_size=MAX_CONNECTIONS,
        max_overflow=0,
        pool_timeout=POOL_TIMEOUT_S,
        connect_args={"timeout": BUSY_TIMEOUT_S, "isolation_level": "IMMEDIATE"},
    )
    event.listen(engine, "connect", _prepare_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_S * 1000}")
    _switch_to_wal(cursor)
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _switch_to_wal(cursor: sqlite3.Cursor) -> None:
    """Wait for the turn: of all statements only this one, on a new file, does not heed the busy timeout."""
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(_WAL_RETRY_S)
        else:
            return
