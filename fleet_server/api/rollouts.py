"""`/api/v1/rollouts`: create, watch and command rollouts. What they do is `fleet_server.rollouts`' business."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection

from fleet_server.api.access import Viewer
from fleet_server.api.mutations import Mutation, Outcome, mutation
from fleet_server.api.names import IdInPath
from fleet_server.api.paging import PageOf
from fleet_server.api.services import Services, ServicesOf
from fleet_server.api.trust import require_released_version
from fleet_server.errors import NotFoundError
from fleet_server.identity.api_keys import Role
from fleet_server.rollouts import repository
from fleet_server.rollouts.dry_run import plan_dry_run

router = APIRouter(prefix="/api/v1/rollouts", tags=["rollouts"])

Command = Literal["pause", "resume", "abort", "rollback"]


class NewRollout(BaseModel):
    """`policy` is a rollout policy; left out parts have their defaults."""

    model_config = ConfigDict(extra="forbid")
    model: str = Field(max_length=64)
    version: str = Field(max_length=80)
    policy: dict[str, Any] = Field(default_factory=dict)


@router.get("")
def list_rollouts(services: ServicesOf, _: Viewer, page: PageOf) -> dict[str, Any]:
    """Rollouts, the newest first."""
    page = page.at_most(repository.MAX_LISTED - 1)
    found = repository.list_rollouts(
        services.engine, fleet=services.fleet, limit=page.limit + 1, after=page.after or None
    )
    return page.answer(found, lambda view: view.id)


@router.get("/{rollout_id}")
def get_rollout(services: ServicesOf, _: Viewer, rollout_id: IdInPath) -> dict[str, Any]:
    """One rollout: where it is and what it waits for, devices and their phases, segments, the last gate results."""
    return _view(services, rollout_id)


@router.post("", status_code=201)
def create_rollout(
    services: ServicesOf, change: Annotated[Mutation, Depends(mutation(Role.OPERATOR))], body: NewRollout
) -> Response:
    """Create a rollout of a published version."""

    def audit(connection: Connection, rollout_id: str) -> None:
        detail = {"model": body.model, "version": body.version, "policy": body.policy}
        change.audit(connection, "rollout.create", rollout_id, detail)

    def perform() -> Outcome:
        require_released_version(services, body.model, body.version)
        rollout_id = repository.create_rollout(
            services.engine,
            fleet=services.fleet,
            model=body.model,
            version=body.version,
            policy_json=body.policy,
            created_by=change.operator.actor,
            person=change.operator.person,
            now_ns=services.now_ns(),
            in_transaction=audit,
        )
        return 201, _view(services, rollout_id)

    return change.run(perform)


@router.post("/plan")
def plan_rollout(
    services: ServicesOf, _: Annotated[Mutation, Depends(mutation(Role.VIEWER))], body: NewRollout
) -> Response:
    """What a rollout would do now: devices and order, time, bytes, and what its gates can see. Changes nothing."""
    plan = plan_dry_run(
        services.engine,
        services.store,
        fleet=services.fleet,
        model=body.model,
        version=body.version,
        policy_json=body.policy,
        now_ns=services.now_ns(),
    )
    return Response(msgspec.json.encode(plan), media_type="application/json")


@router.post("/{rollout_id}/approve")
def approve(
    services: ServicesOf, change: Annotated[Mutation, Depends(mutation(Role.APPROVER))], rollout_id: IdInPath
) -> Response:
    """Approve the stage that a rollout waits to enter. Nobody approves a rollout of their own."""
    return change.run(lambda: _command(services, change, rollout_id, "approve"))


@router.post("/{rollout_id}/{command}")
def command_rollout(
    services: ServicesOf,
    change: Annotated[Mutation, Depends(mutation(Role.OPERATOR))],
    rollout_id: IdInPath,
    command: Command,
) -> Response:
    """Pause, resume, abort or roll back a rollout."""
    return change.run(lambda: _command(services, change, rollout_id, command))


def _command(services: Services, change: Mutation, rollout_id: str, command: str) -> Outcome:
    def audit(connection: Connection, rollout_id: str) -> None:
        change.audit(connection, f"rollout.{command}", rollout_id)

    _view(services, rollout_id)
    repository.command_rollout(
        services.engine,
        rollout_id,
        command,
        change.operator.actor,
        services.now_ns(),
        person=change.operator.person,
        in_transaction=audit,
    )
    return 200, _view(services, rollout_id)


def _view(services: Services, rollout_id: str) -> dict[str, Any]:
    found = repository.get_rollout(services.engine, rollout_id)
    if found.fleet != services.fleet:
        raise NotFoundError(f"there is no rollout {rollout_id!r}")
    view: dict[str, Any] = msgspec.to_builtins(found)
    return view
