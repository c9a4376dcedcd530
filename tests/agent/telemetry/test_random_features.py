"""Random Fourier features: the same everywhere, a kernel in the mean, and bounded whatever comes in."""

from __future__ import annotations

import numpy as np
import pytest

from edge_agent.telemetry.random_features import MAX_FOLDED, fold, random_features, whole_sums
from fleet_protocol.manifest import RandomFeatureReference

RANDOMNESS = np.random.default_rng(5)


def reference(*, features: int = 256, bandwidth: float = 3.0, seed: int = 1) -> RandomFeatureReference:
    return RandomFeatureReference(tensor="x", seed=seed, bandwidth=bandwidth, count=1, sums=[0.0] * features)


def squared_distances(x: np.ndarray) -> np.ndarray:
    return np.asarray(((x[:, None] - x[None]) ** 2).sum(axis=-1))


def test_random_features_are_the_same_numbers_on_every_machine() -> None:
    """Pinned: other numbers make the sums in every bundle mean something else."""
    x = (np.arange(600, dtype=np.float32) % 7 - 3).reshape(2, 300)

    of_each = [whole_sums(reference(features=24), x[row : row + 1])[1].tolist() for row in (0, 1)]

    assert of_each == [
        [0, 3, -3, 4, -4, 3, -4, 0, -4, -4, -2, -4, -3, -1, -3, -3, -4, -1, -1, 4, -3, 1, -3, -3],
        [-4, -4, -3, 0, 2, 0, 4, 1, 0, -3, -3, -3, 3, -1, 4, -3, 2, 0, 4, 1, 4, 4, -4, 4],
    ]
    np.testing.assert_allclose(random_features(reference(features=24), x), np.array(of_each) / 4 * (2 / 24) ** 0.5)


def test_the_products_of_random_features_are_a_gaussian_kernel() -> None:
    x = RANDOMNESS.normal(size=(40, 8)).astype(np.float32)

    features = random_features(reference(features=4096), x)

    kernel = np.exp(-squared_distances(x) / (2 * 3.0**2))
    np.testing.assert_allclose(features @ features.T, kernel, atol=0.08)


def test_folding_keeps_squared_distances_in_expectation() -> None:
    x = RANDOMNESS.normal(size=(60, 2_000)).astype(np.float32)

    apart = ~np.eye(60, dtype=bool)
    ratios = [squared_distances(fold(x, seed=seed))[apart] / squared_distances(x)[apart] for seed in range(20)]

    assert fold(x, seed=1).shape == (60, MAX_FOLDED)
    assert np.mean(ratios) == pytest.approx(1.0, abs=0.02)
    assert np.std(ratios) < 0.15


def test_short_samples_are_taken_as_they_are_and_never_changed() -> None:
    x = RANDOMNESS.integers(0, 255, size=(3, 4, 5)).astype(np.uint8)
    before = x.copy()

    np.testing.assert_array_equal(fold(x, seed=1), x.reshape(3, 20).astype(np.float32))
    random_features(reference(), x)
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize("width", [20, 700])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_broken_number_shows_in_its_own_sample_only(width: int, bad: float) -> None:
    x = RANDOMNESS.normal(size=(3, width)).astype(np.float32)
    x[1, 4] = bad

    features = random_features(reference(), x)

    assert np.isfinite(features).all(axis=1).tolist() == [True, False, True]


def test_no_samples_have_no_features() -> None:
    assert random_features(reference(), np.empty((0, 700), dtype=np.float32)).shape == (0, 256)


def test_another_seed_is_another_set_of_features() -> None:
    x = RANDOMNESS.normal(size=(1, 10)).astype(np.float32)

    assert not np.allclose(random_features(reference(seed=1), x), random_features(reference(seed=2), x), atol=0.01)
