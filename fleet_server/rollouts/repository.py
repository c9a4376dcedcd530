"""Rollouts in the database, for the operator API: create, look, command.

Invariants:
- a policy is checked before anything is stored;
- one model of one fleet has at most one open rollout;
- every change is a compare-and-set on `revision` (`records.compare_and_set`); a command that loses against the
  driver looks again and is judged by the state it then finds.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from sqlalchemy import Connection, Engine, and_, insert, or_, select, update

from fleet_server.database.tables import models, rollouts, versions
from fleet_server.errors import ConflictError, InvalidRequestError, NotFoundError, UnavailableError
from fleet_server.rollouts.policy import parse_policy, policy_document
from fleet_server.rollouts.records import OPEN_STATES, RolloutRecord, compare_and_set, read_record
from fleet_server.rollouts.state_machine import Command, Progress, apply_command
from fleet_server.rollouts.views import RolloutView, detailed_view, short_view

MAX_LISTED = 200
"""Rollouts of one page of a list."""
MAX_ATTEMPTS = 5
"""Tries of one command against the driver before the caller is asked to come back."""


InTransaction = Callable[[Connection, str], None]
"""Called with the rollout's id in the transaction of a change, such as to audit it."""


def create_rollout(
    engine: Engine,
    *,
    fleet: str,
    model: str,
    version: str,
    policy_json: bytes | str | Mapping[str, Any] | None,
    created_by: str,
    person: str = "",
    now_ns: int,
    in_transaction: InTransaction | None = None,
) -> str:
    """Store a checked and submitted rollout; returns its id. `in_transaction` is part of the same transaction.

    `person` is who they are that signed in as `created_by`; "" is the same.

    Raises InvalidRequestError for the policy, NotFoundError for the version, ConflictError while another rollout
    of the model is open.
    """
    policy = parse_policy(policy_json if policy_json is not None else {})
    rollout_id = uuid.uuid4().hex
    if not policy.salt:
        policy = msgspec.structs.replace(policy, salt=rollout_id)
    progress = apply_command(policy, Progress(), Command.SUBMIT, actor=created_by, person=person)
    with engine.begin() as connection:
        _take_turn(connection, model)
        bundle = connection.scalar(
            select(versions.c.bundle).where(versions.c.model == model, versions.c.version == version)
        )
        if bundle is None:
            raise NotFoundError(f"model {model!r} has no version {version!r}: publish it first")
        is_open = and_(rollouts.c.fleet == fleet, rollouts.c.model == model, rollouts.c.state.in_(OPEN_STATES))
        if other := connection.scalar(select(rollouts.c.id).where(is_open).limit(1)):
            raise ConflictError(
                f"rollout {other} of model {model!r} is open: wait for its end, or abort it or roll it back first"
            )
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
        if in_transaction is not None:
            in_transaction(connection, rollout_id)
    return rollout_id


def get_rollout(engine: Engine, rollout_id: str) -> RolloutView:
    """The rollout with its devices and the last result of each gate. Raises NotFoundError."""
    with engine.connect() as connection:
        return detailed_view(connection, _found(connection, rollout_id))


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
        return [short_view(connection, _found(connection, rollout_id)) for rollout_id in ids]


def command_rollout(
    engine: Engine,
    rollout_id: str,
    command: str,
    actor: str,
    now_ns: int,
    *,
    person: str = "",
    in_transaction: InTransaction | None = None,
) -> RolloutView:
    """Carry out approve, pause, resume, abort or rollback; returns the rollout as it then is.

    `in_transaction` is part of the transaction that changes it. Raises NotFoundError, InvalidRequestError for another
    command, ConflictError where the state does not allow it, ForbiddenError for an approval by the author,
    UnavailableError when the driver won every race.
    """
    for _ in range(MAX_ATTEMPTS):
        with engine.begin() as connection:
            record = _found(connection, rollout_id)
            known = record.progress  # one that an earlier release stored does not name its author
            known = known if known.author else msgspec.structs.replace(known, author=record.created_by)
            progress = apply_command(record.policy, known, command, actor=actor, person=person, now_ns=now_ns)
            done = compare_and_set(connection, record, progress, now_ns=now_ns)
            if done and in_transaction is not None:
                in_transaction(connection, rollout_id)
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
