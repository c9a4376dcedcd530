"""Who makes a request: an operator by API key or by a token of the identity provider (Bearer), or a device by its
secret (Basic).

Invariants:
- fails closed: every route but health, readiness, metrics, the API's description, how to sign in, and enrolment names
  what it needs;
- a wrong credential counts against its address and a right one against its operator or device, never the other way;
- a refusal says what to do and not which part of a credential was wrong.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from typing import Annotated

from fastapi import Depends, Request

from fleet_server.api.rate_limits import FAILED, address_of, limits_of
from fleet_server.api.services import Services, ServicesOf
from fleet_server.errors import ForbiddenError, UnauthorizedError
from fleet_server.identity.api_keys import PREFIX, note_use
from fleet_server.identity.device_credentials import verify_device
from fleet_server.identity.oidc_tokens import MAX_TOKEN_CHARS
from fleet_server.identity.operators import Operator, Role, operator_of

MAX_AUTHORIZATION_CHARS = MAX_TOKEN_CHARS + 16


def current_operator(request: Request, services: ServicesOf) -> Operator:
    """The operator whose API key or token the request carries. Raises UnauthorizedError, ForbiddenError for a sign-in
    without a role, RateLimitedError, or UnavailableError while the identity provider must be asked and is away.
    """
    scheme, credential = _authorization(request)
    if scheme != "bearer" or not credential:
        raise UnauthorizedError("send an API key, or a token from `fleet login`: Authorization: Bearer ...")
    try:
        operator = _identify(services, credential)
    except UnauthorizedError:
        limits_of(request).take(request, FAILED, address_of(request))
        raise
    limits_of(request).take(request, "operator", operator.actor)
    return operator


def _identify(services: Services, credential: str) -> Operator:
    if credential.startswith(PREFIX) or services.identity_provider is None:
        return note_use(services.engine, credential, now_ns=services.now_ns())
    signed_in = services.identity_provider.sign_in(credential)
    return operator_of(services.engine, signed_in, now_ns=services.now_ns())


def require(role: Role) -> Callable[[Operator], Operator]:
    """A dependency that lets operators of at least `role` pass. It raises ForbiddenError."""

    def check(operator: Annotated[Operator, Depends(current_operator)]) -> Operator:
        if operator.role < role:
            needed, has = role.name.lower(), operator.role.name.lower()
            who = f"the API key {operator.name!r}" if operator.key_id else operator.name
            raise ForbiddenError(f"this needs the role {needed}, {who} has {has}")
        return operator

    return check


def operator_or_device(request: Request, services: ServicesOf) -> str:
    """Who reads an artifact: an operator, or an enrolled device of this fleet.

    Raises UnauthorizedError or RateLimitedError.
    """
    scheme, credential = _authorization(request)
    if scheme != "basic":
        return current_operator(request, services).actor
    device = _device_of(request, services, credential)
    limits_of(request).take(request, "artifacts", f"device:{device}")
    return f"device:{device}"


def calling_device(request: Request, services: ServicesOf) -> str:
    """The enrolled device that makes the request. Raises UnauthorizedError or RateLimitedError."""
    scheme, credential = _authorization(request)
    if scheme != "basic":
        raise UnauthorizedError("send the device's id and secret: Authorization: Basic ...")
    return _device_of(request, services, credential)


def _device_of(request: Request, services: Services, credential: str) -> str:
    try:
        user, _, secret = base64.b64decode(credential, validate=True).decode().partition(":")
    except (binascii.Error, ValueError):
        user, secret = "", ""
    with services.engine.connect() as connection:
        enrolled = verify_device(connection, services.fleet, user, secret)
    if not enrolled:
        limits_of(request).take(request, FAILED, address_of(request))
        raise UnauthorizedError("the device is not enrolled or its secret was replaced")
    return user


Viewer = Annotated[Operator, Depends(require(Role.VIEWER))]
Admin = Annotated[Operator, Depends(require(Role.ADMIN))]
CallingDevice = Annotated[str, Depends(calling_device)]


def _authorization(request: Request) -> tuple[str, str]:
    header = request.headers.get("authorization", "")
    if len(header) > MAX_AUTHORIZATION_CHARS:
        raise UnauthorizedError("the Authorization header is too long")
    scheme, _, credential = header.partition(" ")
    return scheme.lower(), credential.strip()
