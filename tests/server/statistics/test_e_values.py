"""E-values: their error rates, what may be merged, and how many are found among many."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import nct, norm, ttest_ind
from scipy.stats import t as student_t

from fleet_server.errors import InvalidRequestError
from fleet_server.statistics.confidence_sequences import mean_interval, mixture_variance
from fleet_server.statistics.e_values import (
    average,
    e_bh,
    e_bh_levels,
    e_to_p,
    mean_difference_e_value,
    mean_e_value,
    mixture_calibrator,
    power_calibrator,
    product,
    rank_calibrator,
    step_calibrator,
    t_mixture_e_value,
    z_mixture_e_value,
)

ALPHA = 0.05
_E_VALUES = st.lists(st.floats(0, 1e6), min_size=1, max_size=30)


def within(misses: int, runs: int, rate: float = ALPHA) -> bool:
    """Whether a rate of `misses` is at or under `rate`, with three binomial standard errors."""
    return misses / runs <= rate + 3 * math.sqrt(rate * (1 - rate) / runs)


@given(_E_VALUES, st.floats(0.001, 0.5))
def test_e_bh_rejects_the_k_largest_for_the_largest_k_that_reaches_its_threshold(
    found: list[float], alpha: float
) -> None:
    ordered = sorted(found, reverse=True)
    allowed = [k for k in range(1, len(found) + 1) if ordered[k - 1] >= len(found) / (k * alpha) * (1 - 1e-12)]
    rejected = e_bh(found, alpha)
    threshold = ordered[max(allowed) - 1] if allowed else math.inf
    assert rejected.tolist() == [value >= threshold for value in found]


@given(_E_VALUES, st.floats(0.001, 0.5))
def test_the_level_of_a_hypothesis_is_the_smallest_at_which_it_is_rejected(found: list[float], alpha: float) -> None:
    levels = e_bh_levels(found)
    for index, level in enumerate(levels.tolist()):
        if level < 0.99:
            assert e_bh(found, level * 1.0001)[index]
            assert not e_bh(found, level * 0.9999)[index]
    assert (e_bh(found, alpha) == (levels <= alpha * (1 + 1e-12))).all()


def test_without_any_effect_e_bh_finds_something_at_most_alpha_of_the_time_under_full_dependence() -> None:
    random = np.random.default_rng(11)
    runs, hypotheses = 1500, 20
    shared = random.normal(size=(runs, 1))
    p_values = norm.sf(np.sqrt(0.7) * shared + np.sqrt(0.3) * random.normal(size=(runs, hypotheses)))
    found = 0
    for row in p_values:
        found += bool(e_bh([step_calibrator(p, hypotheses=hypotheses, alpha=ALPHA) for p in row], ALPHA).any())
    assert within(found, runs)
    assert found > 0


def test_with_effects_the_share_of_false_ones_among_those_found_stays_at_alpha() -> None:
    random = np.random.default_rng(12)
    runs, hypotheses, true = 300, 20, 5
    shares, found_true = [], 0.0
    for _ in range(runs):
        p_values = norm.sf(random.normal(size=hypotheses) + np.where(np.arange(hypotheses) < true, 4, 0))
        rejected = e_bh([step_calibrator(p, hypotheses=hypotheses, alpha=ALPHA) for p in p_values], ALPHA)
        shares.append(rejected[true:].sum() / max(rejected.sum(), 1))
        found_true += float(rejected[:true].sum())
    assert np.mean(shares) <= ALPHA
    assert found_true / runs / true > 0.5


def test_e_bh_on_step_calibrated_p_values_is_benjamini_yekutieli() -> None:
    random = np.random.default_rng(13)
    for _ in range(200):
        p_values = random.uniform(size=12) ** 4
        ordered = np.sort(p_values)
        limits = np.arange(1, 13) * ALPHA / (12 * (1 / np.arange(1, 13)).sum())
        reached = np.flatnonzero(ordered <= limits)
        expected = p_values <= (limits[reached[-1]] if reached.size else -1)
        found = e_bh([step_calibrator(p, hypotheses=12, alpha=ALPHA) for p in p_values], ALPHA)
        assert (found == expected).all()


@pytest.mark.parametrize(
    "calibrator",
    [
        power_calibrator,
        mixture_calibrator,
        lambda p: power_calibrator(p, kappa=0.9),
        lambda p: step_calibrator(p, hypotheses=7, alpha=0.1),
    ],
)
def test_a_calibrator_has_mean_one_over_uniform_p_values_and_falls(calibrator: Callable[[float], float]) -> None:
    log_p = np.linspace(-60, 0, 60_001)
    values = np.array([calibrator(math.exp(x)) for x in log_p])
    mean = float(np.trapezoid(values * np.exp(log_p), log_p))
    assert 0.93 <= mean <= 1.002  # the mixture's tail below e^-60 holds 1/60
    assert (np.diff(values) <= 1e-12).all()


def test_the_ranks_of_a_permutation_test_have_mean_one_too() -> None:
    assert sum(rank_calibrator(rank, relabellings=999) for rank in range(1, 1001)) / 1000 == pytest.approx(1)


def test_the_mixture_calibrator_is_the_mean_of_the_power_calibrators() -> None:
    for p_value in (1e-9, 0.001, 0.3, 0.9, 0.99995, 0.9999999, 1.0):
        mean, _ = quad(lambda kappa, p=p_value: kappa * p ** (kappa - 1), 0, 1)
        assert mixture_calibrator(p_value) == pytest.approx(mean, rel=1e-6)


def test_merging_follows_its_definitions_also_for_infinite_evidence() -> None:
    assert average([2.0, 4.0]) == 3
    assert average([2.0, 4.0], weights=[3, 1]) == 2.5
    assert average([2.0, math.inf], weights=[1, 0]) == 2
    assert average([1.0, math.inf]) == math.inf
    assert average([]) == product([]) == 1
    assert product([2.0, 0.5, 3.0]) == pytest.approx(3)
    assert product([math.inf, 0.0]) == 0
    assert product([1e200] * 3) == math.inf
    assert e_to_p(20.0) == 0.05 and e_to_p(0.5) == e_to_p(0.0) == 1


def test_the_t_mixture_is_the_mean_ratio_of_t_densities() -> None:
    for t, size, variance in ((0.4, 6, 0.3), (3.1, 15, 0.1), (-2.2, 40, 1.0)):
        ratio, _ = quad(
            lambda d, t=t, n=size, g=variance: (
                norm.pdf(d, scale=math.sqrt(g)) * nct.pdf(t, n - 1, d * math.sqrt(n)) / student_t.pdf(t, n - 1)
            ),
            -8 * math.sqrt(variance), 8 * math.sqrt(variance), limit=200,
        )  # fmt: skip
        assert t_mixture_e_value(t, degrees=size - 1, size=size, variance=variance) == pytest.approx(ratio, rel=1e-5)


def test_the_z_mixture_reaches_its_threshold_where_the_mean_interval_ends() -> None:
    values = np.random.default_rng(3).normal(size=60)
    interval = mean_interval(values, ALPHA, devices_opt=40)
    assert interval is not None
    for end in (interval.lower, interval.upper):
        z = (values.mean() - end) * math.sqrt(60) / values.std(ddof=1)
        evidence = z_mixture_e_value(z, size=60, variance=mixture_variance(ALPHA, devices_opt=40))
        assert evidence == pytest.approx(1 / ALPHA, rel=1e-9)


def test_few_normal_devices_looked_at_as_they_join_reach_one_over_alpha_at_most_alpha_of_the_time() -> None:
    random = np.random.default_rng(14)
    runs, alarms, plain, evidence = 1000, 0, 0, []
    variance = mixture_variance(ALPHA, devices_opt=20)
    for _ in range(runs):
        values = random.normal(0.3, 2, size=40)
        looks = [mean_e_value(values[:n], null_mean=0.3, devices_opt=20) for n in range(2, 41)]
        alarms += max(looks) >= 1 / ALPHA
        evidence.append(looks[3])
        z_scores = [(values[:n].mean() - 0.3) * n**0.5 / values[:n].std(ddof=1) for n in range(2, 41)]
        plain += any(
            z_mixture_e_value(z, size=n, variance=variance) >= 1 / ALPHA
            for n, z in zip(range(2, 41), z_scores, strict=True)
        )
    assert within(alarms, runs)
    assert np.mean(evidence) <= 1.2
    assert not within(plain, runs)  # why few devices need the t mixture


def test_unequal_groups_of_devices_keep_the_error_rate_and_a_shift_is_found() -> None:
    random = np.random.default_rng(15)
    runs, alarms, found = 600, 0, 0
    for _ in range(runs):
        first, second = random.normal(size=12), random.normal(0, 2, size=30)
        alarms += mean_difference_e_value(first, second, devices_opt=10) >= 1 / ALPHA
        found += mean_difference_e_value(first + 4, second, devices_opt=10) >= 1 / ALPHA
    assert within(alarms, runs)
    assert found > 0.95 * runs


def test_two_groups_are_told_apart_by_welchs_t_and_their_harmonic_size() -> None:
    random = np.random.default_rng(16)
    first, second = random.normal(size=9), random.normal(1, 3, size=21)
    welch = ttest_ind(first, second, equal_var=False)
    expected = t_mixture_e_value(
        float(welch.statistic), degrees=float(welch.df), size=1 / (1 / 9 + 1 / 21),
        variance=mixture_variance(ALPHA, devices_opt=10),
    )  # fmt: skip
    assert mean_difference_e_value(first, second, devices_opt=10) == pytest.approx(expected)


def test_devices_that_cannot_tell_are_no_evidence() -> None:
    assert mean_e_value([1.0], null_mean=0, devices_opt=10) == 1
    assert mean_e_value([0.1] * 9, null_mean=0, devices_opt=10) == 1
    assert mean_e_value([0.1, math.nan], null_mean=0, devices_opt=10) == 1
    assert mean_difference_e_value([1, 1], [2, 2], devices_opt=10) == 1
    assert mean_difference_e_value([1, 2], [2], devices_opt=10) == 1


def test_what_is_no_e_value_or_p_value_is_refused() -> None:
    for wrong in ([-1.0], [math.nan], [[1.0]]):
        with pytest.raises(InvalidRequestError):
            e_bh(wrong, ALPHA)
    for p_value in (-0.1, 1.1, math.nan):
        with pytest.raises(InvalidRequestError):
            mixture_calibrator(p_value)
    with pytest.raises(InvalidRequestError):
        step_calibrator(0.1, hypotheses=0, alpha=ALPHA)
    with pytest.raises(InvalidRequestError):
        rank_calibrator(0, relabellings=10)
    with pytest.raises(InvalidRequestError):
        average([1.0, 2.0], weights=[0, 0])
    with pytest.raises(InvalidRequestError):
        t_mixture_e_value(math.nan, degrees=3, size=4, variance=1)
