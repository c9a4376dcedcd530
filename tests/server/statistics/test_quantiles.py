"""Quantiles at any look: golden values, histograms against raw values, coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet_server.errors import InvalidRequestError
from fleet_server.statistics.binomial_sequences import log_evidence, rate_interval
from fleet_server.statistics.quantiles import (
    double_stitching_bound,
    histogram_quantile_ab_p_value,
    histogram_quantile_interval,
    quantile_ab_p_value,
    quantile_interval,
    uniform_quantile_interval,
)

SEEN = np.arange(1, 1001)


@pytest.mark.parametrize(
    ("tau", "shift", "expected", "printed"),
    [(0.5, 70, 0.814704, 5e-7), (0.5, 85, 0.0838055, 5e-8), (0.5, 100, 0.0054947, 5e-8), (0.9, 55, 0.0340463, 5e-8)],
)
def test_the_comparison_of_quantiles_agrees_with_the_reference_library(
    tau: float, shift: int, expected: float, printed: float
) -> None:
    assert quantile_ab_p_value(SEEN, SEEN + shift, tau=tau, size_opt=100) == pytest.approx(expected, abs=printed)
    assert quantile_ab_p_value(SEEN + shift, SEEN, tau=tau, size_opt=100) == pytest.approx(expected, abs=printed)


def test_the_double_stitching_bound_agrees_with_the_reference_library() -> None:
    assert double_stitching_bound(0.5, 1000, 0.05, size_opt=100) == pytest.approx(68.62803, abs=5e-6)
    bounds = [double_stitching_bound(tau, 100, 0.05, size_opt=100) for tau in (0.45, 0.5, 0.55)]
    assert bounds == sorted(bounds, reverse=True)


def test_the_evidence_against_a_rate_is_at_its_threshold_at_the_ends_of_the_rate_interval() -> None:
    interval = rate_interval(15, 50, 0.05, trials_opt=50)
    for end in (interval.lower, interval.upper):
        assert float(log_evidence(15, 50, end, trials_opt=50)) == pytest.approx(math.log(20), abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.5, 0.9, 0.95]), st.sampled_from([3, 40, 400, 3000]))
def test_a_histogram_says_the_same_as_its_values_but_for_the_width_of_a_bucket(
    seed: int, tau: float, size: int
) -> None:
    values = np.random.default_rng(seed).lognormal(size=size)
    edges = np.geomspace(1e-6, 1e6, 500)
    counts, _ = np.histogram(values, edges)
    raw = quantile_interval(values, tau, 0.05, size_opt=100)
    binned = histogram_quantile_interval(counts, edges, tau, 0.05, size_opt=100)
    assert binned.lower <= raw.lower <= raw.upper <= binned.upper
    ratio = edges[1] / edges[0]
    if raw.is_finite:
        assert binned.lower * ratio >= raw.lower * (1 - 1e-12)
        assert binned.upper <= raw.upper * ratio * (1 + 1e-12)
    assert (raw.lower == -math.inf) == (binned.lower == -math.inf)
    assert (raw.upper == math.inf) == (binned.upper == math.inf)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.5, 0.9]), st.floats(0, 1.5))
def test_the_p_value_of_histograms_is_never_below_that_of_their_values(seed: int, tau: float, shift: float) -> None:
    random = np.random.default_rng(seed)
    first, second = random.normal(size=300), random.normal(shift, 1, size=200)
    edges = np.linspace(-8, 10, 700)
    counts = [np.histogram(side, edges)[0] for side in (first, second)]
    raw = quantile_ab_p_value(first, second, tau=tau, size_opt=100)
    binned = histogram_quantile_ab_p_value(*counts, tau=tau, size_opt=100)
    assert raw * (1 - 1e-9) <= binned <= min(1, raw * 5 + 0.02)


def test_an_end_of_the_interval_is_where_the_comparison_of_one_sample_rejects() -> None:
    values = np.sort(np.random.default_rng(5).normal(size=400))
    interval = quantile_interval(values, 0.9, 0.05, size_opt=100)
    lowest = int(np.searchsorted(values, interval.lower))
    evidence = log_evidence([lowest, lowest + 1], 400, 0.9, trials_opt=100)  # values under and up to the end
    assert evidence[0] > math.log(20) >= evidence[1]


def test_quantiles_looked_at_again_and_again_leave_their_interval_in_at_most_alpha_of_all_runs() -> None:
    random = np.random.default_rng(6)
    looks, runs = [10, 20, 40, 60, 100, 150, 200, 300, 400], 250
    misses, uniform, fixed = 0, 0, 0
    truth = math.log(10)
    for _ in range(runs):
        values = random.exponential(size=looks[-1])
        intervals = [quantile_interval(values[:n], 0.9, 0.05, size_opt=100) for n in looks]
        misses += not all(interval.lower <= truth <= interval.upper for interval in intervals)
        intervals = [uniform_quantile_interval(values[:n], 0.9, 0.05, size_opt=50) for n in looks]
        uniform += not all(interval.lower <= truth <= interval.upper for interval in intervals)
        below = np.array([(values[:n] <= truth).mean() for n in looks])
        fixed += bool(np.any(np.abs(below - 0.9) > 1.96 * np.sqrt(0.09 / np.array(looks))))
    assert misses / runs <= 0.05
    assert uniform <= misses + 2
    assert fixed / runs > 0.1


def test_equal_quantiles_compared_again_and_again_keep_the_error_rate() -> None:
    random = np.random.default_rng(7)
    runs, alarms = 200, 0
    for _ in range(runs):
        first, second = random.normal(0, 1, size=400), random.normal(0, 3, size=400)  # medians are equal, spreads not
        alarms += any(
            quantile_ab_p_value(first[:n], second[:n], size_opt=100) <= 0.05 for n in (20, 50, 100, 200, 300, 400)
        )
    assert alarms / runs <= 0.05


def test_the_interval_for_all_quantiles_is_wider() -> None:
    alone = quantile_interval(SEEN, 0.9, 0.05, size_opt=100)
    together = uniform_quantile_interval(SEEN, 0.9, 0.05, size_opt=100)
    assert together.lower < alone.lower <= 900 <= alone.upper < together.upper


def test_few_values_bound_nothing() -> None:
    for values in ([], [1.0], [1.0, 2.0]):
        for interval in (
            quantile_interval(values, 0.5, 0.05, size_opt=100),
            uniform_quantile_interval(values, 0.5, 0.05, size_opt=100),
        ):
            assert (interval.lower, interval.upper) == (-math.inf, math.inf)
    assert quantile_ab_p_value([], [1.0], size_opt=100) == 1
    assert histogram_quantile_ab_p_value([0, 0], [1, 2], size_opt=100) == 1
    nothing = histogram_quantile_interval([0, 0], [1, 2, 3], 0.5, 0.05, size_opt=100)
    assert (nothing.lower, nothing.upper) == (-math.inf, math.inf)


def test_what_is_no_sample_histogram_or_quantile_is_refused() -> None:
    for call in (
        lambda: quantile_interval([math.nan], 0.5, 0.05, size_opt=100),
        lambda: quantile_interval([1.0], 1.0, 0.05, size_opt=100),
        lambda: histogram_quantile_interval([1, 2], [0, 1], 0.5, 0.05, size_opt=100),
        lambda: histogram_quantile_interval([1, -2], [0, 1, 2], 0.5, 0.05, size_opt=100),
        lambda: histogram_quantile_ab_p_value([1], [1, 2], size_opt=100),
        lambda: double_stitching_bound(0.5, 1000, 0.05, size_opt=100, s=1.0),
        lambda: double_stitching_bound(0, 1000, 0.05, size_opt=100),
    ):
        with pytest.raises(InvalidRequestError):
            call()
