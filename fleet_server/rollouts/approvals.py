"""Who must approve what, by the four-eyes rule. Pure.

Invariants:
- a stage counts the approvals given for it alone; those of one person count once;
- nobody approves a rollout of their own, whatever their role and whatever they signed in with;
- what was approved stays recorded with its author and time.
"""

from __future__ import annotations

import msgspec

from fleet_server.errors import ConflictError, ForbiddenError
from fleet_server.rollouts.policy import RolloutPolicy
from fleet_server.rollouts.progress import Approval, Progress


def approvals_needed(policy: RolloutPolicy, stage: int) -> int:
    """How many different people must approve before `stage` is entered."""
    if stage == 0 and (policy.require_approval or policy.approvals):
        return max(1, policy.approvals)
    return max(1, policy.approvals) if policy.stages[stage].needs_approval else 0


def approvals_missing(policy: RolloutPolicy, progress: Progress, stage: int) -> int:
    """How many approvals `stage` still waits for."""
    given = {approval.person or approval.actor for approval in progress.approvals if approval.stage == stage}
    return max(0, approvals_needed(policy, stage) - len(given))


def with_approval(progress: Progress, *, actor: str, person: str, now_ns: int) -> Progress:
    """The progress with the approval of `person`, who signed in as `actor`, for the stage it waits to enter.

    Raises ForbiddenError for the rollout's author and ConflictError for somebody who approved this stage already.
    """
    if person == progress.author:
        raise ForbiddenError(
            f"{actor} created this rollout and cannot approve it, whatever their role: ask another approver"
        )
    if any((each.person or each.actor, each.stage) == (person, progress.stage) for each in progress.approvals):
        raise ConflictError(f"{actor} approved this stage already: it needs another approver")
    approval = Approval(actor=actor, person=person, stage=progress.stage, at_ns=now_ns)
    return msgspec.structs.replace(progress, approvals=[*progress.approvals, approval])
