"""`/api/v1/operators/keys`: make, list and revoke operators' API keys. For admins."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel, ConfigDict, Field

from fleet_server.api.access import Admin
from fleet_server.api.mutations import Mutation, Outcome, mutation
from fleet_server.api.names import IdInPath
from fleet_server.api.services import ServicesOf
from fleet_server.identity.api_keys import (
    MAX_NAME_CHARS,
    ApiKeyEntry,
    Role,
    create_api_key,
    list_api_keys,
    revoke_api_key,
)

router = APIRouter(prefix="/api/v1/operators/keys", tags=["operators"])


class NewKey(BaseModel):
    """`name` stands in the audit log and stays taken for ever."""

    model_config = ConfigDict(extra="forbid")
    name: str = Field(min_length=1, max_length=MAX_NAME_CHARS)
    role: Literal["viewer", "operator", "approver", "admin"]


@router.get("")
def list_keys(services: ServicesOf, _: Admin) -> dict[str, Any]:
    """Every key, also the revoked ones, without the keys themselves."""
    with services.engine.connect() as connection:
        return {"items": [_view(entry) for entry in list_api_keys(connection)], "next_cursor": None}


@router.post("", status_code=201)
def create_key(
    services: ServicesOf, change: Annotated[Mutation, Depends(mutation(Role.ADMIN))], body: NewKey
) -> Response:
    """Make a key. It is in this answer and nowhere else."""

    def perform() -> Outcome:
        with services.engine.begin() as connection:
            role = Role.parse(body.role)
            key_id, key = create_api_key(connection, name=body.name, role=role, now_ns=services.now_ns())
            change.audit(connection, "key.create", body.name, {"id": key_id, "role": body.role})
        return 201, {"id": key_id, "name": body.name, "role": body.role, "key": key}

    return change.run(perform, answers_secret=True)


@router.delete("/{key_id}")
def revoke_key(
    services: ServicesOf, change: Annotated[Mutation, Depends(mutation(Role.ADMIN))], key_id: IdInPath
) -> Response:
    """Refuse a key from the next request on."""

    def perform() -> Outcome:
        with services.engine.begin() as connection:
            entry = revoke_api_key(connection, key_id, now_ns=services.now_ns())
            change.audit(connection, "key.revoke", entry.name, {"id": key_id})
        return 200, _view(entry)

    return change.run(perform)


def _view(entry: ApiKeyEntry) -> dict[str, Any]:
    view: dict[str, Any] = msgspec.to_builtins(entry)
    return {**view, "id": view.pop("key_id"), "role": entry.role.name.lower()}
