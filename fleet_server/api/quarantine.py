"""`/api/v1/quarantine`: telemetry that was set aside because it cannot be true, for a person to look at."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Query
from sqlalchemy import Row, select

from fleet_protocol.errors import ProtocolError
from fleet_protocol.messages import Window, decode
from fleet_server.api.access import Viewer
from fleet_server.api.paging import Page, PageOf
from fleet_server.api.services import ServicesOf
from fleet_server.database.tables import quarantined_windows, refused_telemetry
from fleet_server.errors import InvalidRequestError
from fleet_server.ingest.checks import Reason

_DEVICE = "^[a-z0-9][a-z0-9_-]{0,63}$"
_kept = quarantined_windows.c
_counted = refused_telemetry.c

DeviceInQuery = Annotated[str | None, Query(pattern=_DEVICE, description="a device's id; every device by default")]

router = APIRouter(prefix="/api/v1/quarantine", tags=["telemetry"])


@router.get("")
def list_windows(
    services: ServicesOf,
    _: Viewer,
    page: PageOf,
    device: DeviceInQuery = None,
    reason: Annotated[Reason | None, Query(description="only windows set aside for this")] = None,
) -> dict[str, Any]:
    """Windows that were set aside, the newest first: some of each device, not all there ever were."""
    query = select(quarantined_windows).where(_kept.fleet == services.fleet)
    if page.after:
        query = query.where(_kept.id < _id_of(page))
    if device is not None:
        query = query.where(_kept.device == device)
    found: list[dict[str, Any]] = []
    with services.engine.connect() as connection:
        for row in connection.execute(query.order_by(_kept.id.desc())):
            if reason is None or any(each["reason"] == reason.value for each in row.reasons):
                found.append(_view(row))
            if len(found) > page.limit:
                break
    return page.answer(found, lambda window: str(window["id"]))


@router.get("/counts")
def list_counts(services: ServicesOf, _: Viewer, page: PageOf, device: DeviceInQuery = None) -> dict[str, Any]:
    """How often each device gave each reason, since its first; sketches left out of a window that counts included."""
    query = select(refused_telemetry).where(_counted.fleet == services.fleet)
    if device is not None:
        query = query.where(_counted.device == device)
    after_device, _slash, after_reason = page.after.partition("/")
    query = query.where(
        (_counted.device > after_device) | ((_counted.device == after_device) & (_counted.reason > after_reason))
    )
    with services.engine.connect() as connection:
        rows = connection.execute(query.order_by(_counted.device, _counted.reason).limit(page.limit + 1)).mappings()
        found = [{name: value for name, value in row.items() if name != "fleet"} for row in rows]
    return page.answer(found, lambda count: f"{count['device']}/{count['reason']}")


def _id_of(page: Page) -> int:
    if not page.after.isdecimal() or len(page.after) > 18:
        raise InvalidRequestError("the cursor is not one of this list: start again without it")
    return int(page.after)


def _view(row: Row[Any]) -> dict[str, Any]:
    return {
        "id": row.id,
        "device": row.device,
        "received_ns": row.received_ns,
        "reasons": row.reasons,
        "boot_id": row.boot_id,
        "sequence": row.sequence,
        "model": row.model,
        "version": row.version,
        "variant": row.variant,
        "arm": row.arm,
        "start_ns": row.start_ns,
        "end_ns": row.end_ns,
        "window": _said(row.payload),
    }


def _said(payload: bytes | None) -> dict[str, Any] | None:
    """What the device said, without its sketches; None where it was too long to keep."""
    if payload is None:
        return None
    try:
        window = decode(Window, payload)
    except ProtocolError:
        return None
    shown: dict[str, Any] = msgspec.to_builtins(
        {
            "count": window.count,
            "errors": window.errors,
            "classes": {str(index): count for index, count in window.classes.items()},
            "batch_sizes": {str(size): count for size, count in window.batch_sizes.items()},
            "features": {name: len(blob) for name, blob in window.features.items()},
            "outcomes": window.outcomes,
            "shadow": window.shadow,
            "estimated_accuracy": window.estimated_accuracy,
            "resources": window.resources,
            "outbox": window.outbox,
            "covers": len(window.covers),
        }
    )
    finite: dict[str, Any] = _finite_only(shown)
    return finite


def _finite_only(value: Any) -> Any:
    """The value with what JSON has no form for (NaN, infinities) as text."""
    if isinstance(value, dict):
        return {name: _finite_only(each) for name, each in value.items()}
    if isinstance(value, float) and not abs(value) <= 1.7e308:
        return str(value)
    return value
