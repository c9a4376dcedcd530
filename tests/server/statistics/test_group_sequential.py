"""Planned looks: published bounds, and their error by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from fleet_server.errors import InvalidRequestError
from fleet_server.statistics.group_sequential import crossing_chances, obrien_fleming_bounds, pocock_bound, spent_error

FIVE = [0.2, 0.4, 0.6, 0.8, 1.0]


def test_the_bounds_of_five_looks_are_the_published_ones() -> None:
    assert obrien_fleming_bounds(FIVE, 0.05) == pytest.approx([4.8769, 3.3570, 2.6803, 2.2898, 2.0310], abs=5.1e-5)
    assert pocock_bound(5, 0.05) == pytest.approx(2.4132, abs=5e-5)
    assert sum(crossing_chances(FIVE, [1.96] * 5)) == pytest.approx(0.1417, abs=5e-5)


@pytest.mark.parametrize(
    ("looks", "alpha", "bound"),
    [(2, 0.05, 2.178), (10, 0.05, 2.555), (20, 0.05, 2.672), (3, 0.01, 2.873), (1, 0.05, 1.96)],
)
def test_pococks_constants_are_those_of_his_table(looks: int, alpha: float, bound: float) -> None:
    assert pocock_bound(looks, alpha) == pytest.approx(bound, abs=6e-4)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.floats(0.02, 1), min_size=1, max_size=12), st.sampled_from([0.01, 0.05, 0.2]))
def test_any_information_fractions_spend_just_what_is_allowed(fractions: list[float], alpha: float) -> None:
    looks = sorted({round(fraction, 2) for fraction in fractions})
    chances = np.cumsum(crossing_chances(looks, obrien_fleming_bounds(looks, alpha)))
    allowed = np.array([spent_error(look, alpha) for look in looks])
    assert chances == pytest.approx(allowed, abs=1e-9)


def test_many_close_looks_and_a_simulation_agree() -> None:
    random = np.random.default_rng(4)
    looks = np.arange(1, 61) / 60
    paths = np.cumsum(random.normal(size=(20_000, 60)), axis=1) / np.sqrt(np.arange(1, 61))
    simulated = (np.abs(paths) >= 2.5).any(axis=1).mean()
    computed = sum(crossing_chances(looks.tolist(), [2.5] * 60))
    assert computed == pytest.approx(simulated, abs=4 * math.sqrt(computed * (1 - computed) / 20_000))


def test_two_looks_at_nearly_the_same_moment_are_nearly_one() -> None:
    twice = crossing_chances([0.5, 0.5001, 1.0], [2.0, 2.0, 2.0])
    once = crossing_chances([0.5, 1.0], [2.0, 2.0])
    assert twice[0] == pytest.approx(once[0])
    assert 0 < twice[1] < 0.002
    assert sum(once) < sum(twice) < sum(once) + 0.002


def test_with_a_drift_the_chances_are_the_power() -> None:
    drift = norm.isf(0.025) + norm.isf(0.1)  # a fixed test has 90 %
    assert sum(crossing_chances([1.0], [1.959964], drift=drift)) == pytest.approx(0.9, abs=1e-4)
    early = crossing_chances(FIVE, obrien_fleming_bounds(FIVE, 0.05), drift=drift)
    assert 0.88 < sum(early) < 0.9
    random = np.random.default_rng(5)
    walks = np.cumsum(random.normal(drift / 5, math.sqrt(0.2), size=(20_000, 5)), axis=1) / np.sqrt(FIVE)
    crossed = np.abs(walks) >= obrien_fleming_bounds(FIVE, 0.05)
    first = [(crossed[:, k] & ~crossed[:, :k].any(axis=1)).mean() for k in range(5)]
    assert early == pytest.approx(first, abs=0.015)


def test_fractions_that_do_not_rise_to_one_at_most_are_refused() -> None:
    for fractions in ([], [0.5, 0.5], [0.0, 1.0], [0.5, 1.2], [math.nan]):
        with pytest.raises(InvalidRequestError):
            obrien_fleming_bounds(fractions, 0.05)
    for call in (
        lambda: crossing_chances(FIVE, [2.0]),
        lambda: crossing_chances([1.0], [-1.0]),
        lambda: pocock_bound(0, 0.05),
        lambda: spent_error(0, 0.05),
        lambda: obrien_fleming_bounds(FIVE, 1.5),
    ):
        with pytest.raises(InvalidRequestError):
            call()
