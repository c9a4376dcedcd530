"""What is not merged yet: minutes of the fleet and hours as marked spans, hours of devices as a range in the ledger.

Invariants:
1. a mark is set in the transaction that counts the windows, after the store has them: whoever sees no mark sees every
   counted window merged, or reads it from the store;
2. a mark is cleared by compare-and-set with what was read before the windows were (of a span its `mark`, a new random
   number each time; of a device its range and its count of windows, which only grows), so a window that comes while
   its span is merged leaves the mark in place;
3. whoever loses that race after writing marks again (`clear_*` do it): what was written may be older than what was
   there;
4. a minute's mark goes only together with setting that of its hour.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, and_, case, delete, func, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from fleet_protocol.messages import Window
from fleet_server.database.tables import ingest_ledger, unmerged_spans
from fleet_server.telemetry_store.merged import Grain
from fleet_server.telemetry_store.port import MAX_INT64

MAX_MARKS = 100_000
"""Marked spans read at once: more than two months of minutes."""
_DEVICES_IN_QUERY = 500
_TOKEN_BITS = 62
_TOKENS = random.SystemRandom()  # not the seeded one: processes that were forked must not draw the same numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class MarkedSpan:
    """A span that must be merged again, as it was marked. `marked_ns` is the server's time of the first mark."""

    start_ns: int
    mark: int
    marked_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MarkedDevice:
    """One boot of a device with windows, ending in [from_ns, to_ns], that must be merged; `windows` are all counted."""

    device: str
    boot_id: str
    from_ns: int
    to_ns: int
    windows: int


def mark_minutes(connection: Connection, fleet: str, windows: Iterable[Window], *, now_ns: int) -> None:
    """Mark the minutes that windows ended in. At most as many rows as windows, in one statement."""
    span_ns = Grain.FLEET_MINUTE.span_ns
    starts = {(window.end_ns - 1) // span_ns * span_ns for window in windows if window.end_ns > 0}
    mark_spans(connection, fleet, Grain.FLEET_MINUTE, starts, now_ns=now_ns)


def mark_spans(
    connection: Connection, fleet: str, grain: Grain, starts: Iterable[int], *, now_ns: int, later: bool = False
) -> None:
    """Mark spans, anew where they are marked: `marked_ns` then stays, or becomes now where it is for `later`."""
    rows = [
        {"fleet": fleet, "grain": grain.value, "start_ns": start_ns, "mark": _token(), "marked_ns": now_ns}
        for start_ns in sorted(starts)  # in one order everywhere, so that no two transactions wait for each other
    ]
    if not rows:
        return
    dialect_insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    statement = dialect_insert(unmerged_spans)
    changed = {name: statement.excluded[name] for name in (("mark", "marked_ns") if later else ("mark",))}
    keys = [column.name for column in unmerged_spans.primary_key]
    connection.execute(statement.on_conflict_do_update(index_elements=keys, set_=changed), rows)


def unmerged_range(windows: Sequence[Window]) -> dict[str, int | None]:
    """The ledger's columns for windows of one boot that were counted just now; None where there are none."""
    ends = [window.end_ns for window in windows if window.end_ns > 0]
    return {"unmerged_from_ns": min(ends, default=None), "unmerged_to_ns": max(ends, default=None)}


def widened_range(statement: sqlite.Insert | postgresql.Insert) -> dict[str, ColumnElement[int]]:
    """What an upsert of the ledger sets its range to: as wide as what is there and what comes, without a read."""
    there, coming = ingest_ledger.c, statement.excluded
    from_is_wider = or_(coming.unmerged_from_ns.is_(None), there.unmerged_from_ns <= coming.unmerged_from_ns)
    to_is_wider = or_(coming.unmerged_to_ns.is_(None), there.unmerged_to_ns >= coming.unmerged_to_ns)
    return {
        "unmerged_from_ns": case((from_is_wider, there.unmerged_from_ns), else_=coming.unmerged_from_ns),
        "unmerged_to_ns": case((to_is_wider, there.unmerged_to_ns), else_=coming.unmerged_to_ns),
    }


def marked_spans(
    connection: Connection, fleet: str, grain: Grain, *, start_ns: int, end_ns: int, limit: int = MAX_MARKS
) -> list[MarkedSpan]:
    """Marked spans that start in [start_ns, end_ns), the latest `limit` of them, latest first."""
    found = unmerged_spans.c
    rows = connection.execute(
        select(found.start_ns, found.mark, found.marked_ns)
        .where(
            found.fleet == fleet,
            found.grain == grain.value,
            found.start_ns >= _in_column(start_ns),
            found.start_ns < _in_column(end_ns),
        )
        .order_by(found.start_ns.desc())
        .limit(limit)
    )
    return [MarkedSpan(start_ns=row.start_ns, mark=row.mark, marked_ns=row.marked_ns) for row in rows]


def marked_devices(
    connection: Connection,
    fleet: str,
    *,
    start_ns: int,
    end_ns: int,
    devices: frozenset[str] | None = None,
    limit: int | None = None,
) -> list[MarkedDevice]:
    """Devices with unmerged windows that end in (start_ns, end_ns], those with the oldest first.

    The range of a device may reach into that span without a window of it there.
    """
    row = ingest_ledger.c
    query = (
        select(row.device, row.boot_id, row.unmerged_from_ns, row.unmerged_to_ns, row.windows)
        .where(
            row.fleet == fleet, row.unmerged_from_ns <= _in_column(end_ns), row.unmerged_to_ns > _in_column(start_ns)
        )
        .order_by(row.unmerged_from_ns, row.device, row.boot_id)
        .limit(limit)
    )
    if devices is not None and len(devices) <= _DEVICES_IN_QUERY:
        query = query.where(row.device.in_(sorted(devices)))
    return [
        MarkedDevice(
            device=found.device,
            boot_id=found.boot_id,
            from_ns=found.unmerged_from_ns,
            to_ns=found.unmerged_to_ns,
            windows=found.windows,
        )
        for found in connection.execute(query)
        if devices is None or found.device in devices
    ]


def count_marked_devices(connection: Connection, fleet: str) -> int:
    """How many boots of devices have windows that are not merged."""
    row = ingest_ledger.c
    query = select(func.count()).where(row.fleet == fleet, row.unmerged_from_ns.is_not(None))
    return int(connection.execute(query).scalar_one())


def clear_span(connection: Connection, fleet: str, grain: Grain, span: MarkedSpan, *, now_ns: int) -> bool:
    """Take a mark away unless it was set anew; then, or where somebody else took it, it is there afterwards."""
    found = unmerged_spans.c
    cleared = connection.execute(
        delete(unmerged_spans).where(
            found.fleet == fleet,
            found.grain == grain.value,
            found.start_ns == span.start_ns,
            found.mark == span.mark,
        )
    ).rowcount
    if not cleared:
        mark_spans(connection, fleet, grain, [span.start_ns], now_ns=now_ns, later=True)
    return bool(cleared)


def clear_device(connection: Connection, fleet: str, marked: MarkedDevice) -> bool:
    """Take a device's range away unless windows came or somebody else took it; then all of it is there afterwards."""
    row = ingest_ledger.c
    key = and_(row.fleet == fleet, row.device == marked.device, row.boot_id == marked.boot_id)
    cleared = connection.execute(
        update(ingest_ledger)
        .where(
            key,
            row.windows == marked.windows,
            row.unmerged_from_ns == marked.from_ns,
            row.unmerged_to_ns == marked.to_ns,
        )
        .values(unmerged_from_ns=None, unmerged_to_ns=None)
    ).rowcount
    if not cleared:
        is_narrower_from = or_(row.unmerged_from_ns.is_(None), row.unmerged_from_ns > marked.from_ns)
        is_narrower_to = or_(row.unmerged_to_ns.is_(None), row.unmerged_to_ns < marked.to_ns)
        connection.execute(
            update(ingest_ledger)
            .where(key)
            .values(
                unmerged_from_ns=case((is_narrower_from, marked.from_ns), else_=row.unmerged_from_ns),
                unmerged_to_ns=case((is_narrower_to, marked.to_ns), else_=row.unmerged_to_ns),
            )
        )
    return bool(cleared)


def _in_column(time_ns: int) -> int:
    return max(-MAX_INT64, min(time_ns, MAX_INT64))


def _token() -> int:
    return _TOKENS.getrandbits(_TOKEN_BITS)
