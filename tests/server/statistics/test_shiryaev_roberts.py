"""The error-rate watch: delays, the time to a false alarm, batches, and the onset."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_server.errors import InvalidRequestError
from fleet_server.statistics.shiryaev_roberts import (
    RATIOS,
    is_alarm,
    log_evidence,
    onset,
    rate_increase_log_e_value,
    start,
    update,
)

EVENTS_TO_FALSE_ALARM = 100_000


def delays(rate: float, *, runs: int, seed: int, longest: int, threshold: float, batch: int = 1) -> np.ndarray:
    """Events until the alarm of each run, infinite where there is none in `longest` events."""
    random = np.random.default_rng(seed)
    masses, found = start(runs), np.full(runs, np.inf)
    for seen in range(batch, longest + 1, batch):
        errors = random.binomial(batch, rate, size=runs)
        masses = update(masses, errors=errors, events=np.full(runs, batch), base_rate=0.1)
        found[is_alarm(masses, events_to_false_alarm=threshold) & np.isinf(found)] = seen
    return found


@pytest.mark.parametrize(("rate", "documented"), [(0.15, 648), (0.2, 180), (0.3, 67)])
def test_a_risen_error_rate_is_found_with_the_documented_median_delay(rate: float, documented: int) -> None:
    found = delays(rate, runs=400, seed=21, longest=4 * documented, threshold=EVENTS_TO_FALSE_ALARM)
    assert 0.7 * documented <= np.median(found) <= 1.1 * documented


def test_without_a_change_the_mean_time_to_a_false_alarm_is_at_least_the_threshold() -> None:
    threshold, longest = 100, 4000
    found = np.minimum(delays(0.1, runs=400, seed=22, longest=longest, threshold=threshold), longest)
    assert found.mean() >= threshold  # cut at `longest`, the true mean is larger
    assert (found < longest).mean() > 0.5
    batched = np.minimum(delays(0.1, runs=400, seed=23, longest=longest, threshold=threshold, batch=20), longest)
    assert batched.mean() >= threshold


def test_single_events_follow_the_classical_recursion() -> None:
    errors = np.random.default_rng(24).random(300) < 0.15
    masses, expected = start(), np.zeros(len(RATIOS))
    for error in errors:
        masses = update(masses, errors=int(error), events=1, base_rate=0.1)
        risen = 0.1 * np.array(RATIOS)
        expected = (expected + 1) * np.where(error, risen / 0.1, (1 - risen) / 0.9)
        assert float(log_evidence(masses)) == pytest.approx(math.log(expected.mean()))


@given(st.integers(0, 50), st.integers(1, 50), st.floats(0.001, 0.9))
def test_a_batch_from_nothing_is_the_likelihood_ratio_times_its_events(wrong: int, right: int, base: float) -> None:
    events = wrong + right
    masses = update(start(), errors=wrong, events=events, base_rate=base)
    alone = rate_increase_log_e_value(errors=wrong, events=events, base_rate=base)
    assert float(log_evidence(masses)) == pytest.approx(float(alone) + math.log(events))


def test_an_e_value_has_mean_one_at_the_base_rate_and_less_below() -> None:
    counts = np.arange(41)
    log_e = rate_increase_log_e_value(errors=counts, events=np.full(41, 40), base_rate=0.1)
    for rate, mean in ((0.1, 1.0), (0.07, None)):
        chances = np.array([math.comb(40, k) * rate**k * (1 - rate) ** (40 - k) for k in counts])
        assert float(chances @ np.exp(log_e)) == pytest.approx(mean) if mean else float(chances @ np.exp(log_e)) < 1


def test_huge_batches_and_empty_ones_stay_finite_and_change_nothing_respectively() -> None:
    masses = update(start(), errors=3 * 10**8, events=10**9, base_rate=0.1)
    assert np.isfinite(masses).all() and is_alarm(masses, events_to_false_alarm=1e12)
    assert (update(masses, errors=0, events=0, base_rate=0.1) == masses).all()
    fewer = update(masses, errors=0, events=10**10, base_rate=0.1)
    assert not is_alarm(fewer, events_to_false_alarm=1e12)
    assert (update(start(), errors=0, events=0, base_rate=0.1) == start()).all()


def test_many_watches_with_their_own_base_rates_are_updated_together() -> None:
    base = np.array([0.01, 0.2, 0.6])
    together = update(start(3), errors=[1, 2, 3], events=[10, 10, 10], base_rate=base)
    for index, (errors, rate) in enumerate(zip((1, 2, 3), base, strict=True)):
        assert together[index] == pytest.approx(update(start(), errors=errors, events=10, base_rate=rate))


def test_the_onset_is_where_the_rate_rose() -> None:
    random = np.random.default_rng(25)
    errors = np.concatenate((random.binomial(50, 0.1, 40), random.binomial(50, 0.3, 12)))
    assert abs(onset(errors=errors, events=np.full(52, 50), base_rate=0.1) - 40) <= 1


@pytest.mark.parametrize(
    ("errors", "events", "base"), [(2, 1, 0.1), (-1, 1, 0.1), (0, 1, 0.0), (0, 1, 1.0), (0, math.inf, 0.1)]
)
def test_batches_that_are_no_counts_and_rates_that_are_none_are_refused(
    errors: int, events: float, base: float
) -> None:
    with pytest.raises(InvalidRequestError):
        update(start(), errors=errors, events=events, base_rate=base)
    with pytest.raises(InvalidRequestError):
        onset(errors=errors, events=events, base_rate=base)
