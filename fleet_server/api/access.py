"""Who makes a request: an operator by API key (Bearer), or a device by its secret (Basic).

Invariant: fails closed; every route but health, readiness, metrics and the API's description names what it needs.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from typing import Annotated

from fastapi import Depends, Request

from fleet_server.api.services import ServicesOf
from fleet_server.errors import ForbiddenError, UnauthorizedError
from fleet_server.identity.api_keys import Operator, Role, authenticate
from fleet_server.identity.device_credentials import verify_device

MAX_AUTHORIZATION_CHARS = 512


def current_operator(request: Request, services: ServicesOf) -> Operator:
    """The operator whose API key the request carries. Raises UnauthorizedError."""
    scheme, credential = _authorization(request)
    if scheme != "bearer":
        raise UnauthorizedError("send an API key: Authorization: Bearer ef_...")
    with services.engine.connect() as connection:
        return authenticate(connection, credential)


def require(role: Role) -> Callable[[Operator], Operator]:
    """A dependency that lets operators of at least `role` pass. It raises ForbiddenError."""

    def check(operator: Annotated[Operator, Depends(current_operator)]) -> Operator:
        if operator.role < role:
            needed, has = role.name.lower(), operator.role.name.lower()
            raise ForbiddenError(f"this needs the role {needed}, the API key {operator.name!r} has {has}")
        return operator

    return check


def operator_or_device(request: Request, services: ServicesOf) -> str:
    """Who reads an artifact: an operator, or an enrolled device of this fleet. Raises UnauthorizedError."""
    scheme, credential = _authorization(request)
    if scheme != "basic":
        return current_operator(request, services).actor
    try:
        user, _, secret = base64.b64decode(credential, validate=True).decode().partition(":")
    except (binascii.Error, ValueError):
        user, secret = "", ""
    with services.engine.connect() as connection:
        if not verify_device(connection, services.fleet, user, secret):
            raise UnauthorizedError("the device is not enrolled or its secret was replaced")
    return f"device:{user}"


Viewer = Annotated[Operator, Depends(require(Role.VIEWER))]
Admin = Annotated[Operator, Depends(require(Role.ADMIN))]


def _authorization(request: Request) -> tuple[str, str]:
    header = request.headers.get("authorization", "")
    if len(header) > MAX_AUTHORIZATION_CHARS:
        raise UnauthorizedError("the Authorization header is too long")
    scheme, _, credential = header.partition(" ")
    return scheme.lower(), credential.strip()
