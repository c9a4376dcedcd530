"""Feature extractors against numpy by hand, and the features a device must refuse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_agent.errors import BundleRefusedError, InvalidInputError
from edge_agent.telemetry.features import EXTRACTORS, check_extractor, extract
from edge_agent.telemetry.features.answers import answer_scores
from edge_agent.telemetry.features.directions import STANDARD_DEVIATION, gaussian_integers, unit_direction
from fleet_protocol.manifest import FeatureReference, TensorSpec

IMAGES = np.random.default_rng(7).uniform(0, 16, size=(5, 3, 6, 4)).astype(np.float32)
PARAMETERS = {
    "channel_mean": {"channel": 2.0},
    "column": {"index": 9.0},
    "projection": {"seed": 3.0, "index": 1.0},
}


def feature(extractor: str, **parameters: float) -> FeatureReference:
    return FeatureReference(
        name="watched", extractor=extractor, input="image", edges=[0.0, 1.0], counts=[0], parameters=parameters
    )


def by_hand(extractor: str, image: NDArray[Any]) -> float:
    """One sample's value, with nothing vectorised over the batch."""
    pixels = image.astype(np.float64)
    rows = pixels.reshape(-1, pixels.shape[-1])
    if extractor == "sharpness":
        down = [abs(c[y + 1, x] - c[y, x]) for c in pixels for y in range(5) for x in range(4)]
        across = [abs(c[y, x + 1] - c[y, x]) for c in pixels for y in range(6) for x in range(3)]
        return float(np.mean(down + across))
    if extractor == "spectral_centroid":
        waves = [
            [abs(sum(row[t] * np.exp(-2j * np.pi * k * t / 4) for t in range(4))) for k in range(3)] for row in rows
        ]
        weights = np.sum(waves, axis=0)
        return float(weights @ [0.0, 0.5, 1.0] / weights.sum())
    if extractor == "brightness":
        return float(sum(weight * pixels[c].mean() for c, weight in enumerate((0.299, 0.587, 0.114))))
    if extractor == "projection":
        return float(sum(a * b for a, b in zip(pixels.ravel(), unit_direction(3, 1, 72), strict=True)))
    return {
        "mean": float(pixels.mean()),
        "std": float(pixels.std()),
        "channel_mean": float(pixels[2].mean()),
        "column": float(pixels.ravel()[9]),
    }[extractor]


@pytest.mark.parametrize("extractor", EXTRACTORS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8, np.int32, np.float16])
def test_each_sample_has_the_value_computed_by_hand(extractor: str, dtype: type) -> None:
    images: NDArray[Any] = IMAGES.astype(dtype)
    before = images.copy()

    values = extract(feature(extractor, **PARAMETERS.get(extractor, {})), {"image": images})

    assert values.dtype == np.float64
    assert values.shape == (5,)
    np.testing.assert_allclose(values, [by_hand(extractor, image) for image in images], rtol=1e-6)
    np.testing.assert_array_equal(images, before)


def test_the_sharpness_of_unsigned_pixels_does_not_wrap_around() -> None:
    falling = np.array([[[200, 10]]], dtype=np.uint8)

    assert extract(feature("sharpness"), {"image": falling}).tolist() == [190.0]


def test_the_std_of_values_far_from_zero_is_not_lost_to_cancellation() -> None:
    values = np.array([[1e8 - 1, 1e8 + 1]])

    assert extract(feature("std"), {"image": values}).tolist() == [1.0]


@pytest.mark.parametrize("extractor", EXTRACTORS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_broken_pixel_shows_in_its_own_sample_only(extractor: str, bad: float) -> None:
    images = IMAGES.copy()
    images[1] = bad

    values = extract(feature(extractor, **PARAMETERS.get(extractor, {})), {"image": images})

    assert np.isfinite(values).tolist() == [True, False, True, True, True]


@pytest.mark.parametrize("extractor", EXTRACTORS)
def test_a_batch_of_none_has_no_values(extractor: str) -> None:
    values = extract(feature(extractor, **PARAMETERS.get(extractor, {})), {"image": IMAGES[:0]})

    assert values.shape == (0,)


def test_the_mean_of_an_empty_sample_is_nan_and_not_zero() -> None:
    assert np.isnan(extract(feature("mean"), {"image": np.empty((2, 0))})).tolist() == [True, True]


@pytest.mark.parametrize(
    ("reference", "inputs"),
    [
        (feature("mean"), {"sound": IMAGES}),
        (feature("sharpness"), {"image": IMAGES[0, 0]}),
        (feature("channel_mean", channel=3.0), {"image": IMAGES}),
        (feature("channel_mean", channel=0.0, axis=4.0), {"image": IMAGES}),
        (feature("column", index=72.0), {"image": IMAGES}),
    ],
    ids=["absent", "too few dimensions", "channel beyond the last", "axis beyond the last", "column beyond the last"],
)
def test_an_input_that_cannot_be_watched_is_a_clear_error(
    reference: FeatureReference, inputs: dict[str, NDArray[Any]]
) -> None:
    with pytest.raises(InvalidInputError, match=r"image|channel|column"):
        extract(reference, inputs)


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        (feature("os.system"), "upgrade the agent"),
        (feature("mean", channel=1.0), "parameters"),
        (feature("column"), "parameters"),
        (feature("projection", index=1.0), r"\['index', 'seed'\]"),
        (feature("channel_mean", channel=1.0, axes=1.0), r"may take \['axis'\]"),
        (feature("column", index=-1.0), "whole number"),
        (feature("column", index=0.5), "whole number"),
        (feature("channel_mean", channel=float("nan")), "whole number"),
        (feature("channel_mean", channel=float("inf")), "whole number"),
    ],
)
def test_a_bundle_with_a_feature_that_cannot_be_extracted_is_refused(reference: FeatureReference, says: str) -> None:
    with pytest.raises(BundleRefusedError, match=says):
        check_extractor(reference)


@pytest.mark.parametrize(
    ("reference", "datatype", "shape"),
    [
        (feature("mean"), "BYTES", [-1, 1]),
        (feature("sharpness"), "FP32", [-1, 8]),
        (feature("channel_mean", channel=3.0), "FP32", [-1, 3, 8, 8]),
        (feature("channel_mean", channel=3.0, axis=3.0), "FP32", [-1, 8, 8, 3]),
        (feature("channel_mean", channel=0.0, axis=0.0), "FP32", [-1, 8, 8, 3]),
        (feature("channel_mean", channel=0.0, axis=2.0), "FP32", [-1, 8]),
        (feature("column", index=64.0), "FP32", [-1, 8, 8]),
        (feature("projection", seed=0.0, index=0.0), "FP32", [-1, 3, 1024, 1024]),
    ],
    ids=[
        "text",
        "no image",
        "no such channel",
        "no such last channel",
        "the batch is no channel",
        "no such axis",
        "no such column",
        "too many numbers",
    ],
)
def test_a_bundle_whose_feature_does_not_fit_its_model_is_refused(
    reference: FeatureReference, datatype: Any, shape: list[int]
) -> None:
    with pytest.raises(BundleRefusedError, match="watched"):
        check_extractor(reference, [TensorSpec(name="image", datatype=datatype, shape=shape)])


def test_a_feature_of_an_input_the_model_does_not_have_is_refused() -> None:
    with pytest.raises(BundleRefusedError, match="sound"):
        check_extractor(feature("mean"), [TensorSpec(name="sound", datatype="FP32", shape=[-1, 8])])


def test_features_that_fit_their_model_pass() -> None:
    specs = [TensorSpec(name="image", datatype="FP32", shape=[-1, 3, -1, 8])]
    for extractor in EXTRACTORS:
        check_extractor(feature(extractor, **PARAMETERS.get(extractor, {})), specs)


@pytest.mark.parametrize("extractor", ["brightness", "sharpness"])
def test_an_image_with_its_channels_last_has_the_values_of_the_same_image_with_its_channels_first(
    extractor: str,
) -> None:
    last = np.ascontiguousarray(IMAGES.transpose(0, 2, 3, 1))

    values = extract(feature(extractor), {"image": last})

    np.testing.assert_allclose(values, extract(feature(extractor), {"image": IMAGES}), rtol=1e-9)


def test_large_images_have_the_luma_of_their_channel_means() -> None:
    image = np.random.default_rng(1).integers(0, 256, size=(2, 100, 90, 3)).astype(np.uint8)
    by_channel = image.reshape(2, -1, 3).astype(np.float64).mean(axis=1)

    values = extract(feature("brightness"), {"image": image})

    np.testing.assert_allclose(values, by_channel @ [0.299, 0.587, 0.114], rtol=1e-12)


def test_the_brightness_of_a_single_channel_is_its_mean() -> None:
    grey = IMAGES[:, :1]

    assert (
        extract(feature("brightness"), {"image": grey}).tolist() == extract(feature("mean"), {"image": grey}).tolist()
    )


def test_a_channel_mean_reads_the_axis_it_is_told() -> None:
    last = IMAGES.transpose(0, 2, 3, 1)

    values = extract(feature("channel_mean", channel=1.0, axis=3.0), {"image": last})

    np.testing.assert_allclose(values, IMAGES[:, 1].reshape(5, -1).mean(axis=1), rtol=1e-6)


@pytest.mark.parametrize(("cycles", "centroid"), [(0, 0.0), (16, 0.25), (32, 0.5), (64, 1.0)])
def test_the_spectral_centroid_of_a_tone_is_its_frequency_over_nyquist(cycles: int, centroid: float) -> None:
    tone = np.cos(2 * np.pi * cycles * np.arange(128) / 128)[None].astype(np.float32)

    assert extract(feature("spectral_centroid"), {"image": tone})[0] == pytest.approx(centroid, abs=1e-4)


def test_silence_has_no_spectral_centroid() -> None:
    assert np.isnan(extract(feature("spectral_centroid"), {"image": np.zeros((2, 16))})).tolist() == [True, True]


def test_random_directions_are_the_same_numbers_on_every_machine() -> None:
    """Pinned: another number here makes every reference in every bundle mean something else."""
    numbers = gaussian_integers(7, 2, 70_000)

    assert numbers[:4].tolist() == [87059, 81148, 41685, 57523]
    assert int(numbers.sum()) == -17009842
    assert unit_direction(7, 2, 3).tolist() == [0.6903813885448966, 0.6435069196480694, 0.33056373472580686]


def test_random_directions_are_gaussian_of_length_one_and_unlike_each_other() -> None:
    z = gaussian_integers(1, 0, 100_000) / STANDARD_DEVIATION

    assert abs(z.mean()) < 0.01
    assert z.std() == pytest.approx(1.0, abs=0.01)
    assert (z**4).mean() == pytest.approx(3.0, abs=0.15)
    directions = np.array([unit_direction(seed, index, 400) for seed in (0, 1) for index in range(4)])
    np.testing.assert_allclose(directions @ directions.T, np.eye(8), atol=0.25)
    np.testing.assert_allclose((directions**2).sum(axis=1), 1.0, rtol=1e-12)


def test_a_direction_that_is_kept_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="read-only"):
        unit_direction(1, 1, 4)[0] = 9.0


@pytest.mark.parametrize(
    ("task", "outputs", "scores"),
    [
        ("classification", {"label": np.array([1, 0]), "y": np.array([[0.2, 0.8], [0.6, 0.4]])}, [0.8, 0.6]),
        ("classification", {"y": np.array([["a"], ["b"]])}, None),
        ("anomaly", {"y": np.array([[1.0, 1.0], [3.0, 0.0]], dtype=np.float32)}, [1.0, 4.5]),
        ("anomaly", {"y": np.array([[0.25], [7.0]])}, [0.25, 7.0]),
        ("anomaly", {"y": np.zeros((2, 3))}, None),
        ("regression", {"y": np.array([3.5, -1.0])}, [3.5, -1.0]),
        ("regression", {"y": np.zeros((2, 2))}, None),
    ],
)
def test_an_answers_score_is_what_its_task_says(
    task: str, outputs: dict[str, NDArray[Any]], scores: list[float] | None
) -> None:
    found = answer_scores(task, {"x": np.array([[0.0, 0.0], [0.0, 0.0]])}, outputs)

    assert (None if found is None else found.tolist()) == scores
