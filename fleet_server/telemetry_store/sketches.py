"""Sketches of many windows at once: decoded, summed, summarised and encoded without a loop per sketch.

One sketch at a time costs about 90 us in numpy, nearly all of it call overhead; together one to a few us.

Invariants: the result equals that of `decode_sparse` (or `decode_sums`) one by one; bytes that are torn, that lie
outside their places, or that claim more than the limit in one place, count as no sketch at all and are named in
`refused`, so that one broken device can neither stop a query, slow it down, nor overflow a fleet's sum. Sums stop at
the wire's MAX_COUNT in a place, so that every merged sketch can be read as one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from fleet_protocol.bins import MAX_BINS
from fleet_protocol.embedding_sums import MAX_FEATURES, MAX_SUM
from fleet_protocol.histogram import BUCKETS, LatencyHistogram
from fleet_protocol.varint import MAX_COUNT

MAX_WINDOW_COUNT = 2**40
"""Inferences in one bucket of one window, and the size of one of its embedding sums; 2**23 windows of that size still
sum within 63 bits."""
BIN_PLACES = MAX_BINS + 5
"""The places of the widest bin sketch: its bins and the five counters beside them. Narrower ones fit into it."""

_MAX_VARINT_BYTES = 9
_MAX_DENSE_CELLS = 2**22
_EXACT_IN_FLOAT = 2.0**53
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class SparseCounts:
    """The occupied places of `size` sketches of `width` places: parallel arrays, ordered by owner, then place."""

    size: int
    width: int
    owners: Ints
    places: Ints
    counts: Ints
    refused: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ManySums:
    """Embedding sums of `[size]` wire bytes: those of i are `values[starts[i] : starts[i] + widths[i]]`."""

    values: Ints
    starts: Ints
    widths: Ints
    refused: tuple[int, ...]


def decode_histograms(blobs: Sequence[bytes]) -> SparseCounts:
    """The latency histograms of wire bytes `[size]`; those that do not decode are in `refused` and hold nothing."""
    return decode_sparse_many(blobs, BUCKETS)


def decode_sparse_many(
    blobs: Sequence[bytes], places: int, *, max_count: int = MAX_WINDOW_COUNT, refused: tuple[int, ...] = ()
) -> SparseCounts:
    """The sparse counts of wire bytes `[size]` over `places` places, at most `max_count` in each.

    Those that do not decode are in `refused`, beside those that the caller refused already, and hold nothing.
    """
    raw, lengths = _joined(blobs, refused)
    values, numbers, broken = _varints_of(raw, lengths)
    all_owners = np.repeat(np.arange(len(blobs)), numbers)
    told = np.flatnonzero(numbers)
    lasts = np.cumsum(numbers)[told] - 1
    is_gap = values == 0
    is_length = np.concatenate(([False], is_gap))[: len(values)]
    is_length[lasts - numbers[told] + 1] = False  # a gap at the end of one sketch says nothing of the next one
    is_count = ~(is_gap | is_length)
    broken[all_owners[is_gap & is_length]] = True
    broken[told[~is_count[lasts]]] = True
    bad = np.flatnonzero(broken)
    if len(bad):
        return decode_sparse_many(blobs, places, max_count=max_count, refused=(*refused, *bad.tolist()))
    steps = np.cumsum(np.where(is_length, np.minimum(values, places), is_count))
    base = np.concatenate(([0], steps))[np.cumsum(numbers) - numbers]
    owners, counts = all_owners[is_count], values[is_count]
    found = (steps - np.repeat(base, numbers))[is_count] - 1
    wrong = (found >= places) | (counts < 1) | (counts > max_count)
    if wrong.any():
        further = np.unique(owners[wrong])
        kept = ~np.isin(owners, further)
        owners, found, counts = owners[kept], found[kept], counts[kept]
        refused = (*refused, *further.tolist())
    return SparseCounts(
        size=len(blobs), width=places, owners=owners, places=found, counts=counts, refused=tuple(sorted(refused))
    )


def decode_sums_many(blobs: Sequence[bytes], *, max_sum: int = MAX_SUM, refused: tuple[int, ...] = ()) -> ManySums:
    """The embedding sums of wire bytes `[size]`, each as wide as it is and none above `max_sum` in size."""
    raw, lengths = _joined(blobs, refused)
    folded, widths, broken = _varints_of(raw, lengths)
    values = (folded >> 1) ^ -(folded & 1)
    owners = np.repeat(np.arange(len(blobs)), widths)
    broken |= widths > MAX_FEATURES
    broken[owners[np.abs(values) > max_sum]] = True
    bad = np.flatnonzero(broken)
    if len(bad):
        return decode_sums_many(blobs, max_sum=max_sum, refused=(*refused, *bad.tolist()))
    return ManySums(values=values, starts=np.cumsum(widths) - widths, widths=widths, refused=tuple(sorted(refused)))


def encode_sparse_many(sketches: SparseCounts) -> list[bytes]:
    """The wire bytes `[size]` of sketches, as `encode_sparse` writes each."""
    occupied = np.bincount(sketches.owners, minlength=sketches.size)
    before = np.concatenate(([-1], sketches.places[:-1]))
    before[(np.cumsum(occupied) - occupied)[occupied > 0]] = -1
    gaps = sketches.places - before - 1
    sizes = 1 + 2 * (gaps > 0)
    ends = np.cumsum(sizes)
    numbers = np.zeros(int(ends[-1]) if len(ends) else 0, dtype=np.int64)
    numbers[ends - 1] = sketches.counts
    numbers[ends[gaps > 0] - 2] = gaps[gaps > 0]
    per_blob = np.bincount(sketches.owners, weights=sizes, minlength=sketches.size).astype(np.int64)
    return _encoded(numbers, per_blob)


def encode_dense_many(counts: Ints) -> list[bytes]:
    """The wire bytes `[size]` of dense counts `[size, places]`."""
    owners, places = np.nonzero(counts)
    return encode_sparse_many(
        SparseCounts(
            size=len(counts),
            width=counts.shape[1],
            owners=owners,
            places=places,
            counts=counts[owners, places],
            refused=(),
        )
    )


def encode_sums_many(sums: Ints) -> list[bytes]:
    """The wire bytes `[size]` of embedding sums `[size, features]`, as `encode_sums` writes each."""
    size, features = sums.shape
    folded = (sums << 1) ^ (sums >> 63)
    return _encoded(folded.ravel(), np.full(size, features, dtype=np.int64))


def sum_by_group(sketches: SparseCounts, groups: Ints) -> tuple[Ints, Ints, Ints]:
    """Sums per group, where `groups[size]` names each sketch's: parallel (group, place, count), sorted.

    No count exceeds MAX_COUNT.
    """
    if not len(sketches.places):
        return sketches.owners, sketches.places, sketches.counts
    width, counts = sketches.width, sketches.counts
    present, numbers = np.unique(groups, return_inverse=True)
    keys = numbers[sketches.owners] * width + sketches.places
    if len(present) * width <= _MAX_DENSE_CELLS and float(counts.sum(dtype=np.float64)) < _EXACT_IN_FLOAT:
        dense = np.bincount(keys, weights=counts)
        occupied = np.flatnonzero(dense)
        summed = dense[occupied].astype(np.int64)
    else:
        order = np.argsort(keys, kind="stable")
        occupied, starts = np.unique(keys[order], return_index=True)
        summed = np.add.reduceat(counts[order], starts)
    return present[occupied // width], occupied % width, np.minimum(summed, MAX_COUNT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Summaries:
    """Microseconds per histogram `[size]`, NaN where it is empty; quantiles are `[len(levels), size]`."""

    quantiles_us: Floats
    mean_us: Floats
    max_us: Floats


def summarise(histograms: SparseCounts, levels: Sequence[float]) -> Summaries:
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


def _joined(blobs: Sequence[bytes], refused: tuple[int, ...]) -> tuple[Bytes, Ints]:
    """All bytes one after the other, and how many are each blob's; none of those that are refused."""
    if refused:
        left_out = set(refused)
        blobs = [b"" if owner in left_out else blob for owner, blob in enumerate(blobs)]
    lengths = np.fromiter(map(len, blobs), dtype=np.int64, count=len(blobs))
    return np.frombuffer(b"".join(blobs), dtype=np.uint8), lengths


def _varints_of(raw: Bytes, lengths: Ints) -> tuple[Ints, Ints, NDArray[np.bool_]]:
    """The numbers in `raw`, how many are each blob's, and which blobs are broken: then nothing of the rest counts."""
    broken = np.zeros(len(lengths), dtype=np.bool_)
    if not len(raw):
        return np.zeros(0, dtype=np.int64), np.zeros(len(lengths), dtype=np.int64), broken
    bounds = np.cumsum(lengths)
    filled = np.flatnonzero(lengths)
    broken[filled] = raw[bounds[filled] - 1] >= 0x80
    ends = np.flatnonzero(raw < 0x80)
    if len(ends) == len(raw):
        return raw.astype(np.int64), lengths, broken
    if broken.any():
        return np.zeros(0, dtype=np.int64), np.zeros(len(lengths), dtype=np.int64), broken
    sizes = np.diff(ends, prepend=-1)
    starts = ends - sizes + 1
    values = (raw[starts] & 0x7F).astype(np.int64)
    longer = np.flatnonzero(sizes > 1)
    byte = 1
    while len(longer) and byte < _MAX_VARINT_BYTES:
        values[longer] |= (raw[starts[longer] + byte] & 0x7F).astype(np.int64) << (7 * byte)
        byte += 1
        longer = longer[sizes[longer] > byte]
    broken[np.searchsorted(bounds, ends[longer], side="right")] = True
    return values, np.diff(np.searchsorted(ends, bounds), prepend=0), broken


def _encoded(numbers: Ints, per_blob: Ints) -> list[bytes]:
    """Varints of `numbers`, cut into blobs of `per_blob` numbers each."""
    sizes = np.ones(len(numbers), dtype=np.int64)
    longer = np.flatnonzero(numbers >= 0x80)
    while len(longer):
        sizes[longer] += 1
        longer = longer[numbers[longer] >> (7 * sizes[longer]) > 0]
    ends = np.cumsum(sizes)
    starts = ends - sizes
    out = np.empty(int(ends[-1]) if len(ends) else 0, dtype=np.uint8)
    out[starts] = numbers & 0x7F
    longer, byte = np.flatnonzero(sizes > 1), 1
    while len(longer):
        out[starts[longer] + byte - 1] |= 0x80
        out[starts[longer] + byte] = (numbers[longer] >> (7 * byte)) & 0x7F
        byte += 1
        longer = longer[sizes[longer] > byte]
    cuts = np.concatenate(([0], ends))[np.cumsum(per_blob)].tolist()
    data = out.tobytes()
    return [data[start:end] for start, end in zip([0, *cuts], cuts, strict=False)]
