"""`/api/v1/operators`: the people who operate the fleet. For admins; `me` for everybody."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel, ConfigDict, Field

from fleet_server.api.access import Admin, Viewer
from fleet_server.api.mutations import Mutation, Outcome, mutation
from fleet_server.api.names import IdInPath
from fleet_server.api.paging import PageOf
from fleet_server.api.services import ServicesOf
from fleet_server.identity import operators
from fleet_server.identity.operators import MAX_EMAIL_CHARS, MAX_NAME_CHARS, MAX_SUBJECT_CHARS, Role

router = APIRouter(prefix="/api/v1/operators", tags=["operators"])


class NewPerson(BaseModel):
    """Somebody before they first sign in: known again by `subject`, or by an `email` the provider vouches for."""

    model_config = ConfigDict(extra="forbid")
    name: str = Field(min_length=1, max_length=MAX_NAME_CHARS)
    email: str | None = Field(default=None, max_length=MAX_EMAIL_CHARS)
    subject: str | None = Field(default=None, max_length=MAX_SUBJECT_CHARS)


class Access(BaseModel):
    """Whether somebody's sign-ins and keys are refused."""

    model_config = ConfigDict(extra="forbid")
    ended: bool


@router.get("/me")
def who_am_i(operator: Viewer) -> dict[str, Any]:
    """Who the credential of this request stands for, and what it allows."""
    return {
        "name": operator.name,
        "role": operator.role.name.lower(),
        "actor": operator.actor,
        "person": operator.person,
        "signed_in_with": "api key" if operator.key_id else "identity provider",
        "expires_ns": operator.expires_ns,
    }


@router.get("")
def list_people(services: ServicesOf, _: Admin, page: PageOf) -> dict[str, Any]:
    """Everybody who was made known or signed in."""
    with services.engine.connect() as connection:
        found = operators.list_people(connection, limit=page.limit + 1, after=page.after)
    return page.answer(found, lambda person: person.id)


@router.post("", status_code=201)
def add_person(
    services: ServicesOf, change: Annotated[Mutation, Depends(mutation(Role.ADMIN))], body: NewPerson
) -> Response:
    """Make somebody known, so that keys can belong to them."""
    provider = services.identity_provider

    def perform() -> Outcome:
        with services.engine.begin() as connection:
            person = operators.add_person(
                connection,
                name=body.name,
                email=body.email,
                issuer=provider.login.issuer if provider else None,
                subject=body.subject,
                now_ns=services.now_ns(),
            )
            change.audit(connection, "operator.add", person.id, {"name": person.name, "email": person.email})
        return 201, msgspec.to_builtins(person)

    return change.run(perform)


@router.patch("/{person_id}")
def set_access(
    services: ServicesOf,
    change: Annotated[Mutation, Depends(mutation(Role.ADMIN))],
    person_id: IdInPath,
    body: Access,
) -> Response:
    """End somebody's access, with every credential of theirs, or give it back."""

    def perform() -> Outcome:
        with services.engine.begin() as connection:
            person = operators.set_access(connection, person_id, ended=body.ended, now_ns=services.now_ns())
            action = "operator.end_access" if body.ended else "operator.give_access"
            change.audit(connection, action, person.id, {"name": person.name})
        return 200, msgspec.to_builtins(person)

    return change.run(perform)
