"""`/api/v1/login`: how to sign in here. Without a credential: nothing it says is secret."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import APIRouter

from fleet_server.api.services import ServicesOf
from fleet_server.errors import NotFoundError

router = APIRouter(prefix="/api/v1/login", tags=["operators"])


@router.get("")
def how_to_sign_in(services: ServicesOf) -> dict[str, Any]:
    """The identity provider, the client to sign in with, and which of its tokens to send."""
    if services.identity_provider is None:
        raise NotFoundError("this server has no identity provider: use an API key")
    options: dict[str, Any] = msgspec.to_builtins(services.identity_provider.login)
    return options
