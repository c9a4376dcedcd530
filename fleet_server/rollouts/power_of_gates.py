"""What a policy's gates can see: the smallest harm each finds at a stage's size, and how a bad model fares. Pure.

Invariants:
1. gates that count devices (update failures, losses) are asked themselves, with evidence made for the purpose, so what
   is said of them is exact for the binomial number of broken devices;
2. gates that compare figures are followed by formula: the estimate is normal around the harm, its interval has the
   half-width that the gate's own sequences have at this size (`comparison` has their constants). One look is counted,
   at the end of the bake, so the chance to find a harm is understated, never the chance to pass;
3. what is not known from telemetry is assumed, and said in `note`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from msgspec import Struct
from scipy.optimize import brentq
from scipy.stats import binom, norm

from fleet_protocol.messages import Phase
from fleet_server.rollouts.comparison import (
    DEVICES_OPT,
    FEW_DEVICES_OPT,
    MIN_DEVICES,
    MIN_TRIALS_PER_DEVICE,
    TRIALS_OPT,
)
from fleet_server.rollouts.gate_policies import (
    DriftGate,
    ErrorRateGate,
    Gate,
    LatencyGate,
    LossesGate,
    MemoryGate,
    OutcomeAccuracyGate,
    ShadowDisagreementGate,
    TemperatureGate,
    UpdateFailuresGate,
    gate_name,
)
from fleet_server.rollouts.gates import Verdict, evaluate_gates
from fleet_server.rollouts.measures import DeviceEvidence, Evidence
from fleet_server.statistics import rate_interval
from fleet_server.statistics.confidence_sequences import few_devices_estimate_interval, unit_half_width

POWER = 0.8
"""The chance with which the smallest harm is found."""
MAX_COUNTED_DEVICES = 1_000
"""Devices with which a counting gate is asked at most: what it sees with more is understated, and said so."""
BROKEN_SHARE = 0.2
"""The model that breaks one device in five."""
DRIFTING_CLASSES = 10
LATENCY_SPREAD, MEMORY_SPREAD, TEMPERATURE_SPREAD_C, DISTANCE_SPREAD = 0.10, 0.05, 2.0, 0.03
"""Standard deviations over devices of what changes by itself: logarithms of p95 and of memory, degrees, distance."""
RATE_SPREAD_SHARE = 0.25
"""Of the spread of rates between devices, the part that is assumed to change by itself in a device's own rate."""


class Traffic(Struct, frozen=True, kw_only=True):
    """What one device does, from recent telemetry: means over the `devices` that were heard within `past_s`.

    Rates are per second and device; `error_spread` and `accuracy_spread` are standard deviations between devices,
    without what counting alone gives. `devices` 0: nothing was heard, and everything here is an assumption.
    """

    devices: int = 0
    past_s: float = 86_400.0
    inferences_per_s: float = 1 / 60
    error_rate: float = 0.001
    error_spread: float = 0.0
    outcomes_per_s: float = 0.0
    accuracy: float = 0.95
    accuracy_spread: float = 0.0


class GateOutlook(Struct, frozen=True, kw_only=True):
    """One gate at the end of one stage's bake.

    `margin`, `smallest_harm` and `bad_harm` are in the gate's `unit`; `smallest_harm` is found with POWER, None is
    "none at all". `bad_fails` and `bad_passes` are the chances of a model whose harm is `bad_harm`, twice the margin.
    """

    gate: str
    stage: int
    devices: int
    control: int
    unit: str
    margin: float
    smallest_harm: float | None
    bad_harm: float
    bad_fails: float
    bad_passes: float
    note: str = ""


class BrokenOutlook(Struct, frozen=True, kw_only=True):
    """A model that breaks one device in five: the chance to pass each stage after those before, and the last.

    `how` is "reverts" where the update fails on the device, "silences" where the device is not heard again. `passes`
    are the chances per stage to have come through it.
    """

    how: str
    gate: str
    passes: list[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Size:
    devices: int
    control: int
    bake_s: float

    @property
    def inverse(self) -> float:
        """The variance of a mean difference from the control, or from the own past alone, of values of variance 1."""
        return 1 / self.devices + (1 / self.control if self.control >= MIN_DEVICES else 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Events:
    """Events of a device: how many `per_s` and `past_s` seconds of them, the share that is bad, its spread."""

    per_s: float
    past_s: float
    bad: float
    spread: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Chances:
    fails: float
    passes: float


_Model = Callable[[float], _Chances]
_NONE = _Chances(fails=0.0, passes=0.0)


def gate_outlook(gate: Gate, *, stage: int, devices: int, control: int, bake_s: float, traffic: Traffic) -> GateOutlook:
    """What `gate` can see once `devices` have the candidate for `bake_s` seconds, beside `control` devices."""
    size = _Size(devices=devices, control=control, bake_s=bake_s)
    unit, margin, worst, model, note = _model(gate, size, traffic)
    bad = model(min(2 * margin, worst))
    return GateOutlook(
        gate=gate_name(gate),
        stage=stage,
        devices=devices,
        control=control,
        unit=unit,
        margin=margin,
        smallest_harm=_smallest(model, margin, worst),
        bad_harm=min(2 * margin, worst),
        bad_fails=bad.fails,
        bad_passes=bad.passes,
        note=note,
    )


def broken_outlook(
    gate: Gate, *, sizes: Sequence[int], controls: Sequence[int], bakes_s: Sequence[float]
) -> BrokenOutlook:
    """How a model that breaks one device in five gets through stages of so many devices in all, by `gate` alone."""
    alive = np.ones(1)  # the chance of each number of broken devices, among rollouts that came so far
    before = 0
    passes = []
    for devices, control, bake_s in zip(sizes, controls, bakes_s, strict=True):
        counted = min(devices, MAX_COUNTED_DEVICES)
        alive = np.convolve(alive, binom.pmf(np.arange(counted - before + 1), counted - before, BROKEN_SHARE))
        before = counted
        passing, _ = _limits(gate, _Size(devices=counted, control=control, bake_s=bake_s))
        alive[passing + 1 :] = 0.0
        passes.append(float(alive.sum()))
    how = "silences" if isinstance(gate, LossesGate) else "reverts"
    return BrokenOutlook(how=how, gate=gate_name(gate), passes=passes)


def _model(gate: Gate, size: _Size, traffic: Traffic) -> tuple[str, float, float, _Model, str]:
    """Unit, margin, the worst harm there is, the chances at a harm, what was assumed."""
    match gate:
        case UpdateFailuresGate():
            return "share", gate.max_share or BROKEN_SHARE / 2, 1.0, _counting(gate, size), _counted_note(size)
        case LossesGate():
            note = _counted_note(size) or "each falls silent in the middle of the bake"
            return "share", gate.max_increase, 1.0, _counting(gate, size), note
        case ErrorRateGate():
            inferences = _Events(
                per_s=traffic.inferences_per_s,
                past_s=traffic.past_s,
                bad=traffic.error_rate,
                spread=traffic.error_spread,
            )
            model = _rates(size, inferences, margin=gate.max_increase, alpha=gate.alpha)
            note = _rate_note(traffic, inferences.per_s, "inferences")
            return "points", gate.max_increase, 1 - inferences.bad, model, note
        case OutcomeAccuracyGate():
            outcomes = _Events(
                per_s=traffic.outcomes_per_s,
                past_s=traffic.past_s,
                bad=1 - traffic.accuracy,
                spread=traffic.accuracy_spread,
            )
            matured = replace(size, bake_s=max(0.0, size.bake_s - gate.maturity_s))
            model = _rates(matured, outcomes, margin=gate.max_drop, alpha=gate.alpha)
            if matured.bake_s * outcomes.per_s * size.devices < gate.min_outcomes:
                model = _without_pass(model)
            return "points", gate.max_drop, traffic.accuracy, model, _rate_note(traffic, outcomes.per_s, "outcomes")
        case LatencyGate():
            model = _levels(size, math.log1p(gate.max_increase), gate.alpha, LATENCY_SPREAD, scale=math.log1p)
            return "ratio", gate.max_increase, 100.0, model, _spread_note("p95 latency", f"{LATENCY_SPREAD:.0%}")
        case MemoryGate():
            model = _levels(size, math.log1p(gate.max_increase), gate.alpha, MEMORY_SPREAD, scale=math.log1p)
            return "ratio", gate.max_increase, 100.0, model, _spread_note("memory", f"{MEMORY_SPREAD:.0%}")
        case TemperatureGate():
            model = _levels(size, gate.max_increase_c, gate.alpha, TEMPERATURE_SPREAD_C)
            note = _spread_note("the temperature", f"{TEMPERATURE_SPREAD_C:g} °C")
            return "degrees", gate.max_increase_c, 200.0, model, note
        case ShadowDisagreementGate():
            calls = _Events(per_s=traffic.inferences_per_s, past_s=math.inf, bad=0.0, spread=0.0)
            alone = replace(size, control=0)
            model = _rates(alone, calls, margin=gate.max_share, alpha=gate.alpha)
            return "share", gate.max_share, 1.0, model, "assumed: every call is shadowed"
        case DriftGate():
            now, past = traffic.inferences_per_s * size.bake_s, traffic.inferences_per_s * traffic.past_s
            if size.devices < MIN_DEVICES:
                note = f"below {MIN_DEVICES} devices the pool of their calls decides, which is not followed here"
                return "distance", gate.max_distance, 1.0, lambda _: _Chances(fails=0.0, passes=gate.alpha), note
            counting = (1 / now + 1 / past) / 4 if now and past else math.inf
            model = _levels(size, gate.max_distance, gate.alpha / 2, math.sqrt(counting + DISTANCE_SPREAD**2))
            return "distance", gate.max_distance, 1.0, model, _spread_note("the distance", f"{DISTANCE_SPREAD:g}")


def _smallest(model: _Model, margin: float, worst: float) -> float | None:
    if model(worst).fails < POWER:
        return None
    least = min(margin, worst) * 1e-3
    if model(least).fails >= POWER:
        return least
    return float(brentq(lambda harm: model(harm).fails - POWER, least, worst, xtol=1e-5))


def _counting(gate: Gate, size: _Size) -> _Model:
    devices = min(size.devices, MAX_COUNTED_DEVICES)
    passing, failing = _limits(gate, _Size(devices=devices, control=size.control, bake_s=size.bake_s))
    return lambda share: _Chances(
        fails=float(binom.sf(failing - 1, devices, share)), passes=float(binom.cdf(passing, devices, share))
    )


@lru_cache(maxsize=256)
def _limits(gate: Gate, size: _Size) -> tuple[int, int]:
    """The most broken devices with which the gate passes (-1: never), the fewest with which it fails (n + 1: never)."""
    known: dict[int, Verdict] = {}

    def verdict(broken: int) -> Verdict:
        if broken not in known:
            known[broken] = evaluate_gates([gate], _evidence(gate, size, broken))[0].verdict
        return known[broken]

    def first(is_it: Callable[[Verdict], bool]) -> int:
        """The fewest broken devices from which on it holds: verdicts only get worse with more."""
        low, high = 0, size.devices + 1
        while low < high:
            middle = (low + high) // 2
            if is_it(verdict(middle)):
                high = middle
            else:
                low = middle + 1
        return low

    if size.devices == 0:
        return -1, 1
    failing = min(first(lambda each: each is Verdict.FAIL), size.devices + 1)
    return first(lambda each: each is not Verdict.PASS) - 1, failing


def _evidence(gate: Gate, size: _Size, broken: int) -> Evidence:
    broken = min(broken, size.devices)
    is_silent = isinstance(gate, LossesGate)
    devices = [
        DeviceEvidence(
            device=f"e{number}",
            phase=Phase.REVERTED if number < broken and not is_silent else Phase.HEALTHY,
            watched_s=size.bake_s,
            silent_after_s=size.bake_s / 2 if number < broken and is_silent else None,
        )
        for number in range(size.devices)
    ]
    control = [
        DeviceEvidence(device=f"c{number}", phase=Phase.HEALTHY, watched_s=size.bake_s, is_control=True)
        for number in range(min(size.control, MAX_COUNTED_DEVICES))
    ]
    return Evidence(devices=(*devices, *control))


def _rates(size: _Size, events: _Events, *, margin: float, alpha: float) -> _Model:
    """A gate on shares of events: the pool of all events, and from MIN_DEVICES on the devices as well."""
    trials, past = events.per_s * size.bake_s, events.per_s * events.past_s
    if not events.per_s or min(trials, past) * size.devices < 1:
        return lambda harm: _NONE
    two_methods = size.devices >= MIN_DEVICES
    own_alpha = alpha / 2 if two_methods else alpha
    has_device_level = two_methods and min(trials, past) >= MIN_TRIALS_PER_DEVICE
    own_spread = RATE_SPREAD_SHARE * events.spread
    is_fixed = math.isinf(past)  # a baseline that is known beforehand, and costs no alpha
    before = _Reach(below=0.0, above=0.0) if is_fixed else _pooled(events.bad, past * size.devices, own_alpha / 2)
    candidate_alpha = own_alpha if is_fixed else own_alpha / 2

    def chances(harm: float) -> _Chances:
        worse = min(1.0, events.bad + harm)
        counting = worse * (1 - worse) / trials + events.bad * (1 - events.bad) / past
        error = math.sqrt((counting + own_spread**2) / size.devices)
        now = _pooled(worse, trials * size.devices, candidate_alpha)
        fails = _normal(harm - margin, error, now.below + before.above)
        passes = _normal(margin - harm, error, now.above + before.below)
        if not has_device_level:
            return _Chances(fails=fails, passes=passes)
        level = _levels(size, margin, alpha / 2, math.sqrt(counting + own_spread**2))(harm)
        return _Chances(fails=max(fails, level.fails), passes=min(passes, level.passes))

    return chances


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reach:
    """How far an interval reaches below and above the rate."""

    below: float
    above: float


def _pooled(rate: float, trials: float, alpha: float) -> _Reach:
    whole = max(1, round(trials))
    interval = rate_interval(round(rate * whole), whole, alpha, trials_opt=TRIALS_OPT)
    return _Reach(below=max(0.0, rate - interval.lower), above=max(0.0, interval.upper - rate))


def _levels(
    size: _Size, margin: float, alpha: float, spread: float, *, scale: Callable[[float], float] = float
) -> _Model:
    """A gate on one figure a device whose change has the standard deviation `spread` over devices."""
    reach = _unit_reach(size, alpha)
    if reach is None or not math.isfinite(spread):
        return lambda harm: _NONE
    half_width, error = spread * reach, spread * math.sqrt(size.inverse)

    def chances(harm: float) -> _Chances:
        seen = scale(harm)
        return _Chances(
            fails=_normal(seen - margin, error, half_width), passes=_normal(margin - seen, error, half_width)
        )

    return chances


def _unit_reach(size: _Size, alpha: float) -> float | None:
    """The half-width of the sequence over devices in their standard deviations; None where there is none."""
    if size.devices >= MIN_DEVICES:
        return unit_half_width(1 / size.inverse, alpha, devices_opt=DEVICES_OPT)
    if size.devices < 2:
        return None
    interval = few_devices_estimate_interval(
        0.0,
        standard_error=math.sqrt(size.inverse),
        degrees=size.devices - 1,
        size=1 / size.inverse,
        alpha=alpha,
        size_opt=FEW_DEVICES_OPT,
    )
    return None if interval is None else interval.upper


def _normal(distance: float, error: float, half_width: float) -> float:
    """The chance that an estimate with this standard error clears `distance` with its half-width to spare."""
    if error <= 0:
        return float(distance > half_width)
    return float(norm.cdf((distance - half_width) / error))


def _without_pass(model: _Model) -> _Model:
    return lambda harm: _Chances(fails=model(harm).fails, passes=0.0)


def _rate_note(traffic: Traffic, per_s: float, what: str) -> str:
    if not traffic.devices:
        return f"assumed, as nothing was heard: {per_s * 3600:.3g} {what} an hour and device"
    return f"{per_s * 3600:.3g} {what} an hour and device, as {traffic.devices} devices had"


def _spread_note(what: str, spread: str) -> str:
    return f"assumed: {what} changes by itself, by {spread} between devices"


def _counted_note(size: _Size) -> str:
    return f"followed with {MAX_COUNTED_DEVICES} devices; more see more" if size.devices > MAX_COUNTED_DEVICES else ""
