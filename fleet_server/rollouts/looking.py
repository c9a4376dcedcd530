"""One look at a rollout: what `decide` needs to know, read from the database and the telemetry store.

Invariants:
- only what a look needs is read: the devices are counted where they lie, and named a decision's worth at a time;
- who is next, and the gates' evidence, cost as much as the fleet is large: they are found out anew whenever their share
  of the processor allows (`work_share`), which for a small fleet is at every look. A list of who is next is used only
  as long as nobody else wrote the rollout; GATING never goes by an earlier look's gates;
- no transaction is open while the telemetry store is read.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Engine, select

from fleet_protocol.messages import Phase
from fleet_server.database.tables import versions
from fleet_server.rollouts.choosing import Choice, choose, open_now, opens_ns
from fleet_server.rollouts.device_facts import read_device_facts
from fleet_server.rollouts.device_rows import (
    exposed_within,
    names_to_restore,
    names_to_retry,
    read_all_segments,
    read_members,
    read_rollout_devices,
    read_tally,
    take_in_reports,
)
from fleet_server.rollouts.evidence import collect_evidence
from fleet_server.rollouts.gates import GateResult, evaluate_gates
from fleet_server.rollouts.observation import RolloutDevice, exposed_device
from fleet_server.rollouts.pace import Pace, allowance, pace
from fleet_server.rollouts.policy import UpdateFailuresGate
from fleet_server.rollouts.progress import (
    Action,
    Decision,
    ExposedDevice,
    Observation,
    RolloutState,
    Step,
)
from fleet_server.rollouts.records import RolloutRecord
from fleet_server.rollouts.state_machine import MAX_DEVICES_PER_DECISION
from fleet_server.rollouts.work_share import WorkShare
from fleet_server.telemetry_store.port import TelemetryStore

TRANSACTIONS_A_LOOK = 5
"""How many decisions' worth of devices may be acted on by one look, where the policy sets no pace."""
_AT_ONCE = MAX_DEVICES_PER_DECISION * TRANSACTIONS_A_LOOK
_CHOOSING, _JUDGING = "choosing", "judging"
_NOBODY = Choice(zones={}, segments={})


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What one look found: the observation, who is next, and what is told to people of it."""

    observation: Observation
    choice: Choice
    pace: Pace | None = None
    opens_ns: int | None = None

    def without(self, action: Action | None) -> Look:
        """The same look once these devices are acted on, its gates taken note of."""
        done = set(action.devices) if action is not None else set()

        def rest(names: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(name for name in names if name not in done)

        seen, choice = self.observation, self.choice
        observation = replace(
            seen,
            waiting=rest(seen.waiting),
            to_hold=rest(seen.to_hold),
            to_retry=rest(seen.to_retry),
            to_restore=rest(seen.to_restore),
            gates=(),
        )
        return replace(
            self,
            observation=observation,
            choice=replace(choice, waiting=rest(choice.waiting), to_hold=rest(choice.to_hold)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Chosen:
    """A choice, and the rollout's revision up to which it holds."""

    revision: int
    choice: Choice


class Looker:
    """Looks at rollouts for one driver."""

    def __init__(self, engine: Engine, store: TelemetryStore, share: WorkShare) -> None:
        self._engine, self._store, self._share = engine, store, share
        self._chosen: dict[str, _Chosen] = {}

    def keep(self, rollout_ids: Collection[str]) -> None:
        """Forget every other rollout."""
        self._chosen = {each: chosen for each, chosen in self._chosen.items() if each in rollout_ids}

    def look(self, record: RolloutRecord, *, now_ns: int) -> Look:
        """Look once."""
        policy, progress = record.policy, record.progress
        if progress.exposed:
            take_in_reports(self._engine, record, now_ns=now_ns)
        is_active = progress.state is RolloutState.ACTIVE and progress.step is not Step.GATING
        choice = self._choose(record) if is_active else _NOBODY
        segments = None if progress.state is RolloutState.ROLLING_BACK else sorted(progress.halted)
        to_restore: tuple[str, ...] = ()
        to_retry: tuple[str, ...] = ()
        recent = 0
        with self._engine.connect() as connection:
            tally = read_tally(connection, record, now_ns=now_ns)
            current = pace(policy.rate, healthy=tally.healthy)
            if segments is None or segments:
                to_restore = names_to_restore(connection, record.id, segments=segments, limit=_AT_ONCE)
            if is_active and tally.exposed:
                to_retry = names_to_retry(connection, record, now_ns=now_ns, limit=_AT_ONCE)
            if current is not None and choice.waiting:
                start_ns = now_ns - current.window_ns
                recent = exposed_within(connection, record.id, start_ns=start_ns, end_ns=now_ns)
            all_segments = read_all_segments(connection, record.id) if policy.segments else frozenset[str]()
        gates: tuple[GateResult, ...] = ()
        if tally.exposed > tally.restored and progress.state is not RolloutState.ROLLING_BACK:
            gates = self._judge(record, now_ns)
        waiting = open_now(policy, choice, now_ns)
        return Look(
            observation=Observation(
                now_ns=now_ns,
                tally=tally,
                waiting=waiting,
                blocked=len(choice.waiting) - len(waiting),
                to_hold=choice.to_hold,
                to_retry=to_retry,
                to_restore=to_restore,
                allowance=allowance(current, recent=recent),
                gates=gates,
                segments=all_segments,
            ),
            choice=choice,
            pace=current,
            opens_ns=opens_ns(policy, choice, now_ns) if len(waiting) < len(choice.waiting) else None,
        )

    def note(self, record: RolloutRecord, decision: Decision, look: Look) -> None:
        """The decision was written: what it took from the list of who is next is done."""
        after, before = decision.progress, record.progress
        if record.id not in self._chosen or (after.stage, after.step, after.halted) != (
            before.stage,
            before.step,
            before.halted,
        ):
            self._chosen.pop(record.id, None)
            self._share.excuse(record.id, _CHOOSING)
            return
        rest = look.without(decision.action).choice
        self._chosen[record.id] = _Chosen(revision=record.revision + 1, choice=rest)

    def _choose(self, record: RolloutRecord) -> Choice:
        known = self._chosen.get(record.id)
        if known is not None and known.revision == record.revision and not self._share.is_due(record.id, _CHOOSING):
            return known.choice
        with self._share.measured(record.id, _CHOOSING), self._engine.connect() as connection:
            fleet = read_device_facts(connection, fleet=record.fleet, model=record.model)
            choice = choose(record.policy, record.progress, fleet, read_members(connection, record.id))
        self._chosen[record.id] = _Chosen(revision=record.revision, choice=choice)
        return choice

    def _judge(self, record: RolloutRecord, now_ns: int) -> tuple[GateResult, ...]:
        is_gating = record.progress.state is RolloutState.ACTIVE and record.progress.step is Step.GATING
        if not (is_gating or self._share.is_due(record.id, _JUDGING)):
            return ()
        with self._share.measured(record.id, _JUDGING):
            return self._judge_now(record, now_ns)

    def _judge_now(self, record: RolloutRecord, now_ns: int) -> tuple[GateResult, ...]:
        progress, gates = record.progress, record.policy.gates
        if progress.step is Step.RELEASING:  # the others compare with the control, which ends with this step
            gates = [gate for gate in gates if isinstance(gate, UpdateFailuresGate)]
        with self._engine.connect() as connection:
            rows = [row for row in read_rollout_devices(connection, record) if _is_compared(record, row)]
            of_version = (versions.c.model == record.model, versions.c.version == record.version)
            manifest: dict[str, Any] | None = connection.scalar(select(versions.c.manifest).where(*of_version))
        evidence = collect_evidence(
            self._store,
            rows,
            [_facts(record, row, now_ns) for row in rows],
            fleet=record.fleet,
            model=record.model,
            version=record.version,
            manifest=manifest or {},
            bake_started_ns=progress.bake_started_ns,
            now_ns=now_ns,
            gates=gates,
        )
        return evaluate_gates(gates, evidence, segments=record.policy.segments)


def _is_compared(record: RolloutRecord, row: RolloutDevice) -> bool:
    """A segment that was taken back, control and all, is judged no more."""
    return not row.incumbent.restored and not row.is_gone and row.segment not in record.progress.halted


def _facts(record: RolloutRecord, row: RolloutDevice, now_ns: int) -> ExposedDevice:
    if row.is_control:
        return ExposedDevice(device=row.device, phase=Phase.HEALTHY, reachable=row.online)
    return exposed_device(
        row,
        model=record.model,
        candidate=record.bundle,
        deploy_deadline_s=record.policy.deploy_deadline_s,
        now_ns=now_ns,
        max_attempts=record.policy.retry.attempts,
    )
