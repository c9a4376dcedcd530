"""The dry run: what a policy would do to this fleet, before it does it. Pure.

Invariants:
1. who, in which order, is decided by the very functions that the rollout uses: `selection`, `cohorts`, `pace`;
2. times are the least that it takes: what devices need for an update, approvals and extended bakes come on top, and
   are named in `waits`;
3. nothing is promised that depends on a salt the rollout does not have yet: the plan names its salt, and a policy with
   that salt gets exactly this order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from msgspec import Struct

from fleet_protocol.maintenance import next_closing_ns, next_opening_ns
from fleet_server.rollouts.cohorts import Cohorts, draw_cohorts
from fleet_server.rollouts.gate_policies import LossesGate, UpdateFailuresGate
from fleet_server.rollouts.pace import exposure_time_s
from fleet_server.rollouts.policy import RolloutPolicy
from fleet_server.rollouts.power_of_gates import BrokenOutlook, GateOutlook, Traffic, broken_outlook, gate_outlook
from fleet_server.rollouts.selection import DeviceFacts, select_devices

MAX_NAMED_DEVICES = 100
"""Devices that a plan names of each stage and of the control; the counts have them all."""
MAX_MAINTENANCE_SPANS = 400
"""Maintenance hours that one stage is followed through: more than a year of nights."""


class StagePlan(Struct, frozen=True, kw_only=True):
    """One stage: its `new` devices in the order of exposure (the first of them by name), `total` with those before.

    `deploy_s` is how long exposing takes at least, `starts_s` and `ends_s` count from the start of the rollout.
    """

    stage: int
    new: int
    total: int
    devices: list[str]
    size_bytes: int
    starts_s: float
    deploy_s: float
    bake_s: float
    ends_s: float
    needs_approval: bool


class RolloutPlan(Struct, frozen=True, kw_only=True):
    """What a rollout of `version` by a policy would do. `release` is the control's: after the last stage has passed.

    `hardware` counts the selected devices by class. `least_s` is until the control has the version too.
    """

    model: str
    version: str
    salt: str
    starts_ns: int
    selected: int
    left_out: dict[str, int]
    hardware: dict[str, int]
    control: int
    control_devices: list[str]
    stages: list[StagePlan]
    release: StagePlan | None
    size_bytes: int
    least_s: float
    waits: list[str]
    gates: list[GateOutlook]
    broken: list[BrokenOutlook]


def plan_rollout(
    policy: RolloutPolicy,
    fleet: Sequence[DeviceFacts],
    *,
    model: str,
    version: str,
    download_bytes: Mapping[str, int],
    traffic: Traffic,
    now_ns: int,
    salt: str,
) -> RolloutPlan:
    """The plan for `fleet`, every device there is. `download_bytes` is what each would fetch, by its name.

    `salt` is the policy's, or one drawn for this plan where the policy has none.
    """
    selection = select_devices(policy, fleet)
    hardware = {facts.device: facts.hardware for facts in selection.devices}
    zones = {facts.device: facts.time_zone for facts in selection.devices} if policy.maintenance else {}
    cohorts = draw_cohorts(hardware, policy.control, salt)
    starts_ns = max(now_ns, policy.start_ns)
    stages, release = _stages(policy, cohorts, zones=zones, download_bytes=download_bytes, starts_ns=starts_ns)
    every = [*stages, *([release] if release else [])]
    totals = [stage.total for stage in stages]
    return RolloutPlan(
        model=model,
        version=version,
        salt=salt,
        starts_ns=starts_ns,
        selected=len(selection.devices),
        left_out={reason.value: count for reason, count in sorted(selection.left_out.items())},
        hardware=dict(sorted(Counter(hardware.values()).items())),
        control=len(cohorts.control),
        control_devices=list(cohorts.control[:MAX_NAMED_DEVICES]),
        stages=stages,
        release=release,
        size_bytes=sum(stage.size_bytes for stage in every),
        least_s=every[-1].ends_s,
        waits=_waits(policy, selected=len(selection.devices)),
        gates=[
            gate_outlook(
                gate,
                stage=stage.stage,
                devices=stage.total,
                control=len(cohorts.control),
                bake_s=stage.bake_s,
                traffic=traffic,
            )
            for stage in stages
            for gate in policy.gates
            if stage.total
        ],
        broken=[
            broken_outlook(
                gate, sizes=totals, controls=[len(cohorts.control)] * len(totals), bakes_s=[s.bake_s for s in stages]
            )
            for gate in policy.gates
            if isinstance(gate, UpdateFailuresGate | LossesGate) and totals[-1]
        ],
    )


def _stages(
    policy: RolloutPolicy,
    cohorts: Cohorts,
    *,
    zones: Mapping[str, str],
    download_bytes: Mapping[str, int],
    starts_ns: int,
) -> tuple[list[StagePlan], StagePlan | None]:
    stages: list[StagePlan] = []
    before, at_s = 0, 0.0

    def planned(index: int, devices: Sequence[str], bake_s: float, *, needs_approval: bool) -> StagePlan:
        at_ns = starts_ns + round(at_s * 1e9)
        deploy_s = _deploy_s(policy, devices, zones, healthy=before, at_ns=at_ns)
        return StagePlan(
            stage=index,
            new=len(devices),
            total=before + len(devices),
            devices=list(devices[:MAX_NAMED_DEVICES]),
            size_bytes=sum(map(download_bytes.__getitem__, devices)),
            starts_s=at_s,
            deploy_s=deploy_s,
            bake_s=bake_s,
            ends_s=at_s + deploy_s + bake_s,
            needs_approval=needs_approval,
        )

    for index, stage in enumerate(policy.stages):
        new = list(cohorts.stage(stage)[before:])
        stages.append(planned(index, new, stage.bake_s, needs_approval=stage.needs_approval))
        before, at_s = before + len(new), stages[-1].ends_s
    if not cohorts.control:
        return stages, None
    return stages, planned(len(stages), cohorts.control, 0.0, needs_approval=False)


def _deploy_s(
    policy: RolloutPolicy, devices: Sequence[str], zones: Mapping[str, str], *, healthy: int, at_ns: int
) -> float:
    """The least time until the last of the `devices` may begin, from `at_ns`."""
    exposing_s = exposure_time_s(policy.rate, devices=len(devices), healthy=healthy)
    if policy.maintenance is None or not devices:
        return exposing_s
    counts = Counter(map(zones.__getitem__, devices))
    return max(
        _through_hours(policy, zone, at_ns=at_ns, needed_s=exposing_s * count / len(devices))
        for zone, count in counts.items()
    )


def _through_hours(policy: RolloutPolicy, zone: str, *, at_ns: int, needed_s: float) -> float:
    """How long `needed_s` of exposing take when it goes on only in the zone's maintenance hours."""
    hours, now_ns, left_ns = policy.maintenance, at_ns, round(needed_s * 1e9)
    if hours is None:
        return needed_s
    for _ in range(MAX_MAINTENANCE_SPANS):
        now_ns = next_opening_ns(hours, now_ns, zone)
        closes_ns = next_closing_ns(hours, now_ns, zone)
        if now_ns + left_ns < closes_ns:
            break
        left_ns -= closes_ns - now_ns
        now_ns = closes_ns
    return (now_ns + left_ns - at_ns) / 1e9


def _waits(policy: RolloutPolicy, *, selected: int) -> list[str]:
    """What comes on top of the least time, in words."""
    waits = ["what each device needs to download, verify and prove the version"]
    if not selected:
        waits = ["no device is selected: the rollout waits for the first"]
    approvals = max(policy.approvals, 1 if policy.require_approval else 0)
    if approvals:
        waits.append(f"{approvals} approval{'s' if approvals > 1 else ''} before it starts, not by its author")
    if policy.jitter_s:
        waits.append(f"up to {policy.jitter_s:g} s of jitter on each device")
    if policy.max_bake_extensions:
        waits.append(f"up to {policy.max_bake_extensions} further bakes of a stage while a gate is inconclusive")
    if policy.maintenance is not None:
        waits.append("maintenance hours of devices that are away while theirs are open")
    if policy.deadline_s:
        waits.append(f"it pauses when it is not over {policy.deadline_s / 3600:.4g} h after its start")
    return waits
