"""Reads a device's own report as facts about a rollout. Pure functions of the report and the record.

Invariants:
- success is only: the report saw the assigned generation, its active bundle is the desired one, phase HEALTHY;
- a report older than the assignment says nothing about it;
- a candidate is rolled out as the arm "main", and only the report about that arm speaks of it;
- a device that saw a later generation which wants something else of the model is SUPERSEDED: the newest word counts;
- a device that did not end by the deadline is LOST, until it reports an end after all;
- a restored device is back when its active bundle is the incumbent; where what it had been told before the rollout
  fails on it, when it runs its last good one and not the candidate;
- a device that left the fleet is SUPERSEDED and back: nobody waits for it, and nobody blames the candidate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import Struct, field

from fleet_protocol.messages import MAIN_ARM, Assignment, ModelReport, Phase, Reported
from fleet_server.rollouts.state_machine import ExposedDevice


class Incumbent(Struct, frozen=True, kw_only=True):
    """What a device should have run of the model before the rollout, and whether it was given that back."""

    assignments: list[Assignment] = field(default_factory=list)
    restored: bool = False

    @property
    def main(self) -> Assignment | None:
        """The assignment that answered most calls; None when the model was not assigned."""
        serving = [assignment for assignment in self.assignments if not assignment.shadow]
        return max(serving, key=lambda assignment: assignment.weight, default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutDevice:
    """A device's row of a rollout, joined with what the device says.

    Of the control (`is_control`) `assigned_ns` is when it became control. `last_seen_ns` is when the device was heard
    for the last time, 0 for never. `segment` is that of the policy's `segments`. `phase_ns` is when its phase was first
    seen, `attempts` how often a FAILED update was given again. `is_gone`: it left the fleet.
    """

    device: str
    stage: int
    incumbent: Incumbent
    assigned_generation: int
    assigned_ns: int
    report: Reported | None
    online: bool
    is_control: bool = False
    segment: str = ""
    last_seen_ns: int = 0
    phase_ns: int = 0
    attempts: int = 0
    is_gone: bool = False


def read_report(document: Mapping[str, Any] | str | bytes | None) -> Reported | None:
    """The report in a JSON column or its text, None when there is none or it cannot be read."""
    if document is None:
        return None
    try:
        if isinstance(document, str | bytes):
            return _REPORTS.decode(document)
        return msgspec.convert(document, Reported)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


_REPORTS = msgspec.json.Decoder(Reported)


def model_report(row: RolloutDevice, model: str, arm: str = MAIN_ARM) -> ModelReport | None:
    """What the device says about an arm of `model` since it saw its assignment; None when it has not seen it yet."""
    if row.report is None or row.report.generation < row.assigned_generation:
        return None
    return next((report for report in row.report.models if (report.model, report.arm) == (model, arm)), None)


def exposed_device(
    row: RolloutDevice, *, model: str, candidate: str, deploy_deadline_s: float, now_ns: int, max_attempts: int = 0
) -> ExposedDevice:
    """The facts about one exposed device; `candidate` is the bundle digest that is rolled out.

    A FAILED device that has attempts left, of `max_attempts`, is PENDING: it will be given the candidate again.
    """
    phase, is_back = seen_phase(row, model=model, candidate=candidate)
    restored = row.incumbent.restored
    if phase is Phase.FAILED and not restored and row.attempts < max_attempts:
        phase = Phase.PENDING
    elif not phase.is_end and now_ns - row.assigned_ns > deploy_deadline_s * 1e9:
        phase = Phase.LOST
    return ExposedDevice(
        device=row.device, phase=phase, restored=restored, is_back=is_back, reachable=row.online and not row.is_gone
    )


def seen_phase(row: RolloutDevice, *, model: str, candidate: str) -> tuple[Phase, bool]:
    """What the device's report proves at any time: the phase, and whether it is back on what it ran before."""
    if row.is_gone:
        return Phase.SUPERSEDED, row.incumbent.restored
    if row.incumbent.restored and _is_back(row, model, candidate):
        return Phase.HEALTHY, True
    phase = _phase(row, model, candidate)
    return phase, row.incumbent.restored and phase is Phase.SUPERSEDED


def _phase(row: RolloutDevice, model: str, candidate: str) -> Phase:
    """The phase of the update to what is desired now: the candidate, or the incumbent after a restore."""
    main = row.incumbent.main
    target = candidate if not row.incumbent.restored else main.bundle if main else None
    report = model_report(row, model, main.arm if row.incumbent.restored and main else MAIN_ARM)
    if target is None:  # nothing is desired, so nothing ends: `_is_back` alone knows
        return Phase.PENDING
    if report is None or report.desired != target:
        return Phase.SUPERSEDED if _saw_later(row) else Phase.PENDING
    if report.phase is Phase.HEALTHY and report.active != target:
        return Phase.PENDING
    return report.phase


def _saw_later(row: RolloutDevice) -> bool:
    return row.report is not None and row.report.generation > row.assigned_generation


def _is_back(row: RolloutDevice, model: str, candidate: str) -> bool:
    if row.report is None or row.report.generation < row.assigned_generation:
        return False
    main = row.incumbent.main
    report = model_report(row, model, main.arm if main else MAIN_ARM)
    active = report.active if report is not None else None
    if main is None:  # nothing was assigned: back means that the candidate no longer serves
        return active != candidate
    if report is not None and report.phase.is_failure and report.desired == main.bundle:
        return active not in (None, candidate)
    return active == main.bundle
