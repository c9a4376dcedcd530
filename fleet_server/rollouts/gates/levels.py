"""Gates on levels that each device has one of: p95 latency, memory, temperature. Against its own past and the control.

A ratio is judged as a difference of logarithms, so that a fast and a slow device weigh the same. There is no pool of
levels: below MIN_DEVICES exposed devices the t mixture decides, which needs four or more.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fleet_server.rollouts.comparison import (
    MIN_DEVICES,
    Change,
    Flags,
    Paired,
    Values,
    device_change,
    few_devices_change,
)
from fleet_server.rollouts.gates.columns import Columns
from fleet_server.rollouts.gates.rates import MIN_COMPARABLE_SHARE
from fleet_server.rollouts.gates.verdicts import GateResult, inconclusive, judged
from fleet_server.rollouts.policy import Gate, LatencyGate, MemoryGate, TemperatureGate

MIN_CALLS_FOR_P95 = 20
"""Calls a device needs on each side before its p95 counts: of fewer it is the slowest one."""


def latency(gate: LatencyGate, exposed: Columns, control: Columns) -> GateResult:
    """The p95 of devices is at most the share `max_increase` longer, in the geometric mean."""

    def paired(group: Columns) -> Paired:
        enough = (group.candidate.count >= MIN_CALLS_FOR_P95) & (group.incumbent.count >= MIN_CALLS_FOR_P95)
        return _pair(_log(group.candidate.p95_us), _log(group.incumbent.p95_us), enough)

    return _ratio(gate, _Sides.of(exposed, control, paired), max_increase=gate.max_increase, what="p95 latency")


def memory(gate: MemoryGate, exposed: Columns, control: Columns) -> GateResult:
    """The memory of devices is at most the share `max_increase` more, in the geometric mean."""

    def paired(group: Columns) -> Paired:
        return _pair(_log(group.candidate.rss_bytes), _log(group.incumbent.rss_bytes))

    return _ratio(gate, _Sides.of(exposed, control, paired), max_increase=gate.max_increase, what="memory")


def temperature(gate: TemperatureGate, exposed: Columns, control: Columns) -> GateResult:
    """The temperature of devices is at most `max_increase_c` degrees higher, in the mean."""

    def paired(group: Columns) -> Paired:
        return _pair(group.candidate.temperature_c, group.incumbent.temperature_c)

    sides = _Sides.of(exposed, control, paired)
    change = _change(gate, sides)
    if change is None:
        return _unclear(gate, sides, "temperature")
    lower, upper = change.interval.lower, change.interval.upper
    seen = (
        f"temperature {change.value:+.1f} C on {change.devices} devices{_against(change)}: "
        f"{lower:+.1f} to {upper:+.1f} C, {gate.max_increase_c:+g} C are allowed"
    )
    numbers = _numbers(gate, change, margin=gate.max_increase_c)
    return judged(
        gate,
        change.interval,
        margin=gate.max_increase_c,
        numbers=numbers,
        seen=seen,
        reservation=_reservation(sides, change),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sides:
    """How many devices there are of both groups, and the level of those that have it measured on both sides."""

    exposed: int
    answered: int
    control: int
    here: Paired
    there: Paired

    @classmethod
    def of(cls, exposed: Columns, control: Columns, paired: Callable[[Columns], Paired]) -> _Sides:
        return cls(
            exposed=exposed.size,
            answered=int((exposed.candidate.count > 0).sum()),
            control=control.size,
            here=paired(exposed),
            there=paired(control),
        )


def _ratio(gate: Gate, sides: _Sides, *, max_increase: float, what: str) -> GateResult:
    change = _change(gate, sides)
    if change is None:
        return _unclear(gate, sides, what)
    lower, upper = _share(change.interval.lower), _share(change.interval.upper)
    seen = (
        f"{what} {_share(change.value):+.1%} on {change.devices} devices{_against(change)}: {lower:+.1%} to "
        f"{upper:+.1%}, {max_increase:+.1%} are allowed"
    )
    margin = math.log1p(max_increase)
    numbers = _numbers(gate, change, margin=max_increase) | {"increase_lower": lower, "increase_upper": upper}
    return judged(
        gate, change.interval, margin=margin, numbers=numbers, seen=seen, reservation=_reservation(sides, change)
    )


def _change(gate: Gate, sides: _Sides) -> Change | None:
    if sides.control >= MIN_DEVICES > sides.there.now.size:
        return None  # a control that has not told enough yet is waited for: what it will say is not known
    if sides.exposed < MIN_DEVICES:  # by the number exposed, which does not depend on what came out
        return few_devices_change(sides.here, sides.there, gate.alpha)
    return device_change(sides.here, sides.there, gate.alpha)


def _pair(now: Values, before: Values, enough: Flags | bool = True) -> Paired:
    known = np.isfinite(now) & np.isfinite(before) & enough
    return Paired(now=now[known], before=before[known])


def _log(values: Values) -> Values:
    logs: Values = np.log(np.where(values > 0, values, np.nan))
    return logs


def _share(log_ratio: float) -> float:
    return math.expm1(min(log_ratio, 700.0))


def _against(change: Change) -> str:
    if change.control_devices:
        return f" against their own past, apart from how {change.control_devices} control devices changed"
    return " against their own past"


def _reservation(sides: _Sides, change: Change) -> str:
    """Devices that answered with the candidate, but have nothing to be compared with, keep a minority from passing."""
    if change.devices >= MIN_COMPARABLE_SHARE * sides.answered:
        return ""
    return f"but {sides.answered - change.devices} devices that answered have nothing to be compared with"


def _unclear(gate: Gate, sides: _Sides, what: str) -> GateResult:
    compared, held = sides.here.now.size, sides.there.now.size
    numbers = {
        "exposed": sides.exposed, "compared_devices": compared, "control_devices": held, "alpha": gate.alpha,
    }  # fmt: skip
    if not compared:
        return inconclusive(gate, numbers, f"no exposed device has its {what} measured with both versions")
    told = f"{what} of {compared} of {sides.exposed} exposed devices is measured with both versions"
    if sides.control >= MIN_DEVICES > held:
        lacking = f"that of {held} of {sides.control} control devices, {MIN_DEVICES} are needed"
        return inconclusive(gate, numbers, f"{told}, but only {lacking}")
    if sides.exposed >= MIN_DEVICES > compared:
        return inconclusive(gate, numbers, f"{told}, {MIN_DEVICES} are needed")
    return inconclusive(gate, numbers, f"{told}: too few, or too much alike, to tell it from chance")


def _numbers(gate: Gate, change: Change, *, margin: float) -> dict[str, object]:
    return {
        "change": change.value,
        "harm_lower": change.interval.lower,
        "harm_upper": change.interval.upper,
        "margin": margin,
        "alpha": gate.alpha,
        "compared_devices": change.devices,
        "control_devices": change.control_devices,
    }
