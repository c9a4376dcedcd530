"""The confidence sequence of a handful of devices: the t mixture, inverted."""

from __future__ import annotations

import numpy as np
import pytest

from fleet_server.statistics.confidence_sequences import few_devices_interval, mean_interval
from fleet_server.statistics.e_values import mean_e_value


@pytest.mark.parametrize("devices", [5, 9, 40])
def test_its_ends_are_where_the_e_value_of_the_mean_is_one_over_alpha(devices: int) -> None:
    values = np.random.default_rng(devices).normal(3, 2, devices)
    interval = few_devices_interval(values, 0.05, devices_opt=2)
    assert interval is not None
    for end in (interval.lower, interval.upper):
        evidence = mean_e_value(values, null_mean=end, devices_opt=2, alpha_opt=0.05)
        assert evidence == pytest.approx(20, rel=1e-9)


def test_it_is_wider_than_the_asymptotic_one_and_meets_it_for_many_devices() -> None:
    values = np.random.default_rng(1).normal(size=20_000)
    ratios = []
    for count in (16, 20_000):
        few = few_devices_interval(values[:count], 0.05, devices_opt=50)
        asymptotic = mean_interval(values[:count], 0.05, devices_opt=50)
        assert few is not None
        assert asymptotic is not None
        ratios.append((few.upper - few.lower) / (asymptotic.upper - asymptotic.lower))
    assert ratios[0] > 1.1
    assert ratios[1] == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("values", [[], [1.0], [1.0, 2.0, 3.0], [2.0] * 8, [1.0, float("nan"), 2.0, 3.0, 5.0]])
def test_too_few_equal_or_unknown_values_give_none(values: list[float]) -> None:
    assert few_devices_interval(values, 0.05, devices_opt=2) is None


def test_the_truth_is_left_in_at_most_alpha_of_sequences_that_are_looked_at_as_devices_join() -> None:
    random = np.random.default_rng(7)
    missed, runs = 0, 400
    for _ in range(runs):
        values = random.normal(size=12)
        looks = [few_devices_interval(values[:count], 0.05, devices_opt=2) for count in range(2, 13)]
        missed += any(look is not None and not look.lower <= 0 <= look.upper for look in looks)
    assert missed / runs <= 0.05 + 3 * (0.05 * 0.95 / runs) ** 0.5
