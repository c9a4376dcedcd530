"""Reads what the key figures need: sums from the telemetry store, devices and models from the database."""

from __future__ import annotations

import hashlib

from sqlalchemy import Connection, Engine, func, select

from fleet_server.database.tables import devices
from fleet_server.kpis.figures import Kpis, Uptime, key_figures, merge_totals, uptime_share
from fleet_server.registry.catalogue import count_models
from fleet_server.telemetry_store.port import Slice, TelemetryStore

KPI_SPAN_S = 24 * 3600
UPTIME_SLOT_S = 3600
UPTIME_DEVICES = 100
"""Uptime is measured on so many devices, chosen by hash: a share of them is within 10 points of the fleet's."""
_NS = 10**9


def read_kpis(engine: Engine, store: TelemetryStore, *, fleet: str, now_ns: int) -> Kpis:
    """The key figures of the last KPI_SPAN_S seconds."""
    where = Slice(fleet=fleet, start_ns=max(0, now_ns - KPI_SPAN_S * _NS), end_ns=now_ns)
    totals = merge_totals(point.totals for point in store.series(where, step_ns=KPI_SPAN_S * _NS))
    with engine.connect() as connection:
        total, online = count_devices(connection, fleet)
        models = count_models(connection)
        sample = _sample(connection, fleet)
    return key_figures(
        totals,
        fleet=fleet,
        at_ns=now_ns,
        span_s=KPI_SPAN_S,
        devices=total,
        online=online,
        models=models,
        uptime=_read_uptime(store, sample, fleet=fleet, now_ns=now_ns),
    )


def count_devices(connection: Connection, fleet: str) -> tuple[int, int]:
    """How many devices there are, and how many are online."""
    query = select(devices.c.online, func.count()).where(devices.c.fleet == fleet).group_by(devices.c.online)
    counts = {bool(online): count for online, count in connection.execute(query)}
    return sum(counts.values()), counts.get(True, 0)


def _sample(connection: Connection, fleet: str) -> dict[str, int]:
    """device -> when it was enrolled, of up to UPTIME_DEVICES that were ever heard, always the same ones."""
    query = select(devices.c.device, devices.c.created_ns).where(devices.c.fleet == fleet, devices.c.last_seen_ns > 0)
    rows = sorted(connection.execute(query), key=lambda row: hashlib.sha256(row.device.encode()).digest())
    return {row.device: row.created_ns for row in rows[:UPTIME_DEVICES]}


def _read_uptime(store: TelemetryStore, sample: dict[str, int], *, fleet: str, now_ns: int) -> Uptime:
    """Whole slots only: the one that runs has windows still to come."""
    last_ns = now_ns // (UPTIME_SLOT_S * _NS) * UPTIME_SLOT_S * _NS
    starts = range(max(0, last_ns - KPI_SPAN_S * _NS), last_ns, UPTIME_SLOT_S * _NS)
    heard = []
    for start_ns in starts:
        if any(created_ns <= start_ns for created_ns in sample.values()):
            end_ns = start_ns + UPTIME_SLOT_S * _NS
            where = Slice(fleet=fleet, start_ns=start_ns, end_ns=end_ns, devices=frozenset(sample))
            heard.append((start_ns, {found.device for found in store.totals_by_device(where)}))
    return uptime_share(heard, sample, slot_s=UPTIME_SLOT_S)
