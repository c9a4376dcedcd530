"""Latency histograms of many windows at once: decoded, summed and summarised without a loop per window.

One histogram at a time costs about 90 us in numpy, nearly all of it call overhead; together a few us.

Invariants: the result equals that of `LatencyHistogram.from_bytes` one by one; bytes that are torn, or that
claim more than MAX_WINDOW_COUNT in one bucket, count as no histogram at all and are named in `refused`, so
that one broken device can neither stop a query nor overflow a fleet's sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from fleet_protocol.errors import SketchError
from fleet_protocol.histogram import BUCKETS, LatencyHistogram

MAX_WINDOW_COUNT = 2**40
"""Inferences in one bucket of one window; 2**23 windows of that size still sum within 63 bits."""

_MAX_VARINT_BYTES = 9
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class SparseHistograms:
    """The occupied buckets of `size` histograms: parallel arrays, ordered by owner, then place."""

    size: int
    owners: Ints
    places: Ints
    counts: Ints
    refused: tuple[int, ...]


def decode_histograms(blobs: Sequence[bytes]) -> SparseHistograms:
    """The histograms of wire bytes `[size]`; those that do not decode are in `refused` and hold nothing."""
    decoded = _decode_all(blobs)
    return _decode_each(blobs) if decoded is None else decoded


def _decode_all(blobs: Sequence[bytes]) -> SparseHistograms | None:
    """All at once, or None when anything at all is wrong with any of them."""
    lengths = np.fromiter((len(blob) for blob in blobs), dtype=np.int64, count=len(blobs))
    raw = np.frombuffer(b"".join(blobs), dtype=np.uint8)
    if not len(raw):
        empty = np.zeros(0, dtype=np.int64)
        return SparseHistograms(size=len(blobs), owners=empty, places=empty, counts=empty, refused=())
    is_end = raw < 0x80
    bounds = np.cumsum(lengths)
    if not is_end[bounds[lengths > 0] - 1].all():
        return None
    ends = np.flatnonzero(is_end)
    starts = np.concatenate(([0], ends[:-1] + 1))
    if (ends - starts).max() >= _MAX_VARINT_BYTES:
        return None
    shifts = 7 * (np.arange(len(raw)) - np.repeat(starts, ends - starts + 1))
    values = np.add.reduceat((raw & 0x7F).astype(np.int64) << shifts, starts)
    numbers = np.diff(np.searchsorted(ends, bounds), prepend=0)
    if (numbers % 2).any():
        return None
    pairs = numbers // 2
    owners = np.repeat(np.arange(len(blobs)), pairs)
    gaps, counts = values[0::2], values[1::2]
    if gaps.max() >= BUCKETS or counts.min() == 0 or counts.max() > MAX_WINDOW_COUNT or pairs.max() > BUCKETS:
        return None
    steps = np.cumsum(gaps + 1)
    first = (np.cumsum(pairs) - pairs)[pairs > 0]
    before = np.concatenate(([0], steps))[first]
    places = steps - np.repeat(before, pairs[pairs > 0]) - 1
    if places.max() >= BUCKETS:
        return None
    return SparseHistograms(size=len(blobs), owners=owners, places=places, counts=counts, refused=())


def _decode_each(blobs: Sequence[bytes]) -> SparseHistograms:
    owners, places, counts, refused = [], [], [], []
    for owner, blob in enumerate(blobs):
        try:
            dense = LatencyHistogram.from_bytes(blob).counts
        except SketchError:
            refused.append(owner)
            continue
        occupied = np.flatnonzero(dense)
        if len(occupied) and dense.max() > MAX_WINDOW_COUNT:
            refused.append(owner)
            continue
        owners.append(np.full(len(occupied), owner, dtype=np.int64))
        places.append(occupied)
        counts.append(dense[occupied])
    none = [np.zeros(0, dtype=np.int64)]
    return SparseHistograms(
        size=len(blobs),
        owners=np.concatenate(owners or none),
        places=np.concatenate(places or none),
        counts=np.concatenate(counts or none),
        refused=tuple(refused),
    )


def sum_by_group(histograms: SparseHistograms, groups: Ints) -> tuple[Ints, Ints, Ints]:
    """Sums per group, where `groups[size]` names each histogram's: parallel (group, place, count), sorted."""
    if not len(histograms.places):
        return histograms.owners, histograms.places, histograms.counts
    keys = groups[histograms.owners] * BUCKETS + histograms.places
    order = np.argsort(keys, kind="stable")
    unique, starts = np.unique(keys[order], return_index=True)
    return unique // BUCKETS, unique % BUCKETS, np.add.reduceat(histograms.counts[order], starts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Summaries:
    """Microseconds per histogram `[size]`, NaN where it is empty; quantiles are `[len(levels), size]`."""

    quantiles_us: Floats
    mean_us: Floats
    max_us: Floats


def summarise(histograms: SparseHistograms, levels: Sequence[float]) -> Summaries:
    """What LatencyHistogram's `quantile_us`, `mean_us` and `max_us` say of each histogram."""
    midpoints, upper_edges = _bucket_values()
    size = histograms.size
    quantiles = np.full((len(levels), size), np.nan)
    mean, maximum = np.full(size, np.nan), np.full(size, np.nan)
    if len(histograms.counts):
        present, starts = np.unique(histograms.owners, return_index=True)
        cumulative = np.cumsum(histograms.counts)
        last = np.append(starts[1:], len(cumulative)) - 1
        before = np.concatenate(([0], cumulative))[starts]
        totals = cumulative[last] - before
        for row, level in enumerate(levels):
            ranks = np.maximum(1, np.ceil(level * totals)).astype(np.int64)
            found = np.searchsorted(cumulative, before + np.minimum(ranks, totals))
            quantiles[row, present] = midpoints[histograms.places[found]]
        weighted = histograms.counts * midpoints[histograms.places]
        mean[present] = np.add.reduceat(weighted, starts) / totals
        maximum[present] = upper_edges[histograms.places[last]]
    return Summaries(quantiles_us=quantiles, mean_us=mean, max_us=maximum)


@cache
def _bucket_values() -> tuple[Floats, Floats]:
    """Midpoint and upper edge of every bucket, asked of the histogram itself so that there is one definition."""
    midpoints, upper_edges = np.empty(BUCKETS), np.empty(BUCKETS)
    for place in range(BUCKETS):
        counts = np.zeros(BUCKETS, dtype=np.int64)
        counts[place] = 1
        one = LatencyHistogram(counts)
        midpoints[place], upper_edges[place] = one.mean_us, one.max_us
    return midpoints, upper_edges
