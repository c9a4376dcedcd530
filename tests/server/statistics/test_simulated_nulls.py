"""Distances of binned samples without a law: unequal bins, the Wasserstein distance, weighted chi-squareds."""

from __future__ import annotations

import math
import time
from dataclasses import astuple

import numpy as np
import pytest
from scipy.stats import chi2

from fleet_server.errors import InvalidRequestError
from fleet_server.statistics.divergences import psi, psi_p_value, smoothed, wasserstein_1
from fleet_server.statistics.simulated_nulls import null_p_values, weighted_chi2_p_value

ALPHA = 0.05


def test_unequal_and_nearly_empty_bins_keep_the_level_in_every_distance() -> None:
    random = np.random.default_rng(1)
    shares = np.array([0.6, 0.25, 0.1, *[0.05 / 20] * 20])
    edges = np.cumsum(random.uniform(0.1, 3, 24))
    runs, alarms, by_law = 400, np.zeros(5), 0
    for run in range(runs):
        left, right = random.multinomial(150, shares), random.multinomial(400, shares)
        found = null_p_values(left, right, edges=edges, draws=199, seed=run)
        alarms += np.array(astuple(found)) <= ALPHA
        by_law += psi_p_value(psi(smoothed(left), smoothed(right)), n=150, m=400, bins=23) <= ALPHA
    assert (alarms / runs <= ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / runs)).all(), alarms
    assert (alarms / runs >= 0.02).all(), alarms
    assert by_law / runs < 0.02  # the law, which counts empty bins as full ones, finds less than it could


def test_with_full_bins_the_simulation_and_the_law_agree() -> None:
    random = np.random.default_rng(2)
    left, right = random.multinomial(4000, [0.1] * 10), random.multinomial(4000, [0.11] * 5 + [0.09] * 5)
    simulated = null_p_values(left, right, draws=20_000, seed=1)
    law = psi_p_value(psi(smoothed(left), smoothed(right)), n=4000, m=4000, bins=10)
    assert simulated.psi == pytest.approx(law, abs=0.01)
    assert simulated.wasserstein_1 is None


def test_a_shift_is_seen_by_the_wasserstein_distance_in_the_features_unit() -> None:
    random = np.random.default_rng(3)
    edges = np.linspace(-5, 6, 65)
    counts = [np.histogram(random.normal(mean, 1, 800), edges)[0] for mean in (0, 0.25)]
    found = null_p_values(*counts, edges=edges, draws=999, seed=1)
    assert found.wasserstein_1 == 0.001
    assert wasserstein_1(smoothed(counts[0]), smoothed(counts[1]), edges) == pytest.approx(0.25, abs=0.1)


def test_the_same_samples_give_one_and_the_same_seed_the_same() -> None:
    counts = [5, 9, 0, 3]
    assert set(astuple(null_p_values(counts, counts, edges=range(5), draws=50, seed=1))) == {1.0}
    other = [3, 9, 4, 1]
    assert null_p_values(counts, other, seed=5) == null_p_values(counts, other, seed=5)


def test_a_sum_of_weighted_chi_squareds_is_told_by_its_mean_and_variance() -> None:
    assert weighted_chi2_p_value(3 * 16.919, mean=27, variance=9 * 18) == pytest.approx(float(chi2.sf(16.919, 9)))
    random = np.random.default_rng(4)
    weights = np.array([1.0, 0.5, 0.5, 0.2, 0.1])
    drawn = random.chisquare(1, size=(40_000, 5)) @ weights
    point = float(np.quantile(drawn, 0.95))
    p_value = weighted_chi2_p_value(point, mean=weights.sum(), variance=float(2 * weights @ weights))
    assert p_value == pytest.approx(0.05, abs=0.005)


def test_more_values_than_can_be_dealt_out_are_drawn() -> None:
    random = np.random.default_rng(6)
    left, right = random.multinomial(6 * 10**9, [0.2] * 5, size=2)
    law = psi_p_value(psi(smoothed(left), smoothed(right)), n=6e9, m=6e9, bins=5)
    assert null_p_values(left, right, draws=999, seed=1).psi == pytest.approx(law, abs=0.05)


def test_a_thousand_draws_of_sixty_four_bins_are_quick() -> None:
    counts = np.random.default_rng(5).multinomial(10**6, [1 / 64] * 64, size=2)
    began = time.process_time()
    null_p_values(counts[0], counts[1], edges=range(65), seed=1)
    assert time.process_time() - began < 0.5


def test_what_is_no_pair_of_samples_is_refused() -> None:
    for left, right in (([1, 2], [1]), ([-1, 2], [1, 2]), ([0, 0], [1, 2])):
        with pytest.raises(InvalidRequestError):
            null_p_values(left, right, seed=1)
    with pytest.raises(InvalidRequestError):
        null_p_values([1, 2], [2, 1], edges=[0, 1], seed=1)
    with pytest.raises(InvalidRequestError):
        null_p_values([1, 2], [2, 1], draws=0, seed=1)
    with pytest.raises(InvalidRequestError):
        weighted_chi2_p_value(1, mean=0, variance=1)
