"""Calibrated confidence: the probability of being right, by score."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet_protocol.manifest import ConfidenceCalibration
from quantize.confidence import MAX_POINTS, MIN_SAMPLES, calibrate_confidence, pooled


def overconfident(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores of a model that says s and is right with probability s squared."""
    randomness = np.random.default_rng(seed)
    scores = randomness.uniform(0.3, 1.0, size=count)
    return scores, randomness.random(count) < scores**2


def confidences(calibration: ConfidenceCalibration, scores: np.ndarray) -> np.ndarray:
    return np.asarray(np.interp(scores, calibration.scores, calibration.confidences))


def test_an_overconfident_model_is_corrected() -> None:
    calibration = calibrate_confidence(*overconfident(20_000))
    assert calibration is not None

    at = np.linspace(0.35, 0.97, 40)
    np.testing.assert_allclose(confidences(calibration, at), at**2, atol=0.06)


def test_a_model_that_is_almost_always_right_is_doubted_where_it_was_wrong() -> None:
    scores = np.linspace(0.4, 1.0, 300)
    right = np.ones(300, dtype=bool)
    right[[2, 5, 6, 12]] = False

    calibration = calibrate_confidence(scores, right)

    assert calibration is not None
    assert confidences(calibration, scores[:10]).mean() == pytest.approx(0.7, abs=0.05)
    assert confidences(calibration, scores[30:]).mean() == pytest.approx(1.0, abs=0.01)


def test_confidences_sum_to_the_number_of_right_answers() -> None:
    scores, right = overconfident(3_000, seed=4)

    calibration = calibrate_confidence(scores, right)

    assert calibration is not None
    assert confidences(calibration, scores).sum() == pytest.approx(right.sum(), abs=2)


def test_the_estimated_accuracy_of_other_samples_is_near_the_true_one_also_when_scores_shift() -> None:
    calibration = calibrate_confidence(*overconfident(5_000))
    assert calibration is not None
    scores, right = overconfident(20_000, seed=1)

    for chosen in (scores > 0, scores < 0.6, scores > 0.8):
        assert confidences(calibration, scores[chosen]).mean() == pytest.approx(right[chosen].mean(), abs=0.02)


@given(
    st.lists(st.tuples(st.integers(0, 40), st.booleans()), min_size=MIN_SAMPLES, max_size=400).filter(
        lambda pairs: not all(right for _, right in pairs)
    )
)
@settings(max_examples=100, deadline=None)
def test_any_calibration_is_one_a_manifest_may_hold(pairs: list[tuple[int, bool]]) -> None:
    scores = np.array([score / 40 for score, _ in pairs])
    right = np.array([truth for _, truth in pairs])

    calibration = calibrate_confidence(scores, right)

    assert calibration is not None
    assert 1 <= len(calibration.scores) == len(calibration.confidences) <= MAX_POINTS
    assert (np.diff(calibration.scores) > 0).all()
    assert (np.diff(calibration.confidences) >= 0).all()
    assert msgspec.json.decode(msgspec.json.encode(calibration), type=ConfidenceCalibration) == calibration


def test_pooling_violators_is_the_nearest_rising_line() -> None:
    assert pooled(np.array([1.0, 0.0, 2.0]), np.array([1.0, 3.0, 1.0])).tolist() == [0.25, 0.25, 2.0]
    assert pooled(np.array([3.0, 2.0, 1.0]), np.ones(3)).tolist() == [2.0, 2.0, 2.0]
    assert pooled(np.array([1.0, 2.0]), np.ones(2)).tolist() == [1.0, 2.0]


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0.1, 5)), min_size=1, max_size=30), st.floats(-1, 1))
@settings(max_examples=100, deadline=None)
def test_no_other_rising_line_is_nearer(pairs: list[tuple[float, float]], tilt: float) -> None:
    values, weights = np.array(pairs).T
    fitted = pooled(values, weights)

    def distance(line: np.ndarray) -> float:
        return float((weights * (values - line) ** 2).sum())

    other = np.maximum.accumulate(fitted + tilt * np.sin(np.arange(len(values))))
    assert (np.diff(fitted) >= -1e-12).all()
    assert distance(fitted) <= distance(other) + 1e-9


@pytest.mark.parametrize(
    ("scores", "right"),
    [
        (np.linspace(0, 1, MIN_SAMPLES - 1), np.arange(MIN_SAMPLES - 1) % 2 == 0),
        (np.linspace(0, 1, 200), np.ones(200, dtype=bool)),
        (np.full(200, np.nan), np.zeros(200, dtype=bool)),
    ],
    ids=["few samples", "no wrong answer", "no score is a number"],
)
def test_too_little_evidence_gives_no_calibration(scores: np.ndarray, right: np.ndarray) -> None:
    assert calibrate_confidence(scores, right) is None


def test_a_handful_of_samples_at_an_end_is_not_taken_at_its_word() -> None:
    scores = np.concatenate([[0.01, 0.02], np.full(100, 0.5), np.full(100, 0.9)])
    right = np.concatenate([[False, False], np.arange(100) % 2 == 0, np.arange(100) % 10 > 0])

    calibration = calibrate_confidence(scores, right)

    assert calibration is not None
    assert calibration.confidences[0] > 0.4
