"""The gate on updates that did not succeed.

A bundle that is refused, fails its golden vectors, does not load, or is reverted was judged by the device itself, with
its own low rate of error: a share of such beyond `max_share` fails at once, also one device of five. So do devices
that took the update up and were never heard again. A device's own trouble (no space, a download that gave up, a disk,
or that it never saw the assignment) says less of the bundle: it fails the gate only once the share of all failures, as
a confidence sequence over devices, is beyond `max_share`. No share of failures beyond it, of whatever kind, passes.
"""

from __future__ import annotations

from typing import Any

from fleet_protocol.messages import Phase
from fleet_server.rollouts.comparison import TRIALS_OPT
from fleet_server.rollouts.gates.columns import Columns
from fleet_server.rollouts.gates.verdicts import GateResult, Verdict, inconclusive, result_of
from fleet_server.rollouts.policy import UpdateFailuresGate
from fleet_server.statistics import rate_interval


def update_failures(gate: UpdateFailuresGate, exposed: Columns, control: Columns) -> GateResult:
    """At most `max_share` of the exposed devices did not take the update. The control has none."""
    phases, size = exposed.phases, exposed.size
    failed = sum(phase.is_failure for phase in phases)
    weak = sum(device.own_trouble and device.phase.is_failure for device in exposed.devices)
    healthy = sum(phase is Phase.HEALTHY for phase in phases)
    moving = sum(not phase.is_end for phase in phases)
    numbers: dict[str, Any] = {
        "exposed": size, "failed": failed, "by_the_bundle": failed - weak, "healthy": healthy, "in_progress": moving,
    }  # fmt: skip
    numbers |= {phase.value.lower(): phases.count(phase) for phase in sorted(set(phases)) if phase.is_failure}
    if not size:
        return inconclusive(gate, numbers, "no device is exposed yet")
    seen = f"{failed} of {size} exposed devices did not take the update"
    if weak:
        seen += f", {weak} of them by their own trouble"
    allowed = f"{gate.max_share:.1%} are allowed"
    if (failed - weak) / size > gate.max_share:
        return result_of(gate, Verdict.FAIL, numbers, f"{seen}; {allowed}")
    if failed / size > gate.max_share:
        share = rate_interval(failed, size, gate.alpha, trials_opt=TRIALS_OPT)
        numbers |= {"share_lower": share.lower, "share_upper": share.upper}
        surely = f"{seen}: a share of {share.lower:.1%} to {share.upper:.1%}, {allowed}"
        if share.lower > gate.max_share:
            return result_of(gate, Verdict.FAIL, numbers, surely)
        return inconclusive(gate, numbers, f"{surely}: see to these devices")
    if moving:
        return inconclusive(gate, numbers, f"{seen}, {moving} are still updating")
    if not healthy:
        return inconclusive(gate, numbers, "no exposed device runs the candidate in good health")
    return result_of(gate, Verdict.PASS, numbers, f"{seen}, {allowed}; {healthy} are healthy")
