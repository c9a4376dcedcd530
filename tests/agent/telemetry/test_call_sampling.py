"""Sampling: within a budget, every call as likely as any other, and nothing left out where there is room."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.telemetry import waiting_samples
from edge_agent.telemetry.call_sampling import (
    FLOOR_PER_S,
    LEAST_SHARE,
    CallSampler,
    Demand,
    SamplingBudget,
    believed_rate,
    fair_shares,
    intervals,
    sampling_budget,
)
from edge_agent.telemetry.waiting_samples import CallSample, WaitingSamples, copied, joined, together

RATES = st.floats(0.0, 1e6)
COSTS = st.floats(1e-7, 1.0)


class Watched:
    """A series as the budget sees it."""

    def __init__(self) -> None:
        self.sampler = CallSampler()
        self.has_features = True
        self.answered = 0


def test_a_quiet_series_is_sampled_at_every_call() -> None:
    sampler = CallSampler()

    assert all(sampler.takes() for _ in range(1_000))
    assert intervals([Demand(10.0, 1e-3)], budget=0.01, most_per_s=100.0) == [1.0]


def test_every_call_of_a_busy_series_is_as_likely_as_any_other_whatever_the_rhythm() -> None:
    sampler, randomness = CallSampler(), random.Random(5)
    sampler.set_interval(7.3, randomness)
    taken = np.zeros(70, dtype=int)
    for number in range(700_000):
        if number % 1_000 == 0:  # as the budget does again and again
            sampler.set_interval(8.5 if sampler.interval == 7.3 else 7.3, randomness)
        taken[number % 70] += sampler.takes()

    expected = taken.mean()
    assert 700_000 / 8.5 < taken.sum() < 700_000 / 7.3
    assert ((taken - expected) ** 2 / expected).sum() < 110  # chi-squared with 69 degrees of freedom: p = 0.001


def test_a_sample_does_not_tell_the_next_one() -> None:
    """Gaps without memory: an even stride would see the same one of five cameras for ever."""
    sampler = CallSampler()
    sampler.set_interval(5.0, random.Random(3))
    places = [number % 5 for number in range(20_000) if sampler.takes()]

    assert np.bincount(places, minlength=5).min() > 0.8 * len(places) / 5


@given(demands=st.lists(st.builds(Demand, RATES, COSTS), max_size=8), budget=st.floats(1e-6, 0.1))
def test_what_is_sampled_costs_no_more_than_the_budget_but_for_the_floor(demands: list[Demand], budget: float) -> None:
    chosen = intervals(demands, budget=budget, most_per_s=50.0)

    spent = sum(
        demand.calls_per_s / interval * demand.cost_s
        for demand, interval in zip(demands, chosen, strict=True)
        if interval > 1.0 and demand.calls_per_s / interval > FLOOR_PER_S * 1.0001
    )
    assert spent <= budget * 1.02
    for demand, interval in zip(demands, chosen, strict=True):
        assert interval >= 1.0
        assert demand.calls_per_s > FLOOR_PER_S or interval == 1.0
        assert demand.calls_per_s / interval <= 50.6


@given(wanted=st.lists(st.floats(0, 1e3), max_size=10), budget=st.floats(0, 1e3))
def test_shares_are_fair_and_leave_nothing_that_somebody_wants(wanted: list[float], budget: float) -> None:
    granted = fair_shares(wanted, budget)

    assert all(got <= want + 1e-9 for got, want in zip(granted, wanted, strict=True))
    assert sum(granted) == pytest.approx(min(sum(wanted), budget))
    unmet = [got for got, want in zip(granted, wanted, strict=True) if got < want - 1e-6]
    assert not unmet or max(granted) <= min(unmet) + 1e-6


def test_a_rise_of_the_rate_counts_at_once_and_a_fall_bit_by_bit() -> None:
    assert believed_rate(10.0, 1_000.0) == 1_000.0
    assert believed_rate(1_000.0, 0.0) == 800.0


def test_sampling_makes_do_with_what_the_rest_leaves_and_never_ends() -> None:
    assert sampling_budget(0.01, 0.002) == pytest.approx(0.008)
    assert sampling_budget(0.01, 0.5) == LEAST_SHARE * 0.01


def test_the_budget_follows_the_load_and_the_measured_cost() -> None:
    busy, quiet = Watched(), Watched()
    budget = SamplingBudget(max_cpu_share=0.01, most_per_s=1e9, start_s=0.0, seed=1)
    series = {"busy": busy, "quiet": quiet}
    for second in range(1, 20):
        busy.answered += 1_000
        quiet.answered += 3
        budget.adapt(series, float(second))
        budget.spent("busy", calls=10, cost_s=10 * 100e-6)
        budget.spent("quiet", calls=3, cost_s=3 * 100e-6)

    assert quiet.sampler.interval == 1.0
    sampled_per_s = 1_000 / busy.sampler.interval
    assert 0.5 * 0.01 < sampled_per_s * 100e-6 < 0.01

    for second in range(20, 60):
        budget.adapt(series, float(second))
    assert busy.sampler.interval == 1.0


def sample(number: int, *, size: int = 12) -> CallSample[str]:
    inputs = {"x": np.full((1, size // 4), number, dtype=np.float32)}
    return CallSample("series", inputs, None, size, 0.0)


def test_when_the_room_is_used_up_a_random_half_goes_whether_it_came_early_or_late() -> None:
    kept = np.zeros(2_000, dtype=int)
    random.seed(7)
    for _ in range(300):
        waiting: WaitingSamples[str] = WaitingSamples()
        probability = 1.0
        for number in range(2_000):
            if random.random() < probability and not waiting.put(sample(number)):
                probability /= 2
        assert len(waiting) <= waiting_samples.MAX_WAITING
        for one in waiting.take():
            kept[int(one.inputs["x"][0, 0])] += 1

    halves = kept[:1_000].sum(), kept[1_000:].sum()
    assert abs(halves[0] - halves[1]) < 0.1 * sum(halves)


def test_the_room_is_bounded_in_bytes_too() -> None:
    waiting: WaitingSamples[str] = WaitingSamples()
    size = waiting_samples.MAX_WAITING_BYTES // 10

    assert not all(waiting.put(sample(number, size=size)) for number in range(12))
    assert len(waiting) <= 11
    assert len(waiting.take()) + len(waiting) <= 11


def test_inputs_that_are_too_large_are_not_copied() -> None:
    assert copied({"x": np.zeros(waiting_samples.MAX_INPUT_BYTES + 1, dtype=np.uint8)}) == (None, 0)


def test_samples_that_are_alike_are_absorbed_together_in_their_order_and_others_apart() -> None:
    samples = [
        sample(1),
        sample(2),
        sample(3, size=40),
        sample(4),
        CallSample("other", sample(5).inputs, None, 12, 0.0),
    ]
    scalar = CallSample("series", {"x": np.array(1.0, dtype=np.float32)}, None, 4, 0.0)

    groups = list(together([*samples, scalar]))

    numbers = [[float(np.ravel(one.inputs["x"])[0]) for one in group] for group in groups]
    assert sorted(map(sorted, numbers)) == [[1.0], [1.0, 2.0, 4.0], [3.0], [5.0]]
    assert joined([one.inputs for one in samples[:2]])["x"].tolist() == [[1.0] * 3, [2.0] * 3]


def test_what_is_absorbed_together_is_bounded() -> None:
    size = waiting_samples.MAX_TOGETHER_BYTES // 4

    groups = list(together([sample(number, size=size) for number in range(10)]))

    assert sorted(map(len, groups)) == [2, 4, 4]
