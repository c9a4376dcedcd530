"""Assembles the API: every resource, one form of error, one gate before all."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.responses import RedirectResponse
from fastapi_offline import FastAPIOffline

from fleet_server.api import (
    api_keys,
    artifacts,
    audit,
    devices,
    drift,
    enrolment,
    events,
    fleet_state,
    health,
    login,
    models,
    operators,
    quarantine,
    rollouts,
    telemetry,
    trust,
)
from fleet_server.api.limits import RequestCounters, RequestGate
from fleet_server.api.problems import PROBLEM_JSON, install_problems
from fleet_server.api.rate_limits import RateLimits
from fleet_server.api.services import Services

_RESOURCES = (
    devices,
    enrolment,
    drift,
    models,
    artifacts,
    rollouts,
    telemetry,
    quarantine,
    fleet_state,
    events,
    audit,
    api_keys,
    operators,
    login,
    trust,
    health,
)


def create_app(services: Services) -> FastAPI:
    """The API over `services`."""
    app = FastAPIOffline(title="edgefleet", version="1", redirect_slashes=False, redoc_url=None)
    app.state.services = services
    app.state.event_streams = 0
    app.state.request_counters = RequestCounters()
    app.state.rate_limits = RateLimits(services.limits)
    install_problems(app)
    for resource in _RESOURCES:
        app.include_router(resource.router)
    app.add_middleware(RequestGate, counters=app.state.request_counters)
    app.get("/", include_in_schema=False)(_to_documentation)
    app.openapi = lambda: _describe(app)  # type: ignore[method-assign]  # FastAPI's documented way to change it
    return app


def _to_documentation() -> RedirectResponse:
    return RedirectResponse("/docs")


def _describe(app: FastAPI) -> dict[str, Any]:
    """OpenAPI, with our one form of error in place of FastAPI's."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
        problem = {
            "description": "Problem details (RFC 9457)",
            "content": {PROBLEM_JSON: {"schema": {"type": "object"}}},
        }
        for path in schema["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
                operation["responses"]["default"] = problem
        schema["components"]["securitySchemes"] = {
            "api_key": {"type": "http", "scheme": "bearer", "description": "an API key, or a token of the provider"}
        }
        schema["security"] = [{"api_key": []}]
        app.openapi_schema = schema
    return app.openapi_schema
