"""Writes what a batch says of devices into the database, in the caller's transaction.

Invariants: a record (window or event) is counted once, by (device, boot, sequence); of reports of one boot only
a higher sequence counts; an offline will of an earlier boot does not put a later boot offline.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec
from sqlalchemy import ColumnElement, Connection, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from fleet_protocol.messages import Event, Presence, Reported, Stored, Window
from fleet_server.database.engine import lock_for_write
from fleet_server.database.tables import device_events, devices, ingest_ledger
from fleet_server.ingest.ledger import Ranges, add_sequences, contains, normalised
from fleet_server.merging.marks import mark_minutes, unmerged_range, widened_range
from fleet_server.registry.variants import record_figures

BootKey = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Recorded:
    """What the ledger said to a batch: how many windows were new, how many were repeats, what to confirm.

    `quarantined` are the new ones of those that were set aside.
    """

    fresh_windows: int
    repeats: int
    confirmations: list[Stored]
    quarantined: list[Window]


def uncounted_windows(connection: Connection, fleet: str, windows: Sequence[Window]) -> list[Window]:
    """The windows that the ledger has not counted, each identity once: the first of a batch is the one."""
    ledger = _read_ledger(connection, fleet, ((window.device, window.boot_id) for window in windows))
    found: dict[tuple[str, str, int], Window] = {}
    for window in windows:
        ranges, _, _ = ledger.get((window.device, window.boot_id), ([], 0, 0))
        if not contains(ranges, window.sequence):
            found.setdefault((window.device, window.boot_id, window.sequence), window)
    return list(found.values())


def record_batch(
    connection: Connection,
    fleet: str,
    windows: Sequence[Window],
    events: Sequence[Event],
    *,
    now_ns: int,
    quarantined: Sequence[Window] = (),
) -> Recorded:
    """Count windows and events in the ledger and keep fresh events.

    `quarantined` windows are noted as seen and confirmed, so that they do not come again, and count as no window;
    what they claim to cover stays missing.
    """
    lock_for_write(connection, ingest_ledger.name)
    arrived: dict[BootKey, list[Window | Event]] = defaultdict(list)
    set_aside = {id(window) for window in quarantined}
    records: list[Window | Event] = [*quarantined, *windows, *events]  # a good one under a bad one's name is a repeat
    for record in records:
        arrived[record.device, record.boot_id].append(record)
    ledger = _read_ledger(connection, fleet, arrived)
    fresh_windows = repeats = 0
    to_merge: list[Window] = []
    rows: list[dict[str, object]] = []
    confirmations, fresh_events = [], []
    fresh_quarantined: list[Window] = []
    for key, of_boot in arrived.items():
        before, window_count, repeat_count = ledger.get(key, ([], 0, 0))
        ranges, fresh = add_sequences(before, (record.sequence for record in of_boot))
        new_windows: list[Window] = []
        for record in of_boot:
            if record.sequence not in fresh:
                repeat_count += 1
                repeats += 1
                continue
            fresh.discard(record.sequence)
            if id(record) in set_aside and isinstance(record, Window):
                fresh_quarantined.append(record)
            elif isinstance(record, Window):
                new_windows.append(record)
                ranges, _ = add_sequences(ranges, record.covers)
            else:
                fresh_events.append(record)
        fresh_windows += len(new_windows)
        to_merge += new_windows
        rows.append(
            {
                "fleet": fleet,
                "device": key[0],
                "boot_id": key[1],
                "ranges": [list(pair) for pair in ranges],
                "windows": window_count + len(new_windows),
                "repeats": repeat_count,
                "updated_ns": now_ns,
                **unmerged_range(new_windows),
            }
        )
        confirmations.append(_confirmation(key, [(record.sequence, record.sequence) for record in of_boot]))
    _upsert_ledger(connection, rows)
    mark_minutes(connection, fleet, to_merge, now_ns=now_ns)
    if fresh_events:
        connection.execute(insert(device_events), [_event_row(fleet, event) for event in fresh_events])
    return Recorded(fresh_windows, repeats, confirmations, fresh_quarantined)


def known_ranges(connection: Connection, fleet: str, boots: Iterable[BootKey]) -> list[Stored]:
    """What is stored of each of these boots, as confirmations; empty ranges for one never heard of."""
    wanted = set(boots)
    ledger = _read_ledger(connection, fleet, wanted)
    return [_confirmation(key, ledger[key][0] if key in ledger else []) for key in sorted(wanted)]


def record_reports(connection: Connection, fleet: str, reports: Sequence[Reported], *, now_ns: int) -> None:
    """Keep the newest report of each device, and what it measured; a device that was never heard of becomes known."""
    for report in reports:
        row = connection.execute(
            select(devices.c.boot_id, devices.c.reported_sequence, devices.c.labels).where(_is(fleet, report.device))
        ).one_or_none()
        values = {
            "boot_id": report.boot_id,
            "reported_sequence": report.sequence,
            "reported": msgspec.to_builtins(report),
            "last_seen_ns": now_ns,
        }
        if row is None:
            _add_device(connection, fleet, report.device, now_ns, {**values, "labels": report.labels})
        elif row.boot_id != report.boot_id or report.sequence > row.reported_sequence:
            values["labels"] = {**report.labels, **row.labels}
            connection.execute(update(devices).where(_is(fleet, report.device)).values(values))
        else:
            continue
        record_figures(connection, fleet, report, now_ns=now_ns)


def record_presences(connection: Connection, fleet: str, presences: Sequence[Presence], *, now_ns: int) -> None:
    """Keep who is online."""
    for presence in presences:
        known = connection.execute(select(devices.c.boot_id).where(_is(fleet, presence.device))).one_or_none()
        if known is None:
            _add_device(connection, fleet, presence.device, now_ns, {"online": presence.online})
        elif presence.online or known.boot_id in (None, presence.boot_id):
            values: dict[str, object] = {"online": presence.online}
            if presence.online:
                values["last_seen_ns"] = now_ns
            connection.execute(update(devices).where(_is(fleet, presence.device)).values(values))


def touch_devices(connection: Connection, fleet: str, seen: Iterable[str], *, now_ns: int) -> None:
    """Note when devices were last heard."""
    names = sorted(set(seen))
    if names:
        connection.execute(
            update(devices).where(devices.c.fleet == fleet, devices.c.device.in_(names)).values(last_seen_ns=now_ns)
        )


def _is(fleet: str, device: str) -> ColumnElement[bool]:
    return (devices.c.fleet == fleet) & (devices.c.device == device)


def _add_device(connection: Connection, fleet: str, device: str, now_ns: int, values: dict[str, object]) -> None:
    row = {"fleet": fleet, "device": device, "created_ns": now_ns, "last_seen_ns": now_ns, "labels": {}, **values}
    connection.execute(insert(devices).values(row))


def _read_ledger(connection: Connection, fleet: str, keys: Iterable[BootKey]) -> dict[BootKey, tuple[Ranges, int, int]]:
    boots = {boot_id for _, boot_id in keys}
    rows = connection.execute(
        select(ingest_ledger).where(ingest_ledger.c.fleet == fleet, ingest_ledger.c.boot_id.in_(boots))
    )
    return {
        (row.device, row.boot_id): ([(first, last) for first, last in row.ranges], row.windows, row.repeats)
        for row in rows
    }


def _upsert_ledger(connection: Connection, rows: list[dict[str, object]]) -> None:
    if not rows:
        return
    dialect_insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    statement = dialect_insert(ingest_ledger)
    changed = {name: statement.excluded[name] for name in ("ranges", "windows", "repeats", "updated_ns")}
    keys = [column.name for column in ingest_ledger.primary_key]
    set_ = {**changed, **widened_range(statement)}
    connection.execute(statement.on_conflict_do_update(index_elements=keys, set_=set_), rows)


def _confirmation(key: BootKey, ranges: Ranges) -> Stored:
    return Stored(device=key[0], boot_id=key[1], ranges=normalised(ranges))


def _event_row(fleet: str, event: Event) -> dict[str, object]:
    return {
        "fleet": fleet,
        "device": event.device,
        "boot_id": event.boot_id,
        "sequence": event.sequence,
        "at_ns": event.at_ns,
        "kind": event.kind.value,
        "model": event.model,
        "bundle": event.bundle,
        "phase": event.phase.value if event.phase else None,
        "detail": event.detail,
    }
