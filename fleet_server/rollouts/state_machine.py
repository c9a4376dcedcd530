"""The rollout's state machine: what to do next, given where it is and what was observed. No I/O.

DRAFT -> AWAITING_APPROVAL -> SCHEDULED -> ACTIVE[stage: DEPLOYING -> BAKING -> GATING] -> COMPLETED
aside: PAUSED, ROLLING_BACK -> ROLLED_BACK, CANCELED. A stage that needs an approval goes through AWAITING_APPROVAL and
SCHEDULED again; after the last stage RELEASING gives the control the candidate too.

Invariants, in the order `decide` looks at them:
1. a terminal state stays, and gives no action;
2. a gate that fails at any look, also while paused or awaiting, takes back: a segment where segments alone failed,
   else the whole rollout; `on_fail` pause pauses instead. The intervals allow it, and harm outranks a pause;
3. only GATING moves on to the next stage, and only when every gate of the policy passed in this very look;
4. what is inconclusive extends the bake up to the policy's bound, then pauses, or rolls back by `on_inconclusive`;
5. no stage is entered without its approvals, by different people, none of them the author;
6. ROLLED_BACK means: every exposed device that can be reached says that it runs what it ran before. COMPLETED means
   the same of every segment that was taken back;
7. actions come from ACTIVE (Hold, Expose, Retry), from ROLLING_BACK and for halted segments (Restore), a bounded
   number of devices at a time; the control is exposed in RELEASING only.
"""

from __future__ import annotations

from datetime import datetime

import msgspec

from fleet_server.rollouts.approvals import approvals_missing
from fleet_server.rollouts.commands import Command, apply_command, submitted
from fleet_server.rollouts.gates import GateResult, Verdict
from fleet_server.rollouts.policy import RolloutPolicy, gate_name
from fleet_server.rollouts.progress import (
    Decision,
    Expose,
    ExposedDevice,
    Hold,
    Observation,
    Progress,
    Restore,
    Retry,
    RolloutState,
    Step,
    Tally,
    tally_of,
)

__all__ = [
    "MAX_DEVICES_PER_DECISION",
    "Command",
    "Decision",
    "Expose",
    "ExposedDevice",
    "Hold",
    "Observation",
    "Progress",
    "Restore",
    "Retry",
    "RolloutState",
    "Step",
    "Tally",
    "apply_command",
    "decide",
    "starts_at_ns",
    "tally_of",
]

MAX_DEVICES_PER_DECISION = 2_000
"""Devices that one decision acts on, so that one transaction stays below a second."""


def decide(policy: RolloutPolicy, progress: Progress, observation: Observation) -> Decision:
    """The next step, at most one transition away."""
    match progress.state:
        case RolloutState.DRAFT:
            return Decision(progress=submitted(policy, progress))
        case RolloutState.ROLLING_BACK:
            return _decide_rolling_back(progress, observation)
        case state if state.is_terminal:
            return Decision(progress=progress)
    if progress.exposed or progress.state in (RolloutState.ACTIVE, RolloutState.PAUSED):
        harmed = _after_harm(policy, progress, observation)
        if harmed is not None:
            return Decision(progress=harmed)
        if observation.to_restore:
            return Decision(progress=progress, action=Restore(devices=_bounded(observation.to_restore)))
    match progress.state:
        case RolloutState.SCHEDULED:
            return Decision(progress=_decide_scheduled(policy, progress, observation.now_ns))
        case RolloutState.ACTIVE:
            return _decide_active(policy, progress, observation)
        case _:
            return Decision(progress=progress)


def starts_at_ns(policy: RolloutPolicy) -> int:
    """The policy's `start_at` in UTC nanoseconds, 0 for at once."""
    return int(datetime.fromisoformat(policy.start_at).timestamp() * 1_000_000) * 1_000 if policy.start_at else 0


def _after_harm(policy: RolloutPolicy, progress: Progress, observation: Observation) -> Progress | None:
    """The progress once a gate failed; None while none did, or where the rollout is paused for it already."""
    fails = [
        result
        for result in observation.gates
        if result.verdict is Verdict.FAIL and result.segment not in progress.halted
    ]
    if not fails:
        return None
    in_segments = [result for result in fails if result.segment]
    explained = {result.gate for result in in_segments}
    overall = [result for result in fails if not result.segment and result.gate not in explained]
    if policy.on_fail == "pause":
        if progress.state is RolloutState.PAUSED:
            return None
        return _change(progress, state=RolloutState.PAUSED, reason=_explained(overall or fails))
    if overall:
        return _change(progress, state=RolloutState.ROLLING_BACK, reason=_explained(overall))
    halted = dict(progress.halted)
    for segment in sorted({result.segment for result in in_segments}):
        halted[segment] = _explained([result for result in in_segments if result.segment == segment])
    if observation.segments and observation.segments <= halted.keys():
        reason = f"every segment failed: {_halted_words(halted)}"
        return _change(progress, state=RolloutState.ROLLING_BACK, halted=halted, reason=reason)
    return _change(progress, halted=halted, reason=f"taken back in part: {_halted_words(halted)}")


def _decide_scheduled(policy: RolloutPolicy, progress: Progress, now_ns: int) -> Progress:
    if missing := approvals_missing(policy, progress, progress.stage):
        return _awaiting(progress, progress.stage, missing)
    if now_ns < starts_at_ns(policy):
        return _change(progress, reason=f"starts at {policy.start_at}")
    return _enter_stage(policy, progress, progress.stage, now_ns)


def _decide_active(policy: RolloutPolicy, progress: Progress, observation: Observation) -> Decision:
    now = observation.now_ns
    if policy.deadline_s and now - progress.clock_started_ns > policy.deadline_s * 1e9:
        reason = f"the deadline passed: not over within {policy.deadline_s:g} s"
        return Decision(progress=_change(progress, state=RolloutState.PAUSED, reason=reason))
    if progress.step is Step.GATING:
        return Decision(progress=_decide_gating(policy, progress, observation))
    if observation.to_hold and progress.step is not Step.RELEASING:
        return Decision(progress=progress, action=Hold(devices=_bounded(observation.to_hold)))
    if observation.to_retry:
        return Decision(progress=progress, action=Retry(devices=_bounded(observation.to_retry)))
    if chosen := _bounded(observation.waiting[: observation.allowance]):
        return Decision(progress=_change(progress, exposed=True), action=Expose(devices=chosen))
    is_deployed = not (observation.waiting or observation.blocked or observation.tally.moving)
    match progress.step:
        case Step.BAKING:
            bake_s = policy.stages[progress.stage].bake_s
            is_over = now - progress.bake_started_ns >= bake_s * 1e9
            return Decision(progress=_change(progress, step=Step.GATING) if is_over else progress)
        case Step.RELEASING:
            is_over = is_deployed and observation.tally.is_all_back
            return Decision(progress=_completed(progress, observation.tally) if is_over else progress)
    if not observation.tally.exposed and not observation.blocked:
        waiting = "" if observation.waiting else "no device that has reported matches the selector yet"
        return Decision(progress=_change(progress, reason=waiting))
    after = _change(progress, reason=_note(progress))
    return Decision(progress=_change(after, step=Step.BAKING, bake_started_ns=now) if is_deployed else after)


def _decide_gating(policy: RolloutPolicy, progress: Progress, observation: Observation) -> Progress:
    of_all = [result for result in observation.gates if not result.segment]
    passed = {result.gate for result in of_all if result.verdict is Verdict.PASS}
    missing = [gate_name(gate) for gate in policy.gates if gate_name(gate) not in passed]
    if not missing and observation.tally.exposed > observation.tally.restored:
        if progress.stage + 1 < len(policy.stages):
            return _enter_stage(policy, progress, progress.stage + 1, observation.now_ns)
        if observation.tally.control or not observation.tally.is_all_back:
            return _change(progress, step=Step.RELEASING, bake_started_ns=0, reason=_note(progress))
        return _completed(progress, observation.tally)
    unclear = [result for result in of_all if result.verdict is Verdict.INCONCLUSIVE]
    why = _explained(unclear) or f"no evidence for {', '.join(missing)}"
    if progress.bake_extensions < policy.max_bake_extensions:
        extension = progress.bake_extensions + 1
        return _change(
            progress,
            step=Step.BAKING,
            bake_started_ns=observation.now_ns,
            bake_extensions=extension,
            reason=f"bake extended {extension} of {policy.max_bake_extensions} times: {why}",
        )
    state = RolloutState.ROLLING_BACK if policy.on_inconclusive == "rollback" else RolloutState.PAUSED
    return _change(progress, state=state, reason=f"inconclusive after the last extension: {why}")


def _decide_rolling_back(progress: Progress, observation: Observation) -> Decision:
    if observation.to_restore:
        return Decision(progress=progress, action=Restore(devices=_bounded(observation.to_restore)))
    tally = observation.tally
    if not tally.is_all_back or tally.restored < tally.exposed:
        return Decision(progress=progress)
    reason = progress.reason + _away_note(tally)
    return Decision(progress=_change(progress, state=RolloutState.ROLLED_BACK, step=None, reason=reason))


def _completed(progress: Progress, tally: Tally) -> Progress:
    reason = "every gate passed on every stage"
    if progress.halted:
        reason += f"; taken back in part: {_halted_words(progress.halted)}{_away_note(tally)}"
    return _change(progress, state=RolloutState.COMPLETED, step=None, reason=reason)


def _enter_stage(policy: RolloutPolicy, progress: Progress, stage: int, now_ns: int) -> Progress:
    if missing := approvals_missing(policy, progress, stage):
        return _awaiting(progress, stage, missing)
    return _change(
        progress,
        state=RolloutState.ACTIVE,
        stage=stage,
        step=Step.DEPLOYING,
        stage_started_ns=now_ns,
        bake_started_ns=0,
        bake_extensions=0,
        clock_started_ns=progress.clock_started_ns or now_ns,
        reason=_note(progress),
    )


def _awaiting(progress: Progress, stage: int, missing: int) -> Progress:
    reason = f"stage {stage + 1} requires an approval: {missing} more by others than its author"
    return _change(
        progress, state=RolloutState.AWAITING_APPROVAL, stage=stage, step=None, bake_started_ns=0, reason=reason
    )


def _note(progress: Progress) -> str:
    return f"taken back in part: {_halted_words(progress.halted)}" if progress.halted else ""


def _halted_words(halted: dict[str, str]) -> str:
    return "; ".join(f"{segment or 'unknown'} ({why})" for segment, why in sorted(halted.items()))


def _away_note(tally: Tally) -> str:
    return f"; {tally.away} devices that cannot be reached follow when they return" if tally.away else ""


def _explained(results: list[GateResult]) -> str:
    return "; ".join(
        f"{result.gate} on {result.segment}: {result.explanation}"
        if result.segment
        else f"{result.gate}: {result.explanation}"
        for result in results
    )


def _bounded(names: tuple[str, ...]) -> tuple[str, ...]:
    return names[:MAX_DEVICES_PER_DECISION]


def _change(progress: Progress, **changes: object) -> Progress:
    return msgspec.structs.replace(progress, **changes)
