"""Other rules for the same question, as judges of the same simulated rollouts.

`HawkbitRule` is the group condition of Eclipse hawkBit: a group is a success once a share of its devices finished the
action, and an error once a share of them reported an error, which pauses. Devices report success when the installation
is done, before the new code has run, so what the code does later is not in the counts; `sees_reverts` counts it all the
same, which is kinder than the rule is. The defaults are 95 % and 5 %, stricter than hawkBit's own 50 % and 50 %.

`ThreeLooksRule` is a t test at a third, two thirds and the end of each bake, exposed devices against the control, 5 %
one-sided for each measure: on pooled events, each an independent trial, or on device means (Welch).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, ttest_ind

from fleet_protocol.messages import Phase
from fleet_server.rollouts.gates import GateResult, Verdict
from fleet_server.rollouts.gates.columns import Columns, split
from fleet_server.rollouts.policy import RolloutPolicy, gate_name
from fleet_server.rollouts.progress import Progress, Step
from fleet_server.rollouts.simulation import Look

Values = NDArray[np.float64]

LEVEL = 0.05
LOOKS = 3
MIN_EVENTS = 5
_CALL_LOG_VARIANCE = 0.25
"""Of the latency of one call around its device's own, which pooled events have as well."""
_MEASURES = {
    "error_rate": "errors", "outcome_accuracy": "wrong", "latency": "p95", "update_failures": "failed",
}  # fmt: skip


class HawkbitRule:
    """See the module. For policies whose only gate is `update_failures`."""

    def __init__(self, *, success: float = 0.95, error: float = 0.05, sees_reverts: bool = False) -> None:
        self._success, self._error, self._sees_reverts = success, error, sees_reverts

    def __call__(self, policy: RolloutPolicy, progress: Progress, look: Look) -> tuple[GateResult, ...]:
        """The verdict on the devices so far."""
        devices = [device for device in look.evidence.devices if not device.is_control]
        if not devices:
            return ()
        bad = {Phase.REJECTED, Phase.FAILED, Phase.LOST} | ({Phase.REVERTED} if self._sees_reverts else set())
        errors = sum(device.phase in bad for device in devices)
        done = sum(device.phase.is_end and device.phase not in bad for device in devices)
        if errors / len(devices) > self._error and errors + done == len(devices):
            verdict = Verdict.FAIL
        elif done / len(devices) >= self._success:
            verdict = Verdict.PASS
        else:
            verdict = Verdict.INCONCLUSIVE
        return (_result("update_failures", verdict, f"{done} of {len(devices)} installed, {errors} in error"),)


class ThreeLooksRule:
    """See the module. Remembers which looks of the stage it took: one for each run."""

    def __init__(self, *, pooled: bool) -> None:
        self._pooled = pooled
        self._taken: tuple[int, int] = (-1, 0)

    def __call__(self, policy: RolloutPolicy, progress: Progress, look: Look) -> tuple[GateResult, ...]:
        """Verdicts at the three looks; nothing between."""
        names = [gate_name(gate) for gate in look.gates]
        if progress.step is Step.RELEASING:
            return tuple(_result(name, Verdict.PASS, "released") for name in names)
        if progress.step is not Step.BAKING or not progress.bake_started_ns:
            return ()
        share = (look.now_s - progress.bake_started_ns / 1e9) / policy.stages[progress.stage].bake_s
        due = math.floor(LOOKS * share + 1e-6)
        taken = self._taken[1] if self._taken[0] == progress.stage else 0
        if due <= taken:
            return ()
        self._taken = (progress.stage, due)
        exposed, control = split(look.evidence)
        verdicts = []
        for name in names:
            harmful = name in _MEASURES and self._p_value(_MEASURES[name], exposed, control) < LEVEL
            verdict = Verdict.FAIL if harmful else Verdict.PASS if due >= LOOKS else Verdict.INCONCLUSIVE
            verdicts.append(_result(name, verdict, f"look {due} of {LOOKS}"))
        return tuple(verdicts)

    def _p_value(self, measure: str, exposed: Columns, control: Columns) -> float:
        """One-sided: the exposed are worse."""
        if measure == "failed":
            failed = sum(phase.is_failure for phase in exposed.phases)
            return _proportions(float(failed), float(exposed.size), 0.0, float(control.size))
        if measure == "p95":
            return self._latency(exposed, control)
        (bad, trials), (held_bad, held_trials) = _counts(measure, exposed), _counts(measure, control)
        if self._pooled:
            return _proportions(float(bad.sum()), float(trials.sum()), float(held_bad.sum()), float(held_trials.sum()))
        return _welch(_rates(bad, trials), _rates(held_bad, held_trials))

    def _latency(self, exposed: Columns, control: Columns) -> float:
        here, calls = _log_p95(exposed)
        there, held_calls = _log_p95(control)
        if not self._pooled:
            return _welch(here, there)
        if min(here.size, there.size) == 0:
            return 1.0
        difference = float(np.average(here, weights=calls) - np.average(there, weights=held_calls))
        error = sum(
            (float(np.average((of - np.average(of, weights=by)) ** 2, weights=by)) + _CALL_LOG_VARIANCE)
            / float(by.sum())
            for of, by in ((here, calls), (there, held_calls))
        )
        return float(norm.sf(difference / math.sqrt(error)))


def hawkbit() -> HawkbitRule:
    """As it is."""
    return HawkbitRule()


def hawkbit_with_reverts() -> HawkbitRule:
    """If devices told what came after the installation."""
    return HawkbitRule(sees_reverts=True)


def three_looks_pooled() -> ThreeLooksRule:
    """On pooled events."""
    return ThreeLooksRule(pooled=True)


def three_looks_by_device() -> ThreeLooksRule:
    """On device means."""
    return ThreeLooksRule(pooled=False)


def _counts(measure: str, group: Columns) -> tuple[Values, Values]:
    now = group.candidate
    if measure == "errors":
        return now.errors, now.count + now.errors
    return now.wrong, now.correct + now.wrong


def _rates(bad: Values, trials: Values) -> Values:
    enough = trials >= MIN_EVENTS
    found: Values = bad[enough] / trials[enough]
    return found


def _log_p95(group: Columns) -> tuple[Values, Values]:
    known = np.isfinite(group.candidate.p95_us) & (group.candidate.count >= MIN_EVENTS)
    return np.log(group.candidate.p95_us[known]), group.candidate.count[known]


def _welch(here: Values, there: Values) -> float:
    if min(here.size, there.size) < 2:
        return 1.0
    p_value = float(ttest_ind(here, there, equal_var=False, alternative="greater").pvalue)
    return p_value if math.isfinite(p_value) else 1.0


def _proportions(bad: float, trials: float, held_bad: float, held_trials: float) -> float:
    if not (trials and held_trials):
        return 1.0
    rate = (bad + held_bad) / (trials + held_trials)
    error = math.sqrt(rate * (1 - rate) * (1 / trials + 1 / held_trials))
    return float(norm.sf((bad / trials - held_bad / held_trials) / error)) if error else 1.0


def _result(name: str, verdict: Verdict, explanation: str) -> GateResult:
    return GateResult(gate=name, verdict=verdict, evidence={}, explanation=explanation)
