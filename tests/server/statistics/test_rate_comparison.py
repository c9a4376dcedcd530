"""Two rates, and the sizes of groups, compared while they come in."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fleet_server.errors import InvalidRequestError
from fleet_server.statistics.rate_comparison import (
    is_sample_ratio_broken,
    rate_difference_interval,
    relative_lift,
    relative_lift_interval,
    sample_ratio_log_e_value,
    sample_ratio_p_value,
    sample_ratio_sequential_p_value,
)

ALPHA = 0.05


def test_the_relative_lift_and_its_interval_agree_with_the_published_example() -> None:
    lift, error = relative_lift(control=(1396, 3000), treated=(2422, 3461))
    assert lift == pytest.approx(0.50386, abs=5e-6)
    interval = relative_lift_interval(control=(1396, 3000), treated=(2422, 3461), alpha=ALPHA, trials_opt=5000)
    assert interval is not None
    assert (interval.lower, interval.upper) == pytest.approx((0.40098, 0.60675), abs=5e-6)
    random = np.random.default_rng(1)
    drawn = random.binomial(3461, 2422 / 3461, 20_000) / 3461 / (random.binomial(3000, 1396 / 3000, 20_000) / 3000)
    assert error == pytest.approx(drawn.std(), rel=0.03)


def test_rates_watched_as_events_come_leave_their_intervals_in_at_most_alpha_of_all_runs() -> None:
    random = np.random.default_rng(2)
    runs, lift_missed, difference_missed = 600, 0, 0
    looks = np.array([50, 100, 150, 200, 300, 400, 600, 800, 1200])
    for _ in range(runs):
        control = np.cumsum(random.random(1200) < 0.4)[looks - 1]
        treated = np.cumsum(random.random(1200) < 0.5)[looks - 1]
        lifts, differences = [], []
        for n, k, j in zip(looks.tolist(), control.tolist(), treated.tolist(), strict=True):
            lifts.append(relative_lift_interval(control=(k, n), treated=(j, n), alpha=ALPHA, trials_opt=500))
            differences.append(rate_difference_interval(control=(k, n), treated=(j, n), alpha=ALPHA, trials_opt=500))
        lift_missed += not all(i is not None and i.lower <= 0.25 <= i.upper for i in lifts)
        difference_missed += not all(i is not None and i.lower <= 0.1 <= i.upper for i in differences)
    assert lift_missed / runs <= ALPHA
    assert difference_missed / runs <= ALPHA


def test_rates_without_variance_have_no_interval() -> None:
    assert rate_difference_interval(control=(0, 50), treated=(0, 60), alpha=ALPHA, trials_opt=100) is None
    assert relative_lift_interval(control=(50, 50), treated=(60, 60), alpha=ALPHA, trials_opt=100) is None


def test_the_sample_ratio_tests_agree_with_the_published_examples() -> None:
    assert sample_ratio_p_value([821588, 815482]) == pytest.approx(1.82e-6, abs=5e-9)
    assert sample_ratio_sequential_p_value([500, 600], concentration=1e4) == pytest.approx(0.67145, abs=5e-6)
    assert is_sample_ratio_broken([821588, 815482], alpha=ALPHA)
    assert is_sample_ratio_broken([821588, 815482], alpha=1e-12)  # by the test for one look
    assert not is_sample_ratio_broken([500, 600], alpha=0.001)


def test_a_fair_assignment_watched_again_and_again_is_called_broken_in_at_most_alpha_of_all_runs() -> None:
    random = np.random.default_rng(3)
    runs, weights, looks = 400, [0.01, 0.49, 0.5], range(200, 20_001, 400)
    sequential, fixed = 0, 0
    for _ in range(runs):
        sizes = np.cumsum(random.multinomial(200, weights, size=100), axis=0)
        seen = [sizes[look // 200 - 1] for look in looks]
        sequential += any(
            sample_ratio_sequential_p_value(size, weights=weights, concentration=1e3) <= ALPHA for size in seen
        )
        fixed += any(sample_ratio_p_value(size, weights=weights) <= ALPHA for size in seen)
    assert sequential / runs <= ALPHA
    assert fixed / runs > 3 * ALPHA


def test_an_assignment_that_loses_a_tenth_of_one_arm_is_called_broken() -> None:
    assert sample_ratio_log_e_value([50_000, 45_000]) > math.log(1e6)
    assert is_sample_ratio_broken([5_000, 4_500], weights=[1, 1], alpha=ALPHA)


def test_evidence_of_group_sizes_has_mean_one() -> None:
    sizes = np.arange(41)
    e_values = np.exp([sample_ratio_log_e_value([k, 40 - k], weights=[3, 1], concentration=10) for k in sizes])
    chances = np.array([math.comb(40, k) * 0.75**k * 0.25 ** (40 - k) for k in sizes])
    assert float(chances @ e_values) == pytest.approx(1)


def test_numbers_that_are_no_counts_are_refused() -> None:
    for call in (
        lambda: relative_lift(control=(0, 10), treated=(1, 10)),
        lambda: relative_lift(control=(11, 10), treated=(1, 10)),
        lambda: rate_difference_interval(control=(0, 0), treated=(1, 10), alpha=ALPHA, trials_opt=10),
        lambda: sample_ratio_p_value([5]),
        lambda: sample_ratio_p_value([5, -1]),
        lambda: sample_ratio_p_value([5, 5], weights=[1, 0]),
        lambda: sample_ratio_log_e_value([5, 5], concentration=0),
    ):
        with pytest.raises(InvalidRequestError):
            call()
