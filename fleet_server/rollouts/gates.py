"""Gates: rules over evidence with verdict pass, fail or inconclusive. Pure functions of what was observed.

Invariants:
1. harm beyond the margin for sure (lower end above it) fails; harm within it for sure (upper end below it)
   passes; everything else is inconclusive;
2. no data, a store that is away, numbers that are not finite, an exception: inconclusive, never pass;
3. every interval holds at all looks together, so a gate may be asked at any time and a fail acts at once;
4. each result says in plain words what was seen, and carries the numbers.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from msgspec import Struct

from fleet_protocol.messages import Phase
from fleet_server.rollouts.comparison import DeviceTrials, Harm, estimate_harm
from fleet_server.rollouts.measures import DeviceEvidence, Evidence, Measures
from fleet_server.rollouts.policy import (
    ErrorRateGate,
    Gate,
    OutcomeAccuracyGate,
    SegmentPolicy,
    UpdateFailuresGate,
    gate_name,
)

MIN_COMPARABLE_SHARE = 0.5
"""A pass needs at least this share of the candidate's trials on devices that have a baseline."""

_LOGGER = logging.getLogger(__name__)


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


def evaluate_gates(
    gates: Sequence[Gate], evidence: Evidence, *, segments: SegmentPolicy | None = None
) -> tuple[GateResult, ...]:
    """The result of each gate, in the policy's order, over all devices; then of each of the `segments`, by name."""
    return tuple(_evaluate(gate, evidence) for gate in gates)


def _evaluate(gate: Gate, evidence: Evidence) -> GateResult:
    try:
        if isinstance(gate, UpdateFailuresGate):
            return _update_failures(gate, evidence)
        if evidence.telemetry_error:
            return _result(gate, Verdict.INCONCLUSIVE, {}, f"no telemetry to judge by: {evidence.telemetry_error}")
        if isinstance(gate, ErrorRateGate):
            return _error_rate(gate, evidence)
        if isinstance(gate, OutcomeAccuracyGate):
            return _outcome_accuracy(gate, evidence)
        return _result(gate, Verdict.INCONCLUSIVE, {}, "this gate cannot be judged yet")
    except Exception as error:  # whatever goes wrong in one gate must not become a pass, nor hide another's fail
        _LOGGER.exception("gate %s could not be evaluated", gate_name(gate))
        explanation = f"the gate could not be evaluated ({type(error).__name__}); the server's log has the reason"
        return _result(gate, Verdict.INCONCLUSIVE, {}, explanation)


def _result(gate: Gate, verdict: Verdict, evidence: dict[str, Any], explanation: str) -> GateResult:
    return GateResult(gate=gate_name(gate), verdict=verdict, evidence=evidence, explanation=explanation)


def _update_failures(gate: UpdateFailuresGate, evidence: Evidence) -> GateResult:
    phases = [device.phase for device in evidence.devices]
    exposed = len(phases)
    failed = sum(phase.is_failure for phase in phases)
    healthy = sum(phase is Phase.HEALTHY for phase in phases)
    moving = sum(not phase.is_end for phase in phases)
    numbers = {"exposed": exposed, "failed": failed, "healthy": healthy, "in_progress": moving}
    numbers |= {phase.value.lower(): phases.count(phase) for phase in sorted(set(phases)) if phase.is_failure}
    seen = f"{failed} of {exposed} exposed devices did not take the update"
    allowed = f"{gate.max_share:.1%} are allowed"
    if not exposed:
        return _result(gate, Verdict.INCONCLUSIVE, numbers, "no device is exposed yet")
    if failed / exposed > gate.max_share:
        return _result(gate, Verdict.FAIL, numbers, f"{seen}, {allowed}")
    if moving:
        return _result(gate, Verdict.INCONCLUSIVE, numbers, f"{seen}, {moving} are still updating")
    if not healthy:
        return _result(gate, Verdict.INCONCLUSIVE, numbers, "no exposed device runs the candidate in good health")
    return _result(gate, Verdict.PASS, numbers, f"{seen}, {allowed}; {healthy} are healthy")


def _error_rate(gate: ErrorRateGate, evidence: Evidence) -> GateResult:
    def trials(device: DeviceEvidence) -> DeviceTrials:
        past = device.incumbent or Measures()
        return DeviceTrials(
            bad=device.candidate.errors,
            trials=device.candidate.count + device.candidate.errors,
            baseline_bad=past.errors,
            baseline_trials=past.count + past.errors,
            fixed_baseline=0.0 if device.incumbent is None else None,  # a first model is held against no errors at all
        )

    return _guardrail(gate, evidence, trials, margin=gate.max_increase, alpha=gate.alpha, words=_ERROR_WORDS)


def _outcome_accuracy(gate: OutcomeAccuracyGate, evidence: Evidence) -> GateResult:
    def trials(device: DeviceEvidence) -> DeviceTrials:
        past = device.incumbent or Measures()
        expected = device.expected_accuracy
        return DeviceTrials(
            bad=device.candidate.wrong,
            trials=device.candidate.correct + device.candidate.wrong,
            baseline_bad=past.wrong,
            baseline_trials=past.correct + past.wrong,
            fixed_baseline=1.0 - expected if device.incumbent is None and expected is not None else None,
        )

    return _guardrail(
        gate,
        evidence,
        trials,
        margin=gate.max_drop,
        alpha=gate.alpha,
        words=_ACCURACY_WORDS,
        min_trials=gate.min_outcomes,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Words:
    rate: str
    trials: str
    complement: bool  # people speak of accuracy, the comparison counts what was wrong

    def percent(self, bad_rate: float) -> str:
        return f"{1 - bad_rate if self.complement else bad_rate:.1%}"


_ERROR_WORDS = _Words(rate="error rate", trials="inferences", complement=False)
_ACCURACY_WORDS = _Words(rate="accuracy", trials="outcomes", complement=True)


def _guardrail(
    gate: Gate,
    evidence: Evidence,
    trials_of: Callable[[DeviceEvidence], DeviceTrials],
    *,
    margin: float,
    alpha: float,
    words: _Words,
    min_trials: int = 1,
) -> GateResult:
    devices = [trials_of(device) for device in evidence.devices]
    harm = estimate_harm(devices, alpha)
    if harm is None:
        return _result(gate, Verdict.INCONCLUSIVE, _nothing(devices), _why_nothing(devices, words))
    numbers = _numbers(harm, margin, alpha)
    seen = (
        f"{words.rate} {words.percent(harm.candidate_rate)} over {harm.trials} {words.trials} against "
        f"{words.percent(harm.baseline_rate)} {_baseline_words(harm, words)}; worse by {harm.lower * 100:.1f} to "
        f"{harm.upper * 100:.1f} points, {margin * 100:.1f} are allowed"
    )
    if not all(math.isfinite(value) for value in (harm.lower, harm.upper, margin)):
        explanation = "the telemetry does not add up to finite numbers"
        return _result(gate, Verdict.INCONCLUSIVE, _nothing(devices), explanation)
    if harm.lower > margin:
        return _result(gate, Verdict.FAIL, numbers, seen)
    if harm.upper >= margin:
        return _result(gate, Verdict.INCONCLUSIVE, numbers, f"{seen}: not enough evidence yet")
    if harm.trials < min_trials:
        return _result(gate, Verdict.INCONCLUSIVE, numbers, f"{seen}; a pass needs {min_trials} {words.trials}")
    if harm.comparable_share < MIN_COMPARABLE_SHARE:
        explanation = f"{seen}; but {harm.left_out_trials} {words.trials} come from devices without a baseline"
        return _result(gate, Verdict.INCONCLUSIVE, numbers, explanation)
    return _result(gate, Verdict.PASS, numbers, seen)


def _baseline_words(harm: Harm, words: _Words) -> str:
    if harm.baseline_trials:
        return f"of the same devices before ({harm.baseline_trials} {words.trials})"
    return "expected"


def _nothing(devices: Sequence[DeviceTrials]) -> dict[str, Any]:
    trials = sum(device.trials for device in devices)
    return {"trials": 0, "left_out_trials": trials, "exposed": len(devices)}


def _why_nothing(devices: Sequence[DeviceTrials], words: _Words) -> str:
    trials = sum(device.trials for device in devices)
    if trials:
        return f"{trials} {words.trials} of the candidate, but nothing to compare their {words.rate} with"
    return f"no {words.trials} of the candidate yet"


def _numbers(harm: Harm, margin: float, alpha: float) -> dict[str, Any]:
    by_device = harm.by_device
    return {
        "candidate_rate": harm.candidate_rate,
        "baseline_rate": harm.baseline_rate,
        "harm_lower": harm.lower,
        "harm_upper": harm.upper,
        "pooled": [harm.pooled.lower, harm.pooled.upper],
        "by_device": None if by_device is None else [by_device.lower, by_device.upper],
        "margin": margin,
        "alpha": alpha,
        "trials": harm.trials,
        "baseline_trials": harm.baseline_trials,
        "left_out_trials": harm.left_out_trials,
        "compared_devices": harm.compared_devices,
        "mix_shift": harm.mix_shift,
    }
