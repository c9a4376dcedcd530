"""`/api/v1/enrolment-tokens` for operators, and `/api/v1/enrol` for devices that hold one."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from fleet_server.api.access import Viewer
from fleet_server.api.meeting_point import certificate_view, meeting_point
from fleet_server.api.mutations import Mutation, Outcome, mutation
from fleet_server.api.names import IdInPath
from fleet_server.api.paging import PageOf
from fleet_server.api.rate_limits import limited
from fleet_server.api.services import ServicesOf
from fleet_server.errors import UnauthorizedError
from fleet_server.identity.api_keys import Role
from fleet_server.identity.enrolling import enrol_with_token
from fleet_server.identity.enrolment_tokens import (
    MAX_LIFE_S,
    MAX_NOTE_CHARS,
    MAX_USES,
    MIN_LIFE_S,
    TokenEntry,
    TokenTerms,
    create_token,
    list_tokens,
    revoke_token,
)
from fleet_server.identity.signing_requests import MAX_REQUEST_CHARS

router = APIRouter(prefix="/api/v1", tags=["enrolment"])


class NewToken(BaseModel):
    """One use within a day unless it says otherwise. `device` is an id, `device_pattern` one with `*` and `?`."""

    model_config = ConfigDict(extra="forbid")
    note: str = Field(default="", max_length=MAX_NOTE_CHARS)
    device: str | None = None
    device_pattern: str | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    max_uses: int = Field(default=1, ge=1, le=MAX_USES)
    life_s: int = Field(default=86_400, ge=MIN_LIFE_S, le=MAX_LIFE_S)


class EnrolmentRequest(BaseModel):
    """`csr` is a PKCS#10 request in PEM: its key and signature count, its subject does not."""

    model_config = ConfigDict(extra="forbid")
    device: str = Field(max_length=64)
    csr: str = Field(max_length=MAX_REQUEST_CHARS)
    labels: dict[str, str] = Field(default_factory=dict)


@router.get("/enrolment-tokens")
def get_tokens(services: ServicesOf, _: Viewer, page: PageOf) -> dict[str, Any]:
    """Every token, also used up and revoked ones, without the tokens themselves."""
    with services.engine.connect() as connection:
        found = list_tokens(connection, services.fleet, after=page.after, limit=page.limit + 1)
    return page.answer([_view(entry) for entry in found], lambda token: str(token["id"]))


@router.post("/enrolment-tokens", status_code=201)
def make_token(
    services: ServicesOf, change: Annotated[Mutation, Depends(mutation(Role.OPERATOR))], body: NewToken | None = None
) -> Response:
    """Make a token. It is in this answer and nowhere else."""

    def perform() -> Outcome:
        terms = TokenTerms(**(body or NewToken()).model_dump())
        with services.engine.begin() as connection:
            by, now_ns = change.operator.actor, services.now_ns()
            entry, token = create_token(connection, terms, fleet=services.fleet, created_by=by, now_ns=now_ns)
            detail = {name: value for name, value in _view(entry).items() if name not in ("id", "uses", "revoked_ns")}
            change.audit(connection, "enrolment_token.create", entry.id, detail)
        return 201, {**_view(entry), "token": token, "server_url": services.public_url}

    return change.run(perform, answers_secret=True)


@router.delete("/enrolment-tokens/{token_id}")
def end_token(
    services: ServicesOf, change: Annotated[Mutation, Depends(mutation(Role.OPERATOR))], token_id: IdInPath
) -> Response:
    """Refuse a token from now on; devices it let in stay."""

    def perform() -> Outcome:
        with services.engine.begin() as connection:
            entry = revoke_token(connection, services.fleet, token_id, now_ns=services.now_ns())
            change.audit(connection, "enrolment_token.revoke", token_id)
        return 200, _view(entry)

    return change.run(perform)


@router.post("/enrol", status_code=201, dependencies=[Depends(limited("enrol"))])
def enrol_a_device(request: Request, services: ServicesOf, body: EnrolmentRequest) -> dict[str, Any]:
    """Enrol with a token (`Authorization: Bearer eft_...`). The secret is in this answer and nowhere else.

    Sent again with the same token, device and key, it uses no further use and gives a new secret.
    """
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        raise UnauthorizedError("send an enrolment token: Authorization: Bearer eft_...")
    with services.engine.begin() as connection:
        enrolled = enrol_with_token(
            connection,
            services.issuing,
            token=token.strip(),
            fleet=services.fleet,
            device=body.device,
            csr=body.csr,
            labels=body.labels,
            now_ns=services.now_ns(),
        )
    answer = {"fleet": services.fleet, "device": body.device, "secret": enrolled.secret, "labels": enrolled.labels}
    return {**answer, "certificate": certificate_view(services, enrolled.certificate), **meeting_point(services)}


def _view(entry: TokenEntry) -> dict[str, Any]:
    view: dict[str, Any] = msgspec.to_builtins(entry)
    return view
