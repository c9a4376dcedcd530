"""The facts that the statistics rest on: the device is the unit, and thresholds come from the null."""

from __future__ import annotations

import math

import pytest

from benchmarks.statistics_facts import (
    ALPHA,
    binned_level_and_power,
    comparison_false_alarms,
    drift_false_alarms,
    psi_points,
)


def allowed(runs: int) -> float:
    """The level with three binomial standard errors."""
    return ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / runs)


def test_tests_of_pooled_events_find_drift_among_unequal_devices_where_exchanging_devices_does_not() -> None:
    found = drift_false_alarms(runs=120)
    assert found["chi_squared"] > 0.3
    assert found["kolmogorov_smirnov"] > 0.4
    assert found["devices_exchanged"] <= allowed(120)


@pytest.mark.parametrize(("spread", "documented"), [(0.2, 0.27), (0.5, 0.64), (1.0, 0.82)])
def test_comparing_arms_by_events_errs_with_the_spread_of_devices_and_by_device_means_does_not(
    spread: float, documented: float
) -> None:
    found = comparison_false_alarms(runs=1000, spread=spread)
    assert found["pooled_events"] == pytest.approx(documented, abs=0.08)
    assert found["device_means"] <= allowed(1000)


def test_a_fixed_threshold_on_psi_means_nothing() -> None:
    points = psi_points(runs=500)
    assert points["n_200"] > 0.08
    assert points["n_10000"] < 0.005


def test_sixty_four_fixed_bins_keep_the_level_and_nearly_the_power_of_raw_values() -> None:
    found = binned_level_and_power(runs=60)
    assert found["bins_none"] <= allowed(60)
    assert found["bins_shift"] >= found["raw_shift"] - 0.12
    assert found["raw_shift"] > 0.8
