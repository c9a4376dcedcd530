"""The outbox's SQLite file: opened whole, of this release's form, or set aside.

Invariants: a file that is no database, or whose pages are damaged, is kept beside a new one; a file that is only
locked, forbidden or on a full disk is left as it is; a file of an earlier release keeps all of its records.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from pathlib import Path

from edge_agent.errors import ConfigError
from edge_agent.telemetry import outcome_journal
from edge_agent.telemetry.outbox_order import Worth
from fleet_protocol.topics import TopicKind

_LOG = logging.getLogger(__name__)

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS records (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    boot_id TEXT NOT NULL,
    sequence INTEGER NOT NULL,
    kind TEXT NOT NULL,
    payload BLOB NOT NULL,
    created_s REAL NOT NULL,
    handed INTEGER NOT NULL DEFAULT 0,
    resend_s REAL,
    worth INTEGER NOT NULL DEFAULT 1,
    UNIQUE (boot_id, sequence)
);
"""
_INDEXES = "CREATE INDEX IF NOT EXISTS records_by_worth ON records (worth, id);"


def open_outbox_file(path: Path) -> sqlite3.Connection:
    """The outbox file, or a new one when it is not a database; what cannot be read is kept beside it.

    Raises ConfigError when the file cannot be opened, and OSError when its folder cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        try:
            return _connect(path)
        except sqlite3.OperationalError:
            raise  # a file that is locked, forbidden or on a full disk is not a broken one
        except sqlite3.DatabaseError as error:
            aside = f".unreadable-{time.time_ns()}"
            for part in (path, *(path.with_name(path.name + suffix) for suffix in ("-wal", "-shm"))):
                if part.exists():
                    part.rename(part.with_name(part.name + aside))
            _LOG.error("the outbox %s is unreadable (%s): kept as %s%s, starting a new one", path, error, path, aside)
            return _connect(path)
    except sqlite3.OperationalError as error:
        raise ConfigError(
            f"the outbox {path} cannot be opened: {error}: is data_dir writable, and the disk not full?"
        ) from None


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, check_same_thread=False)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.executescript(_SCHEMA)
        _add_worth(db)
        db.executescript(_INDEXES + outcome_journal.SCHEMA)
        _check_pages(db)
    except sqlite3.DatabaseError:
        db.close()
        raise
    return db


def _add_worth(db: sqlite3.Connection) -> None:
    """A file of an earlier release does not say what its records are worth: every window counts as plain there."""
    if "worth" in {row[1] for row in db.execute("PRAGMA table_info(records)")}:
        return
    with db:
        db.execute(f"ALTER TABLE records ADD COLUMN worth INTEGER NOT NULL DEFAULT {Worth.PLAIN.value}")
        db.execute("UPDATE records SET worth = ? WHERE kind = ?", (Worth.EVENT, TopicKind.EVENTS.value))


def _check_pages(db: sqlite3.Connection) -> None:
    found = db.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise sqlite3.DatabaseError(found)
