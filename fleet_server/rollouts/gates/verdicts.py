"""What a gate says, and the one rule by which an interval becomes a verdict.

Invariants:
1. harm beyond the margin for sure (lower end above it) fails; harm within it for sure (upper end below it) passes,
   unless a reservation stands against a pass; everything else is inconclusive;
2. ends that are not finite are inconclusive;
3. each result says in plain words what was seen, and carries the numbers.
"""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Any

from msgspec import Struct

from fleet_server.rollouts.policy import Gate, gate_name
from fleet_server.statistics import Interval


class Verdict(StrEnum):
    """What a gate says. Only PASS lets a rollout go on."""

    PASS = "pass"  # noqa: S105 - a verdict, not a password
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"


class GateResult(Struct, frozen=True, kw_only=True):
    """One look of one gate, at every exposed device, or at those of one `segment`."""

    gate: str
    verdict: Verdict
    evidence: dict[str, Any]
    explanation: str
    segment: str = ""


def result_of(gate: Gate, verdict: Verdict, evidence: dict[str, Any], explanation: str) -> GateResult:
    """The result of `gate` at one look."""
    return GateResult(gate=gate_name(gate), verdict=verdict, evidence=evidence, explanation=explanation)


def inconclusive(gate: Gate, evidence: dict[str, Any], explanation: str) -> GateResult:
    """The result where nothing can be said."""
    return result_of(gate, Verdict.INCONCLUSIVE, evidence, explanation)


def judged(
    gate: Gate, harm: Interval, *, margin: float, numbers: dict[str, Any], seen: str, reservation: str = ""
) -> GateResult:
    """The verdict on a harm's interval against its margin; a `reservation`, if any, keeps it from passing."""
    if not (harm.is_finite and math.isfinite(margin)):
        return inconclusive(gate, numbers, "the telemetry does not add up to finite numbers")
    if harm.lower > margin:
        return result_of(gate, Verdict.FAIL, numbers, seen)
    if harm.upper >= margin:
        return inconclusive(gate, numbers, f"{seen}: not enough evidence yet")
    if reservation:
        return inconclusive(gate, numbers, f"{seen}; {reservation}")
    return result_of(gate, Verdict.PASS, numbers, seen)
