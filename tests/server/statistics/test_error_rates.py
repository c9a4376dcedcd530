"""Seeded simulations: looking again and again does not raise the stated error rate."""

from __future__ import annotations

import numpy as np
import pytest

from fleet_server.statistics.binomial_sequences import rate_interval
from fleet_server.statistics.confidence_sequences import mean_interval

ALPHA = 0.05


@pytest.mark.parametrize("rate", [0.02, 0.3])
def test_a_rate_watched_at_every_look_leaves_its_interval_in_at_most_alpha_of_all_runs(rate: float) -> None:
    random = np.random.default_rng(20_240_501)
    runs, looks = 300, (5, 10, 20, 40, 60, 80, 120, 160, 240, 320, 480, 640)
    intervals = {}
    misses = 0
    for _ in range(runs):
        successes = np.cumsum(random.random(looks[-1]) < rate)
        seen = [(int(successes[n - 1]), n) for n in looks]
        for key in seen:
            if key not in intervals:
                intervals[key] = rate_interval(*key, ALPHA, trials_opt=100)
        misses += any(not intervals[key].lower <= rate <= intervals[key].upper for key in seen)
    assert misses / runs <= ALPHA


def test_a_fixed_interval_watched_the_same_way_errs_more_often_than_it_states() -> None:
    """The reason for sequences: the same looks through a 95 % normal interval."""
    random = np.random.default_rng(20_240_501)
    runs, looks, rate = 300, (20, 40, 60, 80, 120, 160, 240, 320, 480, 640), 0.3
    misses = 0
    for _ in range(runs):
        means = (np.cumsum(random.random(looks[-1]) < rate) / np.arange(1, looks[-1] + 1))[np.array(looks) - 1]
        misses += bool(np.any(np.abs(means - rate) > 1.96 * np.sqrt(means * (1 - means) / looks)))
    assert misses / runs > 2 * ALPHA


def test_device_means_watched_as_devices_join_leave_their_interval_in_at_most_alpha_of_all_runs() -> None:
    random = np.random.default_rng(7)
    runs, misses = 300, 0
    for _ in range(runs):
        values = random.normal(0.1, 0.5, size=200)  # devices that differ, true mean 0.1
        for devices in range(10, 201, 10):
            interval = mean_interval(values[:devices], ALPHA, devices_opt=50)
            assert interval is not None
            if not interval.lower <= 0.1 <= interval.upper:
                misses += 1
                break
    assert misses / runs <= ALPHA
