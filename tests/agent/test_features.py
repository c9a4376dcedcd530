"""Feature extractors against numpy by hand, and the features a device must refuse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_agent.errors import BundleRefusedError, InvalidInputError
from edge_agent.telemetry.features import EXTRACTORS, check_extractor, extract
from fleet_protocol.manifest import FeatureReference, TensorSpec

IMAGES = np.random.default_rng(7).uniform(0, 16, size=(5, 3, 6, 4)).astype(np.float32)
PARAMETERS = {"channel_mean": {"channel": 2.0}, "column": {"index": 9.0}}


def feature(extractor: str, **parameters: float) -> FeatureReference:
    return FeatureReference(
        name="watched", extractor=extractor, input="image", edges=[0.0, 1.0], counts=[0], parameters=parameters
    )


def by_hand(extractor: str, image: NDArray[Any]) -> float:
    """One sample's value, with nothing vectorised over the batch."""
    pixels = image.astype(np.float64)
    if extractor == "sharpness":
        down = [abs(c[y + 1, x] - c[y, x]) for c in pixels for y in range(5) for x in range(4)]
        across = [abs(c[y, x + 1] - c[y, x]) for c in pixels for y in range(6) for x in range(3)]
        return float(np.mean(down + across))
    return {
        "mean": float(pixels.mean()),
        "brightness": float(pixels.mean()),
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
        (feature("column", index=72.0), {"image": IMAGES}),
    ],
    ids=["absent", "too few dimensions", "channel beyond the last", "column beyond the last"],
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
        (feature("column", index=64.0), "FP32", [-1, 8, 8]),
    ],
    ids=["text", "no image", "no such channel", "no such column"],
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
    specs = [TensorSpec(name="image", datatype="FP32", shape=[-1, 3, -1, -1])]
    for extractor in EXTRACTORS:
        check_extractor(feature(extractor, **PARAMETERS.get(extractor, {})), specs)
