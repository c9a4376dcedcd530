"""Devices against the reference: the error rate on unequal fleets without drift, the power, and the limits."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import chisquare

from fleet_server.drift.evidence import (
    Evidence,
    adjusted_p_values,
    against_reference,
    class_scores,
    compare_devices,
    moment_scores,
)
from fleet_server.drift.signals import signals_of
from fleet_server.drift.tallies import count_signals
from fleet_server.errors import InvalidRequestError
from fleet_server.statistics.divergences import smoothed
from tests.server.drift.fleets import ALPHA, NumberFleet, UnequalFleet, allowed


def judged(fleet: UnequalFleet, devices: int) -> list[float]:
    """The adjusted p-values of a fleet's features and classes."""
    signals = signals_of(fleet.manifest)
    found = [
        compare_devices(sums.cells, signal.reference, ordered=signal.edges is not None, alpha=ALPHA).p_value
        for signal, sums in zip(signals, count_signals(signals, fleet.windows(devices)), strict=True)
    ]
    return adjusted_p_values([signal.kind for signal in signals], found)


@pytest.mark.parametrize("devices", [5, 12, 40])
def test_an_unequal_fleet_without_drift_raises_no_more_alarms_than_stated(devices: int) -> None:
    runs = 100
    alarms = sum(min(judged(UnequalFleet(seed), devices)) <= ALPHA for seed in range(runs))
    assert alarms / runs <= allowed(runs)


@pytest.mark.parametrize("devices", [5, 10, 50])
@pytest.mark.parametrize("effects", ["normal", "exponential", "odd"])
def test_skewed_device_effects_and_a_few_odd_devices_keep_the_level(effects: str, devices: int) -> None:
    runs, alarms = 120, 0
    for seed in range(runs):
        fleet = NumberFleet(seed, spread=1.0, effects=effects)
        counts = fleet.counts(devices)
        alarms += compare_devices(counts, fleet.reference, ordered=True, alpha=ALPHA).p_value <= ALPHA
    assert alarms / runs <= allowed(runs)


def test_a_thousand_devices_keep_the_level_too() -> None:
    runs, alarms = 25, 0
    for seed in range(runs):
        fleet = NumberFleet(seed)
        alarms += compare_devices(fleet.counts(1_000), fleet.reference, ordered=True, alpha=ALPHA).p_value <= ALPHA
    assert alarms / runs <= allowed(runs)


def test_a_rare_class_that_few_devices_saw_is_no_alarm() -> None:
    random, runs, alarms = np.random.default_rng(3), 200, 0
    habit = np.array([0.97, 0.02, 0.01])
    for _ in range(runs):
        reference = sum(random.multinomial(1, shares) for shares in random.dirichlet(habit * 20, size=500))
        counts = np.array([random.multinomial(20, shares) for shares in random.dirichlet(habit * 20, size=5)])
        alarms += compare_devices(counts, np.asarray(reference), ordered=False, alpha=ALPHA).p_value <= ALPHA
    assert alarms / runs <= allowed(runs)


def test_pooling_the_same_fleets_events_raises_alarms_by_the_dozen() -> None:
    """The reason for devices as units: chi-squared over the pooled events, without any drift."""
    runs, alarms = 100, 0
    for seed in range(runs):
        fleet = NumberFleet(seed)
        pooled = fleet.counts(12).sum(axis=0)
        alarms += bool(chisquare(pooled, smoothed(fleet.reference) * pooled.sum()).pvalue <= ALPHA)
    assert alarms / runs > 0.5


def one(fleet: NumberFleet, devices: int, moved: float = 0.0) -> Evidence:
    return against_reference(fleet.counts(devices, moved=moved), fleet.reference, edges=fleet.edges, alpha=ALPHA)


def test_a_shift_of_the_whole_fleet_is_found_and_measured() -> None:
    found = [one(NumberFleet(seed), 12, moved=0.8) for seed in range(30)]
    assert sum(evidence.p_value <= 0.01 for evidence in found) >= 27
    first, effect = found[0], found[0].effect
    assert first.e_value > 10
    assert first.shift is not None
    assert first.shift_interval is not None
    assert 0.05 < first.shift_interval.lower < first.shift < first.shift_interval.upper < 0.5
    assert effect.shift_sd == pytest.approx(0.8 / math.sqrt(1.29), abs=0.4)
    assert effect.ks_p_value is not None
    assert effect.wasserstein_1_p_value is not None
    assert max(effect.ks_p_value, effect.wasserstein_1_p_value) < 0.05


def test_the_p_values_of_sizes_keep_their_level_across_devices() -> None:
    runs = 80
    effects = [one(NumberFleet(seed), 12).effect for seed in range(runs)]
    for values in (
        [effect.psi_p_value for effect in effects],
        [effect.ks_p_value for effect in effects],
        [effect.wasserstein_1_p_value for effect in effects],
    ):
        assert sum(value is not None and value <= ALPHA for value in values) / runs <= allowed(runs)


def test_a_change_of_spread_alone_is_found() -> None:
    random = np.random.default_rng(5)
    edges = np.array([-9, *np.linspace(-2, 2, 19), 9])
    reference = np.histogram(random.normal(size=2000), bins=edges)[0]
    wide = np.array([np.histogram(random.normal(0, 1.6, 300), bins=edges)[0] for _ in range(8)])
    evidence = against_reference(wide, reference, edges=edges, alpha=ALPHA)
    assert evidence.p_value < 1e-4
    assert evidence.shift is not None
    assert abs(evidence.shift) < 0.05


def test_one_busy_device_weighs_no_more_than_any_other() -> None:
    reference = np.array([100, 100, 100, 100])
    quiet = np.array([[26, 24, 25, 25], [24, 26, 25, 25], [25, 25, 26, 24], [25, 25, 24, 26], [26, 25, 25, 24]])
    odd = np.array([[0, 0, 0, 1]])
    once = compare_devices(np.vstack([quiet, odd * 100]), reference, ordered=False, alpha=ALPHA)
    busy = compare_devices(np.vstack([quiet, odd * 1_000_000]), reference, ordered=False, alpha=ALPHA)
    assert once.p_value == pytest.approx(busy.p_value, rel=0.02)
    assert once.p_value > ALPHA


def test_devices_without_a_count_take_no_part() -> None:
    fleet = NumberFleet(1)
    counts = fleet.counts(8)
    silent = np.vstack([counts, np.zeros((3, counts.shape[1]), dtype=np.int64)])
    first, second = (against_reference(part, fleet.reference, edges=fleet.edges) for part in (counts, silent))
    assert first == second


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
    nothing = np.zeros((3, 2), dtype=np.int64)
    assert against_reference(nothing, np.array([5, 5]), edges=None, alpha=ALPHA).p_value == 1


@pytest.mark.parametrize(
    ("counts", "reference", "edges"),
    [
        ([[5, 5]], [5, 5, 5], None),
        ([[5, -5], [5, 5]], [5, 5], None),
        ([[5, 5], [5, 5]], [5, 5], [0.0, 1.0]),
        ([5, 5], [5, 5], None),
    ],
)
def test_arrays_that_do_not_fit_are_refused(
    counts: list[list[int]], reference: list[int], edges: list[float] | None
) -> None:
    with pytest.raises(InvalidRequestError):
        against_reference(
            np.array(counts), np.array(reference), edges=None if edges is None else np.array(edges), alpha=ALPHA
        )
