"""A rollout's rows in the database, read as values and written by compare-and-set.

Invariants:
- a row is written only when its `revision` is still the one that was read; `state` and `reason` are copies of
  what `progress` says, for queries;
- gate evaluations are kept when their verdict or their rounded numbers changed, at most MAX_EVALUATIONS a rollout.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, delete, func, insert, select, update

from fleet_server.database.tables import gate_evaluations, rollouts
from fleet_server.rollouts.gates import GateResult
from fleet_server.rollouts.policy import RolloutPolicy, parse_policy
from fleet_server.rollouts.progress import Progress, RolloutState

OPEN_STATES = tuple(state.value for state in RolloutState if not state.is_terminal)
MAX_EVALUATIONS = 2000
"""Gate evaluations kept of one rollout; the oldest go first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutRecord:
    """One row of `rollouts`, as it was read at `revision`."""

    id: str
    fleet: str
    model: str
    version: str
    bundle: str
    policy: RolloutPolicy
    progress: Progress
    created_by: str
    created_ns: int
    updated_ns: int
    revision: int
    outlook: Mapping[str, Any]


def read_record(connection: Connection, rollout_id: str) -> RolloutRecord | None:
    """The rollout, None when there is none. Raises InvalidRequestError for a stored policy this release refuses."""
    row = connection.execute(select(rollouts).where(rollouts.c.id == rollout_id)).one_or_none()
    if row is None:
        return None
    return RolloutRecord(
        id=row.id,
        fleet=row.fleet,
        model=row.model,
        version=row.version,
        bundle=row.bundle,
        policy=parse_policy(row.policy),
        progress=msgspec.convert(row.progress, Progress),
        created_by=row.created_by,
        created_ns=row.created_ns,
        updated_ns=row.updated_ns,
        revision=row.revision,
        outlook=row.outlook or {},
    )


def open_rollout_ids(connection: Connection) -> list[str]:
    """Every rollout that is not over, oldest first."""
    query = select(rollouts.c.id).where(rollouts.c.state.in_(OPEN_STATES))
    return list(connection.scalars(query.order_by(rollouts.c.created_ns, rollouts.c.id)))


def compare_and_set(connection: Connection, record: RolloutRecord, progress: Progress, *, now_ns: int) -> bool:
    """Write `progress` unless somebody else wrote since `record` was read; whether it was written."""
    statement = (
        update(rollouts)
        .where(rollouts.c.id == record.id, rollouts.c.revision == record.revision)
        .values(
            state=progress.state.value,
            progress=msgspec.to_builtins(progress),
            reason=progress.reason,
            updated_ns=now_ns,
            revision=record.revision + 1,
        )
    )
    return connection.execute(statement).rowcount == 1


def keep_outlook(connection: Connection, record: RolloutRecord, outlook: Mapping[str, Any]) -> None:
    """Store what the rollout waits for. For people to read: no decision rests on it, so it is no revision."""
    connection.execute(update(rollouts).where(rollouts.c.id == record.id).values(outlook=dict(outlook)))


def latest_evaluations(connection: Connection, rollout_id: str) -> dict[tuple[str, str], Row[Any]]:
    """The last kept evaluation of each gate, by the gate's name and the segment, "" for all devices together."""
    table = gate_evaluations.c
    last = select(func.max(table.id)).where(table.rollout_id == rollout_id).group_by(table.gate, table.segment)
    query = select(gate_evaluations).where(table.id.in_(last)).order_by(table.segment, table.gate)
    return {(row.gate, row.segment): row for row in connection.execute(query)}


def changed_evaluations(
    latest: Mapping[tuple[str, str], Row[Any]], results: Sequence[GateResult], stage: int
) -> tuple[GateResult, ...]:
    """The results that say something else than what was kept last."""
    return tuple(
        result
        for result in results
        if (kept := latest.get((result.gate, result.segment))) is None
        or (kept.stage, kept.verdict) != (stage, result.verdict.value)
        or _rounded(kept.evidence["numbers"]) != _rounded(result.evidence)
    )


def keep_evaluations(
    connection: Connection, rollout_id: str, stage: int, results: Sequence[GateResult], *, now_ns: int
) -> None:
    """Store `results` and let the oldest beyond MAX_EVALUATIONS go."""
    if not results:
        return
    rows = [
        {
            "rollout_id": rollout_id,
            "stage": stage,
            "at_ns": now_ns,
            "gate": result.gate,
            "segment": result.segment,
            "verdict": result.verdict.value,
            "evidence": {"explanation": result.explanation, "numbers": result.evidence},
        }
        for result in results
    ]
    connection.execute(insert(gate_evaluations), rows)
    mine = gate_evaluations.c.rollout_id == rollout_id
    newest = select(gate_evaluations.c.id).where(mine).order_by(gate_evaluations.c.id.desc())
    if oldest_kept := connection.scalar(newest.offset(MAX_EVALUATIONS - 1).limit(1)):
        connection.execute(delete(gate_evaluations).where(mine, gate_evaluations.c.id < oldest_kept))


def _rounded(value: Any) -> Any:
    """Numbers to two significant digits: a change below that is not news."""
    match value:
        case bool() | None | str():
            return value
        case int() | float():
            return float(f"{value:.1e}") if math.isfinite(value) else None
        case list():
            return [_rounded(item) for item in value]
        case dict():
            return {key: _rounded(item) for key, item in value.items()}
        case _:
            return value
