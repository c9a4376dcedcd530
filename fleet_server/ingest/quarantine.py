"""Keeps what was set aside for a person to look at, and counts what does not count, per device and reason.

Invariants: at most MAX_KEPT windows are kept, MAX_KEPT_PER_DEVICE of one device, the newest; a payload above
MAX_PAYLOAD_BYTES is not kept, its facts are. Counts are one row per device and reason, whatever a device sends. Part of
the caller's transaction.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, delete, insert, select
from sqlalchemy.dialects import postgresql, sqlite

from fleet_protocol.messages import encode
from fleet_server.database.engine import lock_for_write
from fleet_server.database.tables import quarantined_windows, refused_telemetry
from fleet_server.ingest.batch_checks import Dropped, SetAside
from fleet_server.ingest.checks import Fault

MAX_KEPT = 10_000
MAX_KEPT_PER_DEVICE = 20
MAX_PAYLOAD_BYTES = 8 * 1024
MAX_DETAIL_CHARS = 300

_kept = quarantined_windows.c
_counted = refused_telemetry.c


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstSeen:
    """A device gives a reason for the first time: what is worth a line in the log."""

    device: str
    fault: Fault


def record(
    connection: Connection, fleet: str, set_aside: Sequence[SetAside], dropped: Sequence[Dropped], *, now_ns: int
) -> list[FirstSeen]:
    """Keep and count; returns what was never counted before."""
    faults = [(each.window.device, fault) for each in set_aside for fault in each.faults]
    faults += [(each.device, each.fault) for each in dropped]
    if not faults:
        return []
    lock_for_write(connection, refused_telemetry.name)
    first = _count(connection, fleet, faults, now_ns)
    by_device: dict[str, list[SetAside]] = defaultdict(list)
    for each in set_aside:
        by_device[each.window.device].append(each)
    if by_device:
        newest = [each for of_device in by_device.values() for each in of_device[-MAX_KEPT_PER_DEVICE:]]
        connection.execute(insert(quarantined_windows), [_row(fleet, each, now_ns) for each in newest[-MAX_KEPT:]])
        of_fleet = _kept.fleet == fleet
        for device in by_device:
            _keep_newest(connection, of_fleet & (_kept.device == device), MAX_KEPT_PER_DEVICE)
        _keep_newest(connection, of_fleet, MAX_KEPT)
    return first


def counts_by_device(connection: Connection, fleet: str, devices: Sequence[str]) -> dict[str, dict[str, int]]:
    """What was counted of each of these devices: reason -> how often."""
    query = select(_counted.device, _counted.reason, _counted["count"].label("number"))
    found: dict[str, dict[str, int]] = defaultdict(dict)
    for row in connection.execute(query.where(_counted.fleet == fleet, _counted.device.in_(devices))):
        found[row.device][row.reason] = row.number
    return found


def _count(connection: Connection, fleet: str, faults: Sequence[tuple[str, Fault]], now_ns: int) -> list[FirstSeen]:
    numbers: Counter[tuple[str, str]] = Counter()
    last: dict[tuple[str, str], Fault] = {}
    for device, fault in faults:
        key = (device, fault.reason.value)
        numbers[key] += 1
        last[key] = fault
    before = counts_by_device(connection, fleet, sorted({device for device, _ in numbers}))
    rows: list[Mapping[str, Any]] = [
        {
            "fleet": fleet, "device": device, "reason": reason, "count": number, "first_ns": now_ns, "last_ns": now_ns,
            "detail": last[device, reason].detail[:MAX_DETAIL_CHARS],
        }
        for (device, reason), number in numbers.items()
    ]  # fmt: skip  # as lines of facts
    dialect_insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    statement = dialect_insert(refused_telemetry)
    changed = {
        "count": _counted["count"] + statement.excluded["count"],
        "last_ns": statement.excluded["last_ns"],
        "detail": statement.excluded["detail"],
    }
    keys = [column.name for column in refused_telemetry.primary_key]
    connection.execute(statement.on_conflict_do_update(index_elements=keys, set_=changed), rows)
    return [
        FirstSeen(device=device, fault=fault)
        for (device, reason), fault in last.items()
        if reason not in before.get(device, {})
    ]


def _keep_newest(connection: Connection, which: ColumnElement[bool], number: int) -> None:
    surplus = select(_kept.id).where(which).order_by(_kept.id.desc()).offset(number).limit(1).scalar_subquery()
    connection.execute(delete(quarantined_windows).where(which, _kept.id <= surplus))


def _row(fleet: str, each: SetAside, now_ns: int) -> Mapping[str, Any]:
    window, payload = each.window, encode(each.window)
    return {
        "fleet": fleet,
        "device": window.device,
        "boot_id": window.boot_id,
        "sequence": window.sequence,
        "model": window.model,
        "version": window.version,
        "variant": window.variant,
        "arm": window.arm,
        "start_ns": window.start_ns,
        "end_ns": window.end_ns,
        "reasons": [{"reason": fault.reason.value, "detail": fault.detail[:MAX_DETAIL_CHARS]} for fault in each.faults],
        "payload": payload if len(payload) <= MAX_PAYLOAD_BYTES else None,
        "received_ns": now_ns,
    }
