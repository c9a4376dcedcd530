"""The fleet in one look: KPIs, and how complete its telemetry is."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from sqlalchemy import Connection, func, select

from fleet_protocol.histogram import LatencyHistogram
from fleet_server.api.access import Viewer
from fleet_server.api.services import ServicesOf
from fleet_server.api.telemetry import totals_view
from fleet_server.database.tables import devices, ingest_ledger
from fleet_server.registry.catalogue import count_models
from fleet_server.telemetry_store.port import Slice, Totals

KPI_SPAN_S = 24 * 3600
MAX_LISTED_BOOTS = 100
_NS = 10**9

router = APIRouter(prefix="/api/v1", tags=["fleet"])


@router.get("/kpis")
def kpis(services: ServicesOf, _: Viewer) -> dict[str, Any]:
    """Predictions, latency, errors and accuracy of the last 24 hours; devices now."""
    now_ns = services.now_ns()
    where = Slice(fleet=services.fleet, start_ns=max(0, now_ns - KPI_SPAN_S * _NS), end_ns=now_ns)
    totals = merge_totals([point.totals for point in services.store.series(where, step_ns=KPI_SPAN_S * _NS)])
    with services.engine.connect() as connection:
        total, online = count_devices(connection, services.fleet)
        models = count_models(connection)
    summed = totals_view(totals)
    return {
        "fleet": services.fleet,
        "at_ns": now_ns,
        "span_s": KPI_SPAN_S,
        "devices": total,
        "devices_online": online,
        "models": models,
        "predictions": summed.pop("count"),
        **summed,
    }


@router.get("/ingest")
def ingest_status(services: ServicesOf, _: Viewer) -> dict[str, Any]:
    """Windows stored, repeats dropped, and sequences that are missing between the first and the last of a boot.

    A missing sequence is on its way, still in a device's outbox, or lost.
    """
    columns = ingest_ledger.c
    stored = repeats = missing = boots = 0
    incomplete: list[dict[str, Any]] = []
    query = select(columns.device, columns.boot_id, columns.ranges, columns.windows, columns.repeats)
    with services.engine.connect() as connection:
        rows = connection.execution_options(yield_per=1_000).execute(query.where(columns.fleet == services.fleet))
        for row in rows:
            boots += 1
            stored += row.windows
            repeats += row.repeats
            gaps = missing_ranges(row.ranges)
            if gaps:
                count = sum(high - low + 1 for low, high in gaps)
                missing += count
                incomplete.append(
                    {"device": row.device, "boot_id": row.boot_id, "missing": count, "ranges": gaps[:MAX_LISTED_BOOTS]}
                )
    incomplete.sort(key=lambda item: -item["missing"])
    return {
        "fleet": services.fleet,
        "boots": boots,
        "windows": stored,
        "repeats": repeats,
        "missing": missing,
        "incomplete": incomplete[:MAX_LISTED_BOOTS],
        "incomplete_boots": len(incomplete),
    }


def missing_ranges(ranges: list[list[int]]) -> list[tuple[int, int]]:
    """The inclusive ranges of sequences, from 1 to the highest, that no range in `ranges` covers.

    >>> missing_ranges([[3, 4], [8, 9], [4, 6]])
    [(1, 2), (7, 7)]
    """
    missing, next_expected = [], 1
    for low, high in sorted((int(low), int(high)) for low, high in ranges):
        if low > next_expected:
            missing.append((next_expected, low - 1))
        next_expected = max(next_expected, high + 1)
    return missing


def merge_totals(parts: list[Totals]) -> Totals:
    """The sum of totals."""
    latency = LatencyHistogram()
    for part in parts:
        latency.merge(part.latency)
    return Totals(
        windows=sum(part.windows for part in parts),
        count=sum(part.count for part in parts),
        errors=sum(part.errors for part in parts),
        correct=sum(part.correct for part in parts),
        wrong=sum(part.wrong for part in parts),
        latency=latency,
    )


def count_devices(connection: Connection, fleet: str) -> tuple[int, int]:
    """How many devices there are, and how many are online."""
    query = select(devices.c.online, func.count()).where(devices.c.fleet == fleet).group_by(devices.c.online)
    counts = {bool(online): count for online, count in connection.execute(query)}
    return sum(counts.values()), counts.get(True, 0)
