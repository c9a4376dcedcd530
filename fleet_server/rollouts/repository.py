"""Rollouts in the database, for the operator API: create, look, command.

Invariants:
- a policy is checked before anything is stored;
- one model of one fleet has at most one open rollout;
- every change is a compare-and-set on `revision` (`records.compare_and_set`); a command that loses against the
  driver looks again and is judged by the state it then finds.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct
from sqlalchemy import Connection, Engine, and_, func, insert, or_, select, update

from fleet_server.database.tables import models, rollout_devices, rollouts, versions
from fleet_server.errors import ConflictError, InvalidRequestError, NotFoundError, UnavailableError
from fleet_server.rollouts.observation import exposed_device
from fleet_server.rollouts.policy import RolloutPolicy, parse_policy, policy_document
from fleet_server.rollouts.records import (
    OPEN_STATES,
    RolloutRecord,
    compare_and_set,
    latest_evaluations,
    read_record,
    read_rollout_devices,
)
from fleet_server.rollouts.state_machine import Command, Progress, apply_command

MAX_LISTED = 200
"""Rollouts of one page of a list."""
MAX_SHOWN_DEVICES = 1000
"""Exposed devices that a view shows; `exposed_count` has them all."""
MAX_ATTEMPTS = 5
"""Tries of one command against the driver before the caller is asked to come back."""


class DeviceView(Struct, frozen=True, kw_only=True):
    """An exposed device: when it came in, where its update is, what it ran before ("" for nothing)."""

    device: str
    stage: int
    phase: str
    restored: bool
    incumbent_version: str
    assigned_generation: int
    assigned_ns: int


class GateView(Struct, frozen=True, kw_only=True):
    """The last result of a gate."""

    gate: str
    stage: int
    verdict: str
    explanation: str
    evidence: dict[str, Any]
    at_ns: int


class RolloutView(Struct, frozen=True, kw_only=True):
    """A rollout as people look at it. `devices` and `gates` are filled by `get_rollout`, empty in a list."""

    id: str
    fleet: str
    model: str
    version: str
    bundle: str
    state: str
    stage: int
    stages: int
    step: str | None
    reason: str
    bake_extensions: int
    bake_ends_ns: int | None
    exposed_count: int
    created_by: str
    created_ns: int
    updated_ns: int
    revision: int
    policy: dict[str, Any]
    devices: list[DeviceView] = []
    gates: list[GateView] = []


def create_rollout(
    engine: Engine,
    *,
    fleet: str,
    model: str,
    version: str,
    policy_json: bytes | str | Mapping[str, Any] | None,
    created_by: str,
    now_ns: int,
) -> str:
    """Store a checked and submitted rollout; returns its id.

    Raises InvalidRequestError for the policy, NotFoundError for the version, ConflictError while another rollout
    of the model is open.
    """
    policy = parse_policy(policy_json if policy_json is not None else {})
    rollout_id = uuid.uuid4().hex
    if not policy.salt:
        policy = msgspec.structs.replace(policy, salt=rollout_id)
    progress = apply_command(policy, Progress(), Command.SUBMIT, actor=created_by)
    with engine.begin() as connection:
        _take_turn(connection, model)
        bundle = connection.scalar(
            select(versions.c.bundle).where(versions.c.model == model, versions.c.version == version)
        )
        if bundle is None:
            raise NotFoundError(f"model {model!r} has no version {version!r}: publish it first")
        is_open = and_(rollouts.c.fleet == fleet, rollouts.c.model == model, rollouts.c.state.in_(OPEN_STATES))
        if other := connection.scalar(select(rollouts.c.id).where(is_open).limit(1)):
            raise ConflictError(f"rollout {other} of model {model!r} is open: finish, abort or roll it back first")
        connection.execute(
            insert(rollouts).values(
                id=rollout_id,
                fleet=fleet,
                model=model,
                version=version,
                bundle=bundle,
                policy=policy_document(policy),
                state=progress.state.value,
                progress=msgspec.to_builtins(progress),
                reason=progress.reason,
                created_by=created_by,
                created_ns=now_ns,
                updated_ns=now_ns,
                revision=1,
            )
        )
    return rollout_id


def get_rollout(engine: Engine, rollout_id: str) -> RolloutView:
    """The rollout with its devices and the last result of each gate. Raises NotFoundError."""
    with engine.connect() as connection:
        record = _found(connection, rollout_id)
        devices = _device_views(connection, record)
        gates = [
            GateView(
                gate=row.gate,
                stage=row.stage,
                verdict=row.verdict,
                explanation=row.evidence["explanation"],
                evidence=row.evidence["numbers"],
                at_ns=row.at_ns,
            )
            for row in latest_evaluations(connection, rollout_id).values()
        ]
        return msgspec.structs.replace(_view(connection, record), devices=devices, gates=gates)


def list_rollouts(engine: Engine, *, fleet: str, limit: int = 50, after: str | None = None) -> list[RolloutView]:
    """Rollouts, newest first, from below the one whose id is `after`.

    Raises InvalidRequestError for a limit out of range, NotFoundError for an unknown `after`.
    """
    if not 1 <= limit <= MAX_LISTED:
        raise InvalidRequestError(f"limit is {limit}: use 1 to {MAX_LISTED}")
    query = select(rollouts.c.id).where(rollouts.c.fleet == fleet)
    with engine.connect() as connection:
        if after is not None:
            last = _found(connection, after)
            query = query.where(
                or_(
                    rollouts.c.created_ns < last.created_ns,
                    and_(rollouts.c.created_ns == last.created_ns, rollouts.c.id < last.id),
                )
            )
        ids = connection.scalars(query.order_by(rollouts.c.created_ns.desc(), rollouts.c.id.desc()).limit(limit)).all()
        return [_view(connection, _found(connection, rollout_id)) for rollout_id in ids]


def command_rollout(engine: Engine, rollout_id: str, command: str, actor: str, now_ns: int) -> RolloutView:
    """Carry out approve, pause, resume, abort or rollback; returns the rollout as it then is.

    Raises NotFoundError, InvalidRequestError for another command, ConflictError where the state does not allow it,
    UnavailableError when the driver won every race.
    """
    for _ in range(MAX_ATTEMPTS):
        with engine.begin() as connection:
            record = _found(connection, rollout_id)
            progress = apply_command(record.policy, record.progress, command, actor=actor)
            done = compare_and_set(connection, record, progress, now_ns=now_ns)
        if done:
            return get_rollout(engine, rollout_id)
    raise UnavailableError(f"rollout {rollout_id} changed {MAX_ATTEMPTS} times while it was commanded: try again")


def _take_turn(connection: Connection, model: str) -> None:
    """Hold the model's row, so that of two rollouts created at once the second sees the first."""
    connection.execute(update(models).where(models.c.model == model).values(created_ns=models.c.created_ns))


def _found(connection: Connection, rollout_id: str) -> RolloutRecord:
    record = read_record(connection, rollout_id)
    if record is None:
        raise NotFoundError(f"there is no rollout {rollout_id[:64]!r}")
    return record


def _view(connection: Connection, record: RolloutRecord) -> RolloutView:
    count = connection.scalar(
        select(func.count()).select_from(rollout_devices).where(rollout_devices.c.rollout_id == record.id)
    )
    return RolloutView(
        id=record.id,
        fleet=record.fleet,
        model=record.model,
        version=record.version,
        bundle=record.bundle,
        state=record.progress.state.value,
        stage=record.progress.stage,
        stages=len(record.policy.stages),
        step=record.progress.step.value if record.progress.step else None,
        reason=record.progress.reason,
        bake_extensions=record.progress.bake_extensions,
        bake_ends_ns=_bake_ends_ns(record.policy, record.progress),
        exposed_count=count or 0,
        created_by=record.created_by,
        created_ns=record.created_ns,
        updated_ns=record.updated_ns,
        revision=record.revision,
        policy=policy_document(record.policy),
    )


def _bake_ends_ns(policy: RolloutPolicy, progress: Progress) -> int | None:
    if not progress.bake_started_ns:
        return None
    return progress.bake_started_ns + int(policy.stages[progress.stage].bake_s * 1e9)


def _device_views(connection: Connection, record: RolloutRecord) -> list[DeviceView]:
    views = []
    for row in read_rollout_devices(connection, record, limit=MAX_SHOWN_DEVICES):
        facts = exposed_device(
            row,
            model=record.model,
            candidate=record.bundle,
            deploy_deadline_s=record.policy.deploy_deadline_s,
            now_ns=record.updated_ns,
        )
        main = row.incumbent.main
        views.append(
            DeviceView(
                device=row.device,
                stage=row.stage,
                phase=facts.phase.value,
                restored=facts.restored,
                incumbent_version=main.version if main else "",
                assigned_generation=row.assigned_generation,
                assigned_ns=row.assigned_ns,
            )
        )
    return views
