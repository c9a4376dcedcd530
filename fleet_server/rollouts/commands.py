"""What a person may ask of a rollout, and when. Pure.

Invariants: a command works only in the states that it names, and its refusal says what works instead; nothing that was
exposed is forgotten: a rollout that has exposed devices ends by restoring them, unless a person gives that up.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

import msgspec

from fleet_server.errors import ConflictError, InvalidRequestError
from fleet_server.rollouts.approvals import approvals_missing, with_approval
from fleet_server.rollouts.policy import RolloutPolicy
from fleet_server.rollouts.progress import Progress, RolloutState, Step


class Command(StrEnum):
    """What a person may ask."""

    SUBMIT = "submit"
    APPROVE = "approve"
    PAUSE = "pause"
    RESUME = "resume"
    ABORT = "abort"
    ROLLBACK = "rollback"


_OPEN = (RolloutState.AWAITING_APPROVAL, RolloutState.SCHEDULED, RolloutState.ACTIVE, RolloutState.PAUSED)
_NOT_NOW = "wait for its next state, or use another command"
_WAY_OUT: Mapping[RolloutState, str] = {
    RolloutState.AWAITING_APPROVAL: "approve or abort it",
    RolloutState.SCHEDULED: "pause or abort it",
    RolloutState.PAUSED: "resume, abort or roll it back",
    RolloutState.ROLLING_BACK: "wait until its devices are back, or abort it to give up on those that are not",
    RolloutState.COMPLETED: "it is over, create a rollout of the version you want instead",
    RolloutState.ROLLED_BACK: "it is over, create a new rollout",
    RolloutState.CANCELED: "it is over, create a new rollout",
}


def apply_command(
    policy: RolloutPolicy, progress: Progress, command: Command | str, *, actor: str, person: str = "", now_ns: int = 0
) -> Progress:
    """The progress after a command of `person`, who signed in as `actor` ("": they are the same).

    Raises InvalidRequestError for an unknown command, ConflictError where the state does not allow it, and
    ForbiddenError for an approval of one's own rollout.
    """
    try:
        command = Command(command)
    except ValueError:
        allowed = ", ".join(Command)
        raise InvalidRequestError(f"rollout command {command!r} is unknown: use one of {allowed}") from None
    state = progress.state
    match command:
        case Command.SUBMIT if state is RolloutState.DRAFT:
            return submitted(policy, _change(progress, author=person or actor))
        case Command.APPROVE if state is RolloutState.AWAITING_APPROVAL:
            return _approve(policy, progress, actor=actor, person=person or actor, now_ns=now_ns)
        case Command.PAUSE if state in (RolloutState.SCHEDULED, RolloutState.ACTIVE):
            return _change(progress, state=RolloutState.PAUSED, reason=f"paused by {actor}")
        case Command.RESUME if state is RolloutState.PAUSED:
            return _resume(progress, actor, now_ns)
        case Command.ABORT if state in (*_OPEN, RolloutState.DRAFT) and not progress.exposed:
            return _change(progress, state=RolloutState.CANCELED, reason=f"aborted by {actor} before any device had it")
        case Command.ABORT | Command.ROLLBACK if state in _OPEN and progress.exposed:
            past = {Command.ABORT: "aborted", Command.ROLLBACK: "rolled back"}[command]
            return _change(progress, state=RolloutState.ROLLING_BACK, reason=f"{past} by {actor}")
        case Command.ABORT if state is RolloutState.ROLLING_BACK:
            reason = f"the rollback was given up by {actor}: not every device is known to be back ({progress.reason})"
            return _change(progress, state=RolloutState.CANCELED, step=None, reason=reason)
        case _:
            raise ConflictError(f"a rollout in state {state} cannot {command}: {_WAY_OUT.get(state, _NOT_NOW)}")


def submitted(policy: RolloutPolicy, progress: Progress) -> Progress:
    """A draft that is to be carried out."""
    if missing := approvals_missing(policy, progress, 0):
        reason = f"the policy requires an approval: {missing} more by others than its author"
        return _change(progress, state=RolloutState.AWAITING_APPROVAL, reason=reason)
    return _change(progress, state=RolloutState.SCHEDULED)


def _approve(policy: RolloutPolicy, progress: Progress, *, actor: str, person: str, now_ns: int) -> Progress:
    after = with_approval(progress, actor=actor, person=person, now_ns=now_ns)
    names = ", ".join(approval.actor for approval in after.approvals if approval.stage == after.stage)
    if missing := approvals_missing(policy, after, after.stage):
        return _change(after, reason=f"approved by {names}; {missing} more approvals are needed")
    return _change(after, state=RolloutState.SCHEDULED, reason=f"approved by {names}")


def _resume(progress: Progress, actor: str, now_ns: int) -> Progress:
    clock_started_ns = now_ns if progress.clock_started_ns else 0
    reason = f"resumed by {actor}"
    if progress.step is None:
        return _change(progress, state=RolloutState.SCHEDULED, clock_started_ns=clock_started_ns, reason=reason)
    # Back to DEPLOYING whatever the step was: it checks anew that every device ended, and a new bake follows.
    step = Step.RELEASING if progress.step is Step.RELEASING else Step.DEPLOYING
    return _change(
        progress,
        state=RolloutState.ACTIVE,
        step=step,
        bake_started_ns=0,
        bake_extensions=0,
        clock_started_ns=clock_started_ns,
        reason=reason,
    )


def _change(progress: Progress, **changes: object) -> Progress:
    return msgspec.structs.replace(progress, **changes)
