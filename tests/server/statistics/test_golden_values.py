"""The figures of the reference implementations, and what the functions refuse."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_server.errors import InvalidRequestError
from fleet_server.statistics.binomial_sequences import rate_interval
from fleet_server.statistics.confidence_sequences import mean_interval, unit_half_width
from fleet_server.statistics.normal_mixture import best_rho, two_sided_bound


def test_the_normal_mixture_agrees_with_the_reference_library() -> None:
    assert best_rho(100, 0.05) == pytest.approx(12.60056, abs=5e-6)
    assert two_sided_bound(100, 0.05, v_opt=100) == pytest.approx(30.35209, abs=5e-6)


@pytest.mark.parametrize(
    ("successes", "trials", "trials_opt", "expected"),
    [(700, 1000, 100, (0.651629, 0.745949)), (15, 50, 50, (0.129556, 0.511896))],
)
def test_the_rate_interval_agrees_with_the_reference_library(
    successes: int, trials: int, trials_opt: float, expected: tuple[float, float]
) -> None:
    interval = rate_interval(successes, trials, 0.05, trials_opt=trials_opt)
    assert (interval.lower, interval.upper) == pytest.approx(expected, abs=1.5e-6)


def test_the_mean_interval_has_the_half_width_of_equation_9() -> None:
    rho = math.sqrt((-2 * math.log(0.05) + math.log(1 - 2 * math.log(0.05))) / 50)
    expected = math.sqrt(2 * (20 * rho**2 + 1) / (20 * rho) ** 2 * math.log(math.sqrt(20 * rho**2 + 1) / 0.05))
    assert unit_half_width(20, 0.05, devices_opt=50) == pytest.approx(expected, rel=1e-12)
    values = [0.0, 1.0] * 10
    interval = mean_interval(values, 0.05, devices_opt=50)
    assert interval is not None
    deviation = math.sqrt(20 * 0.25 / 19)
    assert (interval.lower, interval.upper) == pytest.approx((0.5 - deviation * expected, 0.5 + deviation * expected))


@given(st.integers(1, 5000), st.floats(0, 1), st.sampled_from([0.001, 0.05, 0.5]), st.sampled_from([1, 100, 10_000]))
def test_the_rate_interval_holds_the_observed_rate_and_mirrors_failures(
    trials: int, share: float, alpha: float, trials_opt: float
) -> None:
    successes = round(trials * share)
    interval = rate_interval(successes, trials, alpha, trials_opt=trials_opt)
    assert 0 <= interval.lower <= successes / trials <= interval.upper <= 1
    mirrored = rate_interval(trials - successes, trials, alpha, trials_opt=trials_opt)
    assert mirrored.lower == pytest.approx(1 - interval.upper, abs=1e-12)


def test_more_trials_narrow_the_interval_and_a_smaller_alpha_widens_it() -> None:
    intervals = [rate_interval(n // 10, n, 0.05, trials_opt=100) for n in (10, 100, 1000, 100_000, 10_000_000)]
    widths = [interval.upper - interval.lower for interval in intervals]
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] < 0.001
    assert rate_interval(10, 100, 0.01, trials_opt=100).upper > rate_interval(10, 100, 0.1, trials_opt=100).upper


def test_without_trials_every_rate_is_possible() -> None:
    interval = rate_interval(0, 0, 0.05, trials_opt=100)
    assert (interval.lower, interval.upper) == (0.0, 1.0)


@pytest.mark.parametrize("values", [[], [1.0], [0.1] * 20, [0.1, math.nan, 0.2], [0.1, math.inf, 0.2]])
def test_values_that_cannot_tell_give_no_interval(values: list[float]) -> None:
    assert mean_interval(values, 0.05, devices_opt=50) is None


@pytest.mark.parametrize(("successes", "trials", "alpha"), [(5, 4, 0.05), (-1, 4, 0.05), (1, 4, 0.0), (1, 4, 1.0)])
def test_numbers_that_are_no_counts_or_levels_are_refused(successes: int, trials: int, alpha: float) -> None:
    with pytest.raises(InvalidRequestError):
        rate_interval(successes, trials, alpha, trials_opt=100)
