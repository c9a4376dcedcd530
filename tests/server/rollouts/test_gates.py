"""Gates: how fast they tell good from bad, how seldom they are wrong, and that nothing but evidence passes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_protocol.messages import Phase
from fleet_server.rollouts.gates import GateResult, Verdict, evaluate_gates
from fleet_server.rollouts.measures import DeviceEvidence, Evidence, Measures
from fleet_server.rollouts.policy import ErrorRateGate, OutcomeAccuracyGate, UpdateFailuresGate
from fleet_server.statistics import rate_interval

ACCURACY = OutcomeAccuracyGate(max_drop=0.05, alpha=0.05, min_outcomes=50)
ERRORS = ErrorRateGate(max_increase=0.02, alpha=0.05)
FAILURES = UpdateFailuresGate(max_share=0.1)


def _outcomes(accuracy: float, outcomes: int) -> Measures:
    correct = round(accuracy * outcomes)
    return Measures(count=outcomes, correct=correct, wrong=outcomes - correct)


def _device(
    candidate: Measures, incumbent: Measures | None = None, *, expected: float | None = None, name: str = "d"
) -> DeviceEvidence:
    return DeviceEvidence(
        device=name, phase=Phase.HEALTHY, candidate=candidate, incumbent=incumbent, expected_accuracy=expected
    )


def _look(gate: ErrorRateGate | OutcomeAccuracyGate | UpdateFailuresGate, *devices: DeviceEvidence) -> GateResult:
    (result,) = evaluate_gates([gate], Evidence(devices=devices))
    return result


def _phases(*phases: Phase) -> list[DeviceEvidence]:
    return [DeviceEvidence(device=f"d{index}", phase=phase) for index, phase in enumerate(phases)]


def test_the_two_sides_and_the_two_methods_share_alpha() -> None:
    def pooled(devices: int) -> list[float]:
        looked = [_device(_outcomes(0.9, 100), _outcomes(0.9, 100), name=f"d{n}") for n in range(devices)]
        evidence: list[float] = _look(ACCURACY, *looked).evidence["pooled"]
        return evidence

    for devices, side_alpha in ((2, 0.05 / 2), (12, 0.05 / 4)):
        rate = rate_interval(10 * devices, 100 * devices, side_alpha, trials_opt=100)
        width = rate.upper - rate.lower
        assert pooled(devices) == pytest.approx([-width, width])


def test_a_collapse_of_accuracy_fails_within_a_few_dozen_outcomes() -> None:
    result = _look(ACCURACY, _device(_outcomes(0.35, 20), _outcomes(0.98, 100)))
    assert result.verdict is Verdict.FAIL
    assert "35.0%" in result.explanation
    assert "98.0%" in result.explanation


def test_a_better_candidate_passes_within_two_hundred_outcomes() -> None:
    assert _look(ACCURACY, _device(_outcomes(0.98, 200), _outcomes(0.90, 200))).verdict is Verdict.PASS


def test_a_first_install_is_held_against_the_accuracy_in_its_manifest() -> None:
    gate = OutcomeAccuracyGate(max_drop=0.1)
    assert _look(gate, _device(_outcomes(0.97, 200), expected=0.98)).verdict is Verdict.PASS
    assert _look(gate, _device(_outcomes(0.5, 30), expected=0.98)).verdict is Verdict.FAIL
    assert _look(gate, _device(_outcomes(0.97, 200))).verdict is Verdict.INCONCLUSIVE


def test_a_pass_needs_the_outcomes_the_policy_asks_for_and_a_fail_does_not() -> None:
    gate = OutcomeAccuracyGate(max_drop=0.3, min_outcomes=150)
    assert _look(gate, _device(_outcomes(0.98, 140), _outcomes(0.98, 500))).verdict is Verdict.INCONCLUSIVE
    assert _look(gate, _device(_outcomes(0.98, 150), _outcomes(0.98, 500))).verdict is Verdict.PASS
    assert _look(gate, _device(_outcomes(0.1, 30), _outcomes(0.98, 500))).verdict is Verdict.FAIL


def test_an_error_rate_passes_when_it_stays_and_fails_when_it_jumps() -> None:
    before = Measures(count=2000, errors=2)
    assert _look(ERRORS, _device(Measures(count=2000, errors=2), before)).verdict is Verdict.PASS
    assert _look(ERRORS, _device(Measures(count=80, errors=20), before)).verdict is Verdict.FAIL
    assert _look(ERRORS, _device(Measures(count=20, errors=0), before)).verdict is Verdict.INCONCLUSIVE
    assert _look(ERRORS, _device(Measures(count=1000))).verdict is Verdict.PASS  # a first install without any error
    assert _look(ERRORS, _device(Measures(count=50, errors=50))).verdict is Verdict.FAIL


@pytest.mark.parametrize(
    "devices",
    [
        [],
        [_device(Measures())],
        [_device(Measures(), _outcomes(0.98, 1000))],
        [_device(_outcomes(0.98, 1000), Measures())],
        [_device(_outcomes(0.98, 1000), Measures(), expected=0.5)],  # it had an incumbent: its own past is missing
        [_device(_outcomes(0.98, 1000), expected=math.nan)],
        [_device(_outcomes(0.98, 1000), expected=math.inf)],
        [_device(Measures(correct=100, wrong=-3), _outcomes(0.98, 1000))],  # a store that answers nonsense
    ],
)
def test_without_evidence_the_accuracy_gate_never_passes(devices: list[DeviceEvidence]) -> None:
    result = _look(ACCURACY, *devices)
    assert result.verdict is Verdict.INCONCLUSIVE
    assert result.explanation


def test_a_store_that_is_away_never_passes_and_does_not_hide_failed_updates() -> None:
    devices = tuple(_phases(Phase.REVERTED, Phase.HEALTHY))
    results = evaluate_gates([FAILURES, ERRORS, ACCURACY], Evidence(devices=devices, telemetry_error="refused"))
    assert [result.verdict for result in results] == [Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.INCONCLUSIVE]
    assert "refused" in results[1].explanation


def test_mostly_incomparable_outcomes_do_not_pass_on_the_few_that_compare() -> None:
    compared = _device(_outcomes(0.98, 300), _outcomes(0.98, 3000), name="a")
    others = [_device(_outcomes(0.98, 100), Measures(), name=f"b{index}") for index in range(5)]
    lenient = OutcomeAccuracyGate(max_drop=0.2)
    assert _look(lenient, compared, *others[:2]).verdict is Verdict.PASS
    assert _look(lenient, compared, *others).verdict is Verdict.INCONCLUSIVE


def test_a_change_in_which_device_answers_most_is_not_mistaken_for_a_better_candidate() -> None:
    """Simpson: each device got worse by 10 points, yet the pool looks better because the good device answers more."""
    good = _device(_outcomes(0.89, 4000), _outcomes(0.99, 400), name="good")
    bad = _device(_outcomes(0.49, 400), _outcomes(0.59, 4000), name="bad")
    result = _look(ACCURACY, good, bad)
    assert result.evidence["candidate_rate"] < result.evidence["baseline_rate"]  # wrong ones: the pool looks better
    assert result.verdict is not Verdict.PASS


def test_among_many_devices_the_device_level_must_agree_before_a_pass() -> None:
    """One device answers for nearly all outcomes and is fine; on the other eleven the candidate is worse."""
    giant = _device(_outcomes(0.98, 50_000), _outcomes(0.98, 50_000), name="giant")
    rng = np.random.default_rng(1)
    small = [_device(_outcomes(0.7 + rng.uniform(-0.1, 0.1), 40), _outcomes(0.98, 40), name=f"s{n}") for n in range(11)]
    result = _look(ACCURACY, giant, *small)
    pooled = result.evidence["pooled"]
    assert pooled[1] < ACCURACY.max_drop
    assert result.verdict is Verdict.FAIL


def test_devices_without_any_variance_are_judged_by_the_pool_alone() -> None:
    devices = [_device(Measures(count=500), Measures(count=500), name=f"d{n}") for n in range(12)]
    result = _look(ERRORS, *devices)
    assert result.evidence["by_device"] is None
    assert result.verdict is Verdict.PASS


@pytest.mark.parametrize(
    ("phases", "verdict"),
    [
        ([], Verdict.INCONCLUSIVE),
        ([Phase.HEALTHY], Verdict.PASS),
        ([Phase.HEALTHY, Phase.DOWNLOADING], Verdict.INCONCLUSIVE),
        ([Phase.PROBATION], Verdict.INCONCLUSIVE),
        ([Phase.SUPERSEDED], Verdict.INCONCLUSIVE),
        ([Phase.REVERTED], Verdict.FAIL),
        ([Phase.LOST, Phase.HEALTHY, Phase.PENDING], Verdict.FAIL),
        ([Phase.HEALTHY] * 9 + [Phase.FAILED], Verdict.PASS),
        ([Phase.HEALTHY] * 8 + [Phase.FAILED, Phase.REJECTED], Verdict.FAIL),
        ([Phase.HEALTHY] * 8 + [Phase.FAILED, Phase.STAGED], Verdict.INCONCLUSIVE),
    ],
)
def test_update_failures_are_judged_by_their_share_of_the_exposed(phases: list[Phase], verdict: Verdict) -> None:
    assert _look(FAILURES, *_phases(*phases)).verdict is verdict


def _watched_fails(
    gate: OutcomeAccuracyGate, rates: Sequence[tuple[float, float]], rng: np.random.Generator
) -> list[Verdict]:
    """The verdicts of 12 looks at devices with (incumbent accuracy, candidate accuracy)."""
    before = [int(rng.binomial(200, incumbent)) for incumbent, _ in rates]
    correct = [0] * len(rates)
    verdicts = []
    for look in range(1, 13):
        for index, (_, candidate) in enumerate(rates):
            correct[index] += int(rng.binomial(15, candidate))
        devices = [
            _device(
                Measures(correct=correct[index], wrong=15 * look - correct[index]),
                Measures(correct=before[index], wrong=200 - before[index]),
                name=f"d{index}",
            )
            for index in range(len(rates))
        ]
        verdicts.append(_look(gate, *devices).verdict)
    return verdicts


@pytest.mark.parametrize("devices", [1, 4, 15])
def test_a_harm_at_the_margin_is_wrongly_judged_in_at_most_alpha_of_all_rollouts(devices: int) -> None:
    """Looked at twelve times, on devices that differ: either error, false fail or false pass, stays below alpha."""
    rng = np.random.default_rng(99)
    gate = OutcomeAccuracyGate(max_drop=0.05, alpha=0.05, min_outcomes=1)
    runs, wrong_fails, wrong_passes = 120, 0, 0
    for _ in range(runs):
        incumbents = rng.uniform(0.75, 0.95, size=devices)
        verdicts = _watched_fails(gate, [(rate, rate - 0.05) for rate in incumbents], rng)
        wrong_fails += Verdict.FAIL in verdicts
        wrong_passes += Verdict.PASS in verdicts
    assert wrong_fails / runs <= gate.alpha
    assert wrong_passes / runs <= gate.alpha


@given(
    st.lists(
        st.tuples(
            st.sampled_from(list(Phase)),
            st.builds(Measures, **{name: st.integers(0, 300) for name in ("count", "errors", "correct", "wrong")}),
            st.none() | st.builds(Measures, correct=st.integers(0, 300), wrong=st.integers(0, 300)),
            st.none() | st.floats(0, 1),
        ),
        max_size=15,
    )
)
def test_a_pass_always_has_its_evidence_within_the_margin(
    rows: list[tuple[Phase, Measures, Measures | None, float | None]],
) -> None:
    devices = tuple(
        DeviceEvidence(
            device=f"d{n}", phase=phase, candidate=candidate, incumbent=incumbent, expected_accuracy=expected
        )
        for n, (phase, candidate, incumbent, expected) in enumerate(rows)
    )
    for result in evaluate_gates([FAILURES, ERRORS, ACCURACY], Evidence(devices=devices)):
        numbers = result.evidence
        assert result.explanation
        if result.verdict is Verdict.PASS and result.gate != "update_failures":
            assert numbers["trials"] > 0
            assert numbers["harm_lower"] <= numbers["harm_upper"] < numbers["margin"]
        if result.verdict is Verdict.FAIL and result.gate != "update_failures":
            assert numbers["harm_lower"] > numbers["margin"]
