"""`/api/v1/drift`: what devices saw against the bundle's reference, with plain words."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Query

from fleet_server.api.access import Viewer
from fleet_server.api.services import ServicesOf
from fleet_server.api.telemetry import TimeInQuery, span
from fleet_server.drift import read_drift

router = APIRouter(prefix="/api/v1", tags=["drift"])


@router.get("/drift")
def drift(
    *,
    services: ServicesOf,
    _: Viewer,
    model: Annotated[str, Query(pattern="^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="a model's name")],
    version: Annotated[str | None, Query(max_length=80, description="a version; every one that ran by default")] = None,
    start_ns: TimeInQuery = None,
    end_ns: TimeInQuery = None,
) -> dict[str, Any]:
    """A report per model version; by default over the last hour."""
    start, end = span(services.now_ns(), start_ns, end_ns)
    reports = read_drift(
        services.engine,
        services.store,
        fleet=services.fleet,
        model=model,
        version=version,
        start_ns=start,
        end_ns=end,
    )
    return {"model": model, "start_ns": start, "end_ns": end, "reports": msgspec.to_builtins(reports)}
