"""The device-level test: its error rate on unequal fleets without drift, its power, and its limits."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import chisquare

from fleet_server.drift.evidence import class_scores, compare_devices, holm, moment_scores
from fleet_server.drift.report import DriftReport, Verdict, report_drift
from fleet_server.drift.signals import count_signals, signals_of
from fleet_server.errors import InvalidRequestError
from fleet_server.statistics.divergences import smoothed
from tests.server.drift.fleets import MODEL, T0_NS, VERSION, UnequalFleet

ALPHA = 0.05


def report(fleet: UnequalFleet, devices: int, *, moved: float = 0.0) -> DriftReport:
    signals = signals_of(fleet.manifest)
    windows = fleet.windows(devices, moved=moved)
    return report_drift(
        signals,
        count_signals(signals, windows),
        model=MODEL,
        version=VERSION,
        start_ns=0,
        end_ns=T0_NS,
        windows=len(windows),
        windows_truncated=False,
    )


@pytest.mark.parametrize("devices", [5, 12, 40])
def test_an_unequal_fleet_without_drift_raises_no_more_alarms_than_stated(devices: int) -> None:
    runs = 300
    alarms = sum(report(UnequalFleet(seed), devices).verdict is Verdict.DRIFT for seed in range(runs))
    assert alarms / runs <= ALPHA + 2 * math.sqrt(ALPHA * (1 - ALPHA) / runs)


def test_pooling_the_same_fleets_events_raises_alarms_by_the_dozen() -> None:
    """The reason for devices as units: chi-squared over the pooled events, without any drift."""
    runs, alarms = 100, 0
    for seed in range(runs):
        fleet = UnequalFleet(seed)
        signal = signals_of(fleet.manifest)[0]
        (counted, *_) = count_signals([signal], fleet.windows(12))
        pooled = sum(counted.by_device.values())
        expected = smoothed(signal.reference) * np.sum(pooled)
        alarms += bool(chisquare(pooled, expected).pvalue <= ALPHA)
    assert alarms / runs > 0.5


def test_a_shift_of_the_whole_fleet_is_found() -> None:
    found = [report(UnequalFleet(seed), 12, moved=0.8) for seed in range(40)]
    assert sum(one.verdict is Verdict.DRIFT for one in found) >= 38
    mean = found[0].signals[0]
    assert mean.shift is not None
    assert mean.shift_interval is not None
    assert 0.05 < mean.shift_interval[0] < mean.shift < mean.shift_interval[1] < 0.5


def test_a_change_of_spread_alone_is_found() -> None:
    random = np.random.default_rng(5)
    reference = np.histogram(random.normal(size=2000), bins=[-9, *np.linspace(-2, 2, 19), 9])[0]
    wide = [np.histogram(random.normal(0, 1.6, 300), bins=[-9, *np.linspace(-2, 2, 19), 9])[0] for _ in range(8)]
    evidence = compare_devices(np.array(wide), reference, ordered=True, alpha=ALPHA)
    assert evidence.p_value < 1e-4
    assert evidence.shift is not None
    assert abs(evidence.shift) < 0.05


def test_one_busy_device_weighs_no_more_than_any_other() -> None:
    reference = np.array([100, 100, 100, 100])
    quiet = np.array([[26, 24, 25, 25], [24, 26, 25, 25], [25, 25, 26, 24], [25, 25, 24, 26], [26, 25, 25, 24]])
    odd = np.array([[0, 0, 0, 1]])
    one = compare_devices(np.vstack([quiet, odd * 100]), reference, ordered=False, alpha=ALPHA)
    busy = compare_devices(np.vstack([quiet, odd * 1_000_000]), reference, ordered=False, alpha=ALPHA)
    assert one.p_value == pytest.approx(busy.p_value)
    assert one.p_value > ALPHA


def test_moment_scores_are_orthonormal_under_the_reference_and_rise_with_the_value() -> None:
    reference = np.array([5, 40, 80, 20, 3, 0, 9])
    weights, scores = smoothed(reference), moment_scores(reference)
    assert (scores.T * weights) @ scores == pytest.approx(np.eye(4), abs=1e-9)
    assert weights @ scores == pytest.approx(np.zeros(4), abs=1e-9)
    assert (np.diff(scores[:, 0]) > 0).all()


def test_rare_classes_are_judged_as_one() -> None:
    scores = class_scores(np.array([50, 3, 40, 2, 0]))
    assert scores.tolist() == [[1, 0, 0], [0, 0, 1], [0, 1, 0], [0, 0, 1], [0, 0, 1]]


def test_nothing_that_could_differ_gives_no_evidence() -> None:
    assert compare_devices(np.array([[5, 5]]), np.array([5, 5]), ordered=True, alpha=ALPHA).p_value == 1
    assert compare_devices(np.array([[5], [5]]), np.array([10]), ordered=True, alpha=ALPHA).p_value == 1
    assert compare_devices(np.array([[5, 5], [4, 4]]), np.array([0, 0]), ordered=True, alpha=ALPHA).p_value == 1
    with pytest.raises(InvalidRequestError):
        compare_devices(np.array([[5, 5]]), np.array([5, 5, 5]), ordered=True, alpha=ALPHA)


def test_holm_multiplies_the_smallest_by_all_and_never_falls() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.5]) == [1.0, 1.0]
    assert holm([]) == []
