"""The durable outbox: every window and event, from the moment it exists until the server has it.

A record's life: appended (durable) → handed to the broker → taken by the broker → confirmed by the server → gone.
Invariants:
- `append` returns after fsync; a record is removed only when the server confirmed it, or when it is dropped or
  merged for room, which is counted. A broker's word is not enough, unless the operator says so: one that nobody
  listens to yet, or that is killed, loses what it took.
- A record that the broker took and no server confirmed is sent again, ever more rarely while the server is silent.
- (boot_id, sequence) names a record for ever. A record that was ever handed to the broker is never merged,
  because its copy may already be counted.
- The outbox is bounded in bytes and age. Under pressure the oldest neighbouring windows of one series merge first,
  plain ones before those with errors or outcomes; only when nothing is left to merge is a record dropped, of the least
  worth and then the oldest (`outbox_order`, which also says what is sent first).
- A window that was recorded before the clock was ever set waits until it is (CLOCK_WAIT_S at most), and then tells the
  right times (`move_times`).
- An outcome is open in the journal until the window that counts it is appended, in one transaction.
"""

from __future__ import annotations

import logging
import math
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from msgspec.structs import replace

from edge_agent.telemetry import outcome_journal
from edge_agent.telemetry.merging import mergeable, merged_payload, neighbours
from edge_agent.telemetry.outbox_file import open_outbox_file
from edge_agent.telemetry.outbox_order import Worth, sending_order, worth_of
from edge_agent.telemetry.outcome_journal import ReportedOutcome
from edge_agent.telemetry.spans import CLOCK_IS_SET_NS
from fleet_protocol.errors import ProtocolError
from fleet_protocol.messages import OutboxStatus, Window, decode, encode
from fleet_protocol.topics import TopicKind

_LOG = logging.getLogger(__name__)
_MERGE_FIRST_LOOK = 16  # records read first when looking for windows to merge
_MERGE_LOOK_BACK = 256  # and at most
_RECORD_OVERHEAD_BYTES = 64
_CLOCK_IS_SET_S = CLOCK_IS_SET_NS / 1e9
_RESEND_BACKOFF_LIMIT = 8  # a record's confirm timeout doubles at most this often
_FRESH_S = 300.0  # windows of the last minutes: what is happening now
_DURABLE_JOURNAL_S = 5.0  # outcomes survive a killed process at once, a power cut after this

CLOCK_WAIT_S = 3600.0
"""How long windows wait for a clock that was never set."""


class Record(NamedTuple):
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
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._lock = threading.Lock()
        self._max_bytes, self._max_age_s, self._confirm_timeout_s = max_bytes, max_age_s, confirm_timeout_s
        self._puback_is_enough = confirmed_by == "broker"
        self._now_s, self._heard_s, self._monotonic_s = now_s, -math.inf, monotonic_s
        self._started_s, self._journaled_s, self._turn = monotonic_s(), -math.inf, 0
        self._journal_is_ahead = False  # of what is synced to the disk
        self._db = open_outbox_file(path)
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

    def append(self, kind: TopicKind, build: Callable[[int], bytes], *, counts: Sequence[ReportedOutcome] = ()) -> int:
        """Store the payload that `build(sequence)` returns; gives its sequence. Durable when it returns.

        `counts` are the outcomes that this record tells: they are open no longer. A full disk loses the record: it is
        counted as dropped and logged.
        """
        with self._lock:
            self._sequence += 1
            sequence = self._sequence
            payload = build(sequence)
            try:
                with self._db:
                    now_s, worth = self._now_s(), worth_of(kind, _readable(kind, payload))
                    self._db.execute(
                        "INSERT INTO records (boot_id, sequence, kind, payload, created_s, worth)"
                        " VALUES (?, ?, ?, ?, ?, ?)",
                        (self.boot_id, sequence, kind.value, payload, now_s, worth),
                    )
                    if counts:
                        outcome_journal.note(self._db, counts, now_s=now_s, are_open=False)
                        outcome_journal.forget_the_old(self._db, now_s=now_s)
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
        """Up to `limit` records to publish now, in `sending_order`, without the ids in `excluding`.

        They are durably marked as handed over before this returns.
        """
        skip = set(excluding)
        with self._lock:
            now_s = self._now_s()
            candidates = limit + len(skip)
            is_fresh = "created_s BETWEEN ? AND ?", (now_s - _FRESH_S, now_s + _FRESH_S)
            is_old = "created_s NOT BETWEEN ? AND ?", is_fresh[1]
            ids = sending_order(
                events=[i for i in self._sendable(TopicKind.EVENTS, candidates, now_s) if i not in skip],
                fresh=[i for i in self._sendable(TopicKind.TELEMETRY, candidates, now_s, is_fresh) if i not in skip],
                backlog=[i for i in self._sendable(TopicKind.TELEMETRY, candidates, now_s, is_old) if i not in skip],
                limit=limit,
                turn=self._turn,
            )
            self._turn += len(ids)
            rows = [
                self._db.execute(
                    "SELECT id, boot_id, sequence, kind, payload, handed FROM records WHERE id = ?", (record_id,)
                ).fetchone()
                for record_id in ids
            ]
            new = [(row[0],) for row in rows if not row[5]]
            if new:
                with self._db:
                    self._db.executemany("UPDATE records SET handed = 1 WHERE id = ?", new)
        return [Record(row[0], row[1], row[2], TopicKind(row[3]), row[4]) for row in rows]

    def _sendable(
        self,
        kind: TopicKind,
        limit: int,
        now_s: float,
        condition: tuple[str, tuple[float, ...]] = ("1", ()),
    ) -> list[int]:
        """Ids of what may be sent now, the oldest first."""
        # a wait that ends later than any wait can is one of a clock that was set back meanwhile
        latest_s = now_s + self._confirm_timeout_s * 2**_RESEND_BACKOFF_LIMIT
        query = (
            "SELECT id FROM records WHERE kind = ? AND (resend_s IS NULL OR resend_s <= ? OR resend_s > ?)"  # noqa: S608 - conditions are literals of this file
            f" AND {condition[0]}"
        )
        parameters: list[object] = [kind.value, now_s, latest_s, *condition[1]]
        if kind is TopicKind.TELEMETRY and self._monotonic_s() - self._started_s < CLOCK_WAIT_S:
            query += " AND NOT (boot_id = ? AND created_s < ?)"
            parameters += [self.boot_id, _CLOCK_IS_SET_S]
        return [row[0] for row in self._db.execute(f"{query} ORDER BY id LIMIT ?", (*parameters, limit))]

    def move_times(self, by_ns: int) -> None:
        """The clock was set for the first time: this boot's windows that nobody has yet happened `by_ns` later."""
        with self._lock, self._db:
            rows = self._db.execute(
                "SELECT id, payload, created_s FROM records"
                " WHERE boot_id = ? AND kind = ? AND handed = 0 AND created_s < ?",
                (self.boot_id, TopicKind.TELEMETRY.value, _CLOCK_IS_SET_S),
            ).fetchall()
            for record_id, payload, created_s in rows:
                window = _readable(TopicKind.TELEMETRY, payload)
                if window is not None:
                    moved = replace(window, start_ns=window.start_ns + by_ns, end_ns=window.end_ns + by_ns)
                    self._store(record_id, encode(moved), payload)
                self._db.execute("UPDATE records SET created_s = ? WHERE id = ?", (created_s + by_ns / 1e9, record_id))

    def journal(self, outcomes: Sequence[ReportedOutcome]) -> None:
        """Keep open outcomes: a killed process loses none of them, a power cut those of the last _DURABLE_JOURNAL_S.

        To be called again and again, also with none. A full disk leaves them in memory only; it is logged.
        """
        with self._lock:
            due = self._monotonic_s() - self._journaled_s >= _DURABLE_JOURNAL_S
            if not outcomes and not (due and self._journal_is_ahead):
                return
            try:
                if not due:
                    self._db.execute("PRAGMA synchronous = NORMAL")  # no fsync: that of a later commit covers this one
                with self._db:
                    outcome_journal.note(self._db, outcomes, now_s=self._now_s(), are_open=True)
                    if due:
                        self._set_meta("journaled_s", str(self._now_s()))  # so that there is something to sync
                self._journal_is_ahead = not due
                if due:
                    self._journaled_s = self._monotonic_s()
            except sqlite3.Error as error:
                _LOG.error("the outbox could not keep %s outcomes of the open window: %s", len(outcomes), error)
            finally:
                self._db.execute("PRAGMA synchronous = FULL")

    def open_outcomes(self) -> list[ReportedOutcome]:
        """The outcomes that no window counts yet: those of windows that an earlier process did not close."""
        with self._lock:
            return outcome_journal.open_outcomes(self._db)

    def counted_outcomes(self) -> list[tuple[str, int]]:
        """The (boot_id, number) of predictions whose outcome a window counted, the earliest first."""
        with self._lock:
            return outcome_journal.counted_ids(self._db)

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
            if not 0 <= now_s - self._heard_s <= self._confirm_timeout_s:
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
            least = self._db.execute("SELECT id FROM records ORDER BY worth, id LIMIT 1").fetchone()
            if least is None:
                return
            self._drop_where("id = ?", least)

    def _merge_oldest(self) -> bool:
        """Merge the oldest pair of neighbouring windows of one series, plain ones first. False when there is none."""
        rounds = ((_MERGE_FIRST_LOOK, Worth.PLAIN), (_MERGE_LOOK_BACK, Worth.PLAIN), (_MERGE_LOOK_BACK, Worth.TELLING))
        return any(self._merge_one_of(look_back, most) for look_back, most in rounds)

    def _merge_one_of(self, look_back: int, most: Worth) -> bool:
        """Merge the first pair among the oldest windows that are worth `most` at most."""
        rows = self._db.execute(
            "SELECT id, payload, worth FROM records WHERE kind = ? AND handed = 0 ORDER BY id LIMIT ?",
            (TopicKind.TELEMETRY.value, look_back),
        ).fetchall()
        windows = [(*row, window) for row in rows if (window := mergeable(row[1]))]
        for (id_a, bytes_a, worth_a, a), (id_b, bytes_b, worth_b, b) in neighbours(windows):
            merged = merged_payload(a, b) if max(worth_a, worth_b) <= most else None
            if merged is None or len(merged) >= len(bytes_a) + len(bytes_b):
                continue
            self._delete([id_a])
            self._store(id_b, merged, bytes_b)
            self._db.execute("UPDATE records SET worth = max(worth, ?) WHERE id = ?", (worth_a, id_b))
            self._count("merged", 1)
            return True
        return False

    def _store(self, record_id: int, payload: bytes, before: bytes) -> None:
        self._db.execute("UPDATE records SET payload = ? WHERE id = ?", (payload, record_id))
        self._bytes += len(payload) - len(before)

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


def _readable(kind: TopicKind, payload: bytes) -> Window | None:
    """The window in a record; None where it is none, or damaged."""
    if kind is not TopicKind.TELEMETRY:
        return None
    try:
        return decode(Window, payload)
    except ProtocolError:
        return None
