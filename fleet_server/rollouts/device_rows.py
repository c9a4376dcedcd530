"""The devices of a rollout in the database: read, counted and written many at a time.

Invariants:
- a row keeps the phase that the device's newest report proves (`observation.seen_phase`), with the report it was
  derived from: `take_in_reports` looks at those devices alone whose report is another one, so that a look at a rollout
  costs what changed, and counting is the database's;
- what depends on the time (LOST) is never stored, only counted;
- a derived phase is written only when the row's assignment is still the one it was derived for;
- `restored` is a copy of what `incumbent` says, for queries.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Integer,
    Text,
    and_,
    bindparam,
    case,
    cast,
    func,
    insert,
    or_,
    select,
    update,
)

from fleet_protocol.messages import Phase
from fleet_server.database.identity_tables import revoked_devices
from fleet_server.database.tables import devices, rollout_devices
from fleet_server.rollouts.observation import Incumbent, RolloutDevice, read_report, seen_phase
from fleet_server.rollouts.policy import RolloutPolicy
from fleet_server.rollouts.progress import Tally
from fleet_server.rollouts.records import RolloutRecord

REPORTS_A_TURN = 2_000
"""Changed reports that one transaction takes in."""

_Row = rollout_devices.c
_ENDS = tuple(phase.value for phase in Phase if phase.is_end)
_FAILURES = tuple(phase.value for phase in Phase if phase.is_failure)
_JOINED = rollout_devices.outerjoin(
    devices, and_(devices.c.fleet == _Row.fleet, devices.c.device == _Row.device)
).outerjoin(
    revoked_devices,
    and_(
        revoked_devices.c.fleet == _Row.fleet,
        revoked_devices.c.device == _Row.device,
        revoked_devices.c.decommissioned.is_(True),
    ),
)
_IS_GONE = or_(devices.c.device.is_(None), revoked_devices.c.device.is_not(None))
_COLUMNS = (
    _Row.device,
    _Row.stage,
    cast(_Row.incumbent, Text).label("incumbent"),
    _Row.assigned_generation,
    _Row.assigned_ns,
    _Row.is_control,
    _Row.segment,
    _Row.phase,
    _Row.phase_ns,
    _Row.attempts,
    cast(devices.c.reported, Text).label("reported"),
    devices.c.online,
    devices.c.last_seen_ns,
    devices.c.boot_id,
    devices.c.reported_sequence,
    _IS_GONE.label("is_gone"),
)
Seen = tuple[str | None, int]
"""Which report a phase was derived from. One older than the assignment proves nothing: with it PENDING is right."""
_INCUMBENTS = msgspec.json.Decoder(Incumbent)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewRow:
    """A device that becomes part of a rollout. `seen` is its report when that was written, (boot id, sequence)."""

    device: str
    incumbent: Incumbent
    generation: int
    segment: str
    seen: Seen = (None, 0)


def read_rollout_devices(
    connection: Connection, record: RolloutRecord, *, limit: int | None = None, control: bool = True
) -> list[RolloutDevice]:
    """The rollout's devices with what they report, by stage and name: the exposed and, where wanted, the control."""
    query = select(*_COLUMNS).select_from(_JOINED).where(_Row.rollout_id == record.id)
    if not control:
        query = query.where(_Row.is_control.is_(False))
    return [_device(row) for row in connection.execute(query.order_by(_Row.stage, _Row.device).limit(limit))]


def take_in_reports(engine: Engine, record: RolloutRecord, *, now_ns: int) -> int:
    """Derive the phase of every exposed device whose report changed since it was looked at; how many there were."""
    has_news = or_(
        devices.c.reported_sequence != _Row.seen_sequence,
        devices.c.boot_id.is_distinct_from(_Row.seen_boot_id),
        and_(_IS_GONE, _Row.phase != Phase.SUPERSEDED.value),
    )
    query = (
        select(*_COLUMNS)
        .select_from(_JOINED)
        .where(_Row.rollout_id == record.id, _Row.is_control.is_(False), has_news)
        .order_by(_Row.device)
        .limit(REPORTS_A_TURN)
    )
    taken, last = 0, ""
    while True:
        with engine.connect() as connection:
            found = connection.execute(query.where(_Row.device > last)).all()
        if found:
            rows = [_derived(row, record, now_ns) for row in found]
            with engine.begin() as connection:
                connection.execute(_DERIVED, [{"of_rollout": record.id, **row} for row in rows])
            taken, last = taken + len(found), found[-1].device
        if len(found) < REPORTS_A_TURN:
            return taken


_DERIVED = (
    update(rollout_devices)
    .where(
        _Row.rollout_id == bindparam("of_rollout"),
        _Row.fleet == bindparam("of_fleet"),
        _Row.device == bindparam("of_device"),
        _Row.assigned_generation == bindparam("of_generation"),
    )
    .values(
        phase=bindparam("new_phase"),
        phase_ns=bindparam("new_phase_ns"),
        is_back=bindparam("new_is_back"),
        seen_boot_id=bindparam("new_boot_id"),
        seen_sequence=bindparam("new_sequence"),
    )
)


def _derived(row: Any, record: RolloutRecord, now_ns: int) -> dict[str, Any]:
    phase, is_back = seen_phase(_device(row), model=record.model, candidate=record.bundle)
    return {
        "of_fleet": record.fleet,
        "of_device": row.device,
        "of_generation": row.assigned_generation,
        "new_phase": phase.value,
        "new_phase_ns": row.phase_ns if row.phase == phase.value and row.phase_ns else now_ns,
        "new_is_back": is_back,
        "new_boot_id": row.boot_id,
        "new_sequence": row.reported_sequence or 0,
    }


def _device(row: Any) -> RolloutDevice:
    return RolloutDevice(
        device=row.device,
        stage=row.stage,
        incumbent=_INCUMBENTS.decode(row.incumbent) if row.incumbent else Incumbent(),
        assigned_generation=row.assigned_generation,
        assigned_ns=row.assigned_ns,
        report=read_report(row.reported),
        online=bool(row.online),
        is_control=row.is_control,
        segment=row.segment,
        last_seen_ns=row.last_seen_ns or 0,
        phase_ns=row.phase_ns,
        attempts=row.attempts,
        is_gone=bool(row.is_gone),
    )


def counted_phase(policy: RolloutPolicy, now_ns: int) -> ColumnElement[str]:
    """The phase of a row at `now_ns`, as `observation.exposed_device` has it."""
    is_late = _Row.assigned_ns < now_ns - int(policy.deploy_deadline_s * 1e9)
    return case(
        (_is_retried(policy), Phase.PENDING.value),
        (and_(_Row.phase.not_in(_ENDS), is_late), Phase.LOST.value),
        else_=_Row.phase,
    )


def _is_retried(policy: RolloutPolicy) -> ColumnElement[bool]:
    return and_(_Row.phase == Phase.FAILED.value, _Row.restored.is_(False), _Row.attempts < policy.retry.attempts)


def read_tally(connection: Connection, record: RolloutRecord, *, now_ns: int) -> Tally:
    """The rollout's devices, counted."""
    kinds = (_Row.is_control, _Row.restored, _Row.is_back, counted_phase(record.policy, now_ns).label("phase"))
    counted = (func.count().label("count"), func.max(_Row.assigned_ns).label("last_ns"))
    query = select(*kinds, *counted).where(_Row.rollout_id == record.id).group_by(*kinds)
    found = [row._asdict() for row in connection.execute(query)]

    def total(
        *, restored: bool | None = None, is_back: bool | None = None, phases: Collection[str] | None = None
    ) -> int:
        return sum(
            row["count"]
            for row in found
            if not row["is_control"]
            and restored in (None, row["restored"])
            and is_back in (None, row["is_back"])
            and (phases is None or row["phase"] in phases)
        )

    missing, not_back = total(restored=True, is_back=False), 0
    if missing:
        is_missing = and_(_Row.restored.is_(True), _Row.is_back.is_(False), devices.c.online.is_(True))
        reachable = select(func.count()).select_from(_JOINED).where(_Row.rollout_id == record.id, is_missing)
        not_back = connection.scalar(reachable) or 0
    moving = [row for row in found if not (row["is_control"] or row["restored"]) and row["phase"] not in _ENDS]
    return Tally(
        exposed=total(),
        moving=sum(row["count"] for row in moving),
        healthy=total(restored=False, phases=(Phase.HEALTHY.value,)),
        failed=total(restored=False, phases=_FAILURES),
        restored=total(restored=True),
        not_back=not_back,
        away=missing - not_back,
        control=sum(row["count"] for row in found if row["is_control"]),
        moving_since_ns=max((row["last_ns"] for row in moving), default=0),
    )


def read_phases(connection: Connection, record: RolloutRecord, *, now_ns: int) -> dict[str, int]:
    """How many exposed devices are in each phase."""
    phase = counted_phase(record.policy, now_ns)
    query = select(phase, func.count()).where(_Row.rollout_id == record.id, _Row.is_control.is_(False)).group_by(phase)
    return dict(connection.execute(query).all())


def read_exposures(connection: Connection, rollout_id: str) -> dict[int, int]:
    """How many devices each stage exposed."""
    of_rollout = and_(_Row.rollout_id == rollout_id, _Row.is_control.is_(False))
    query = select(_Row.stage, func.count()).where(of_rollout).group_by(_Row.stage)
    return dict(connection.execute(query).all())


def read_segments(connection: Connection, rollout_id: str) -> dict[str, tuple[int, int]]:
    """By segment: how many devices were exposed, and how many of them were given back what they ran."""
    restored = func.sum(case((_Row.restored.is_(True), 1), else_=0))
    of_rollout = and_(_Row.rollout_id == rollout_id, _Row.is_control.is_(False))
    query = select(_Row.segment, func.count(), restored).where(of_rollout).group_by(_Row.segment)
    return {segment: (count, int(back)) for segment, count, back in connection.execute(query)}


def read_all_segments(connection: Connection, rollout_id: str) -> frozenset[str]:
    """Every segment that has devices in the rollout, exposed or control."""
    return frozenset(connection.scalars(select(_Row.segment).where(_Row.rollout_id == rollout_id).distinct()))


def read_present(connection: Connection, rollout_id: str, names: Sequence[str]) -> set[str]:
    """Those of the rollout's devices that are still in the fleet."""
    query = select(_Row.device).select_from(_JOINED).where(_Row.rollout_id == rollout_id, _Row.device.in_(names))
    return set(connection.scalars(query.where(~_IS_GONE)))


def read_members(connection: Connection, rollout_id: str) -> dict[str, bool]:
    """Every device of the rollout -> whether it is control."""
    query = select(_Row.device, _Row.is_control).where(_Row.rollout_id == rollout_id)
    return dict(connection.execute(query).all())


def names_to_restore(
    connection: Connection, rollout_id: str, *, segments: Sequence[str] | None, limit: int
) -> tuple[str, ...]:
    """Exposed devices that are not restored yet, of these segments, None for all."""
    query = select(_Row.device).where(
        _Row.rollout_id == rollout_id, _Row.is_control.is_(False), _Row.restored.is_(False)
    )
    if segments is not None:
        query = query.where(_Row.segment.in_(segments))
    return tuple(connection.scalars(query.order_by(_Row.stage, _Row.device).limit(limit)))


def names_to_retry(connection: Connection, record: RolloutRecord, *, now_ns: int, limit: int) -> tuple[str, ...]:
    """FAILED devices with attempts left whose time has come."""
    if not record.policy.retry.attempts:
        return ()
    due_ns = now_ns - int(record.policy.retry.after_s * 1e9)
    is_due = and_(_is_retried(record.policy), _Row.is_control.is_(False), _Row.phase_ns <= due_ns)
    query = select(_Row.device).where(_Row.rollout_id == record.id, is_due)
    return tuple(connection.scalars(query.order_by(_Row.device).limit(limit)))


def exposed_within(connection: Connection, rollout_id: str, *, start_ns: int, end_ns: int) -> int:
    """How many devices were given the candidate in (start_ns, end_ns]."""
    is_within = and_(_Row.assigned_ns > start_ns, _Row.assigned_ns <= end_ns)
    query = (
        select(func.count())
        .select_from(rollout_devices)
        .where(_Row.rollout_id == rollout_id, _Row.is_control.is_(False), _Row.restored.is_(False), is_within)
    )
    return connection.scalar(query) or 0


def read_incumbents(connection: Connection, rollout_id: str, names: Sequence[str]) -> dict[str, Incumbent]:
    """What each of these devices ran before."""
    query = select(_Row.device, cast(_Row.incumbent, Text)).where(_Row.rollout_id == rollout_id, _Row.device.in_(names))
    return {device: _INCUMBENTS.decode(text) for device, text in connection.execute(query)}


def add_rows(
    connection: Connection, record: RolloutRecord, rows: Sequence[NewRow], *, is_control: bool, now_ns: int
) -> None:
    """Put devices on record as exposed in this stage, or as control."""
    if rows:
        values = [
            {
                "rollout_id": record.id,
                "fleet": record.fleet,
                "device": row.device,
                "stage": record.progress.stage,
                "incumbent": msgspec.to_builtins(row.incumbent),
                "assigned_generation": row.generation,
                "assigned_ns": now_ns,
                "is_control": is_control,
                "segment": row.segment,
                "phase_ns": now_ns,
                "seen_boot_id": row.seen[0],
                "seen_sequence": row.seen[1],
            }
            for row in rows
        ]
        connection.execute(insert(rollout_devices), values)


_REASSIGNED = (
    update(rollout_devices)
    .where(
        _Row.rollout_id == bindparam("of_rollout"),
        _Row.fleet == bindparam("of_fleet"),
        _Row.device == bindparam("of_device"),
    )
    .values(
        stage=func.coalesce(bindparam("new_stage", type_=Integer), _Row.stage),
        incumbent=bindparam("new_incumbent"),
        assigned_generation=bindparam("new_generation"),
        assigned_ns=bindparam("now_ns"),
        is_control=False,
        restored=bindparam("new_restored"),
        is_back=False,
        phase=Phase.PENDING.value,
        phase_ns=bindparam("now_ns"),
        attempts=_Row.attempts + bindparam("more_attempts"),
        seen_boot_id=bindparam("new_boot_id"),
        seen_sequence=bindparam("new_sequence"),
    )
)


def reassign_rows(
    connection: Connection,
    record: RolloutRecord,
    incumbents: Mapping[str, Incumbent],
    generations: Mapping[str, int],
    seen: Mapping[str, Seen],
    *,
    stage: int | None = None,
    is_retry: bool = False,
    now_ns: int,
) -> None:
    """Put on record that these devices have a new desired state: restored or retried, or control let go in `stage`."""
    rows = [
        {
            "of_rollout": record.id,
            "of_fleet": record.fleet,
            "of_device": device,
            "new_stage": stage,
            "new_incumbent": msgspec.to_builtins(incumbent),
            "new_generation": generations[device],
            "now_ns": now_ns,
            "new_restored": incumbent.restored,
            "more_attempts": int(is_retry),
            "new_boot_id": seen.get(device, (None, 0))[0],
            "new_sequence": seen.get(device, (None, 0))[1],
        }
        for device, incumbent in incumbents.items()
    ]
    if rows:
        connection.execute(_REASSIGNED, rows)
