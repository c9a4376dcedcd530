"""Applies the state machine's decisions: one `step()` is one pass over every open rollout.

Per rollout, in this order:
1. take in the reports that are news, each in a short transaction of its own: facts, not decisions;
2. observe: the devices counted, who is next, telemetry through the gates. No transaction is open while the telemetry
   store is read;
3. decide (`state_machine.decide`, pure);
4. apply in one transaction that starts with a compare-and-set on the rollout's revision: the progress, the
   assignments of the devices it acts on, the gate evaluations that are news.
Any number of drivers may run: whoever loses the compare-and-set has done nothing and looks again next time. Between
passes a driver remembers only how much its looks cost and who is next, both of which it can find out anew.
One rollout that cannot be read or applied never stops the others.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

import msgspec
from sqlalchemy import Engine

from fleet_protocol.keys import PrivateKey
from fleet_server.errors import FleetError
from fleet_server.rollouts.assigning import Assigner
from fleet_server.rollouts.desired import FRESHNESS_S
from fleet_server.rollouts.gates import GateResult
from fleet_server.rollouts.looking import TRANSACTIONS_A_LOOK, Look, Looker
from fleet_server.rollouts.outlook import look_ahead
from fleet_server.rollouts.progress import Decision, Progress
from fleet_server.rollouts.records import (
    RolloutRecord,
    changed_evaluations,
    compare_and_set,
    keep_evaluations,
    keep_outlook,
    latest_evaluations,
    open_rollout_ids,
    read_record,
)
from fleet_server.rollouts.state_machine import decide
from fleet_server.rollouts.work_share import WorkShare
from fleet_server.telemetry_store.port import TelemetryStore

_LOGGER = logging.getLogger(__name__)
_LOOK = "look"


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """What one pass did, by rollout id: written, lost to another driver or a command, failed.

    `acted`: devices were given something new to run, and more may wait.
    """

    changed: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    acted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Advance:
    """What came of one rollout's look. `applied` None is "nothing to do"."""

    applied: bool | None = None
    acted: bool = False


class RolloutDriver:
    """Drives every open rollout of a database; `now_ns` is the clock, `root_version` the newest trust root's.

    `share` says how much of a core its looks may take.
    """

    def __init__(
        self,
        engine: Engine,
        store: TelemetryStore,
        signer: PrivateKey,
        now_ns: Callable[[], int],
        *,
        root_version: Callable[[], int] = lambda: 0,
        freshness_s: float = FRESHNESS_S,
        share: WorkShare | None = None,
    ) -> None:
        self._engine = engine
        self._now_ns = now_ns
        self._share = share or WorkShare()
        self._looker = Looker(engine, store, self._share)
        self._assigner = Assigner(signer, root_version=root_version, freshness_s=freshness_s)

    def step(self) -> StepReport:
        """Look at every open rollout once and move each by at most one transition."""
        changed: list[str] = []
        lost: list[str] = []
        failed: list[str] = []
        acted = False
        with self._engine.connect() as connection:
            open_ids = open_rollout_ids(connection)
        self._share.keep(open_ids)
        self._looker.keep(open_ids)
        for rollout_id in open_ids:
            if not self._share.is_due(rollout_id, _LOOK):
                continue
            try:
                with self._share.measured(rollout_id, _LOOK):
                    result = self._advance(rollout_id)
            except FleetError as error:
                _LOGGER.warning("rollout %s stays where it is: %s", rollout_id, error)
                failed.append(rollout_id)
            except Exception:
                _LOGGER.exception("rollout %s stays where it is", rollout_id)
                failed.append(rollout_id)
            else:
                acted = acted or result.acted
                if result.applied is not None:
                    (changed if result.applied else lost).append(rollout_id)
                    self._share.excuse(rollout_id, _LOOK)
        return StepReport(changed=tuple(changed), lost=tuple(lost), failed=tuple(failed), acted=acted)

    def _advance(self, rollout_id: str) -> _Advance:
        now_ns = self._now_ns()
        with self._engine.connect() as connection:
            record = read_record(connection, rollout_id)
        if record is None or record.progress.state.is_terminal:
            return _Advance()
        look = self._looker.look(record, now_ns=now_ns)
        decision = decide(record.policy, record.progress, look.observation)
        news: tuple[GateResult, ...] = ()
        if look.observation.gates:
            with self._engine.connect() as connection:
                latest = latest_evaluations(connection, rollout_id)
            news = changed_evaluations(latest, look.observation.gates, record.progress.stage)
        if decision == Decision(progress=record.progress) and not news:
            self._keep_outlook(record, record.progress, look)
            return _Advance()
        if not self._apply(record, decision, look, news, now_ns):
            return _Advance(applied=False)
        self._keep_outlook(record, decision.progress, look)
        if decision.action is not None:
            self._act_on(record, decision, look, now_ns)
        return _Advance(applied=True, acted=decision.action is not None)

    def _apply(
        self, record: RolloutRecord, decision: Decision, look: Look, news: tuple[GateResult, ...], now_ns: int
    ) -> bool:
        """Write the decision and do what it says in one transaction; False when somebody else was faster."""
        with self._engine.begin() as connection:
            if not compare_and_set(connection, record, decision.progress, now_ns=now_ns):
                return False
            if decision.action is not None:
                self._assigner.carry_out(
                    connection, record, decision.action, segments=look.choice.segments, now_ns=now_ns
                )
            keep_evaluations(connection, record.id, record.progress.stage, news, now_ns=now_ns)
        self._looker.note(record, decision, look)
        if decision.progress.state is not record.progress.state:
            _LOGGER.info("rollout %s: %s %s", record.id, decision.progress.state, decision.progress.reason)
        return True

    def _act_on(self, record: RolloutRecord, decision: Decision, look: Look, now_ns: int) -> None:
        """More of the same on one look: a large fleet is not counted anew for every transaction's worth of devices."""
        for _ in range(TRANSACTIONS_A_LOOK - 1):
            kind = type(decision.action)
            record = replace(record, progress=decision.progress, revision=record.revision + 1)
            look = look.without(decision.action)
            decision = decide(record.policy, record.progress, look.observation)
            if type(decision.action) is not kind or look.observation.allowance is not None:
                return
            if not self._apply(record, decision, look, (), now_ns):
                return

    def _keep_outlook(self, record: RolloutRecord, progress: Progress, look: Look) -> None:
        deadline_ns = look.observation.tally.moving_since_ns + int(record.policy.deploy_deadline_s * 1e9)
        outlook = look_ahead(
            record.policy, progress, look.observation, pace=look.pace, opens_ns=look.opens_ns, deadline_ns=deadline_ns
        )
        told = msgspec.to_builtins(outlook)
        if told != record.outlook:
            with self._engine.begin() as connection:
                keep_outlook(connection, record, told)
