"""How often each gate is wrong, and how often it sees a harm, by simulation of whole rollouts.

`python -m benchmarks.gate_calibration [--json] [--runs N]`. No benchmark of speed, and no target: the gates' rates of
error, each made anew from its seed. A run is one stage watched for twenty hours in sixty looks. Devices are unequal
(rates, speeds, use), follow the day and the night, change by themselves a little, fall silent and come back; some are
exposed later than others. Three worlds, each with 24 hours of the incumbent before:

- `null`: the candidate is the incumbent. The share of runs in which a gate fails at any look: a false alarm;
- `margin`: the harm is exactly what the policy allows. Failing is wrong here too, and so is passing at a look;
- `double`: the harm is twice that. The share of runs that fail is the power.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleet_protocol.messages import Phase
from fleet_server.rollouts.evidence import matched_starts
from fleet_server.rollouts.gates import Verdict, evaluate_gates
from fleet_server.rollouts.measures import DeviceEvidence, Evidence, Measures
from fleet_server.rollouts.policy import (
    DriftGate,
    ErrorRateGate,
    Gate,
    LatencyGate,
    LossesGate,
    MemoryGate,
    OutcomeAccuracyGate,
    ShadowDisagreementGate,
    TemperatureGate,
    gate_name,
)

Values = NDArray[np.float64]

SEED = 20_240_602
GATES: tuple[Gate, ...] = (
    LossesGate(), ErrorRateGate(), LatencyGate(), MemoryGate(), TemperatureGate(), OutcomeAccuracyGate(min_outcomes=1),
    ShadowDisagreementGate(), DriftGate(),
)  # fmt: skip
WORLDS = {"null": 0.0, "margin": 1.0, "double": 2.0}
"""The harm of each, in margins."""
SIZES = {"few": (6, 0), "small": (12, 12), "middle": (50, 25), "large": (200, 50)}
"""(exposed devices, control devices). Where there is no control the world has no day and night: nothing tells them."""

_LOOKS, _PAST_LOOKS, _LOOK_S, _DAY_S, _CLASSES = 60, 72, 1200.0, 86_400.0, 10
_MARGIN_OF_ERRORS, _MARGIN_OF_ACCURACY, _SHADOW_BASE = 0.02, 0.05, 0.03


@dataclass(slots=True, kw_only=True)
class _World:
    """Every device's traits `[devices]`, and what was counted of it so far."""

    random: np.random.Generator
    exposed: int
    day: float
    harm: float
    calls: Values
    error_rate: Values
    wrong_rate: Values
    log_p95: Values
    log_rss: Values
    temperature: Values
    shares: Values
    joins: NDArray[np.int64]
    silent_since: Values
    dies_at: Values

    @property
    def devices(self) -> int:
        return self.calls.size

    @property
    def is_exposed(self) -> NDArray[np.bool_]:
        return np.arange(self.devices) < self.exposed


def world(*, exposed: int, control: int, harm: float, random: np.random.Generator) -> _World:
    """A fleet of unequal devices; the first `exposed` get the candidate, whose harm is in margins."""
    devices = exposed + control
    dies = random.random(devices) < np.where(np.arange(devices) < exposed, 0.05 * harm, 0.0)
    return _World(
        random=random,
        exposed=exposed,
        day=1.0 if control else 0.0,
        harm=harm,
        calls=np.exp(random.normal(3.4, 0.8, devices)),
        error_rate=0.02 * np.exp(random.normal(0, 0.5, devices)),
        wrong_rate=random.uniform(0.05, 0.2, devices),
        log_p95=random.normal(9, 0.5, devices),
        log_rss=random.normal(18, 0.3, devices),
        temperature=random.normal(45, 5, devices),
        shares=random.dirichlet(np.full(_CLASSES, 3.0), devices),
        joins=np.where(np.arange(devices) < exposed, random.integers(0, 6, devices), 0),
        silent_since=np.full(devices, np.nan),
        dies_at=np.where(dies, random.uniform(0, 30, devices), np.inf),
    )


@dataclass(slots=True)
class _Counted:
    """What was measured of every device, summed over looks."""

    table: Values
    classes: Values

    @classmethod
    def nothing(cls, devices: int) -> _Counted:
        return cls(np.zeros((devices, 10)), np.zeros((devices, _CLASSES)))

    def add(self, seen: _Counted, which: NDArray[np.bool_]) -> None:
        self.table[which] += seen.table[which]
        self.classes[which] += seen.classes[which]

    def less(self, earlier: _Counted) -> _Counted:
        return _Counted(self.table - earlier.table, self.classes - earlier.classes)

    def copy(self) -> _Counted:
        return _Counted(self.table.copy(), self.classes.copy())

    def measures(self) -> list[Measures]:
        found = []
        for row, classes in zip(self.table.tolist(), self.classes.astype(int).tolist(), strict=True):
            count, errors, correct, wrong, log_p95, log_rss, temperature, looks, compared, disagreed = row
            found.append(
                Measures(
                    count=int(count),
                    errors=int(errors),
                    correct=int(correct),
                    wrong=int(wrong),
                    p95_us=math.exp(log_p95 / count) if count else None,
                    rss_bytes=math.exp(log_rss / looks) if looks else None,
                    temperature_c=temperature / looks if looks else None,
                    classes={name: number for name, number in enumerate(classes) if number},
                    shadow_compared=int(compared),
                    shadow_disagreed=int(disagreed),
                )
            )
        return found


def _look(fleet: _World, at_s: float, *, with_candidate: bool, own_change: Values) -> _Counted:
    """What one look of all devices counts; the night is slow, cold and full of errors."""
    random, size = fleet.random, fleet.devices
    harm = fleet.harm * fleet.is_exposed if with_candidate else np.zeros(size)
    sun = fleet.day * math.sin(2 * math.pi * at_s / _DAY_S)
    busy = random.poisson(fleet.calls * (1 + 0.5 * sun))
    error_rate = np.clip(fleet.error_rate * np.exp(0.7 * sun + 0.2 * own_change) + harm * _MARGIN_OF_ERRORS, 0, 1)
    wrong_rate = np.clip(fleet.wrong_rate * np.exp(0.4 * sun + 0.1 * own_change) + harm * _MARGIN_OF_ACCURACY, 0, 1)
    errors, outcomes = random.binomial(busy, error_rate), random.binomial(busy, 0.3)
    count, wrong = busy - errors, random.binomial(outcomes, wrong_rate)
    log_p95 = fleet.log_p95 + 0.15 * sun + 0.05 * own_change + np.log1p(0.25 * harm)
    log_p95 = log_p95 + random.normal(0, 0.2, size) / np.sqrt(np.maximum(count, 1) / 10)
    log_rss = fleet.log_rss + 0.03 * own_change + np.log1p(0.25 * harm) + random.normal(0, 0.02, size)
    temperature = fleet.temperature + 6 * sun + own_change + 5 * harm + random.normal(0, 1, size)
    tilt = np.linspace(-1, 1, _CLASSES) * sun * 0.4
    shares = fleet.shares * np.exp(tilt + 0.05 * own_change[:, None] * np.cos(np.arange(_CLASSES)))
    shares /= shares.sum(axis=1, keepdims=True)
    moved = (0.15 * harm / (1 - shares[:, 0]))[:, None]  # to class 0, so that the distance is harm margins
    shares = np.clip(shares * (1 - moved) + moved * np.eye(_CLASSES)[0], 0, 1)
    shares /= shares.sum(axis=1, keepdims=True)
    share = np.where(harm > 0, 0.1 * harm, _SHADOW_BASE * np.exp(0.5 * own_change))
    compared = random.binomial(count, 0.2)
    disagreed = random.binomial(compared, np.clip(share, 0, 1))
    columns = (count, errors, outcomes - wrong, wrong, log_p95 * count, log_rss, temperature, 1, compared, disagreed)
    table = np.stack([np.broadcast_to(column, size) for column in columns], axis=1).astype(np.float64)
    return _Counted(table, random.multinomial(count, shares).astype(np.float64))


def verdicts_of_one_run(
    *, exposed: int, control: int, harm: float, seed: int, gates: tuple[Gate, ...] = GATES
) -> dict[str, list[Verdict]]:
    """Each gate's verdict at every look of one rollout."""
    random = np.random.default_rng(seed)
    fleet = world(exposed=exposed, control=control, harm=harm, random=random)
    start_s = random.uniform(0, _DAY_S)
    still = np.zeros(fleet.devices)
    before = _Counted.nothing(fleet.devices)
    everyone = np.ones(fleet.devices, dtype=np.bool_)
    for look in range(_PAST_LOOKS):
        at_s = start_s - (_PAST_LOOKS - look) * _LOOK_S
        before.add(_look(fleet, at_s, with_candidate=False, own_change=still), everyone)
    past = before.measures()
    own_change, now = random.normal(size=fleet.devices), _Counted.nothing(fleet.devices)
    until: list[_Counted] = []  # what was counted before each look
    found: dict[str, list[Verdict]] = {gate_name(gate): [] for gate in gates}
    for look in range(_LOOKS):
        joined = fleet.joins <= look
        until.append(now.copy())
        starts = fleet.joins.copy()
        starts[exposed:] = matched_starts(fleet.joins[:exposed][joined[:exposed]].tolist(), control) or 0
        _fall_silent_and_return(fleet, look, joined)
        seen = _look(fleet, start_s + look * _LOOK_S, with_candidate=True, own_change=own_change)
        now.add(seen, joined & np.isnan(fleet.silent_since))
        earlier = now.copy()
        for index, start in enumerate(starts.tolist()):
            source = until[min(start, look)]
            earlier.table[index], earlier.classes[index] = source.table[index], source.classes[index]
        evidence = Evidence(devices=_devices(fleet, look, starts, now.less(earlier).measures(), past))
        for result in evaluate_gates(gates, evidence):
            found[result.gate].append(result.verdict)
    return found


def _fall_silent_and_return(fleet: _World, look: int, joined: NDArray[np.bool_]) -> None:
    """`silent_since` is the look in which a device fell silent; one that dies stays so."""
    random = fleet.random
    is_dead = joined & (look - fleet.joins >= fleet.dies_at)
    fleet.silent_since[(random.random(fleet.devices) < 0.3) & ~is_dead] = np.nan
    falls = joined & ((random.random(fleet.devices) < 0.002) | is_dead) & np.isnan(fleet.silent_since)
    fleet.silent_since[falls] = look


def _devices(
    fleet: _World, look: int, starts: NDArray[np.int64], now: list[Measures], past: list[Measures]
) -> tuple[DeviceEvidence, ...]:
    found = []
    for index in np.flatnonzero(starts <= look).tolist():
        watched, silent = look - int(starts[index]) + 1, float(fleet.silent_since[index])
        is_silent, was_silent = not math.isnan(silent), silent < int(starts[index])
        found.append(
            DeviceEvidence(
                device=f"device-{index}",
                phase=Phase.HEALTHY,
                candidate=now[index],
                incumbent=past[index],
                is_control=index >= fleet.exposed,
                watched_s=0.0 if was_silent else watched * _LOOK_S,
                silent_after_s=(silent - int(starts[index])) * _LOOK_S if is_silent and not was_silent else None,
            )
        )
    return tuple(found)


def rates(*, runs: int, size: str, world_name: str, seed: int = SEED) -> dict[str, dict[str, float]]:
    """Per gate the shares of `runs` that failed at any look, and that would have passed at the last one.

    `median_looks` is after how many looks those that failed did, 0 without any.
    """
    exposed, control = SIZES[size]
    failed: dict[str, list[int]] = {gate_name(gate): [] for gate in GATES}
    passed = dict.fromkeys(failed, 0)
    for run in range(runs):
        found = verdicts_of_one_run(exposed=exposed, control=control, harm=WORLDS[world_name], seed=seed + run)
        for name, verdicts in found.items():
            if Verdict.FAIL in verdicts:
                failed[name].append(verdicts.index(Verdict.FAIL) + 1)
            passed[name] += verdicts[-1] is Verdict.PASS and Verdict.FAIL not in verdicts
    return {
        name: {
            "failed": len(looks) / runs,
            "passed": passed[name] / runs,
            "median_looks": float(np.median(looks)) if looks else 0.0,
        }
        for name, looks in failed.items()
    }


def _printed(size: str, worlds: dict[str, dict[str, dict[str, float]]]) -> str:
    exposed, control = SIZES[size]
    lines = [f"{exposed} exposed, {control} control: share failed / passed (median looks)"]
    for gate in GATES:
        name = gate_name(gate)
        figures = [
            f"{world_name} {figure['failed']:.3f} / {figure['passed']:.3f} ({figure['median_looks']:.0f})"
            for world_name, figure in ((key, worlds[key][name]) for key in WORLDS)
        ]
        lines.append(f"  {name:20} " + "   ".join(figures))
    return "\n".join(lines)


def main() -> int:
    """Print the table, each size as it is ready."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gate_calibration", description="Gates, simulated.")
    parser.add_argument("--runs", type=int, default=200, help="simulated rollouts for each figure")
    parser.add_argument("--json", action="store_true", help="one JSON object a size")
    options = parser.parse_args()
    for size in SIZES:
        worlds = {name: rates(runs=options.runs, size=size, world_name=name) for name in WORLDS}
        found: dict[str, Any] = {"size": size, "runs": options.runs, "looks": _LOOKS, "alpha": 0.05, "rates": worlds}
        print(json.dumps(found) if options.json else _printed(size, worlds), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
