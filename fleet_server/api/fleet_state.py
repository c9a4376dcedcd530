"""The fleet in one look: KPIs, and how complete its telemetry is."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import APIRouter
from sqlalchemy import select

from fleet_server.api.access import Viewer
from fleet_server.api.services import ServicesOf
from fleet_server.database.tables import ingest_ledger
from fleet_server.kpis import read_kpis

MAX_LISTED_BOOTS = 100

router = APIRouter(prefix="/api/v1", tags=["fleet"])


@router.get("/kpis")
def kpis(services: ServicesOf, _: Viewer) -> dict[str, Any]:
    """Predictions, latency, errors, accuracy and uptime of the last 24 hours; devices now."""
    found = read_kpis(services.engine, services.store, fleet=services.fleet, now_ns=services.now_ns())
    view: dict[str, Any] = msgspec.to_builtins(found)
    return view


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
