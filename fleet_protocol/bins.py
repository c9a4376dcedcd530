"""A mergeable sketch of one numeric feature or score: counts in at most 64 bins fixed by the reference.

The edges are quantiles of the training data and ship in the bundle, so every device and the reference
count in the same bins and a comparison needs no raw values. Beside the bins stand five counters: under,
over, missing, NaN, infinite.

Invariants: merging is addition; every value is counted exactly once, in a bin or in one counter.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fleet_protocol.errors import SketchError
from fleet_protocol.varint import Counts, decode_sparse, encode_sparse

MAX_BINS = 64
UNDER, OVER, MISSING, NAN, INFINITE = range(5)
_OUTSIDE = 5

Edges = NDArray[np.float64]


def check_edges(edges: Sequence[float] | Edges) -> Edges:
    """`edges` as a float64 array `[bins + 1]`: 2 to 65 finite, strictly increasing numbers.

    Raises SketchError otherwise.
    """
    array = np.asarray(edges, dtype=np.float64)
    if array.ndim != 1 or not 2 <= len(array) <= MAX_BINS + 1:
        raise SketchError(f"a bin sketch has 2 to {MAX_BINS + 1} edges, not {array.size}")
    if not np.isfinite(array).all() or not (np.diff(array) > 0).all():
        raise SketchError("bin edges must be finite and strictly increasing")
    return array


def quantile_edges(values: NDArray[np.float64], bins: int = MAX_BINS) -> Edges:
    """Edges at the quantiles of reference values `[n]`, fewer than `bins` + 1 where values repeat.

    Raises SketchError when no value is finite.
    """
    finite = np.asarray(values, dtype=np.float64)
    finite = finite[np.isfinite(finite)]
    if not finite.size:
        raise SketchError("a reference needs at least one finite value")
    edges = np.unique(np.quantile(finite, np.linspace(0.0, 1.0, bins + 1)))
    if len(edges) == 1:
        width = max(abs(float(edges[0])) * 1e-6, 1e-9)
        edges = np.array([edges[0] - width, edges[0] + width])
    return check_edges(edges)


class BinSketch:
    """Counts of one feature's values in the reference's bins.

    >>> s = BinSketch([0.0, 1.0, 2.0]); s.record_many([0.5, 1.5, 1.7, 9.0]); s.bins.tolist(), s.outside.tolist()
    ([1, 2], [0, 1, 0, 0, 0])
    """

    __slots__ = ("_counts", "edges")

    def __init__(self, edges: Sequence[float] | Edges, counts: Counts | None = None) -> None:
        self.edges = check_edges(edges)
        size = len(self.edges) - 1 + _OUTSIDE
        self._counts: Counts = np.zeros(size, dtype=np.int64) if counts is None else counts

    @classmethod
    def from_bytes(cls, edges: Sequence[float] | Edges, data: bytes) -> BinSketch:
        """The sketch of wire bytes over known edges. Raises SketchError."""
        checked = check_edges(edges)
        return cls(checked, decode_sparse(data, len(checked) - 1 + _OUTSIDE))

    def to_bytes(self) -> bytes:
        """Wire bytes: the bins, then under, over, missing, NaN, infinite."""
        return encode_sparse(self._counts)

    @property
    def bins(self) -> Counts:
        """Counts `[bins]`; a value on an inner edge belongs to the bin above it."""
        return self._counts[:-_OUTSIDE]

    @property
    def outside(self) -> Counts:
        """Counts `[5]` of what is in no bin: under, over, missing, NaN, infinite."""
        return self._counts[-_OUTSIDE:]

    @property
    def count(self) -> int:
        """How many values were counted, inside and outside."""
        return int(self._counts.sum())

    def record_many(self, values: Sequence[float] | NDArray[np.float64], *, missing: int = 0) -> None:
        """Count values `[n]` and `missing` absent ones."""
        array = np.asarray(values, dtype=np.float64).ravel()
        size = len(self.edges) - 1
        nan, infinite = np.isnan(array), np.isinf(array)
        finite = array[~(nan | infinite)]
        places = np.searchsorted(self.edges, finite, side="right") - 1
        places[finite == self.edges[-1]] = size - 1
        under, over = finite < self.edges[0], finite > self.edges[-1]
        self.bins[:] += np.bincount(places[~(under | over)], minlength=size)
        self.outside[:] += (under.sum(), over.sum(), missing, nan.sum(), infinite.sum())

    def merge(self, other: BinSketch) -> None:
        """Add another sketch's counts. Raises SketchError unless both have the same edges."""
        if not np.array_equal(self.edges, other.edges):
            raise SketchError("sketches over different edges cannot be merged")
        self._counts += other._counts

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, BinSketch)
            and np.array_equal(self.edges, other.edges)
            and np.array_equal(self._counts, other._counts)
        )

    def __repr__(self) -> str:
        return f"BinSketch(bins={len(self.bins)}, count={self.count})"
