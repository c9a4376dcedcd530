"""What a rollout waits for and until when, in words and numbers for people. Pure; no decision rests on it."""

from __future__ import annotations

from msgspec import Struct

from fleet_server.rollouts.approvals import approvals_missing
from fleet_server.rollouts.pace import Pace
from fleet_server.rollouts.policy import RolloutPolicy
from fleet_server.rollouts.progress import Observation, Progress, RolloutState, Step
from fleet_server.rollouts.state_machine import starts_at_ns


class Outlook(Struct, frozen=True, kw_only=True):
    """`what` happens next, and the time at or by which it does, None where that is up to somebody else.

    `waiting` devices of the stage are not exposed yet, `blocked` of them by their maintenance hours. `per_minute` is
    the pace now, None for "at once".
    """

    what: str = ""
    until_ns: int | None = None
    waiting: int = 0
    blocked: int = 0
    per_minute: float | None = None


def look_ahead(
    policy: RolloutPolicy,
    progress: Progress,
    seen: Observation,
    *,
    pace: Pace | None = None,
    opens_ns: int | None = None,
    deadline_ns: int | None = None,
) -> Outlook:
    """The outlook after a look. `opens_ns` is the next maintenance hour, `deadline_ns` when the last update is LOST."""
    what, until_ns = _next(policy, progress, seen, opens_ns, deadline_ns)
    return Outlook(
        what=what,
        until_ns=until_ns,
        waiting=len(seen.waiting) + seen.blocked,
        blocked=seen.blocked,
        per_minute=pace.per_minute if pace else None,
    )


def _next(
    policy: RolloutPolicy, progress: Progress, seen: Observation, opens_ns: int | None, deadline_ns: int | None
) -> tuple[str, int | None]:
    tally = seen.tally
    match progress.state:
        case RolloutState.AWAITING_APPROVAL:
            missing = approvals_missing(policy, progress, progress.stage)
            return f"{missing} approvals for stage {progress.stage + 1}, not its author's", None
        case RolloutState.SCHEDULED:
            return "the start", starts_at_ns(policy) or None
        case RolloutState.PAUSED:
            return "a person resumes it or rolls it back", None
        case RolloutState.ROLLING_BACK:
            return f"{tally.exposed - tally.restored + tally.not_back} devices to run again what they ran before", None
        case state if state is not RolloutState.ACTIVE:
            return "", None
    if progress.step is Step.BAKING:
        bake_s = policy.stages[progress.stage].bake_s
        return "the end of the bake, then the gates", progress.bake_started_ns + int(bake_s * 1e9)
    if progress.step is Step.GATING:
        return "the gates", None
    purpose = "to release the control" if progress.step is Step.RELEASING else "to expose the stage"
    if seen.waiting:
        return f"{purpose}: {len(seen.waiting)} devices at the policy's pace", None
    if tally.moving:
        return f"{tally.moving} devices that are updating", deadline_ns
    if seen.blocked:
        return f"{purpose}: {seen.blocked} devices whose maintenance hours are closed", opens_ns
    if not tally.exposed:
        return "a device that matches the selector", None
    if not tally.is_all_back:
        return f"{tally.not_back} devices to run again what they ran before", None
    return "the next look", None
