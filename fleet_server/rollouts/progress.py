"""What a rollout remembers, what one look saw of it, and what may follow. Values only.

Invariants: `Progress` is all that outlives a look, so any process can go on with any rollout; an `Observation` is
small whatever the fleet's size: devices are counted (`Tally`), and named only as far as one decision can act on them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from msgspec import Struct, field

from fleet_protocol.messages import Phase
from fleet_server.rollouts.gates import GateResult


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
    """Where an active rollout is within its stage; RELEASING, after the last one, gives the control the candidate."""

    DEPLOYING = "DEPLOYING"
    BAKING = "BAKING"
    GATING = "GATING"
    RELEASING = "RELEASING"


class Approval(Struct, frozen=True, kw_only=True):
    """Who let the rollout into a stage, and when: `actor` is how they signed in, `person` who they are."""

    actor: str
    stage: int
    at_ns: int
    person: str = ""


class Progress(Struct, frozen=True, kw_only=True):
    """All a rollout remembers. `step` None is "not in a stage"; `exposed` once any device has the candidate.

    `stage` is the one it is in, or waits to enter. `clock_started_ns` is when the policy's `deadline_s` began to run:
    at the first stage, and anew when a person resumes. `halted` are the segments that were taken back, and why.
    `author` is the person who created it, whatever they signed in with.
    """

    state: RolloutState = RolloutState.DRAFT
    stage: int = 0
    step: Step | None = None
    exposed: bool = False
    stage_started_ns: int = 0
    bake_started_ns: int = 0
    bake_extensions: int = 0
    reason: str = ""
    clock_started_ns: int = 0
    approvals: list[Approval] = field(default_factory=list)
    halted: dict[str, str] = field(default_factory=dict)
    author: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExposedDevice:
    """A device that was given the candidate. `restored`: the incumbent is desired again; `is_back`: and runs."""

    device: str
    phase: Phase
    restored: bool = False
    is_back: bool = False
    reachable: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """The devices of a rollout, counted: `exposed` were given the candidate, `restored` of them the incumbent again.

    Of those not restored, `moving` have not ended their update (or will be given it again), `healthy` run the candidate
    in good health, `failed` ended otherwise than well. Of the restored, `not_back` can be reached and do not run what
    they ran before, `away` cannot be reached. `control` are held on the incumbent. `moving_since_ns` is when the last
    of those that move was told to.
    """

    exposed: int = 0
    moving: int = 0
    healthy: int = 0
    failed: int = 0
    restored: int = 0
    not_back: int = 0
    away: int = 0
    control: int = 0
    moving_since_ns: int = 0

    @property
    def is_all_back(self) -> bool:
        """Whether every restored device that can be reached runs what it ran before."""
        return self.not_back == 0


def tally_of(exposed: Iterable[ExposedDevice], *, control: int = 0) -> Tally:
    """The tally of devices that are at hand one by one."""
    devices = list(exposed)
    restored = [device for device in devices if device.restored]
    rest = [device for device in devices if not device.restored]
    missing = [device for device in restored if not device.is_back]
    return Tally(
        exposed=len(devices),
        moving=sum(not device.phase.is_end for device in rest),
        healthy=sum(device.phase is Phase.HEALTHY for device in rest),
        failed=sum(device.phase.is_failure for device in rest),
        restored=len(restored),
        not_back=sum(device.reachable for device in missing),
        away=sum(not device.reachable for device in missing),
        control=control,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What one look saw.

    - `waiting`: devices that the stage should hold (in RELEASING: control to be let go), are not exposed yet and may
      begin an update now, in the order of exposure; `blocked` counts those whose maintenance hours are closed.
    - `to_hold`: devices that should be control and are not yet.
    - `to_retry`: FAILED devices that are due to be given the candidate again.
    - `to_restore`: exposed devices, not restored yet, of halted segments; while ROLLING_BACK, of any.
    - `allowance`: how many devices the pace lets go now, None for all.
    - `segments`: every segment that has devices in the rollout; empty without a policy for them.
    """

    now_ns: int
    tally: Tally = Tally()
    waiting: tuple[str, ...] = ()
    blocked: int = 0
    to_hold: tuple[str, ...] = ()
    to_retry: tuple[str, ...] = ()
    to_restore: tuple[str, ...] = ()
    allowance: int | None = None
    gates: tuple[GateResult, ...] = ()
    segments: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """Keep these devices on the incumbent, for comparison."""

    devices: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Expose:
    """Give these devices the candidate."""

    devices: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """Give these devices, whose update failed, the candidate again."""

    devices: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Restore:
    """Give these devices back what they ran before."""

    devices: tuple[str, ...]


Action = Hold | Expose | Retry | Restore


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The next progress and what must happen with it, in one transaction."""

    progress: Progress
    action: Action | None = None
