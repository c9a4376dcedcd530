"""One simulated rollout: the real policy, cohorts, pace, gates and state machine over a simulated fleet and clock.

Per look, in this order, as the driver has it: time passes, the gates judge, `decide` says what follows, and it is
done, again and again until nothing more follows at this moment. Looks are `FIRST_LOOK_S` apart at first, then ever
further by the time that the stage has taken; the end of a bake is always a look. Between looks the pace lets devices
go, without gates. Approvals come `approval_delay_s` after they are asked for.

Invariants: nothing is decided here; the same seed makes the same rollout; it ends after `MAX_SIMULATED_S`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

import msgspec
import numpy as np

from fleet_protocol.messages import Phase
from fleet_server.rollouts.approvals import approvals_missing
from fleet_server.rollouts.choosing import Choice, choose
from fleet_server.rollouts.commands import Command, apply_command
from fleet_server.rollouts.gates import GateResult, Verdict, evaluate_gates
from fleet_server.rollouts.measures import Evidence
from fleet_server.rollouts.pace import allowance, pace
from fleet_server.rollouts.policy import (
    DriftGate,
    Gate,
    OutcomeAccuracyGate,
    RolloutPolicy,
    Selector,
    ShadowDisagreementGate,
    UpdateFailuresGate,
)
from fleet_server.rollouts.progress import (
    Decision,
    Expose,
    Hold,
    Observation,
    Progress,
    Restore,
    Retry,
    RolloutState,
    Step,
)
from fleet_server.rollouts.selection import DeviceFacts
from fleet_server.rollouts.simulation.breaks import Breaks
from fleet_server.rollouts.simulation.fleet import CODE, SimulatedFleet
from fleet_server.rollouts.simulation.observing import Observer, failed_updates, hardware_of, tally
from fleet_server.rollouts.simulation.world import Indices, RecordedDevices, WorldSettings, make_world
from fleet_server.rollouts.state_machine import MAX_DEVICES_PER_DECISION, decide

FIRST_LOOK_S = 30.0
LOOK_GROWTH = 0.2
"""A look is due after this share of the time that the stage has taken."""
MAX_LOOK_S = 3600.0
MAX_SIMULATED_S = 60 * 86_400.0
MAX_DECISIONS_A_LOOK = 10_000
_ROLLOUT_START_S = 60.0
_NS = 10**9
_RUNS_UNTIL = "not over after 60 days"

Judge = Callable[[RolloutPolicy, Progress, "Look"], tuple[GateResult, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What a judge sees at one moment; `gates` are those that are asked, `now_s` since the rollout was created."""

    now_s: float
    gates: tuple[Gate, ...]
    evidence: Evidence


class End(StrEnum):
    """How a simulated rollout ended."""

    ROLLED_BACK = "rolled_back"
    COMPLETED = "completed"
    COMPLETED_IN_PART = "completed_in_part"
    PAUSED_BY_FAIL = "paused_by_fail"
    PAUSED_INCONCLUSIVE = "paused_inconclusive"
    PAUSED_BY_DEADLINE = "paused_by_deadline"
    UNFINISHED = "unfinished"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """What came of one rollout.

    `stopped_s` is the time from the first exposure to the decision that stopped it (rollback or pause), None when it
    completed; `exposed` the devices that had been given the candidate by then. `gates` are those that failed, or could
    not say, `failed` says which of the two; `back_s` from that decision until every reachable device was back.
    """

    end: End
    reason: str
    gates: tuple[str, ...]
    failed: bool
    exposed: int
    stopped_s: float | None
    took_s: float
    back_s: float | None
    failed_updates: int
    looks: int
    stage: int

    @property
    def is_alarm(self) -> bool:
        """Whether a gate that failed stopped it, all of it or a segment."""
        return self.failed


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """What is simulated; every device of `devices` is selected."""

    policy: RolloutPolicy
    devices: int
    breaks: Breaks = field(default_factory=Breaks)
    world: WorldSettings = field(default_factory=WorldSettings)
    recorded: RecordedDevices | None = None
    approval_delay_s: float = 1800.0


def judge_by_gates(policy: RolloutPolicy, progress: Progress, look: Look) -> tuple[GateResult, ...]:
    """The policy's own gates."""
    return evaluate_gates(look.gates, look.evidence, segments=policy.segments)


def simulate_rollout(scenario: Scenario, seed: int, *, judge: Judge = judge_by_gates) -> RunResult:
    """Run one rollout to its end."""
    return _Run(scenario, seed, judge).to_the_end()


class _Run:
    def __init__(self, scenario: Scenario, seed: int, judge: Judge) -> None:
        random = np.random.default_rng([0xED6E, seed])
        # whom a selector means, and when it starts, is of the real fleet
        self.policy = policy = msgspec.structs.replace(
            scenario.policy, selector=Selector(), exclude=[], start_at="", maintenance=None,
            salt=scenario.policy.salt or f"simulated-{seed}",
        )  # fmt: skip
        world = make_world(
            scenario.devices,
            settings=scenario.world,
            breaks=scenario.breaks,
            random=random,
            recorded=scenario.recorded,
            with_classes=any(isinstance(gate, DriftGate) for gate in policy.gates),
            with_shadow=any(isinstance(gate, ShadowDisagreementGate) for gate in policy.gates),
        )
        maturity_s = max((g.maturity_s for g in policy.gates if isinstance(g, OutcomeAccuracyGate)), default=0.0)
        self.fleet = SimulatedFleet(world, policy, maturity_s=maturity_s)
        self.scenario, self.judge = scenario, judge
        names = [f"device-{number:07d}" for number in range(scenario.devices)]
        hardware = hardware_of(world.hardware)
        self.facts = [
            DeviceFacts(device=name, hardware=kind, cpu_signature=kind, online=True, has_reported=True)
            for name, kind in zip(names, hardware, strict=True)
        ]
        self.places = {name: place for place, name in enumerate(names)}
        # a simulated device has no labels: segments by one are the hardware's
        segments = hardware if policy.segments is not None else [""] * len(names)
        self.segments = np.array(segments, dtype=object)
        self.names, self.all_segments = names, frozenset(segments) - {""}
        self.observer = Observer(self.fleet, policy, names, segments)
        self.progress = decide(policy, Progress(), Observation(now_ns=0)).progress
        self.choice: Choice | None = None
        self.waiting: deque[str] = deque()
        self.exposures: deque[tuple[float, int]] = deque()
        self.first_exposed_s: float | None = None
        self.stopped: tuple[float, int, tuple[str, ...], int] | None = None
        self.looks, self.gates = 0, ()  # type: int, tuple[GateResult, ...]

    def to_the_end(self) -> RunResult:
        now_s = _ROLLOUT_START_S
        while True:
            self.fleet.advance(now_s)
            self._look(now_s)
            state = self.progress.state
            if state.is_terminal or state is RolloutState.PAUSED or now_s > MAX_SIMULATED_S:
                return self._result(now_s)
            if state is RolloutState.AWAITING_APPROVAL:
                now_s += self.scenario.approval_delay_s
                self._approve(now_s)
                continue
            next_s = self._next_look_s(now_s)
            self._let_go_between(now_s, next_s)
            now_s = next_s

    def _look(self, now_s: float) -> None:
        self.looks += 1
        self.gates = self._judge(now_s)
        for _ in range(MAX_DECISIONS_A_LOOK):
            if not self._decide(now_s, self.gates):
                return

    def _decide(self, now_s: float, gates: tuple[GateResult, ...]) -> bool:
        """One decision carried out; whether there was anything to do."""
        before = self.progress
        decision = decide(self.policy, before, self._observe(now_s, gates))
        if decision == Decision(progress=before):
            return False
        self.progress = after = decision.progress
        if (after.stage, after.step, after.halted) != (before.stage, before.step, before.halted):
            self.choice = None
        self._note_stop(before, after, now_s)
        match decision.action:
            case Hold(devices=devices):
                self.fleet.hold(self._at(devices))
                self.choice = None
            case Expose(devices=devices):
                self.fleet.expose(self._at(devices), now_s)
                self.exposures.append((now_s, len(devices)))
                self.first_exposed_s = now_s if self.first_exposed_s is None else self.first_exposed_s
                for _ in devices:
                    self.waiting.popleft()
            case Retry(devices=devices):
                self.fleet.expose(self._at(devices), now_s, is_retry=True)
            case Restore(devices=devices):
                self.fleet.restore(self._at(devices))
        return True

    def _observe(self, now_s: float, gates: tuple[GateResult, ...]) -> Observation:
        fleet, policy, progress = self.fleet, self.policy, self.progress
        counted = tally(fleet)
        is_active = progress.state is RolloutState.ACTIVE and progress.step is not Step.GATING
        to_hold: tuple[str, ...] = ()
        waiting: tuple[str, ...] = ()
        if is_active:
            choice = self._chosen()
            to_hold = choice.to_hold
            waiting = tuple(self.waiting[place] for place in range(min(len(self.waiting), MAX_DEVICES_PER_DECISION)))
        current = pace(policy.rate, healthy=counted.healthy)
        recent = 0
        if current is not None:
            recent = sum(count for at_s, count in self.exposures if at_s > now_s - current.window_ns / _NS + 1e-9)
        return Observation(
            now_ns=round(now_s * _NS),
            tally=counted,
            waiting=waiting,
            to_hold=to_hold,
            to_retry=self._to_retry(now_s) if is_active else (),
            to_restore=self._to_restore(),
            allowance=allowance(current, recent=recent),
            gates=gates if counted.exposed > counted.restored else (),
            segments=self.all_segments,
        )

    def _chosen(self) -> Choice:
        if self.choice is None:
            fleet = self.fleet
            members = {self.names[place]: False for place in np.flatnonzero(fleet.is_exposed).tolist()}
            members |= {self.names[place]: True for place in np.flatnonzero(fleet.is_control).tolist()}
            self.choice = choose(self.policy, self.progress, self.facts, members)
            self.waiting = deque(self.choice.waiting)
        return self.choice

    def _to_retry(self, now_s: float) -> tuple[str, ...]:
        fleet, retry = self.fleet, self.policy.retry
        if not retry.attempts:
            return ()
        due = fleet.is_exposed & ~fleet.restored & (fleet.phase == CODE[Phase.FAILED])
        due &= (fleet.attempts < retry.attempts) & (fleet.phase_s + retry.after_s <= now_s)
        return self._named(np.flatnonzero(due))

    def _to_restore(self) -> tuple[str, ...]:
        fleet, progress = self.fleet, self.progress
        running = fleet.is_exposed & ~fleet.restored
        if progress.state is RolloutState.ROLLING_BACK:
            return self._named(np.flatnonzero(running))
        if not progress.halted:
            return ()
        return self._named(np.flatnonzero(running & np.isin(self.segments, list(progress.halted))))

    def _judge(self, now_s: float) -> tuple[GateResult, ...]:
        progress, fleet = self.progress, self.fleet
        running = fleet.is_exposed & ~fleet.restored
        if progress.state is not RolloutState.ACTIVE and progress.state is not RolloutState.AWAITING_APPROVAL:
            return ()
        if not running.any():
            return ()
        gates = tuple(self.policy.gates)
        if progress.step is Step.RELEASING:
            gates = tuple(gate for gate in gates if isinstance(gate, UpdateFailuresGate))
        halted = np.isin(self.segments, list(progress.halted))
        bake_s = progress.bake_started_ns / _NS if progress.bake_started_ns else None
        evidence = self.observer.evidence(bake_started_s=bake_s, halted=halted)
        return self.judge(self.policy, progress, Look(now_s=now_s, gates=gates, evidence=evidence))

    def _next_look_s(self, now_s: float) -> float:
        progress = self.progress
        taken_s = now_s - progress.stage_started_ns / _NS
        next_s = now_s + min(MAX_LOOK_S, max(FIRST_LOOK_S, LOOK_GROWTH * taken_s))
        if progress.step is Step.BAKING:
            bake_end_s = progress.bake_started_ns / _NS + self.policy.stages[progress.stage].bake_s
            if bake_end_s > now_s:
                next_s = min(next_s, bake_end_s)
        return next_s

    def _let_go_between(self, now_s: float, next_s: float) -> None:
        """Devices that the pace lets go before the next look."""
        while self.waiting and self.progress.state is RolloutState.ACTIVE:
            current = pace(self.policy.rate, healthy=tally(self.fleet).healthy)
            if current is None:
                return
            now_s += current.window_ns / _NS
            while self.exposures and self.exposures[0][0] <= now_s - current.window_ns / _NS - 1:
                self.exposures.popleft()
            if now_s >= next_s or not self._decide(now_s, ()):
                return

    def _approve(self, now_s: float) -> None:
        for number in range(approvals_missing(self.policy, self.progress, self.progress.stage)):
            self.progress = apply_command(
                self.policy, self.progress, Command.APPROVE, actor=f"approver-{number}", now_ns=round(now_s * _NS)
            )

    def _note_stop(self, before: Progress, after: Progress, now_s: float) -> None:
        is_stop = after.state in (RolloutState.ROLLING_BACK, RolloutState.PAUSED) or after.halted != before.halted
        if not is_stop or self.stopped is not None:
            return
        fails = tuple(sorted({r.gate for r in self.gates if r.verdict is Verdict.FAIL}))
        unclear = tuple(sorted({r.gate for r in self.gates if r.verdict is Verdict.INCONCLUSIVE and not r.segment}))
        self.stopped = (now_s, int(self.fleet.is_exposed.sum()), fails or unclear, len(fails))

    def _result(self, now_s: float) -> RunResult:
        progress = self.progress
        stopped_s, exposed, gates, fails = self.stopped or (None, int(self.fleet.is_exposed.sum()), (), 0)
        match progress.state:
            case RolloutState.ROLLED_BACK | RolloutState.ROLLING_BACK:
                end = End.ROLLED_BACK
            case RolloutState.COMPLETED:
                end = End.COMPLETED_IN_PART if progress.halted else End.COMPLETED
            case RolloutState.PAUSED if progress.reason.startswith("the deadline"):
                end = End.PAUSED_BY_DEADLINE
            case RolloutState.PAUSED if progress.reason.startswith("inconclusive"):
                end = End.PAUSED_INCONCLUSIVE
            case RolloutState.PAUSED:
                end = End.PAUSED_BY_FAIL
            case _:
                end = End.UNFINISHED
        began_s = self.first_exposed_s or 0.0
        return RunResult(
            end=end,
            reason=progress.reason or _RUNS_UNTIL,
            gates=gates,
            failed=fails > 0,
            exposed=exposed,
            stopped_s=None if stopped_s is None else stopped_s - began_s,
            took_s=now_s - began_s,
            back_s=now_s - stopped_s if end is End.ROLLED_BACK and stopped_s is not None else None,
            failed_updates=failed_updates(self.fleet),
            looks=self.looks,
            stage=progress.stage,
        )

    def _at(self, devices: tuple[str, ...]) -> Indices:
        return np.array([self.places[device] for device in devices], dtype=np.int64)

    def _named(self, places: Indices) -> tuple[str, ...]:
        return tuple(self.names[place] for place in places[:MAX_DEVICES_PER_DECISION].tolist())
