"""`/health`, `/ready` and `/metrics`: for load balancers and Prometheus, without a credential.

They tell whether parts answer and how many of what there are, and name no device, model or operator.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from sqlalchemy import func, select, text
from sqlalchemy.exc import SQLAlchemyError

from fleet_server.api.problems import RETRY_AFTER_S, problem
from fleet_server.api.services import Services, ServicesOf
from fleet_server.database.tables import rollouts
from fleet_server.errors import FleetError, UnavailableError
from fleet_server.kpis import count_devices

_LOG = logging.getLogger(__name__)

router = APIRouter(tags=["server"])


@router.get("/health")
def health() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@router.get("/ready")
def ready(services: ServicesOf) -> Response:
    """Every part the server needs answers; 503 names those that do not."""
    reasons = failing_checks(services)
    if not reasons:
        return JSONResponse({"ready": True})
    return problem(
        503,
        "unavailable",
        "A part of the server is away",
        "; ".join(f"{part}: {reason}" for part, reason in reasons.items()),
        instance="/ready",
        headers={"Retry-After": str(RETRY_AFTER_S)},
        reasons=reasons,
    )


@router.get("/metrics")
def metrics(request: Request, services: ServicesOf) -> Response:
    """Prometheus text."""
    lines = ["# HELP edgefleet_http_requests_total Requests answered.", "# TYPE edgefleet_http_requests_total counter"]
    for (method, status), count in sorted(request.app.state.request_counters.snapshot().items()):
        lines.append(f'edgefleet_http_requests_total{{method="{method}",status="{status}"}} {count}')
    lines += _samples("counter", services.counters())
    try:
        lines += _samples("gauge", _gauges(services))
    except SQLAlchemyError as error:
        _LOG.warning("the database's gauges are left out: %s", str(error).splitlines()[0])
    return Response("\n".join(lines) + "\n", media_type="text/plain; version=0.0.4; charset=utf-8")


def failing_checks(services: Services) -> dict[str, str]:
    """The parts that do not answer, each with its reason."""
    checks: dict[str, Callable[[], None]] = {
        "database": lambda: _check_database(services),
        "telemetry_store": services.store.check,
        "artifacts": services.artifacts.check,
        **services.checks,
    }
    reasons: dict[str, str] = {}
    for part, check in checks.items():
        try:
            check()
        except FleetError as error:
            reasons[part] = str(error)
    return reasons


def _check_database(services: Services) -> None:
    try:
        with services.engine.connect() as connection:
            connection.execute(text("SELECT 1"))
    except SQLAlchemyError:
        raise UnavailableError("the database does not answer") from None


def _gauges(services: Services) -> Mapping[str, float]:
    with services.engine.connect() as connection:
        total, online = count_devices(connection, services.fleet)
        states = select(rollouts.c.state, func.count().label("number")).where(rollouts.c.fleet == services.fleet)
        by_state = {row.state: row.number for row in connection.execute(states.group_by(rollouts.c.state))}
    gauges: dict[str, float] = {"edgefleet_devices": total, "edgefleet_devices_online": online}
    return gauges | {f'edgefleet_rollouts{{state="{state}"}}': count for state, count in sorted(by_state.items())}


def _samples(kind: str, values: Mapping[str, float]) -> list[str]:
    lines: list[str] = []
    for name, value in values.items():
        family = name.partition("{")[0]
        declaration = f"# TYPE {family} {kind}"
        if declaration not in lines:
            lines.append(declaration)
        lines.append(f"{name} {value:g}" if value != int(value) else f"{name} {int(value)}")
    return lines
