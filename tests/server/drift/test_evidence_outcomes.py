"""Outcomes: accuracy of devices against what was promised, and against other devices."""

from __future__ import annotations

import numpy as np
import pytest

from fleet_server.drift.evidence import accuracy_against_expected, accuracy_between_devices, accuracy_paired_devices
from fleet_server.errors import InvalidRequestError
from tests.server.drift.fleets import ALPHA, Counts, allowed


def outcomes(
    random: np.random.Generator, devices: int, *, accuracy: float, spread: float = 30.0, few: bool = False
) -> tuple[Counts, Counts]:
    """Right and judged answers of devices whose accuracies differ around `accuracy`."""
    judged = random.integers(1, 12, devices) if few else random.integers(20, 400, devices)
    own = random.beta(accuracy * spread, (1 - accuracy) * spread, devices)
    return random.binomial(judged, own), judged


@pytest.mark.parametrize("accuracy", [0.7, 0.97])
@pytest.mark.parametrize("few", [False, True])
def test_unequal_devices_that_keep_their_promise_are_no_alarm(accuracy: float, few: bool) -> None:
    runs, alarms = 400, 0
    for seed in range(runs):
        random = np.random.default_rng(seed)
        promised = random.binomial(500, accuracy) / 500
        correct, judged = outcomes(random, 12, accuracy=accuracy, few=few)
        found = accuracy_against_expected(correct, judged, expected=promised, expected_count=500)
        alarms += found.p_value <= ALPHA
    assert alarms / runs <= allowed(runs)


def test_a_loss_is_found_with_its_size() -> None:
    random = np.random.default_rng(1)
    correct, judged = outcomes(random, 30, accuracy=0.8)
    found = accuracy_against_expected(correct, judged, expected=0.95, expected_count=500)
    assert found.p_value < 1e-4
    assert found.e_value > 50
    assert found.difference == pytest.approx(-0.15, abs=0.06)
    assert found.difference_interval is not None
    assert found.difference_interval.lower < -0.15 < found.difference_interval.upper


def test_devices_that_were_never_wrong_are_no_proof_that_accuracy_rose() -> None:
    judged = np.full(6, 10)
    assert accuracy_against_expected(judged, judged, expected=0.97, expected_count=500).p_value > 0.1
    assert accuracy_against_expected(judged, judged, expected=1.0, expected_count=500).p_value > 0.5


def test_slices_keep_the_level_and_pairs_see_more() -> None:
    runs, alarms, paired, between = 100, 0, 0, 0
    for seed in range(runs):
        random = np.random.default_rng(seed)
        seen, expected = outcomes(random, 8, accuracy=0.9), outcomes(random, 14, accuracy=0.9)
        alarms += accuracy_between_devices(*seen, *expected).p_value <= ALPHA
        own, judged = random.beta(9, 1, 10), np.full(10, 300)
        before, after = random.binomial(judged, own), random.binomial(judged, own * 0.93)
        paired += accuracy_paired_devices(after, judged, before, judged).p_value <= ALPHA
        between += accuracy_between_devices(after, judged, before, judged).p_value <= ALPHA
    assert alarms / runs <= allowed(runs)
    assert paired / runs > 0.9
    assert between / runs < 0.7


def test_counts_that_do_not_fit_are_refused_and_nothing_says_nothing() -> None:
    one, none = np.array([1, 1]), np.array([0, 0])
    assert accuracy_against_expected(none, none, expected=0.9).p_value == 1
    assert accuracy_between_devices(none, none, one, one).p_value == 1
    assert accuracy_paired_devices(none, none, one, one).p_value == 1
    for correct, judged in ((np.array([2]), np.array([1])), (np.array([1]), one), (np.array([-1]), np.array([1]))):
        with pytest.raises(InvalidRequestError):
            accuracy_against_expected(correct, judged, expected=0.9)
    with pytest.raises(InvalidRequestError):
        accuracy_against_expected(one, one, expected=1.5)
