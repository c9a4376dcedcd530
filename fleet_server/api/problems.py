"""Every error as RFC 9457 problem details.

Invariants: each response above 399 is `application/problem+json`; a problem's `detail` is what our own errors
say, and what another library raised is logged and never sent.
"""

from __future__ import annotations

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi import HTTPException as FastAPIHTTPException
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.exceptions import HTTPException

from fleet_protocol.errors import ProtocolError
from fleet_server.errors import (
    ConflictError,
    FleetError,
    ForbiddenError,
    NotFoundError,
    RateLimitedError,
    UnauthorizedError,
    UnavailableError,
    UntrustedBundleError,
)

PROBLEM_JSON = "application/problem+json"
RETRY_AFTER_S = 5
MAX_VALIDATION_ERRORS = 20

_LOG = logging.getLogger(__name__)

_KINDS: tuple[tuple[type[Exception], int, str, str], ...] = (
    (NotFoundError, 404, "not-found", "Not found"),
    (ConflictError, 409, "conflict", "In conflict with what is there"),
    (UnauthorizedError, 401, "unauthorized", "No valid credential"),
    (ForbiddenError, 403, "forbidden", "Not allowed"),
    (UntrustedBundleError, 422, "untrusted-bundle", "The bundle cannot be trusted"),
    (RateLimitedError, 429, "too-many-requests", "Too many requests"),
    (UnavailableError, 503, "unavailable", "A part of the server is away"),
    (FleetError, 400, "invalid-request", "The request is not valid"),
    (ProtocolError, 400, "invalid-request", "The request is not valid"),
)
_STATUS_KINDS = {
    404: ("not-found", "Not found"),
    405: ("method-not-allowed", "This resource has no such method"),
    413: ("too-large", "The body is too large"),
    416: ("range-not-satisfiable", "The file has no such bytes"),
}


class TooLargeError(FastAPIHTTPException):
    """A body exceeded its limit while it was read."""

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(413, f"the body exceeds the limit of {limit_bytes} bytes", headers={"Connection": "close"})


def problem(
    status: int,
    slug: str,
    title: str,
    detail: str,
    *,
    instance: str = "",
    headers: dict[str, str] | None = None,
    **members: Any,
) -> JSONResponse:
    """A problem details response."""
    content = {"type": f"urn:edgefleet:problem:{slug}", "title": title, "status": status, "detail": detail}
    if instance:
        content["instance"] = instance
    return JSONResponse(content | members, status, headers, PROBLEM_JSON)


def install_problems(app: FastAPI) -> None:
    """Make the app answer every error with a problem."""
    app.add_exception_handler(FleetError, _on_own_error)
    app.add_exception_handler(ProtocolError, _on_own_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(OperationalError, _on_database_away)
    app.add_exception_handler(PoolTimeoutError, _on_database_away)
    app.add_exception_handler(Exception, _on_bug)


def problem_of(error: Exception, *, instance: str = "") -> JSONResponse:
    """The problem for one of our own errors."""
    status, slug, title = next((s, g, t) for kind, s, g, t in _KINDS if isinstance(error, kind))
    headers = {}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if status == 503:
        headers["Retry-After"] = str(RETRY_AFTER_S)
    if isinstance(error, RateLimitedError):
        headers["Retry-After"] = str(error.retry_after_s)
    return problem(status, slug, title, str(error), instance=instance, headers=headers)


async def _on_own_error(request: Request, error: Exception) -> JSONResponse:
    return problem_of(error, instance=request.url.path)


async def _on_validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - registered for it
    found = [
        {"at": ".".join(str(part) for part in item["loc"]), "message": str(item["msg"])}
        for item in error.errors()[:MAX_VALIDATION_ERRORS]
    ]
    detail = "; ".join(f"{item['at']}: {item['message']}" for item in found[:3])
    return problem(400, "invalid-request", "The request is not valid", detail, instance=request.url.path, errors=found)


async def _on_http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for it
    slug, title = _STATUS_KINDS.get(error.status_code, ("invalid-request", "The request is not valid"))
    detail = str(error.detail)
    if error.status_code == 404:
        detail = f"there is nothing at {request.url.path[:200]}"
    headers = dict(error.headers or {})
    return problem(error.status_code, slug, title, detail, instance=request.url.path, headers=headers)


async def _on_database_away(request: Request, error: Exception) -> JSONResponse:
    _LOG.error("the database is away: %s", str(error).splitlines()[0])
    return problem_of(UnavailableError("the database does not answer; try again"), instance=request.url.path)


async def _on_bug(request: Request, _error: Exception) -> JSONResponse:
    return problem(
        500, "internal", "A fault of the server", "the server's log says what went wrong", instance=request.url.path
    )
