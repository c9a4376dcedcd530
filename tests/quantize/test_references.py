"""Reference distributions, random-feature sums, and what the maximum mean discrepancy finds in them."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.telemetry.random_features import random_features
from fleet_protocol.bins import BinSketch
from fleet_protocol.manifest import RandomFeatureReference, TensorSpec
from quantize.errors import InvalidDataError
from quantize.references import (
    MAX_SUMMED_SAMPLES,
    class_counts,
    count_features,
    evenly_spread,
    mmd2,
    reference_sums,
    score_reference,
    uncounted,
    watched_tensor,
)

RANDOMNESS = np.random.default_rng(11)


def spec(name: str, *shape: int, datatype: str = "FP32") -> TensorSpec:
    return msgspec.convert({"name": name, "datatype": datatype, "shape": [-1, *shape]}, TensorSpec)


def sums_over(reference: RandomFeatureReference, x: np.ndarray) -> np.ndarray:
    return np.asarray(random_features(reference, x).sum(axis=0, dtype=np.float64))


@given(values=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=300))
@settings(max_examples=100, deadline=None)
def test_every_reference_value_lies_in_a_bin_although_edges_are_rounded(values: list[float]) -> None:
    array = np.array(values)

    score = score_reference(array)

    sketch = BinSketch(score.edges)
    sketch.record_many(array)
    assert sketch.bins.tolist() == score.counts
    assert sum(score.counts) == len(values)


def test_inner_edges_are_short_and_the_bins_stay_sixty_four() -> None:
    score = score_reference(RANDOMNESS.normal(size=5_000))

    assert len(score.counts) == 64
    assert max(len(repr(abs(edge))) for edge in score.edges[1:-1]) <= 14


def test_scores_that_are_never_a_number_are_refused() -> None:
    with pytest.raises(InvalidDataError, match="scores"):
        score_reference(np.array([np.nan]))


def test_classes_are_counted_by_their_highest_score() -> None:
    assert class_counts(np.array([[0.1, 0.9, 0.0], [0.2, 0.5, 0.3]])) == [0, 2, 0]


def test_features_with_every_extractor_are_counted() -> None:
    images = RANDOMNESS.uniform(0, 255, size=(30, 8, 8, 3)).astype(np.float32)
    features = [
        uncounted("luma", "brightness", "image"),
        uncounted("red", "channel_mean", "image", channel=0.0, axis=3.0),
        uncounted("toward", "projection", "image", seed=1.0, index=0.0),
        uncounted("pitch", "spectral_centroid", "image"),
    ]

    counted = count_features(features, {"image": images}, [spec("image", 8, 8, 3)])

    assert [sum(feature.counts) for feature in counted] == [30] * 4


@pytest.mark.parametrize("width", [4, 900])
def test_the_discrepancy_of_two_halves_is_small_and_that_of_shifted_data_large(width: int) -> None:
    x = RANDOMNESS.normal(size=(2_000, width)).astype(np.float32)
    reference = reference_sums("x", x[:1_000])
    assert reference is not None
    own = np.array(reference.sums)

    half = mmd2(own, reference.count, sums_over(reference, x[1_000:]), 1_000)
    shifted = mmd2(own, reference.count, sums_over(reference, x[1_000:] + 0.5), 1_000)
    wider = mmd2(own, reference.count, sums_over(reference, x[1_000:] * 1.3), 1_000)

    assert abs(half) < 0.002
    assert shifted > 10 * abs(half)
    assert shifted > 0.01
    assert wider > 0.003


def test_the_discrepancy_of_samples_of_one_distribution_is_zero_on_average() -> None:
    x = RANDOMNESS.normal(size=(6_000, 3)).astype(np.float32)
    reference = reference_sums("x", x)
    assert reference is not None
    sums = [sums_over(reference, x[start : start + 100]) for start in range(0, 6_000, 100)]

    found = [mmd2(a, 100, b, 100) for a, b in zip(sums[::2], sums[1::2], strict=True)]

    assert abs(np.mean(found)) < 0.002  # the biased statistic is 0.01 or more here
    assert min(found) < 0
    with pytest.raises(ValueError, match="two or more"):
        mmd2(sums[0], 1, sums[1], 100)


def test_sums_of_two_devices_add_up_to_the_sums_of_both() -> None:
    x = RANDOMNESS.normal(size=(100, 5)).astype(np.float32)
    whole = reference_sums("x", x)
    assert whole is not None

    np.testing.assert_allclose(sums_over(whole, x[:40]) + sums_over(whole, x[40:]), whole.sums, atol=1e-3)


def test_the_traces_are_those_of_the_cosines_covariance_over_samples_of_any_number() -> None:
    x = RANDOMNESS.normal(size=(20_000, 5)).astype(np.float32)
    many, few = reference_sums("x", x, features=32), reference_sums("x", x[:300], features=32)
    assert many is not None
    assert few is not None

    covariance = np.cov(random_features(many, x).astype(np.float64) * np.sqrt(32 / 2), rowvar=False)
    powers = [np.linalg.matrix_power(covariance, power) for power in (1, 2, 3)]
    assert many.covariance_traces == pytest.approx([np.trace(power) for power in powers], rel=0.01)
    assert few.covariance_traces == pytest.approx(many.covariance_traces, rel=0.25)
    assert many.covariance_traces[0] < 32 / 2


def test_a_bundle_without_traces_is_read_as_before() -> None:
    reference = reference_sums("x", RANDOMNESS.normal(size=(50, 2)), features=8)
    assert reference is not None
    older = {key: value for key, value in msgspec.to_builtins(reference).items() if key != "covariance_traces"}

    assert msgspec.convert(older, RandomFeatureReference).covariance_traces == []


def test_the_bandwidth_is_the_median_distance_in_the_tensors_units() -> None:
    x = RANDOMNESS.normal(size=(400, 6)).astype(np.float32)
    small, large = reference_sums("x", x), reference_sums("x", x * 50)
    assert small is not None
    assert large is not None

    distances = np.sqrt(((x[:, None] - x[None]) ** 2).sum(axis=-1))[np.triu_indices(400, k=1)]
    assert small.bandwidth == pytest.approx(np.median(distances), rel=1e-4)
    assert large.bandwidth == pytest.approx(50 * small.bandwidth, rel=1e-4)


def test_broken_samples_are_left_out_and_samples_all_alike_are_not_watched() -> None:
    x = RANDOMNESS.normal(size=(50, 5)).astype(np.float32)
    x[3, 1] = np.nan
    with_one_broken = reference_sums("x", x)

    assert with_one_broken is not None
    assert with_one_broken.count == 49
    assert np.isfinite(with_one_broken.sums).all()
    assert reference_sums("x", np.full((50, 5), 0.1)) is None
    assert reference_sums("x", np.full((50, 5), np.nan)) is None


def test_a_reference_of_more_samples_than_are_summed_takes_them_evenly() -> None:
    reference = reference_sums("x", RANDOMNESS.normal(size=(MAX_SUMMED_SAMPLES + 500, 2)), features=8)

    assert reference is not None
    assert reference.count == MAX_SUMMED_SAMPLES
    assert evenly_spread(10, 4).tolist() == [0, 3, 6, 9]
    assert evenly_spread(3, 9).tolist() == [0, 1, 2]


def test_the_watched_tensor_is_an_embedding_then_an_input_then_the_answer() -> None:
    words = spec("words", 64, datatype="INT64")
    label, scores, embedding = spec("label", datatype="INT64"), spec("scores", 3), spec("embedding", 128)

    assert watched_tensor([spec("x", 9)], [scores, embedding]) == "embedding"
    assert watched_tensor([spec("x", 9)], [label, scores]) == "x"
    assert watched_tensor([spec("image", 8, 8, datatype="UINT8")], [scores]) == "image"
    assert watched_tensor([words], [scores]) == "scores"
    assert watched_tensor([spec("sound", -1)], [spec("level", 1)]) == ""
