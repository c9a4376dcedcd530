"""Less noise, the same answer: what CUPED and strata save, and that they keep their error rate."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ttest_ind

from fleet_server.errors import InvalidRequestError
from fleet_server.statistics.variance_reduction import cuped, stratified_difference

ALPHA = 0.05


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(3, 60))
def test_cuped_keeps_the_mean_and_takes_away_just_what_the_past_foretold(seed: int, devices: int) -> None:
    random = np.random.default_rng(seed)
    past = random.normal(5, 2, size=devices)
    values = 0.7 * past + random.normal(size=devices)
    adjusted = cuped(values, past)
    assert adjusted.mean() == pytest.approx(values.mean())
    correlation = np.corrcoef(values, past)[0, 1]
    assert adjusted.var() == pytest.approx(values.var() * (1 - correlation**2), rel=1e-6, abs=1e-12)
    assert np.cov(adjusted, past)[0, 1] == pytest.approx(0, abs=1e-9 * max(1, float(np.abs(values).max()) * 10))


def test_the_past_of_devices_that_differ_divides_the_variance_by_seven() -> None:
    """Error rates of devices at a spread of 0.5 log-odds, a thousand events before and after."""
    random = np.random.default_rng(1)
    rates = 1 / (1 + np.exp(-(-2 + random.normal(0, 0.5, size=4000))))
    past, values = random.binomial(1000, rates) / 1000, random.binomial(1000, rates) / 1000
    assert values.var() / cuped(values, past).var() > 7


def test_with_cuped_the_error_rate_is_kept_and_smaller_effects_are_found() -> None:
    random = np.random.default_rng(2)
    runs, alarms, found, found_without = 500, 0, 0, 0
    is_first = np.arange(40) < 20
    for _ in range(runs):
        level = random.normal(0, 2, size=40)
        past, values = level + random.normal(size=40), level + random.normal(size=40)
        for shift in (0.0, 1.2):
            moved = values + shift * is_first
            interval = stratified_difference(cuped(moved, past), is_first=is_first).fixed_interval(ALPHA)
            assert interval is not None
            told = not interval.lower <= 0 <= interval.upper
            if shift:
                found += told
                plain = stratified_difference(moved, is_first=is_first).fixed_interval(ALPHA)
                assert plain is not None
                found_without += not plain.lower <= 0 <= plain.upper
            else:
                alarms += told
    assert alarms / runs <= ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / runs)
    assert found > 1.5 * found_without


def test_without_strata_the_difference_is_welchs() -> None:
    random = np.random.default_rng(3)
    values = np.concatenate((random.normal(size=8), random.normal(1, 3, size=15)))
    is_first = np.arange(23) < 8
    estimate = stratified_difference(values, is_first=is_first)
    welch = ttest_ind(values[is_first], values[~is_first], equal_var=False)
    assert estimate.degrees == pytest.approx(welch.df)
    assert estimate.value / estimate.standard_error == pytest.approx(welch.statistic)
    interval, expected = estimate.fixed_interval(ALPHA), welch.confidence_interval(1 - ALPHA)
    assert interval is not None
    assert (interval.lower, interval.upper) == pytest.approx((expected.low, expected.high))


def test_strata_that_are_unevenly_spread_over_the_groups_do_not_bias_the_difference() -> None:
    random = np.random.default_rng(4)
    hardware = np.repeat([0, 1], 200)
    is_first = np.concatenate((np.arange(200) < 150, np.arange(200) < 50))
    values = 10 * hardware + 0.5 * is_first + random.normal(size=400)
    assert stratified_difference(values, is_first=is_first).value < -3
    estimate = stratified_difference(values, is_first=is_first, strata=hardware)
    assert estimate.value == pytest.approx(0.5, abs=0.25)
    assert estimate.standard_error < 0.15
    interval = estimate.interval(ALPHA, devices_opt=400)
    assert interval is not None and interval.lower <= 0.5 <= interval.upper


def test_a_stratum_that_lacks_a_group_is_left_out_and_said_so() -> None:
    estimate = stratified_difference(
        [1.0, 2.0, 3.0, 5.0, 9.0, 9.5], is_first=[True, True, False, False, True, True], strata=[0, 0, 0, 0, 1, 1]
    )
    assert (estimate.devices, estimate.devices_left_out) == (4, 2)
    assert estimate.value == pytest.approx(-2.5)


def test_what_cannot_be_compared_is_refused_and_equal_values_have_no_interval() -> None:
    equal = stratified_difference([1.0] * 6, is_first=[True] * 3 + [False] * 3)
    assert equal.value == 0 and equal.fixed_interval(ALPHA) is None and equal.interval(ALPHA, devices_opt=6) is None
    assert cuped([1.0, 2.0], [3.0, 3.0]).tolist() == [1.0, 2.0]
    with pytest.raises(InvalidRequestError):
        stratified_difference([1.0, 2.0, 3.0], is_first=[True, False, False])
    with pytest.raises(InvalidRequestError):
        stratified_difference([1.0, math.nan], is_first=[True, False])
    with pytest.raises(InvalidRequestError):
        stratified_difference([1.0, 2.0], is_first=[True])
    with pytest.raises(InvalidRequestError):
        cuped([1.0], [1.0, 2.0])
