"""The maximum mean discrepancy from sums alone: its level, its power, and bundles that do not say how features vary."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from scipy.stats import chi2

from fleet_server.drift.evidence import (
    EmbeddingSums,
    embedding_against_reference,
    embedding_between_devices,
    embedding_one_device,
    embedding_one_device_over_time,
    embedding_paired_devices,
)
from fleet_server.drift.evidence.embedding import METHOD_NO_LAW, weighted_squares_p_value
from fleet_server.errors import InvalidRequestError
from tests.server.drift.fleets import ALPHA, EmbeddingFleet, allowed


@pytest.mark.parametrize("devices", [5, 30])
def test_unequal_devices_without_drift_keep_the_level(devices: int) -> None:
    runs, alarms, older = 60, 0, 0
    for seed in range(runs):
        fleet = EmbeddingFleet(seed)
        sums = fleet.sums(fleet.habits(devices))
        alarms += embedding_against_reference(sums, fleet.reference).p_value <= ALPHA
        bare = msgspec.structs.replace(fleet.reference, covariance_traces=[])
        older += embedding_against_reference(sums, bare).p_value <= ALPHA
    assert alarms / runs <= allowed(runs)
    assert older <= alarms + 1


def test_five_devices_of_a_fleet_with_a_few_odd_ones_keep_the_level() -> None:
    runs, alarms = 80, 0
    for seed in range(runs):
        fleet = EmbeddingFleet(seed, odd=True)
        alarms += embedding_against_reference(fleet.sums(fleet.habits(5)), fleet.reference).p_value <= ALPHA
    assert alarms / runs <= allowed(runs)


def test_a_move_of_all_devices_is_found_also_with_an_older_bundle() -> None:
    fleet = EmbeddingFleet(1)
    moved = fleet.sums(fleet.habits(12), moved=1.0)
    found = embedding_against_reference(moved, fleet.reference)
    assert found.p_value < 1e-3
    assert found.effect.mmd is not None
    assert 0.05 < found.effect.mmd < 1.0
    bare = msgspec.structs.replace(fleet.reference, covariance_traces=[])
    assert embedding_against_reference(moved, bare).p_value < 0.01


@pytest.mark.parametrize("values", [20, 200])
def test_independent_values_of_one_device_keep_the_level_and_show_a_move(values: int) -> None:
    runs, alarms, found = 150, 0, 0
    for seed in range(runs):
        fleet = EmbeddingFleet(1_000 + seed, spread=0.0)
        nowhere = np.zeros((1, 6))
        alarms += embedding_one_device(fleet.sums(nowhere, values=values), fleet.reference).p_value <= ALPHA
        moved = fleet.sums(nowhere, values=values, moved=1.5)
        found += embedding_one_device(moved, fleet.reference).p_value <= 0.01
    assert alarms / runs <= allowed(runs)
    assert found / runs > 0.8


def test_a_camera_at_one_scene_is_no_alarm() -> None:
    fleet = EmbeddingFleet(3, spread=2.0)
    for habit in fleet.habits(10):
        windows = fleet.sums(np.tile(habit, (30, 1)))
        found = embedding_one_device(windows, fleet.reference)
        assert found.p_value > 0.01
        assert found.design_effect is not None
        assert found.design_effect > 100


def test_a_bundle_that_does_not_say_how_features_vary_says_nothing_of_one_device() -> None:
    fleet = EmbeddingFleet(4)
    bare = msgspec.structs.replace(fleet.reference, covariance_traces=[])
    found = embedding_one_device(fleet.sums(fleet.habits(1), moved=5.0), bare)
    assert (found.p_value, found.method) == (1.0, METHOD_NO_LAW)


def test_slices_and_pairs_keep_the_level_and_show_a_move() -> None:
    runs, alarms = 30, 0
    for seed in range(runs):
        fleet = EmbeddingFleet(seed)
        habits = fleet.habits(8)
        seen, expected = fleet.sums(habits), fleet.sums(habits)
        alarms += embedding_paired_devices(seen, expected).p_value <= ALPHA
        alarms += embedding_between_devices(seen, fleet.sums(fleet.habits(10))).p_value <= ALPHA
        assert embedding_paired_devices(fleet.sums(habits, moved=1.0), expected).p_value < 0.02
        assert embedding_between_devices(fleet.sums(fleet.habits(12), moved=2.0), expected).p_value < 0.02
    assert alarms / (2 * runs) <= allowed(2 * runs)


def test_a_device_against_its_own_past_by_windows() -> None:
    fleet = EmbeddingFleet(5)
    habit = np.tile(fleet.habits(1), (12, 1))
    before, same, moved = fleet.sums(habit), fleet.sums(habit), fleet.sums(habit, moved=1.0)
    assert embedding_one_device_over_time(same, before, fleet.reference).p_value > 0.01
    assert embedding_one_device_over_time(moved, before, fleet.reference).p_value < 1e-4
    few = EmbeddingSums(sums=moved.sums[:3], counts=moved.counts[:3])
    assert embedding_one_device_over_time(few, before, fleet.reference).p_value == 1


def test_the_law_of_weighted_squares_is_exact_for_equal_weights_and_near_for_unequal_ones() -> None:
    assert weighted_squares_p_value(25.0, [10.0, 10.0, 10.0]) == pytest.approx(float(chi2.sf(25.0, 10)))
    weights = np.array([4.0, 2.0, 1.0, 0.5, 0.1, 0.1])
    simulated = np.random.default_rng(0).chisquare(1, (200_000, 6)) @ weights
    traces = [float((weights**power).sum()) for power in (1, 2, 3)]
    for level in (0.05, 0.01):
        assert weighted_squares_p_value(float(np.quantile(simulated, 1 - level)), traces) == pytest.approx(
            level, rel=0.1
        )
    assert weighted_squares_p_value(1.0, [0.0, 0.0, 0.0]) == 1


def test_sums_that_do_not_fit_are_refused_and_silent_units_left_out() -> None:
    fleet = EmbeddingFleet(6)
    sums = fleet.sums(fleet.habits(6))
    with pytest.raises(InvalidRequestError, match="do not fit"):
        EmbeddingSums(sums=sums.sums, counts=sums.counts[:2])
    narrow = EmbeddingSums(sums=sums.sums[:, :5], counts=sums.counts)
    with pytest.raises(InvalidRequestError, match="features"):
        embedding_against_reference(narrow, fleet.reference)
    silent = EmbeddingSums(
        sums=np.vstack([sums.sums, np.zeros((1, 64), dtype=np.int64)]), counts=np.append(sums.counts, 0)
    )
    assert embedding_against_reference(silent, fleet.reference) == embedding_against_reference(sums, fleet.reference)
