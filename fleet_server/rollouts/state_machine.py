"""The rollout's state machine: what to do next, given where it is and what was observed. No I/O.

DRAFT -> AWAITING_APPROVAL -> SCHEDULED -> ACTIVE[stage: DEPLOYING -> BAKING -> GATING] -> COMPLETED
aside: PAUSED, ROLLING_BACK -> ROLLED_BACK, CANCELED.

Invariants, in the order `decide` looks at them:
1. a terminal state stays, and gives no action;
2. a gate that fails rolls back at any look, also while paused: the intervals allow it, and harm outranks a pause;
3. only GATING moves on to the next stage, and only when every gate of the policy passed in this very look;
4. what is inconclusive extends the bake up to the policy's bound, then pauses;
5. ROLLED_BACK means: every exposed device that can be reached says that it runs what it ran before;
6. actions come from ACTIVE (Expose) and ROLLING_BACK (Restore) alone, a bounded number of devices at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import msgspec
from msgspec import Struct

from fleet_protocol.messages import Phase
from fleet_server.errors import ConflictError, InvalidRequestError
from fleet_server.rollouts.gates import GateResult, Verdict
from fleet_server.rollouts.policy import RolloutPolicy, gate_name

MAX_DEVICES_PER_DECISION = 200
"""Devices exposed or restored by one decision, so that one transaction stays short."""


class RolloutState(StrEnum):
    """Where a rollout is."""

    DRAFT = "DRAFT"
    AWAITING_APPROVAL = "AWAITING_APPROVAL"
    SCHEDULED = "SCHEDULED"
    ACTIVE = "ACTIVE"
    PAUSED = "PAUSED"
    ROLLING_BACK = "ROLLING_BACK"
    ROLLED_BACK = "ROLLED_BACK"
    COMPLETED = "COMPLETED"
    CANCELED = "CANCELED"

    @property
    def is_terminal(self) -> bool:
        """Whether nothing more happens."""
        return self in (RolloutState.ROLLED_BACK, RolloutState.COMPLETED, RolloutState.CANCELED)


class Step(StrEnum):
    """Where an active rollout is within its stage."""

    DEPLOYING = "DEPLOYING"
    BAKING = "BAKING"
    GATING = "GATING"


class Command(StrEnum):
    """What a person may ask."""

    SUBMIT = "submit"
    APPROVE = "approve"
    PAUSE = "pause"
    RESUME = "resume"
    ABORT = "abort"
    ROLLBACK = "rollback"


class Progress(Struct, frozen=True, kw_only=True):
    """All a rollout remembers. `step` None is "not started"; `exposed` once any device has the candidate."""

    state: RolloutState = RolloutState.DRAFT
    stage: int = 0
    step: Step | None = None
    exposed: bool = False
    stage_started_ns: int = 0
    bake_started_ns: int = 0
    bake_extensions: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExposedDevice:
    """A device that was given the candidate. `restored`: the incumbent is desired again; `is_back`: and runs."""

    device: str
    phase: Phase
    restored: bool = False
    is_back: bool = False
    reachable: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What one look saw. `waiting` are the stage's devices not yet exposed, in the order of exposure."""

    now_ns: int
    exposed: tuple[ExposedDevice, ...] = ()
    waiting: tuple[str, ...] = ()
    gates: tuple[GateResult, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Expose:
    """Give these devices the candidate."""

    devices: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Restore:
    """Give these devices back what they ran before."""

    devices: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The next progress and what must happen with it, in one transaction."""

    progress: Progress
    action: Expose | Restore | None = None


def decide(policy: RolloutPolicy, progress: Progress, observation: Observation) -> Decision:
    """The next step, at most one transition away."""
    match progress.state:
        case RolloutState.DRAFT:
            return Decision(progress=_submit(policy, progress))
        case RolloutState.SCHEDULED:
            return Decision(progress=_enter_stage(progress, 0, observation.now_ns))
        case RolloutState.ACTIVE | RolloutState.PAUSED if harm := _explain(observation.gates, Verdict.FAIL):
            return Decision(progress=_change(progress, state=RolloutState.ROLLING_BACK, reason=harm))
        case RolloutState.ACTIVE:
            return _decide_active(policy, progress, observation)
        case RolloutState.ROLLING_BACK:
            return _decide_rolling_back(progress, observation)
        case _:
            return Decision(progress=progress)


def apply_command(policy: RolloutPolicy, progress: Progress, command: Command | str, *, actor: str) -> Progress:
    """The progress after a person's command.

    Raises InvalidRequestError for an unknown command and ConflictError where the state does not allow it.
    """
    try:
        command = Command(command)
    except ValueError:
        allowed = ", ".join(Command)
        raise InvalidRequestError(f"rollout command {command!r} is unknown: use one of {allowed}") from None
    state = progress.state
    match command:
        case Command.SUBMIT if state is RolloutState.DRAFT:
            return _submit(policy, progress)
        case Command.APPROVE if state is RolloutState.AWAITING_APPROVAL:
            return _change(progress, state=RolloutState.SCHEDULED, reason=f"approved by {actor}")
        case Command.PAUSE if state in (RolloutState.SCHEDULED, RolloutState.ACTIVE):
            return _change(progress, state=RolloutState.PAUSED, reason=f"paused by {actor}")
        case Command.RESUME if state is RolloutState.PAUSED:
            return _resume(progress, actor)
        case Command.ABORT if not state.is_terminal and not progress.exposed:
            return _change(progress, state=RolloutState.CANCELED, reason=f"aborted by {actor} before any device had it")
        case Command.ABORT | Command.ROLLBACK if (
            state in (RolloutState.ACTIVE, RolloutState.PAUSED) and progress.exposed
        ):
            past = {Command.ABORT: "aborted", Command.ROLLBACK: "rolled back"}[command]
            return _change(progress, state=RolloutState.ROLLING_BACK, reason=f"{past} by {actor}")
        case _:
            raise ConflictError(f"a rollout in state {state} cannot {command}: {_WAY_OUT.get(state, _NOT_NOW)}")


_NOT_NOW = "wait for its next state, or use another command"
_WAY_OUT: Mapping[RolloutState, str] = {
    RolloutState.AWAITING_APPROVAL: "approve or abort it",
    RolloutState.SCHEDULED: "pause or abort it",
    RolloutState.PAUSED: "resume, abort or roll it back",
    RolloutState.COMPLETED: "it is over, create a rollout of the version you want instead",
    RolloutState.ROLLED_BACK: "it is over, create a new rollout",
    RolloutState.CANCELED: "it is over, create a new rollout",
}


def _decide_active(policy: RolloutPolicy, progress: Progress, observation: Observation) -> Decision:
    now = observation.now_ns
    stage = policy.stages[progress.stage]
    if progress.step is not Step.GATING and observation.waiting:
        chosen = observation.waiting[:MAX_DEVICES_PER_DECISION]
        return Decision(progress=_change(progress, exposed=True), action=Expose(devices=chosen))
    if progress.step is Step.DEPLOYING:
        if not observation.exposed:
            waiting = "no device that has reported matches the selector yet"
            return Decision(progress=_change(progress, reason=waiting))
        if all(device.phase.is_end for device in observation.exposed):
            return Decision(progress=_change(progress, step=Step.BAKING, bake_started_ns=now, reason=""))
        return Decision(progress=_change(progress, reason=""))
    if progress.step is Step.BAKING:
        if now - progress.bake_started_ns >= stage.bake_s * 1e9:
            return Decision(progress=_change(progress, step=Step.GATING))
        return Decision(progress=progress)
    return Decision(progress=_decide_gating(policy, progress, observation))


def _decide_gating(policy: RolloutPolicy, progress: Progress, observation: Observation) -> Progress:
    passed = {result.gate for result in observation.gates if result.verdict is Verdict.PASS}
    missing = [gate_name(gate) for gate in policy.gates if gate_name(gate) not in passed]
    if not missing and observation.exposed:
        if progress.stage + 1 < len(policy.stages):
            return _enter_stage(progress, progress.stage + 1, observation.now_ns)
        return _change(progress, state=RolloutState.COMPLETED, step=None, reason="every gate passed on every stage")
    why = _explain(observation.gates, Verdict.INCONCLUSIVE) or f"no evidence for {', '.join(missing)}"
    if progress.bake_extensions < policy.max_bake_extensions:
        extension = progress.bake_extensions + 1
        return _change(
            progress,
            step=Step.BAKING,
            bake_started_ns=observation.now_ns,
            bake_extensions=extension,
            reason=f"bake extended {extension} of {policy.max_bake_extensions} times: {why}",
        )
    return _change(progress, state=RolloutState.PAUSED, reason=f"inconclusive after the last extension: {why}")


def _decide_rolling_back(progress: Progress, observation: Observation) -> Decision:
    unrestored = tuple(device.device for device in observation.exposed if not device.restored)
    if unrestored:
        return Decision(progress=progress, action=Restore(devices=unrestored[:MAX_DEVICES_PER_DECISION]))
    if not all(device.is_back or not device.reachable for device in observation.exposed):
        return Decision(progress=progress)
    away = sum(not device.is_back for device in observation.exposed)
    note = f"; {away} devices that cannot be reached follow when they return" if away else ""
    reason = progress.reason + note
    return Decision(progress=_change(progress, state=RolloutState.ROLLED_BACK, step=None, reason=reason))


def _submit(policy: RolloutPolicy, progress: Progress) -> Progress:
    if policy.require_approval:
        return _change(progress, state=RolloutState.AWAITING_APPROVAL, reason="the policy requires an approval")
    return _change(progress, state=RolloutState.SCHEDULED)


def _enter_stage(progress: Progress, stage: int, now_ns: int) -> Progress:
    return _change(
        progress,
        state=RolloutState.ACTIVE,
        stage=stage,
        step=Step.DEPLOYING,
        stage_started_ns=now_ns,
        bake_started_ns=0,
        bake_extensions=0,
        reason="",
    )


def _resume(progress: Progress, actor: str) -> Progress:
    if progress.step is None:
        return _change(progress, state=RolloutState.SCHEDULED, reason=f"resumed by {actor}")
    # Back to DEPLOYING whatever the step was: it checks anew that every device ended, and a new bake follows.
    return _change(
        progress,
        state=RolloutState.ACTIVE,
        step=Step.DEPLOYING,
        bake_started_ns=0,
        bake_extensions=0,
        reason=f"resumed by {actor}",
    )


def _explain(results: tuple[GateResult, ...], verdict: Verdict) -> str:
    return "; ".join(f"{result.gate}: {result.explanation}" for result in results if result.verdict is verdict)


def _change(progress: Progress, **changes: object) -> Progress:
    return msgspec.structs.replace(progress, **changes)
