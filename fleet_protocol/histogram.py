"""A mergeable latency histogram whose quantiles are within 0.78 % of a recorded value.

Log-linear: the top bits of a float64 are its bucket, `index = (bits >> 46) - offset`, which gives 64
buckets an octave (6 mantissa bits), so a bucket's midpoint is at most 1/128 from any value in it.
Covers 2**-4 to 2**36 microseconds (62 ns to 19 h); what lies outside goes to the first or last bucket.
The idea of sub-buckets per octave is that of HdrHistogram (hdrhistogram.org).

Invariants: merging is addition (associative, commutative); a histogram's bytes depend only on its counts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fleet_protocol.errors import SketchError
from fleet_protocol.varint import Counts, decode_sparse, encode_sparse

_SHIFT = 46
_LOWEST_EXPONENT = -4
_OCTAVES = 40
_OFFSET = (1023 + _LOWEST_EXPONENT) << (52 - _SHIFT)
BUCKETS = _OCTAVES << (52 - _SHIFT)
RELATIVE_ERROR = 1 / 128

_EDGES_US: NDArray[np.float64] = ((np.arange(BUCKETS + 1, dtype=np.int64) + _OFFSET) << _SHIFT).view(np.float64)
_MIDPOINTS_US: NDArray[np.float64] = (_EDGES_US[:-1] + _EDGES_US[1:]) / 2


def bucket_indices(values_us: NDArray[np.float64]) -> NDArray[np.int64]:
    """The bucket of each value `[n]` in microseconds. Raises SketchError on NaN."""
    if np.isnan(values_us).any():
        raise SketchError("a latency is NaN")
    positive = np.maximum(values_us, _EDGES_US[0])
    indices = (positive.view(np.int64) >> _SHIFT) - _OFFSET
    clipped: NDArray[np.int64] = np.minimum(indices, BUCKETS - 1)
    return clipped


class LatencyHistogram:
    """Counts of latencies in microseconds.

    >>> h = LatencyHistogram.of([100.0, 200.0, 300.0])
    >>> h.count, round(h.quantile_us(0.5))
    (3, 201)
    """

    __slots__ = ("counts",)

    def __init__(self, counts: Counts | None = None) -> None:
        self.counts: Counts = np.zeros(BUCKETS, dtype=np.int64) if counts is None else counts

    @classmethod
    def of(cls, values_us: Sequence[float] | NDArray[np.float64]) -> LatencyHistogram:
        """The histogram of some values in microseconds."""
        histogram = cls()
        histogram.record_many(values_us)
        return histogram

    @classmethod
    def from_bytes(cls, data: bytes) -> LatencyHistogram:
        """The histogram of wire bytes. Raises SketchError when they are torn."""
        return cls(decode_sparse(data, BUCKETS))

    def to_bytes(self) -> bytes:
        """Wire bytes: sparse varints, empty for an empty histogram."""
        return encode_sparse(self.counts)

    def record_many(self, values_us: Sequence[float] | NDArray[np.float64]) -> None:
        """Count values `[n]` in microseconds. Raises SketchError on NaN and counts none of them."""
        values = np.ascontiguousarray(values_us, dtype=np.float64)
        if values.size:
            self.counts += np.bincount(bucket_indices(values), minlength=BUCKETS)

    def merge(self, other: LatencyHistogram) -> None:
        """Add another histogram's counts to this one."""
        self.counts += other.counts

    @property
    def count(self) -> int:
        """How many values were counted."""
        return int(self.counts.sum())

    @property
    def mean_us(self) -> float:
        """The mean in microseconds, within 0.78 %; NaN when empty."""
        total = self.count
        return float(self.counts @ _MIDPOINTS_US) / total if total else float("nan")

    @property
    def max_us(self) -> float:
        """The upper edge of the highest occupied bucket; NaN when empty."""
        places = np.flatnonzero(self.counts)
        return float(_EDGES_US[places[-1] + 1]) if len(places) else float("nan")

    def quantile_us(self, q: float) -> float:
        """The value at rank ceil(q * count) in microseconds, within 0.78 %; NaN when empty."""
        if not 0.0 <= q <= 1.0:
            raise ValueError(f"quantile {q} is outside 0..1")
        cumulative = np.cumsum(self.counts)
        total = int(cumulative[-1])
        if total == 0:
            return float("nan")
        rank = min(max(1, int(np.ceil(q * total))), total)  # a float product of large counts may round up past the end
        return float(_MIDPOINTS_US[int(np.searchsorted(cumulative, rank))])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LatencyHistogram) and bool(np.array_equal(self.counts, other.counts))

    def __repr__(self) -> str:
        return f"LatencyHistogram(count={self.count}, p50_us={self.quantile_us(0.5):.1f})"
