"""Calibration: what is gathered in one pass, how ranges are read off it, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import helper

from quantize.calibration import MAX_CALIBRATION_SAMPLES, Activations, Calibration, activations, calibrate
from quantize.calibration.observer import AVERAGING, BINS, Observer
from quantize.calibration.ranges import Histogram, entropy_range, percentile_range
from quantize.errors import InvalidDataError
from quantize.scheme import Ranges
from tests.quantize.quantizers.networks import (
    attention,
    convolutional,
    dense,
    image_samples,
    model_of,
    row_samples,
    sequence_samples,
)


def observed(values: NDArray[np.float32], cuts: list[int] | None = None) -> Observer:
    observer = Observer()
    for part in np.split(values, cuts or []):
        if len(part):
            observer.observe(part, len(part))
    return observer


def histogram_of(values: NDArray[np.floating]) -> Histogram:
    return observed(values.astype(np.float32).reshape(-1, 1)).histogram


def test_the_least_and_greatest_value_of_every_activation_are_exact() -> None:
    model, samples = dense(), row_samples(300, 64)

    calibration = calibrate(model, samples)

    hidden = Activations(model=model)({"x": samples["x"]})
    assert set(calibration.histograms) == {"x", *hidden}
    ranges = calibration.ranges(Ranges.MINMAX)
    for name, values in {**samples, **hidden}.items():
        # batches of another size add in another order
        np.testing.assert_allclose(ranges[name], (values.min(), values.max()), rtol=1e-5, atol=1e-6)


@given(
    values=st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=40),
    cuts=st.lists(st.integers(0, 40), max_size=4),
)
def test_how_samples_are_cut_into_batches_changes_nothing(values: list[float], cuts: list[int]) -> None:
    array = np.array(values, dtype=np.float32).reshape(-1, 1)

    whole, parts = observed(array), observed(array, sorted(min(cut, len(array)) for cut in cuts))

    assert (whole.lowest, whole.highest) == (parts.lowest, parts.highest)
    np.testing.assert_allclose(whole.average, parts.average, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(whole.histogram.counts, parts.histogram.counts)
    assert whole.histogram.width == parts.histogram.width


def test_a_histogram_that_had_to_grow_lost_nothing() -> None:
    values = np.random.default_rng(7).normal(size=(3_000, 1)).astype(np.float32)
    values[1_000:] *= 37
    values[2_000:] *= 37

    grown, at_once = observed(values, [1_000, 2_000]).histogram, observed(values).histogram

    assert grown.counts.sum() == 3_000
    np.testing.assert_array_equal(grown.counts, at_once.counts)


@given(st.lists(st.floats(-1e9, 1e9, width=32), min_size=1, max_size=60))
def test_every_value_is_counted_in_its_own_bin(values: list[float]) -> None:
    array = np.array(values, dtype=np.float32)

    histogram = histogram_of(array)

    assert histogram.counts.sum() == len(array)
    (filled,) = np.nonzero(histogram.counts)
    assert (filled[0] - BINS // 2) * histogram.width <= array.min()
    assert array.max() < (filled[-1] + 1 - BINS // 2) * histogram.width


def test_the_moving_average_forgets_an_outlier_that_minmax_keeps() -> None:
    values = np.ones((1_000, 2), dtype=np.float32)
    values[:, 1] = -1
    values[10, 0] = 100

    low, high = observed(values, [400]).average or (0, 0)

    expected = 1 + 99 * AVERAGING * (1 - AVERAGING) ** 989
    assert (low, high) == pytest.approx((-1, expected), rel=1e-6)


def test_a_percentile_range_leaves_the_farthest_values_out() -> None:
    values = np.random.default_rng(1).normal(size=60_000)
    values[:5] = 100

    low, high = percentile_range(histogram_of(values), 99.0)

    # 99 % of a normal distribution lie within 2.576 deviations; a bin is 0.03 wide
    assert (low, high) == pytest.approx((-2.576, 2.576), abs=0.05)
    assert percentile_range(histogram_of(values), 100.0) == pytest.approx((values.min(), 100), abs=0.05)


@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=200))
def test_no_range_goes_beyond_what_was_seen(values: list[float]) -> None:
    array = np.array(values, dtype=np.float32)

    for low, high in (percentile_range(histogram_of(array)), entropy_range(histogram_of(array))):
        assert array.min() <= low <= high <= array.max()


def test_entropy_clips_a_thin_tail_and_keeps_a_full_range() -> None:
    randomness = np.random.default_rng(2)
    full = np.abs(randomness.uniform(0, 10, size=100_000))
    tailed = np.abs(randomness.normal(size=100_000))
    tailed[:20] = 60.0

    assert entropy_range(histogram_of(full))[1] == pytest.approx(10, rel=0.02)
    assert 2.5 < entropy_range(histogram_of(tailed))[1] < 20


def test_the_many_zeros_of_a_relu_do_not_decide_where_entropy_clips() -> None:
    tailed = np.abs(np.random.default_rng(3).laplace(size=60_000)) + 0.02
    with_zeros = np.concatenate([tailed, np.zeros(60_000)])[np.random.default_rng(4).permutation(120_000)]

    assert entropy_range(histogram_of(with_zeros))[1] == pytest.approx(entropy_range(histogram_of(tailed))[1], rel=0.1)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_sample_that_is_not_finite_is_refused_by_the_name_of_its_input(value: float) -> None:
    samples = row_samples(10, 64)
    samples["x"][3, 5] = value

    with pytest.raises(InvalidDataError, match="input 'x'"):
        calibrate(dense(), samples)


def test_an_activation_that_is_not_finite_is_refused_by_its_name() -> None:
    nodes = [helper.make_node("Sqrt", ["x"], ["root"]), helper.make_node("Relu", ["root"], ["y"])]
    model = model_of(nodes, {}, inputs={"x": ["n", 2]}, outputs={"y": ["n", 2]})

    with pytest.raises(InvalidDataError, match=r"tensor 'root'.* samples 0 to 1"):
        calibrate(model, {"x": np.array([[1, 2], [-1, 1]], dtype=np.float32)})


def test_an_overflow_is_refused_though_what_follows_hides_it() -> None:
    nodes = [helper.make_node("Exp", ["x"], ["huge"]), helper.make_node("Reciprocal", ["huge"], ["y"])]
    model = model_of(nodes, {}, inputs={"x": ["n", 2]}, outputs={"y": ["n", 2]})

    with pytest.raises(InvalidDataError, match="tensor 'huge'"):
        calibrate(model, {"x": np.full((2, 2), 200, dtype=np.float32)})


def test_an_attention_mask_has_no_range_and_harms_nobody_else() -> None:
    calibration = calibrate(attention(is_masked=True), sequence_samples(20))

    assert calibration.masks == {"masked"}
    assert "masked" not in calibration.ranges(Ranges.ENTROPY)
    assert np.isfinite(list(calibration.ranges(Ranges.MINMAX).values())).all()


def test_a_calibration_that_was_stored_is_read_back_equal() -> None:
    samples = sequence_samples(30)
    calibration = calibrate(attention(is_masked=True), samples)

    again = Calibration.from_bytes(calibration.to_bytes())

    assert (again.key, again.samples, again.masks) == (calibration.key, 30, calibration.masks)
    for kind in Ranges:
        assert again.ranges(kind) == calibration.ranges(kind)
    assert again.channel_maxima.keys() == {"n1", "n2"}
    np.testing.assert_array_equal(again.channel_maxima["n1"], calibration.channel_maxima["n1"])
    assert again.to_bytes() == calibration.to_bytes()


@pytest.mark.parametrize("share", [0.0, 0.4, 0.99])
def test_a_torn_store_is_refused(share: float) -> None:
    content = calibrate(dense(), row_samples(5, 64)).to_bytes()

    with pytest.raises(InvalidDataError, match="calibrate again"):
        Calibration.from_bytes(content[: int(len(content) * share)])


def test_more_samples_than_the_limit_are_drawn_by_the_seed() -> None:
    samples = row_samples(MAX_CALIBRATION_SAMPLES + 500, 8)
    model = dense((8, 4, 2))

    first, same, other = (calibrate(model, samples, seed=seed) for seed in (1, 1, 2))

    assert first.samples == MAX_CALIBRATION_SAMPLES
    assert first.to_bytes() == same.to_bytes()
    assert first.key != other.key
    assert (first.histograms["x"].counts != other.histograms["x"].counts).any()


def test_large_activations_are_run_in_smaller_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    model, samples = convolutional(), image_samples(50)
    whole = calibrate(model, samples)
    sample_bytes = sum(array[0].nbytes for array in Activations(model=model)(samples).values())
    monkeypatch.setattr(activations, "MAX_BATCH_BYTES", sample_bytes * 7)

    sizes = [size for size, _ in Activations(model=model).batches(samples)]
    cut = calibrate(model, samples)

    assert sizes == [7] * 7 + [1]
    for name, limits in cut.ranges(Ranges.MINMAX).items():
        np.testing.assert_allclose(limits, whole.ranges(Ranges.MINMAX)[name], rtol=1e-5)


def test_progress_ends_with_every_sample() -> None:
    seen: list[tuple[int, int]] = []

    calibrate(dense(), row_samples(300, 64), progress=lambda done, count: seen.append((done, count)))

    assert seen == [(128, 300), (256, 300), (300, 300)]
