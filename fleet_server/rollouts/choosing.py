"""Who is next: which devices become control, which the stage should hold, and whose hours are open. Pure.

Invariants:
- who is exposed or control already stays so, whatever becomes of its labels;
- control is in no stage; once the last stage has passed, control that the policy still means is let go;
- a device of a halted segment is neither exposed nor let go;
- the order is that of exposure, so a larger stage only adds devices.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fleet_server.rollouts.cohorts import control_devices, exposure_order, stage_devices
from fleet_server.rollouts.pace import next_open_ns, open_devices
from fleet_server.rollouts.policy import RolloutPolicy
from fleet_server.rollouts.progress import Progress, Step
from fleet_server.rollouts.selection import DeviceFacts, select_devices

HARDWARE = "hardware"
"""The policy's word for segments by CPU signature."""
MAX_SEGMENT_CHARS = 128
"""What is kept of a segment's name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Who is next. `waiting` is everybody the stage should still expose, in order; `zones` their time zones.

    `segments` are those of `waiting` and `to_hold`.
    """

    waiting: tuple[str, ...] = ()
    to_hold: tuple[str, ...] = ()
    zones: Mapping[str, str]
    segments: Mapping[str, str]


def choose(
    policy: RolloutPolicy, progress: Progress, fleet: Iterable[DeviceFacts], members: Mapping[str, bool]
) -> Choice:
    """Who is next in the progress's stage; `members` are the rollout's devices -> whether they are control."""
    fleet = list(fleet)
    meant = {facts.device for facts in select_devices(policy, fleet).devices}
    there = {facts.device: facts for facts in fleet if facts.device in meant or facts.device in members}
    hardware = {device: facts.hardware for device, facts in there.items()}
    exposed = {device for device, is_control in members.items() if not is_control}
    held = {device for device, is_control in members.items() if is_control}
    control = set(control_devices(hardware, policy.control, policy.salt, held=held, exposed=exposed)) | held
    if progress.step is Step.RELEASING:
        wanted = [device for device in exposure_order(hardware, policy.salt) if device in held and device in meant]
    else:
        chosen = stage_devices(hardware, policy.stages[progress.stage], policy.salt, exposed, control)
        wanted = [device for device in chosen if device not in exposed]
    waiting = [device for device in wanted if segment_of(policy, there[device]) not in progress.halted]
    to_hold = sorted(control - held)
    return Choice(
        waiting=tuple(waiting),
        to_hold=tuple(to_hold),
        zones={device: there[device].time_zone for device in waiting},
        segments={device: segment_of(policy, there[device]) for device in (*waiting, *to_hold)},
    )


def segment_of(policy: RolloutPolicy, facts: DeviceFacts) -> str:
    """The device's segment by the policy, "" without one."""
    if policy.segments is None:
        return ""
    segment = facts.hardware if policy.segments.by == HARDWARE else facts.labels.get(policy.segments.by, "")
    return segment[:MAX_SEGMENT_CHARS]


def open_now(policy: RolloutPolicy, choice: Choice, now_ns: int) -> tuple[str, ...]:
    """Those of the waiting whose maintenance hours are open, in their order."""
    if policy.maintenance is None:
        return choice.waiting
    open_devices_now = open_devices(policy.maintenance, choice.zones, now_ns)
    return tuple(device for device in choice.waiting if device in open_devices_now)


def opens_ns(policy: RolloutPolicy, choice: Choice, now_ns: int) -> int | None:
    """When the first of the waiting may begin; None without maintenance hours or anybody waiting."""
    if policy.maintenance is None or not choice.waiting:
        return None
    return next_open_ns(policy.maintenance, choice.zones.values(), now_ns)
