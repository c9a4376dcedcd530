"""Applies the state machine's decisions: one `step()` is one pass over every open rollout.

Per rollout, in this order:
1. observe: exposed devices and their reports, who else the stage should hold, telemetry through the gates;
2. decide (`state_machine.decide`, pure);
3. apply in one transaction that starts with a compare-and-set on the rollout's revision: the progress, the
   assignments of the devices it exposes or restores, the gate evaluations that are news.
Any number of drivers may run: whoever loses the compare-and-set has done nothing and looks again next time.
One rollout that cannot be read or applied never stops the others.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import Connection, Engine, insert, select, update

from fleet_protocol.keys import PrivateKey
from fleet_protocol.messages import Assignment
from fleet_server.database.tables import devices, rollout_devices, versions
from fleet_server.errors import FleetError
from fleet_server.registry.variants import VariantHints
from fleet_server.rollouts.cohorts import stage_devices
from fleet_server.rollouts.desired import assign, read_assignments
from fleet_server.rollouts.evidence import collect_evidence
from fleet_server.rollouts.gates import GateResult, evaluate_gates
from fleet_server.rollouts.observation import Incumbent, RolloutDevice, exposed_device
from fleet_server.rollouts.records import (
    RolloutRecord,
    changed_evaluations,
    compare_and_set,
    keep_evaluations,
    latest_evaluations,
    open_rollout_ids,
    read_record,
    read_rollout_devices,
)
from fleet_server.rollouts.state_machine import (
    Decision,
    Expose,
    ExposedDevice,
    Observation,
    Restore,
    RolloutState,
    Step,
    decide,
)
from fleet_server.telemetry_store.port import TelemetryStore

_LOGGER = logging.getLogger(__name__)
_JUDGED = (RolloutState.ACTIVE, RolloutState.PAUSED)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """What one pass did, by rollout id: written, lost to another driver or a command, failed."""

    changed: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Look:
    """What one look at a rollout found, and what was kept of earlier ones."""

    observation: Observation
    rows: dict[str, RolloutDevice]
    news: tuple[GateResult, ...]


class RolloutDriver:
    """Drives every open rollout of a database; `now_ns` is the clock. Holds no state between passes."""

    def __init__(self, engine: Engine, store: TelemetryStore, signer: PrivateKey, now_ns: Callable[[], int]) -> None:
        self._engine = engine
        self._store = store
        self._signer = signer
        self._now_ns = now_ns

    def step(self) -> StepReport:
        """Look at every open rollout once and move each by at most one transition."""
        changed: list[str] = []
        lost: list[str] = []
        failed: list[str] = []
        with self._engine.connect() as connection:
            open_ids = open_rollout_ids(connection)
        for rollout_id in open_ids:
            try:
                applied = self._advance(rollout_id)
            except FleetError as error:
                _LOGGER.warning("rollout %s stays where it is: %s", rollout_id, error)
                failed.append(rollout_id)
            except Exception:
                _LOGGER.exception("rollout %s stays where it is", rollout_id)
                failed.append(rollout_id)
            else:
                if applied is not None:
                    (changed if applied else lost).append(rollout_id)
        return StepReport(changed=tuple(changed), lost=tuple(lost), failed=tuple(failed))

    def _advance(self, rollout_id: str) -> bool | None:
        """True when something was written, False when another writer was faster, None when there was nothing to do."""
        now_ns = self._now_ns()
        with self._engine.connect() as connection:
            record = read_record(connection, rollout_id)
            if record is None or record.progress.state.is_terminal:
                return None
            look = self._look(connection, record, now_ns)
        decision = decide(record.policy, record.progress, look.observation)
        if decision == Decision(progress=record.progress) and not look.news:
            return None
        with self._engine.begin() as connection:
            if not compare_and_set(connection, record, decision.progress, now_ns=now_ns):
                return False
            match decision.action:
                case Expose(devices=names):
                    self._expose(connection, record, names, now_ns)
                case Restore(devices=names):
                    self._restore(connection, record, [look.rows[name] for name in names], now_ns)
            keep_evaluations(connection, record.id, record.progress.stage, look.news, now_ns=now_ns)
        if decision.progress.state is not record.progress.state:
            _LOGGER.info("rollout %s: %s %s", rollout_id, decision.progress.state, decision.progress.reason)
        return True

    def _look(self, connection: Connection, record: RolloutRecord, now_ns: int) -> _Look:
        rows = read_rollout_devices(connection, record)
        exposed = [
            exposed_device(
                row,
                model=record.model,
                candidate=record.bundle,
                deploy_deadline_s=record.policy.deploy_deadline_s,
                now_ns=now_ns,
            )
            for row in rows
        ]
        progress = record.progress
        results: tuple[GateResult, ...] = ()
        news: tuple[GateResult, ...] = ()
        if progress.state in _JUDGED and rows:
            results = self._judge(connection, record, rows, exposed, now_ns)
            news = changed_evaluations(latest_evaluations(connection, record.id), results, progress.stage)
        waiting: tuple[str, ...] = ()
        if progress.state is RolloutState.ACTIVE and progress.step is not Step.GATING:
            waiting = _waiting(connection, record, {row.device for row in rows})
        return _Look(
            observation=Observation(now_ns=now_ns, exposed=tuple(exposed), waiting=waiting, gates=results),
            rows={row.device: row for row in rows},
            news=news,
        )

    def _judge(
        self,
        connection: Connection,
        record: RolloutRecord,
        rows: Sequence[RolloutDevice],
        exposed: Sequence[ExposedDevice],
        now_ns: int,
    ) -> tuple[GateResult, ...]:
        manifest: dict[str, Any] | None = connection.scalar(
            select(versions.c.manifest).where(versions.c.model == record.model, versions.c.version == record.version)
        )
        evidence = collect_evidence(
            self._store,
            rows,
            exposed,
            fleet=record.fleet,
            model=record.model,
            version=record.version,
            manifest=manifest or {},
            bake_started_ns=record.progress.bake_started_ns,
            now_ns=now_ns,
        )
        return evaluate_gates(record.policy.gates, evidence)

    def _expose(self, connection: Connection, record: RolloutRecord, names: Sequence[str], now_ns: int) -> None:
        candidate = Assignment(model=record.model, version=record.version, bundle=record.bundle)
        hints = VariantHints(connection, fleet=record.fleet)
        for name in names:
            before = read_assignments(connection, fleet=record.fleet, device=name)
            incumbent = Incumbent(assignments=[entry for entry in before if entry.model == record.model])
            # A new rollout is an operator's word to try again, also where an earlier one failed.
            generation = self._assign(connection, record, name, hints.applied(name, [candidate]), now_ns)
            connection.execute(
                insert(rollout_devices).values(
                    rollout_id=record.id,
                    fleet=record.fleet,
                    device=name,
                    stage=record.progress.stage,
                    incumbent=msgspec.to_builtins(incumbent),
                    assigned_generation=generation,
                    assigned_ns=now_ns,
                )
            )

    def _restore(
        self, connection: Connection, record: RolloutRecord, rows: Sequence[RolloutDevice], now_ns: int
    ) -> None:
        hints = VariantHints(connection, fleet=record.fleet)
        for row in rows:
            back = hints.applied(row.device, row.incumbent.assignments)
            generation = self._assign(connection, record, row.device, back, now_ns)
            restored = msgspec.structs.replace(row.incumbent, restored=True)
            connection.execute(
                update(rollout_devices)
                .where(
                    rollout_devices.c.rollout_id == record.id,
                    rollout_devices.c.fleet == record.fleet,
                    rollout_devices.c.device == row.device,
                )
                .values(incumbent=msgspec.to_builtins(restored), assigned_generation=generation, assigned_ns=now_ns)
            )

    def _assign(
        self, connection: Connection, record: RolloutRecord, device: str, assignments: list[Assignment], now_ns: int
    ) -> int:
        return assign(
            connection,
            fleet=record.fleet,
            device=device,
            assignments={record.model: assignments},
            signer=self._signer,
            now_ns=now_ns,
            probation=record.policy.probation,
            retry=[assignment.bundle for assignment in assignments],
        )


def _waiting(connection: Connection, record: RolloutRecord, exposed: set[str]) -> tuple[str, ...]:
    """The stage's devices that are not exposed yet. Only a device that has reported is chosen: it can answer."""
    signature = devices.c.reported["cpu_signature"].as_string()
    has_reported = devices.c.reported["device"].as_string().is_not(None)
    query = select(devices.c.device, devices.c.labels, signature.label("cpu_signature")).where(
        devices.c.fleet == record.fleet, has_reported
    )
    hardware = {
        row.device: row.cpu_signature or ""
        for row in connection.execute(query)
        if row.device in exposed or record.policy.selector.matches(row.labels)
    }
    stage = record.policy.stages[record.progress.stage]
    chosen = stage_devices(hardware, stage, record.policy.salt, exposed)
    return tuple(device for device in chosen if device not in exposed)
