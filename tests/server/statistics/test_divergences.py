"""Distances between binned distributions: golden values, properties, and their laws under chance."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import wasserstein_distance

from fleet_server.errors import InvalidRequestError
from fleet_server.statistics.divergences import (
    hellinger_squared,
    hellinger_squared_p_value,
    jsd,
    jsd_p_value,
    ks_distance,
    ks_p_value,
    psi,
    psi_p_value,
    smoothed,
    wasserstein_1,
)

P, Q = (0.25, 0.25, 0.25, 0.25), (0.2, 0.25, 0.25, 0.3)
_COUNTS = st.lists(st.integers(0, 10_000), min_size=2, max_size=64)


def test_the_distances_have_their_golden_values() -> None:
    assert psi(P, Q) == pytest.approx(0.0202733, abs=5e-8)
    assert jsd(P, Q) == pytest.approx(0.00252969, abs=5e-9)
    assert hellinger_squared(P, Q) == pytest.approx(0.00253192, abs=5e-9)
    assert ks_distance(P, Q) == pytest.approx(0.05, abs=1e-12)
    assert wasserstein_1(P, Q, [0, 1, 2, 3, 4]) == pytest.approx(0.15, abs=1e-12)


def test_five_percent_of_psi_under_chance_lie_above_the_documented_points() -> None:
    assert psi_p_value(0.169, n=200, m=200, bins=10) == pytest.approx(0.05, abs=0.002)
    assert psi_p_value(0.0034, n=10_000, m=10_000, bins=10) == pytest.approx(0.05, abs=0.003)


@given(_COUNTS)
def test_distances_are_symmetric_bounded_and_zero_only_for_equals(counts: list[int]) -> None:
    other = sorted(counts)
    p, q = smoothed(counts), smoothed(other)
    for distance in (psi, jsd, hellinger_squared, ks_distance):
        assert distance(p, q) == pytest.approx(distance(q, p), abs=1e-12)
        assert distance(p, p) == 0
        assert (distance(p, q) > 0) == (counts != other)
    assert jsd(p, q) <= math.log(2)
    assert hellinger_squared(p, q) <= 1
    assert ks_distance(p, q) <= 1
    assert hellinger_squared(p, q) / 2 <= jsd(p, q) * 1.000001 <= psi(p, q)


@given(_COUNTS, st.integers(0, 2**32 - 1))
def test_the_wasserstein_distance_agrees_with_scipy(counts: list[int], seed: int) -> None:
    random = np.random.default_rng(seed)
    p, q = smoothed(counts), smoothed(random.integers(0, 100, len(counts)))
    edges = np.cumsum(random.uniform(0.1, 5, len(counts) + 1))
    middles = (edges[:-1] + edges[1:]) / 2
    assert wasserstein_1(p, q, edges) == pytest.approx(wasserstein_distance(middles, middles, p, q), abs=1e-9)


def test_disjoint_distributions_are_as_far_apart_as_can_be() -> None:
    assert psi([1, 0], [0, 1]) == math.inf
    assert jsd([1, 0], [0, 1]) == pytest.approx(math.log(2))
    assert hellinger_squared([1, 0], [0, 1]) == 1
    assert ks_distance([1, 0], [0, 1]) == 1


def test_independent_samples_without_drift_keep_the_null_laws_level() -> None:
    random = np.random.default_rng(31)
    runs, n, m, bins = 1000, 600, 900, 10
    alarms = np.zeros(4)
    for _ in range(runs):
        x, y = random.multinomial(n, [1 / bins] * bins), random.multinomial(m, [1 / bins] * bins)
        p, q = smoothed(x), smoothed(y)
        values = (
            psi_p_value(psi(p, q), n=n, m=m, bins=bins),
            jsd_p_value(jsd(p, q), n=n, m=m, bins=bins),
            hellinger_squared_p_value(hellinger_squared(p, q), n=n, m=m, bins=bins),
            ks_p_value(ks_distance(p, q), n=n, m=m),
        )
        alarms += np.array(values) <= 0.05
    assert (alarms[:3] / runs >= 0.03).all()
    assert (alarms / runs <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)).all()


@pytest.mark.parametrize(("p", "q"), [([], []), ([1.0], [0.5, 0.5]), ([0.5, 0.4], [0.5, 0.5]), ([1.5, -0.5], [1, 0])])
def test_what_is_no_pair_of_distributions_is_refused(p: list[float], q: list[float]) -> None:
    with pytest.raises(InvalidRequestError):
        psi(p, q)


def test_counts_below_zero_and_edges_that_do_not_rise_are_refused() -> None:
    with pytest.raises(InvalidRequestError):
        smoothed([3, -1])
    with pytest.raises(InvalidRequestError):
        wasserstein_1(P, Q, [0, 1, 2, 2, 4])
    with pytest.raises(InvalidRequestError):
        psi_p_value(0.1, n=0, m=5, bins=4)
