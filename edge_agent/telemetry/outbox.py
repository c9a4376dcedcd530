"""The durable outbox: every window and event, from the moment it exists until the server has it.

A record's life: appended (durable) → handed to the broker → taken by the broker → confirmed by the server → gone.
Invariants:
- `append` returns after fsync; a record is removed only when the server confirmed it, or when it is dropped or
  merged for room, which is counted. A broker's word is not enough, unless the operator says so: one that nobody
  listens to yet, or that is killed, loses what it took.
- A record that the broker took and no server confirmed is sent again, ever more rarely while the server is silent.
- (boot_id, sequence) names a record for ever. A record that was ever handed to the broker is never merged,
  because its copy may already be counted.
- The outbox is bounded in bytes and age. Under pressure the oldest windows of one series merge first; only
  when nothing is left to merge is the oldest record dropped.
"""

from __future__ import annotations

import logging
import math
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edge_agent.errors import ConfigError
from edge_agent.telemetry.merging import merge_windows, same_series
from fleet_protocol.errors import ProtocolError
from fleet_protocol.messages import MAX_TELEMETRY_BYTES, OutboxStatus, Window, decode, encode
from fleet_protocol.topics import TopicKind

_LOG = logging.getLogger(__name__)
_MERGE_LOOK_BACK = 256  # records read at once when looking for windows to merge
_MERGEABLE_BYTES = MAX_TELEMETRY_BYTES // 2  # two larger ones might make a window that the server refuses
_RECORD_OVERHEAD_BYTES = 64
_CLOCK_IS_SET_S = 1_577_836_800  # 2020: a clock that shows less has not been set since the device has power
_RESEND_BACKOFF_LIMIT = 8  # a record's confirm timeout doubles at most this often

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
    UNIQUE (boot_id, sequence)
);
"""


@dataclass(frozen=True, slots=True)
class Record:
    """One payload on its way. `id` is local; (boot_id, sequence) is the record's name everywhere."""

    id: int
    boot_id: str
    sequence: int
    kind: TopicKind
    payload: bytes


class Outbox:
    """Safe to call from several threads. One process at a time owns the file.

    Raises ConfigError when the file cannot be opened, and OSError when its folder cannot be made.
    """

    def __init__(
        self,
        path: Path,
        *,
        max_bytes: int,
        max_age_s: float,
        confirm_timeout_s: float,
        confirmed_by: Literal["server", "broker"] = "server",
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self._lock = threading.Lock()
        self._max_bytes, self._max_age_s, self._confirm_timeout_s = max_bytes, max_age_s, confirm_timeout_s
        self._puback_is_enough = confirmed_by == "broker"
        self._now_s, self._heard_s = now_s, -math.inf
        self._db = _open(path)
        self._bytes = self._measure()
        self._uncounted_drops = 0
        self.boot_id = self._start_boot()
        self._sequence = 0

    def _start_boot(self) -> str:
        count = int(self._meta("boots", "0")) + 1
        try:
            with self._db:
                self._set_meta("boots", str(count))
        except sqlite3.OperationalError as error:  # its random half still tells this boot from every other
            _LOG.error("the outbox could not note boot %s: %s", count, error)
        return f"{count & 0xFFFFFFFF:08x}-{secrets.token_hex(4)}"

    def append(self, kind: TopicKind, build: Callable[[int], bytes]) -> int:
        """Store the payload that `build(sequence)` returns; gives its sequence. Durable when it returns.

        A full disk loses the record: it is counted as dropped and logged.
        """
        with self._lock:
            self._sequence += 1
            sequence = self._sequence
            payload = build(sequence)
            try:
                with self._db:
                    self._db.execute(
                        "INSERT INTO records (boot_id, sequence, kind, payload, created_s) VALUES (?, ?, ?, ?, ?)",
                        (self.boot_id, sequence, kind.value, payload, self._now_s()),
                    )
                    self._bytes += _cost(payload)
                    self._make_room()
                    self._count("dropped", self._uncounted_drops)
                self._uncounted_drops = 0
            except sqlite3.Error as error:
                _LOG.error("the outbox could not store record %s: %s; it is dropped", sequence, error)
                self._bytes = self._measure()
                self._uncounted_drops += 1  # counted durably with the next record that the disk takes
            return sequence

    def pending(self, limit: int, excluding: Iterable[int] = ()) -> list[Record]:
        """Up to `limit` records to publish now, oldest first, without the ids in `excluding`.

        They are durably marked as handed over before this returns.
        """
        skip = set(excluding)
        with self._lock:
            rows = self._db.execute(
                "SELECT id, boot_id, sequence, kind, payload, handed FROM records"
                " WHERE resend_s IS NULL OR resend_s <= ? ORDER BY id LIMIT ?",
                (self._now_s(), limit + len(skip)),
            ).fetchall()
            rows = [row for row in rows if row[0] not in skip][:limit]
            fresh = [(row[0],) for row in rows if not row[5]]
            if fresh:
                with self._db:
                    self._db.executemany("UPDATE records SET handed = 1 WHERE id = ?", fresh)
        return [Record(row[0], row[1], row[2], TopicKind(row[3]), row[4]) for row in rows]

    def taken_by_broker(self, record_id: int) -> None:
        """The broker acknowledged a record: wait for the server's word, and send it again when none comes."""
        with self._lock, self._db:
            if self._puback_is_enough:
                self._delete([record_id])
                return
            row = self._db.execute("SELECT handed FROM records WHERE id = ?", (record_id,)).fetchone()
            if row:
                delay_s = self._confirm_timeout_s * 2 ** min(row[0] - 1, _RESEND_BACKOFF_LIMIT)
                self._db.execute(
                    "UPDATE records SET handed = handed + 1, resend_s = ? WHERE id = ?",
                    (self._now_s() + delay_s, record_id),
                )

    def hold(self, record_id: int, delay_s: float) -> None:
        """The broker refused a record: keep it back for a while."""
        with self._lock, self._db:
            self._db.execute("UPDATE records SET resend_s = ? WHERE id = ?", (self._now_s() + delay_s, record_id))

    def confirm(self, boot_id: str, ranges: Sequence[tuple[int, int]]) -> None:
        """The server has the records of `boot_id` in the inclusive `ranges`.

        Its first word after a silence ends every longer wait: what it missed meanwhile is sent again soon.
        """
        with self._lock, self._db:
            now_s = self._now_s()
            if now_s - self._heard_s > self._confirm_timeout_s:
                soon_s = now_s + self._confirm_timeout_s
                self._db.execute("UPDATE records SET resend_s = ? WHERE resend_s > ?", (soon_s, soon_s))
            self._heard_s = now_s
            for first, last in ranges:
                ids = self._db.execute(
                    "SELECT id FROM records WHERE boot_id = ? AND sequence BETWEEN ? AND ? AND handed > 0",
                    (boot_id, first, last),
                ).fetchall()
                self._delete([row[0] for row in ids])

    def status(self) -> OutboxStatus:
        """Records kept now, and records dropped and merged since the outbox was made."""
        with self._lock:
            depth = self._db.execute("SELECT count(*) FROM records").fetchone()[0]
            dropped = self._counted("dropped") + self._uncounted_drops
            return OutboxStatus(depth=depth, dropped=dropped, merged=self._counted("merged"))

    def close(self) -> None:
        """Close the file; what is in it stays."""
        with self._lock:
            self._db.close()

    def _make_room(self) -> None:
        # a record from before the clock was set has no known age: only the bound in bytes holds for it
        self._drop_where("created_s BETWEEN ? AND ?", (_CLOCK_IS_SET_S, self._now_s() - self._max_age_s))
        while self._bytes > self._max_bytes:
            if self._merge_oldest():
                continue
            oldest = self._db.execute("SELECT id FROM records ORDER BY id LIMIT 1").fetchone()
            if oldest is None:
                return
            self._drop_where("id = ?", oldest)

    def _merge_oldest(self) -> bool:
        """Merge the oldest pair of mergeable windows. False when there is none."""
        rows = self._db.execute(
            "SELECT id, payload FROM records WHERE kind = ? AND handed = 0 AND length(payload) <= ?"
            " ORDER BY id LIMIT ?",
            (TopicKind.TELEMETRY.value, _MERGEABLE_BYTES, _MERGE_LOOK_BACK),
        ).fetchall()
        windows = [(row_id, payload, window) for row_id, payload in rows if (window := _readable(payload))]
        for place, (id_a, bytes_a, a) in enumerate(windows):
            # only with the next of its series: where those two do not fit, the later one collects from there on
            following = (row for row in windows[place + 1 :] if same_series(a, row[2]))
            id_b, bytes_b, b = next(following, (0, b"", None))
            merged = _merged(a, b) if b else None
            if merged is None or len(merged) >= len(bytes_a) + len(bytes_b):
                continue
            self._delete([id_a])
            self._db.execute("UPDATE records SET payload = ? WHERE id = ?", (merged, id_b))
            self._bytes += len(merged) - len(bytes_b)
            self._count("merged", 1)
            return True
        return False

    def _drop_where(self, condition: str, parameters: Sequence[object]) -> None:
        query = f"SELECT id FROM records WHERE {condition}"  # noqa: S608 - conditions are literals of this file
        ids = [row[0] for row in self._db.execute(query, parameters)]
        if ids:
            _LOG.warning("the outbox dropped %s records for room or age", len(ids))
            self._delete(ids)
            self._count("dropped", len(ids))

    def _delete(self, ids: Sequence[int]) -> None:
        for record_id in ids:
            row = self._db.execute(
                "DELETE FROM records WHERE id = ? RETURNING length(payload)", (record_id,)
            ).fetchone()
            if row:
                self._bytes -= row[0] + _RECORD_OVERHEAD_BYTES

    def _measure(self) -> int:
        row = self._db.execute(
            "SELECT coalesce(sum(length(payload)), 0) + ? * count(*) FROM records", (_RECORD_OVERHEAD_BYTES,)
        ).fetchone()
        return int(row[0])

    def _counted(self, name: str) -> int:
        return int(self._meta(name, "0"))

    def _count(self, name: str, by: int) -> None:
        if by:
            self._set_meta(name, str(self._counted(name) + by))

    def _meta(self, key: str, default: str) -> str:
        row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return str(row[0]) if row else default

    def _set_meta(self, key: str, value: str) -> None:
        self._db.execute("INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)", (key, value))


def _cost(payload: bytes) -> int:
    return len(payload) + _RECORD_OVERHEAD_BYTES


def _readable(payload: bytes) -> Window | None:
    try:
        return decode(Window, payload)
    except ProtocolError:
        return None


def _merged(a: Window, b: Window) -> bytes | None:
    """The two as one payload; None when a server would refuse it, for a table's length."""
    try:
        merged = encode(merge_windows(a, b))
    except ProtocolError:
        return None
    return merged if _readable(merged) else None


def _open(path: Path) -> sqlite3.Connection:
    """The outbox file, or a new one when it is not a database; what cannot be read is kept beside it."""
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
        _check_pages(db)
    except sqlite3.DatabaseError:
        db.close()
        raise
    return db


def _check_pages(db: sqlite3.Connection) -> None:
    found = db.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise sqlite3.DatabaseError(found)
