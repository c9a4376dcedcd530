"""The embedded telemetry store: one SQLite file, for a laptop, a demo and a small fleet.

Invariants, in the order a write keeps them:
1. one `write` is one transaction: all of its windows or none;
2. a window's key is (fleet, device, boot_id, sequence); the first one under a key stays, a repeat changes nothing;
3. `write` returns after the commit reached the disk (write-ahead log, synchronous=FULL), so neither kill -9
   nor a power cut takes an acknowledged window.

Threads: one connection writes, under a lock; up to _MAX_READERS read beside it and never wait for it.
Several processes may share the file; a busy one is waited for up to BUSY_TIMEOUT_S.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, LifoQueue

from fleet_protocol.messages import Window
from fleet_server.errors import InvalidRequestError, StoreUnavailableError
from fleet_server.telemetry_store._stored import MAX_INT64, error_count, outcomes, pack, shadow_agreement, unpack
from fleet_server.telemetry_store.aggregation import WindowSums, is_empty, sum_by_device, sum_by_step
from fleet_server.telemetry_store.port import DeviceTotals, SeriesPoint, Slice

BUSY_TIMEOUT_S = 10.0
ROWS_PER_EXPIRY_BATCH = 5_000
_MAX_READERS = 4
_FETCH_ROWS = 1_000
_NS = 1_000_000_000

_SCHEMA = """
CREATE TABLE IF NOT EXISTS inference (
  fleet TEXT NOT NULL, device TEXT NOT NULL, boot_id TEXT NOT NULL, sequence INTEGER NOT NULL,
  model TEXT NOT NULL, version TEXT NOT NULL, variant TEXT NOT NULL, arm TEXT NOT NULL,
  start_ns INTEGER NOT NULL, end_ns INTEGER NOT NULL,
  count INTEGER NOT NULL, errors INTEGER NOT NULL, correct INTEGER NOT NULL, wrong INTEGER NOT NULL,
  latency BLOB NOT NULL, window BLOB NOT NULL,
  shadow_compared INTEGER NOT NULL DEFAULT 0, shadow_disagreed INTEGER NOT NULL DEFAULT 0,
  PRIMARY KEY (fleet, device, boot_id, sequence)
);
CREATE INDEX IF NOT EXISTS ix_inference_end ON inference (end_ns);
CREATE INDEX IF NOT EXISTS ix_inference_model ON inference (fleet, model, version, end_ns);
CREATE INDEX IF NOT EXISTS ix_inference_device ON inference (fleet, device, end_ns);
CREATE TABLE IF NOT EXISTS settings (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
"""

_LATER_COLUMNS = ("shadow_compared", "shadow_disagreed")
"""What files of earlier releases lack; at the end, where ALTER TABLE puts it."""

_INSERT = """
INSERT INTO inference VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (fleet, device, boot_id, sequence) DO NOTHING
"""


class EmbeddedStore:
    """A TelemetryStore in the file at `path`; the file and its tables are made when they are missing.

    Raises StoreUnavailableError when the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._closed = False
        self._write_lock = threading.Lock()
        self._readers: LifoQueue[sqlite3.Connection | None] = LifoQueue()
        for _ in range(_MAX_READERS):
            self._readers.put(None)  # a place for a connection, opened when it is first needed
        with self._told():
            self._writer = self._connect()
            try:
                self._writer.execute("PRAGMA journal_mode = WAL")
                self._writer.executescript(_SCHEMA)
                self._add_later_columns()
            except sqlite3.Error:
                self._writer.close()
                raise

    def __repr__(self) -> str:
        return f"EmbeddedStore({str(self._path)!r})"

    def set_up(self, *, raw_retention_s: int) -> None:
        """Record how long windows are kept; `expire` then removes older ones. Raises InvalidRequestError below 1 s."""
        if raw_retention_s < 1:
            raise InvalidRequestError(f"raw_retention_s is {raw_retention_s}: telemetry is kept for at least 1 s")
        with self._write_lock, self._told(), self._transaction():
            self._writer.execute(
                "INSERT INTO settings VALUES ('raw_retention_s', ?) ON CONFLICT (name) DO UPDATE SET value = ?",
                (raw_retention_s, raw_retention_s),
            )

    def check(self) -> None:
        """Raise StoreUnavailableError unless the file can be read."""
        with self._reading() as connection:
            connection.execute("SELECT 1 FROM inference LIMIT 1").fetchall()

    def write(self, fleet: str, windows: Sequence[Window]) -> None:
        """Store windows in one durable transaction; those that are there already stay as they are."""
        if not windows:
            return
        rows = [_row(fleet, window) for window in windows]
        with self._write_lock, self._told(), self._transaction():
            self._writer.executemany(_INSERT, rows)

    def windows(self, where: Slice, *, limit: int = 1000) -> list[Window]:
        """The latest `limit` windows of a slice, oldest first, as they were written."""
        if is_empty(where) or limit < 1:
            return []
        condition, values = _condition(where)
        query = (
            f"SELECT window FROM inference WHERE {condition}"  # noqa: S608 - column names only; values are bound
            " ORDER BY end_ns DESC, device DESC, boot_id DESC, sequence DESC LIMIT ?"
        )
        with self._reading() as connection:
            found = connection.execute(query, (*values, min(limit, MAX_INT64))).fetchall()
        return [unpack(blob, str(self._path)) for (blob,) in reversed(found)]

    def totals_by_device(self, where: Slice) -> list[DeviceTotals]:
        """Sums of a slice per (device, model, version, arm), sorted by these."""
        with self._reading() as connection:
            return sum_by_device(_sums(connection, where))

    def series(self, where: Slice, *, step_ns: int) -> list[SeriesPoint]:
        """Sums of a slice per step, oldest first; empty steps are left out."""
        with self._reading() as connection:
            return sum_by_step(_sums(connection, where), step_ns)

    def expire(self, now_ns: int) -> int:
        """Delete windows that ended longer ago than the retention; returns how many.

        In transactions of ROWS_PER_EXPIRY_BATCH, so that writers wait briefly. Keeps everything before `set_up`.
        """
        deleted = 0
        while True:
            with self._write_lock, self._told(), self._transaction():
                row = self._writer.execute("SELECT value FROM settings WHERE name = 'raw_retention_s'").fetchone()
                if row is None:
                    return deleted
                batch = self._writer.execute(
                    "DELETE FROM inference WHERE rowid IN (SELECT rowid FROM inference WHERE end_ns <= ? LIMIT ?)",
                    (now_ns - row[0] * _NS, ROWS_PER_EXPIRY_BATCH),
                ).rowcount
            deleted += batch
            if batch < ROWS_PER_EXPIRY_BATCH:
                return deleted

    def close(self) -> None:
        """Wait for calls under way and close the file; later calls raise StoreUnavailableError. Idempotent."""
        with self._write_lock:
            if self._closed:
                return
            self._closed = True
            deadline = time.monotonic() + BUSY_TIMEOUT_S
            for _ in range(_MAX_READERS):
                try:
                    reader = self._readers.get(timeout=max(0.0, deadline - time.monotonic()))
                except Empty:
                    break  # a reader that overstays closes its own connection when it ends
                if reader is not None:
                    reader.close()
            for _ in range(_MAX_READERS):
                self._readers.put(None)  # who waited for a place wakes up and sees that the store is closed
            self._writer.close()

    def _add_later_columns(self) -> None:
        if not self._missing_columns():
            return
        self._writer.execute("BEGIN IMMEDIATE")  # so that of two processes one adds them
        for column in self._missing_columns():
            self._writer.execute(f"ALTER TABLE inference ADD COLUMN {column} INTEGER NOT NULL DEFAULT 0")
        self._writer.execute("COMMIT")

    def _missing_columns(self) -> list[str]:
        there = {row[1] for row in self._writer.execute("PRAGMA table_info(inference)")}
        return [column for column in _LATER_COLUMNS if column not in there]

    def _check_open(self) -> None:
        if self._closed:
            raise StoreUnavailableError(f"telemetry store {self._path} is closed: open it again")

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA synchronous = FULL")
        return connection

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._check_open()
        self._writer.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._writer.execute("COMMIT")
        finally:
            if self._writer.in_transaction:
                self._writer.execute("ROLLBACK")

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        self._check_open()
        try:
            connection = self._readers.get(timeout=BUSY_TIMEOUT_S)
        except Empty:
            raise StoreUnavailableError(
                f"telemetry store {self._path}: {_MAX_READERS} queries are running and none ended"
                f" within {BUSY_TIMEOUT_S:g} s: narrow them or move to InfluxDB"
            ) from None
        try:
            self._check_open()
            with self._told():
                connection = connection or self._connect()
                yield connection
        finally:
            if self._closed and connection is not None:
                connection.close()
                connection = None
            self._readers.put(connection)

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StoreUnavailableError(
                f"telemetry store {self._path}: {error}: check that its folder exists, is writable and has space"
            ) from error


def _row(fleet: str, window: Window) -> tuple[str | int | bytes, ...]:
    known, shadow = outcomes(window), shadow_agreement(window)
    return (
        fleet, window.device, window.boot_id, window.sequence,
        window.model, window.version, window.variant, window.arm,
        window.start_ns, window.end_ns,
        window.count, error_count(window), known.correct, known.wrong,
        window.latency, pack(window), shadow.compared, shadow.disagreed,
    )  # fmt: skip  # in the order of the table's lines


def _condition(where: Slice) -> tuple[str, list[str | int]]:
    condition = "fleet = ? AND end_ns > ? AND end_ns <= ?"
    values: list[str | int] = [where.fleet, max(where.start_ns, -1), min(where.end_ns, MAX_INT64)]
    for column, wanted in (("model", where.model), ("version", where.version), ("arm", where.arm)):
        if wanted is not None:
            condition += f" AND {column} = ?"
            values.append(wanted)
    if where.devices is not None:
        condition += " AND device IN (SELECT value FROM json_each(?))"
        values.append(json.dumps(sorted(where.devices)))
    return condition, values


def _sums(connection: sqlite3.Connection, where: Slice) -> Iterator[WindowSums]:
    if is_empty(where):
        return
    condition, values = _condition(where)
    cursor = connection.execute(
        "SELECT device, model, version, arm, end_ns, count, errors, correct, wrong, latency,"  # noqa: S608 - as above
        f" shadow_compared, shadow_disagreed FROM inference WHERE {condition}",
        values,
    )
    while rows := cursor.fetchmany(_FETCH_ROWS):
        for device, model, version, arm, end_ns, count, errors, correct, wrong, latency, compared, disagreed in rows:
            yield WindowSums(
                device=device, model=model, version=version, arm=arm, end_ns=end_ns,
                count=count, errors=errors, correct=correct, wrong=wrong, latency=latency,
                shadow_compared=compared, shadow_disagreed=disagreed,
            )  # fmt: skip  # in the order of the SELECT
