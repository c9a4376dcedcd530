"""Gates on shares of what devices did: failed inferences, wrong outcomes, shadowed calls answered otherwise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fleet_server.rollouts.comparison import Harm, Trials, estimate_harm
from fleet_server.rollouts.gates.columns import Columns
from fleet_server.rollouts.gates.verdicts import GateResult, inconclusive, judged
from fleet_server.rollouts.policy import ErrorRateGate, Gate, OutcomeAccuracyGate, ShadowDisagreementGate
from fleet_server.statistics import Interval

MIN_COMPARABLE_SHARE = 0.5
"""A pass needs at least this share of the candidate's trials on devices that have a baseline."""


def error_rate(gate: ErrorRateGate, exposed: Columns, control: Columns) -> GateResult:
    """At most `max_increase` more of the inferences fail; a first model is held against no errors at all."""

    def trials(group: Columns) -> Trials:
        now, before = group.candidate, group.incumbent
        return Trials(
            bad=now.errors,
            trials=now.count + now.errors,
            baseline_bad=before.errors,
            baseline_trials=before.count + before.errors,
            fixed_baseline=np.where(group.has_incumbent, np.nan, 0.0),
        )

    harm = estimate_harm(trials(exposed), trials(control), gate.alpha)
    return _judged(gate, harm, trials(exposed), margin=gate.max_increase, words=_ERROR_WORDS)


def outcome_accuracy(gate: OutcomeAccuracyGate, exposed: Columns, control: Columns) -> GateResult:
    """At most `max_drop` fewer outcomes are correct; a first model is held against what its manifest promises."""

    def trials(group: Columns) -> Trials:
        now, before = group.candidate, group.incumbent
        return Trials(
            bad=now.wrong,
            trials=now.correct + now.wrong,
            baseline_bad=before.wrong,
            baseline_trials=before.correct + before.wrong,
            fixed_baseline=np.where(group.has_incumbent, np.nan, 1.0 - group.expected_accuracy),
        )

    harm = estimate_harm(trials(exposed), trials(control), gate.alpha)
    few = harm is not None and harm.trials < gate.min_outcomes
    reservation = f"a pass needs {gate.min_outcomes} outcomes" if few else ""
    return _judged(gate, harm, trials(exposed), margin=gate.max_drop, words=_ACCURACY_WORDS, reservation=reservation)


def shadow_disagreement(gate: ShadowDisagreementGate, exposed: Columns, control: Columns) -> GateResult:
    """At most `max_share` of the shadowed calls are answered otherwise than by what serves."""

    def trials(group: Columns) -> Trials:
        nothing = np.zeros(group.size)
        return Trials(
            bad=group.candidate.shadow_disagreed,
            trials=group.candidate.shadow_compared,
            baseline_bad=nothing,
            baseline_trials=nothing,
            fixed_baseline=nothing,
        )

    harm = estimate_harm(trials(exposed), trials(control), gate.alpha)
    return _judged(gate, harm, trials(exposed), margin=gate.max_share, words=_SHADOW_WORDS)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Words:
    rate: str
    trials: str
    complement: bool = False  # people speak of accuracy, the comparison counts what was wrong

    def percent(self, bad_rate: float) -> str:
        return f"{1 - bad_rate if self.complement else bad_rate:.1%}"


_ERROR_WORDS = _Words(rate="error rate", trials="inferences")
_ACCURACY_WORDS = _Words(rate="accuracy", trials="outcomes", complement=True)
_SHADOW_WORDS = _Words(rate="disagreement", trials="shadowed calls")


def _judged(
    gate: Gate, harm: Harm | None, exposed: Trials, *, margin: float, words: _Words, reservation: str = ""
) -> GateResult:
    if harm is None:
        return inconclusive(gate, _nothing(exposed), _why_nothing(exposed, words))
    seen = (
        f"{words.rate} {words.percent(harm.candidate_rate)} over {harm.trials} {words.trials} against "
        f"{words.percent(harm.baseline_rate)} {_baseline(harm, words)}; worse by {harm.lower * 100:.1f} to "
        f"{harm.upper * 100:.1f} points, {margin * 100:.1f} are allowed"
    )
    if not reservation and harm.comparable_share < MIN_COMPARABLE_SHARE:
        reservation = f"but {harm.left_out_trials} {words.trials} come from devices without a baseline"
    interval = Interval(lower=harm.lower, upper=harm.upper)
    numbers = _numbers(harm, margin, gate.alpha)
    return judged(gate, interval, margin=margin, numbers=numbers, seen=seen, reservation=reservation)


def _baseline(harm: Harm, words: _Words) -> str:
    if not harm.baseline_trials:
        return "expected"
    control = harm.by_device.control_devices if harm.by_device else 0
    apart = f", apart from how {control} control devices changed" if control else ""
    return f"of the same devices before ({harm.baseline_trials} {words.trials}){apart}"


def _nothing(exposed: Trials) -> dict[str, Any]:
    return {"trials": 0, "left_out_trials": int(exposed.trials.sum()), "exposed": exposed.trials.size}


def _why_nothing(exposed: Trials, words: _Words) -> str:
    trials = int(exposed.trials.sum())
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
        "by_device": None if by_device is None else [by_device.interval.lower, by_device.interval.upper],
        "margin": margin,
        "alpha": alpha,
        "trials": harm.trials,
        "baseline_trials": harm.baseline_trials,
        "left_out_trials": harm.left_out_trials,
        "compared_devices": harm.compared_devices,
        "control_devices": 0 if by_device is None else by_device.control_devices,
        "mix_shift": harm.mix_shift,
    }
