"""Histograms and bin sketches: exact enough, mergeable in any order, and deaf to hostile bytes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fleet_protocol.bins import MAX_BINS, BinSketch, check_edges, quantile_edges
from fleet_protocol.errors import SketchError
from fleet_protocol.histogram import BUCKETS, RELATIVE_ERROR, LatencyHistogram
from fleet_protocol.varint import MAX_COUNT, decode_sparse, encode_sparse

Floats = NDArray[np.float64]
LEVELS = (0.0, 0.01, 0.25, 0.5, 0.9, 0.95, 0.99, 0.999, 1.0)
LATENCIES = st.lists(st.floats(0.1, 1e10), max_size=50)
VALUES = st.lists(st.floats() | st.sampled_from([0.0, 1.0, 2.5, 4.0]), max_size=50)
EDGES = [0.0, 1.0, 2.5, 4.0]


def varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def numbers_of(*numbers: int) -> bytes:
    return b"".join(map(varint, numbers))


@pytest.mark.parametrize(
    "draw",
    [
        lambda rng: rng.lognormal(6.0, 1.5, 20_000),
        lambda rng: rng.exponential(900.0, 20_000) + 1.0,
        lambda rng: rng.uniform(50.0, 60.0, 20_000),
        lambda rng: (rng.pareto(1.1, 20_000) + 1) * 100,
        lambda rng: np.concatenate([rng.normal(200, 2, 19_000), rng.normal(90_000, 50, 1_000)]),
        lambda rng: np.full(1_000, 137.0),
        lambda rng: 2.0 ** rng.integers(-4, 36, 5_000),
    ],
    ids=["lognormal", "exponential", "uniform", "pareto", "two peaks", "constant", "powers of two"],
)
def test_every_quantile_is_within_the_promised_error_of_the_recorded_value(
    draw: Callable[[np.random.Generator], Floats],
) -> None:
    values = np.sort(draw(np.random.default_rng(11)))
    histogram = LatencyHistogram.of(values)

    for level in LEVELS:
        exact = values[max(1, int(np.ceil(level * len(values)))) - 1]
        assert abs(histogram.quantile_us(level) - exact) <= RELATIVE_ERROR * exact
    # every power of two lies on the edge of its bucket: the error is the promised one, and the sum rounds
    assert abs(histogram.mean_us - values.mean()) <= RELATIVE_ERROR * values.mean() * (1 + 1e-12)
    assert values[-1] <= histogram.max_us <= values[-1] * (1 + 2 * RELATIVE_ERROR)


def test_the_promised_error_is_below_0_79_percent() -> None:
    assert RELATIVE_ERROR < 0.0079


@given(parts=st.lists(LATENCIES, min_size=1, max_size=4), order=st.randoms(use_true_random=False))
def test_merging_in_any_order_equals_the_histogram_of_everything(
    parts: list[list[float]], order: np.random.Generator
) -> None:
    everything = LatencyHistogram.of([value for part in parts for value in part])
    order.shuffle(parts)  # type: ignore[arg-type]  # random.Random here, which shuffles lists
    merged = LatencyHistogram()
    for part in parts:
        merged.merge(LatencyHistogram.from_bytes(LatencyHistogram.of(part).to_bytes()))

    assert merged == everything
    assert merged.to_bytes() == everything.to_bytes()
    assert merged.count == sum(map(len, parts))


def test_the_bytes_of_a_histogram_are_these_on_every_machine() -> None:
    # by hand: buckets 0, 9·64 + 61, 10·64 + 36 (twice), 23·64 + 58, the last; between them 0 and how many are empty
    histogram = LatencyHistogram.of([0.01, 62.5, 100.0, 100.0, 1e6, 1e300])

    assert histogram.to_bytes().hex() == "0100fc040100260200d5060100840801"


def test_values_outside_the_range_go_to_the_first_and_the_last_bucket_and_are_counted() -> None:
    histogram = LatencyHistogram.of([-5.0, 0.0, float("-inf"), 1e200, float("inf")])

    assert (histogram.counts[0], histogram.counts[-1], histogram.count) == (3, 2, 5)


def test_a_nan_latency_is_refused_and_nothing_of_its_batch_is_counted() -> None:
    histogram = LatencyHistogram()

    with pytest.raises(SketchError, match="NaN"):
        histogram.record_many([1.0, float("nan")])
    assert histogram.count == 0


def test_an_empty_histogram_has_no_quantiles_and_no_bytes() -> None:
    histogram = LatencyHistogram.from_bytes(b"")

    assert np.isnan([histogram.quantile_us(0.5), histogram.mean_us, histogram.max_us]).all()
    assert histogram.to_bytes() == b""


@pytest.mark.parametrize("q", [-0.1, 1.1, float("nan")])
def test_a_quantile_outside_0_to_1_is_refused(q: float) -> None:
    with pytest.raises(ValueError, match="outside"):
        LatencyHistogram.of([1.0]).quantile_us(q)


@pytest.mark.parametrize(
    "data",
    [
        numbers_of(MAX_COUNT + 1),
        numbers_of(2**63 - 1),
        numbers_of(2**62, 2**62),
        numbers_of(2**63 - 1, 2**63 - 1, 3),
        numbers_of(1, 0, 2**63 - 1, 1),
        numbers_of(0, 2**62, 1, 0, 2**62, 1),
        numbers_of(0, 2**63 - 1, 1),
        b"\xff" * 9 + b"\x01\x01",
        b"\x80" * 20 + b"\x01\x01",
        numbers_of(0, BUCKETS, 1),
        numbers_of(0, BUCKETS - 1, 1, 1),
        numbers_of(0, 0, 1),
        numbers_of(5, 0),
        numbers_of(5, 0, 3),
        b"\x80",
        numbers_of(1) + b"\xff",
        numbers_of(*[1] * (BUCKETS + 1)),
    ],
    ids=[
        "one above the limit", "the largest int64", "two that wrap their sum", "three that wrap past zero",
        "a gap that wraps", "two gaps that wrap", "the largest gap", "64 bits", "twenty bytes of zero",
        "a place beyond the last", "a second place beyond the last", "a gap of nothing", "half a gap",
        "a gap at the end", "half a number", "a number and a half", "too many places",
    ],
)  # fmt: skip
def test_a_hostile_sketch_is_a_sketch_error_and_never_a_wrapped_sum(data: bytes) -> None:
    with pytest.raises(SketchError):
        LatencyHistogram.from_bytes(data)
    with pytest.raises(SketchError):
        BinSketch.from_bytes(np.arange(MAX_BINS + 1.0), data)


def test_the_largest_histogram_a_device_may_claim_still_answers_every_question() -> None:
    largest = LatencyHistogram.from_bytes(numbers_of(*[MAX_COUNT] * BUCKETS))

    assert largest.count == MAX_COUNT * BUCKETS
    assert all(np.isfinite(largest.quantile_us(level)) for level in LEVELS)
    assert largest.mean_us > 0


@pytest.mark.parametrize("total", [2**53 + 1, 2**53 + 3, 2**61 + 1, 2**63 - 1])
def test_a_sum_beyond_the_floats_precision_still_has_its_highest_quantile(total: int) -> None:
    counts = np.zeros(BUCKETS, dtype=np.int64)
    counts[5] = total

    histogram = LatencyHistogram(counts)

    assert histogram.quantile_us(1.0) == histogram.quantile_us(0.0)


@given(data=st.binary(max_size=200))
def test_random_bytes_are_a_sketch_error_or_a_sketch_that_can_be_summed(data: bytes) -> None:
    try:
        histogram = LatencyHistogram.from_bytes(data)
    except SketchError:
        return
    assert histogram.count >= 0
    assert LatencyHistogram.from_bytes(histogram.to_bytes()) == histogram
    assert not histogram.count or np.isfinite(histogram.quantile_us(0.99))


@given(st.lists(st.integers(0, MAX_COUNT), max_size=40))
def test_sparse_counts_arrive_as_they_were(counts: list[int]) -> None:
    dense = np.array(counts, dtype=np.int64)

    assert decode_sparse(encode_sparse(dense), len(dense)).tolist() == counts


def test_a_negative_count_cannot_be_sent() -> None:
    with pytest.raises(SketchError, match="negative"):
        encode_sparse(np.array([1, -1]))


@given(parts=st.lists(VALUES, min_size=1, max_size=4))
def test_merged_bins_equal_the_bins_of_everything_and_count_every_value_once(parts: list[list[float]]) -> None:
    everything, merged = BinSketch(EDGES), BinSketch(EDGES)
    everything.record_many([value for part in parts for value in part], missing=len(parts))
    for part in reversed(parts):
        sketch = BinSketch(EDGES)
        sketch.record_many(part, missing=1)
        merged.merge(BinSketch.from_bytes(EDGES, sketch.to_bytes()))

    assert merged == everything
    assert merged.count == sum(map(len, parts)) + len(parts)


def test_each_value_is_counted_in_its_bin_or_in_its_counter() -> None:
    sketch = BinSketch(EDGES)

    sketch.record_many([0.0, 1.0, 2.4, 4.0, -0.1, 4.1, float("nan"), float("inf"), float("-inf")], missing=2)

    assert sketch.bins.tolist() == [1, 2, 1]
    assert sketch.outside.tolist() == [1, 1, 2, 1, 2]


@pytest.mark.parametrize(
    "edges",
    [
        [],
        [1.0],
        [1.0, 1.0],
        [2.0, 1.0],
        [0.0, float("nan")],
        [0.0, float("inf")],
        [[0.0, 1.0], [2.0, 3.0]],
        list(range(MAX_BINS + 2)),
    ],
)
def test_edges_that_are_no_bins_are_refused(edges: list[float]) -> None:
    with pytest.raises(SketchError):
        check_edges(edges)


@given(st.lists(st.floats(-1e12, 1e12), min_size=1, max_size=200))
def test_the_quantile_edges_of_any_values_hold_all_of_them(values: list[float]) -> None:
    array = np.array(values)
    sketch = BinSketch(quantile_edges(array))

    sketch.record_many(array)

    assert sketch.bins.sum() == len(values)


def test_a_reference_without_a_finite_value_is_refused() -> None:
    with pytest.raises(SketchError, match="finite"):
        quantile_edges(np.array([np.nan, np.inf]))


def test_sketches_over_different_edges_are_not_merged() -> None:
    with pytest.raises(SketchError, match="different edges"):
        BinSketch([0.0, 1.0]).merge(BinSketch([0.0, 2.0]))
