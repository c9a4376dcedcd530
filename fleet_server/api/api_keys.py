"""`/api/v1/operators/keys`: make, list, rotate, assign and revoke operators' API keys. For admins.

A key belongs to the person it was made for. Without one it belongs to the person who made it, so that nobody becomes
two people by making a key; it belongs to nobody known only when nobody known made it.
"""

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
    MAX_DAYS,
    MAX_NAME_CHARS,
    MAX_OVERLAP_S,
    ApiKeyEntry,
    Role,
    assign_api_key,
    create_api_key,
    list_api_keys,
    revoke_api_key,
    rotate_api_key,
)

router = APIRouter(prefix="/api/v1/operators/keys", tags=["operators"])


class NewKey(BaseModel):
    """`name` stands in the audit log and stays taken for ever."""

    model_config = ConfigDict(extra="forbid")
    name: str = Field(min_length=1, max_length=MAX_NAME_CHARS)
    role: Literal["viewer", "operator", "approver", "admin"]
    days: int | None = Field(default=None, ge=1, le=MAX_DAYS)
    owner: str | None = Field(default=None, max_length=32)


class Rotation(BaseModel):
    """For how long the secret before goes on: time to bring the new one to where it is used."""

    model_config = ConfigDict(extra="forbid")
    overlap_s: int = Field(default=0, ge=0, le=MAX_OVERLAP_S)


class Assignment(BaseModel):
    """Whose a key is: a person's id."""

    model_config = ConfigDict(extra="forbid")
    owner: str = Field(min_length=1, max_length=32)


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

    now_ns = services.now_ns()
    expires_ns = None if body.days is None else now_ns + body.days * 86_400 * 10**9
    owner = body.owner or change.operator.person_id or None

    def perform() -> Outcome:
        with services.engine.begin() as connection:
            role = Role.parse(body.role)
            key_id, key = create_api_key(
                connection, name=body.name, role=role, now_ns=now_ns, expires_ns=expires_ns, owner=owner
            )
            detail = {"id": key_id, "role": body.role, "owner": owner, "expires_ns": expires_ns}
            change.audit(connection, "key.create", body.name, {k: v for k, v in detail.items() if v is not None})
        made = {"id": key_id, "name": body.name, "role": body.role, "owner": owner, "expires_ns": expires_ns}
        return 201, made | {"key": key}

    return change.run(perform, answers_secret=True)


@router.post("/{key_id}/rotate")
def rotate_key(
    services: ServicesOf,
    change: Annotated[Mutation, Depends(mutation(Role.ADMIN))],
    key_id: IdInPath,
    body: Rotation | None = None,
) -> Response:
    """Give a key a new secret. It is in this answer and nowhere else."""
    overlap_s = body.overlap_s if body else 0

    def perform() -> Outcome:
        with services.engine.begin() as connection:
            entry, key = rotate_api_key(connection, key_id, overlap_s=overlap_s, now_ns=services.now_ns())
            change.audit(connection, "key.rotate", entry.name, {"id": key_id, "overlap_s": overlap_s})
        return 200, _view(entry) | {"key": key}

    return change.run(perform, answers_secret=True)


@router.patch("/{key_id}")
def assign_key(
    services: ServicesOf,
    change: Annotated[Mutation, Depends(mutation(Role.ADMIN))],
    key_id: IdInPath,
    body: Assignment,
) -> Response:
    """Say whom a key belongs to."""

    def perform() -> Outcome:
        with services.engine.begin() as connection:
            entry = assign_api_key(connection, key_id, body.owner)
            change.audit(connection, "key.assign", entry.name, {"id": key_id, "owner": body.owner})
        return 200, _view(entry)

    return change.run(perform)


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
