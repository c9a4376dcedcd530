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

import sqlite3
import threading
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, LifoQueue

from fleet_protocol.messages import Window
from fleet_server.errors import InvalidRequestError, StoreUnavailableError
from fleet_server.telemetry_store import embedded_rows as rows_of
from fleet_server.telemetry_store._stored import unpack
from fleet_server.telemetry_store.aggregation import is_empty, sum_by_device, sum_by_step
from fleet_server.telemetry_store.merged import Grain, MergedWindow
from fleet_server.telemetry_store.points import MAX_POINTS, check_measurement, check_points
from fleet_server.telemetry_store.port import (
    MAX_INT64,
    MERGED_RETENTION_S,
    DeviceTotals,
    Point,
    SeriesPoint,
    Slice,
    check_merged_slice,
    check_window_slice,
)

BUSY_TIMEOUT_S = 10.0
ROWS_PER_EXPIRY_BATCH = 5_000
_MAX_READERS = 4
_NS = 1_000_000_000


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
                self._writer.executescript(rows_of.SCHEMA)
                self._add_later_columns()
            except sqlite3.Error:
                self._writer.close()
                raise

    def __repr__(self) -> str:
        return f"EmbeddedStore({str(self._path)!r})"

    def set_up(self, *, raw_retention_s: int, merged_retention_s: int | None = None) -> None:
        """Record how long telemetry is kept; `expire` removes what is older. Raises InvalidRequestError below 1 s."""
        merged_s = MERGED_RETENTION_S if merged_retention_s is None else merged_retention_s
        kept_s = {"raw_retention_s": raw_retention_s, "merged_retention_s": merged_s}
        for name, value in kept_s.items():
            if value < 1:
                raise InvalidRequestError(f"{name} is {value}: telemetry is kept for at least 1 s")
        with self._write_lock, self._told(), self._transaction():
            self._writer.executemany(
                "INSERT INTO settings VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
                kept_s.items(),
            )

    def check(self) -> None:
        """Raise StoreUnavailableError unless the file can be read."""
        with self._reading() as connection:
            connection.execute("SELECT 1 FROM inference LIMIT 1").fetchall()

    def write(self, fleet: str, windows: Sequence[Window]) -> None:
        """Store windows in one durable transaction; those that are there already stay as they are."""
        if not windows:
            return
        rows = [rows_of.window_row(fleet, window) for window in windows]
        with self._write_lock, self._told(), self._transaction():
            self._writer.executemany(rows_of.INSERT_WINDOW, rows)

    def windows(self, where: Slice, *, limit: int = 1000) -> list[Window]:
        """The latest `limit` windows of a slice, oldest first, as they were written."""
        check_window_slice(where)
        if is_empty(where) or limit < 1:
            return []
        condition, values = rows_of.window_condition(where)
        query = (
            f"SELECT window FROM inference WHERE {condition}"  # noqa: S608 - column names only; values are bound
            " ORDER BY end_ns DESC, device DESC, boot_id DESC, sequence DESC LIMIT ?"
        )
        with self._reading() as connection:
            found = connection.execute(query, (*values, min(limit, MAX_INT64))).fetchall()
        return [unpack(blob, str(self._path)) for (blob,) in reversed(found)]

    def each_window(self, where: Slice) -> Generator[Window, None, None]:
        """Every window of a slice, in no order. Takes one of the file's readers until it ends or is closed."""
        check_window_slice(where)
        if is_empty(where):
            return
        condition, values = rows_of.window_condition(where)
        query = f"SELECT window FROM inference WHERE {condition}"  # noqa: S608 - as above
        with self._reading() as connection:
            cursor = connection.execute(query, values)
            while found := cursor.fetchmany(rows_of.FETCH_ROWS):
                for (blob,) in found:
                    yield unpack(blob, str(self._path))

    def totals_by_device(self, where: Slice) -> list[DeviceTotals]:
        """Sums of a slice per (device, model, version, arm), sorted by these."""
        check_window_slice(where)
        with self._reading() as connection:
            return sum_by_device(() if is_empty(where) else rows_of.sums(connection, where))

    def series(self, where: Slice, *, step_ns: int) -> list[SeriesPoint]:
        """Sums of a slice per step, oldest first; empty steps are left out."""
        check_window_slice(where)
        with self._reading() as connection:
            return sum_by_step(() if is_empty(where) else rows_of.sums(connection, where), step_ns)

    def write_merged(self, fleet: str, grain: Grain, merged: Sequence[MergedWindow]) -> None:
        """Put merged windows in their places in one durable transaction; those without windows take theirs away."""
        written = [rows_of.merged_row(fleet, grain, one) for one in merged if one.windows]
        emptied = [rows_of.merged_row(fleet, grain, one)[:-1] for one in merged if not one.windows]
        if not merged:
            return
        with self._write_lock, self._told(), self._transaction():
            self._writer.executemany(rows_of.REPLACE_MERGED, written)
            self._writer.executemany(rows_of.DELETE_MERGED, emptied)

    def merged(self, where: Slice, grain: Grain) -> Iterator[MergedWindow]:
        """Merged windows whose span starts in [start_ns, end_ns) of the slice, by start, then key; page by page."""
        check_merged_slice(where, grain)
        return iter(()) if is_empty(where) else self._merged_pages(where, grain)

    def _merged_pages(self, where: Slice, grain: Grain) -> Iterator[MergedWindow]:
        page: list[MergedWindow] = []
        while True:
            with self._reading() as connection:
                page = rows_of.merged_page(connection, where, grain, page[-1] if page else None, str(self._path))
            yield from page
            if len(page) < rows_of.FETCH_ROWS:
                return

    def write_points(self, fleet: str, points: Sequence[Point]) -> None:
        """Store points in one durable transaction, in the place of those that are there."""
        check_points(points)
        if not points:
            return
        with self._write_lock, self._told(), self._transaction():
            self._writer.executemany(rows_of.REPLACE_POINT, [rows_of.point_row(fleet, point) for point in points])

    def points(
        self, fleet: str, measurement: str, *, start_ns: int, end_ns: int, tags: Mapping[str, str]
    ) -> list[Point]:
        """The points of a measurement in [start_ns, end_ns) that have these tags, oldest first."""
        check_measurement(measurement)
        with self._reading() as connection:
            found = rows_of.point_rows(
                connection, fleet, measurement, (start_ns, end_ns), tags, limit=MAX_POINTS + 1, file=str(self._path)
            )
        if len(found) > MAX_POINTS:
            raise InvalidRequestError(f"more than {MAX_POINTS} points of {measurement}: ask for a shorter time")
        return list(found)

    def expire(self, now_ns: int) -> int:
        """Delete what is older than its retention: windows, merged windows, points; returns how many rows.

        In transactions of ROWS_PER_EXPIRY_BATCH, so that writers wait briefly. Keeps everything before `set_up`.
        """
        with self._reading() as connection:
            kept_s = dict(connection.execute("SELECT name, value FROM settings").fetchall())
        if "raw_retention_s" not in kept_s:
            return 0
        raw_ns = now_ns - kept_s["raw_retention_s"] * _NS
        merged_ns = now_ns - kept_s.get("merged_retention_s", MERGED_RETENTION_S) * _NS
        deleted = self._expire("inference", "end_ns <= ?", (raw_ns,))
        for grain in Grain:
            last_ns = merged_ns if grain is Grain.FLEET_HOUR else raw_ns
            condition = "grain = ? AND start_ns <= ?"
            deleted += self._expire("merged_windows", condition, (grain.value, last_ns - grain.span_ns))
        return deleted + self._expire("points", "at_ns <= ?", (merged_ns,))

    def _expire(self, table: str, condition: str, values: tuple[str | int, ...]) -> int:
        statement = (
            f"DELETE FROM {table} WHERE rowid IN"  # noqa: S608 - constants; values are bound
            f" (SELECT rowid FROM {table} WHERE {condition} LIMIT {ROWS_PER_EXPIRY_BATCH})"
        )
        deleted = 0
        while True:
            with self._write_lock, self._told(), self._transaction():
                batch = self._writer.execute(statement, values).rowcount
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
            self._writer.execute(f"ALTER TABLE inference ADD COLUMN {column} {rows_of.LATER_COLUMNS[column]}")
        self._writer.execute("COMMIT")

    def _missing_columns(self) -> list[str]:
        there = {row[1] for row in self._writer.execute("PRAGMA table_info(inference)")}
        return [column for column in rows_of.LATER_COLUMNS if column not in there]

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
