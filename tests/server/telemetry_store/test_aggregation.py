"""Sums and summaries of many histograms equal those of each one alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet_protocol.errors import SketchError
from fleet_protocol.histogram import BUCKETS, LatencyHistogram
from fleet_server.errors import InvalidRequestError
from fleet_server.telemetry_store import aggregation
from fleet_server.telemetry_store.aggregation import sum_by_device, sum_by_step, sums_of
from fleet_server.telemetry_store.sketches import MAX_WINDOW_COUNT, decode_histograms, sum_by_group, summarise
from tests.server.telemetry_store.windows import T0_NS, latency_of, window

_VALID = st.lists(st.floats(1e-3, 1e12), max_size=30).map(lambda values: latency_of(*values))
_BLOBS = st.lists(_VALID | st.binary(max_size=12), max_size=12)
LEVELS = (0.0, 0.5, 0.9, 0.95, 0.99, 1.0)


def _alone(blob: bytes) -> LatencyHistogram | None:
    try:
        histogram = LatencyHistogram.from_bytes(blob)
    except SketchError:
        return None
    return None if histogram.counts.max() > MAX_WINDOW_COUNT else histogram


@given(_BLOBS)
@settings(deadline=None)
def test_histograms_decoded_together_equal_each_decoded_alone(blobs: list[bytes]) -> None:
    together = decode_histograms(blobs)
    for owner, blob in enumerate(blobs):
        alone = _alone(blob)
        assert (owner in together.refused) == (alone is None)
        dense = np.zeros(BUCKETS, dtype=np.int64)
        mine = together.owners == owner
        dense[together.places[mine]] = together.counts[mine]
        assert LatencyHistogram(dense) == (alone or LatencyHistogram())


@given(_BLOBS, st.data())
@settings(deadline=None)
def test_sums_by_group_equal_merges(blobs: list[bytes], data: st.DataObject) -> None:
    groups = np.array(data.draw(st.lists(st.integers(0, 3), min_size=len(blobs), max_size=len(blobs))), dtype=np.int64)
    owners, places, counts = sum_by_group(decode_histograms(blobs), groups)
    for group in range(4):
        merged = LatencyHistogram()
        for blob, of in zip(blobs, groups, strict=True):
            if of == group:
                merged.merge(_alone(blob) or LatencyHistogram())
        dense = np.zeros(BUCKETS, dtype=np.int64)
        dense[places[owners == group]] = counts[owners == group]
        assert LatencyHistogram(dense) == merged


@given(_BLOBS)
@settings(deadline=None)
def test_summaries_equal_those_of_the_histogram(blobs: list[bytes]) -> None:
    summaries = summarise(decode_histograms(blobs), LEVELS)
    for owner, blob in enumerate(blobs):
        alone = _alone(blob) or LatencyHistogram()
        expected = [alone.quantile_us(level) for level in LEVELS]
        np.testing.assert_array_equal(summaries.quantiles_us[:, owner], expected)
        np.testing.assert_allclose(summaries.mean_us[owner], alone.mean_us, rtol=1e-12)
        np.testing.assert_array_equal(summaries.max_us[owner], alone.max_us)


def test_chunks_of_rows_sum_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [sums_of(window(device=f"dev-{n % 3}", sequence=n, end_ns=T0_NS + n)) for n in range(1, 50)]
    whole = sum_by_device(rows), sum_by_step(rows, 7)
    monkeypatch.setattr(aggregation, "_ROWS_PER_CHUNK", 4)
    assert (sum_by_device(reversed(rows)), sum_by_step(reversed(rows), 7)) == whole
    assert [row.totals.latency.count for row in whole[0]] == [48, 51, 48]


def test_more_groups_than_memory_allows_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aggregation, "MAX_GROUPS", 3)
    rows = [sums_of(window(device=f"dev-{n}")) for n in range(4)]
    assert len(sum_by_device(rows[:3])) == 3
    with pytest.raises(InvalidRequestError, match="narrow"):
        sum_by_device(rows)


@pytest.mark.parametrize(
    "torn", [b"\x00", b"\x00\x00", b"\x00\x01", b"\x80", b"\x01\x00", b"\x00\x00\x01", b"\xff" * 10]
)
def test_a_torn_sketch_says_nothing_of_the_ones_beside_it(torn: bytes) -> None:
    good = latency_of(100.0, 3e6)
    together = decode_histograms([good, torn, good, b"", torn, torn, good])
    assert together.refused == (1, 4, 5)
    assert np.bincount(together.owners, minlength=7).tolist() == [2, 0, 2, 0, 0, 0, 2]
