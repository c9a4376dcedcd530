"""The range of a tensor that one integer type should cover, read off its histogram. Pure.

A `Histogram` has bins of equal width that are symmetric around zero, so zero is always an edge: the zero of a
quantized tensor is exact, and ReLU's many zeros fall into one bin.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PERCENTILE = 99.99
"""The share of values, in percent, that a percentile range holds."""
_ENTROPY_BINS = 2_048
_TWO_SIDED_LEVELS = 128
_ONE_SIDED_LEVELS = 256
_CANDIDATES = 128


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """`counts` int64 `[2 k]`: bin `i` counts values from `(i - k) * width` up to, but without, `(i - k + 1) * width`.

    `lowest` and `highest` are the exact extremes of all values, those beyond the histogram's sample included.
    """

    counts: NDArray[np.int64]
    width: float
    lowest: float
    highest: float


def percentile_range(histogram: Histogram, percentile: float = PERCENTILE) -> tuple[float, float]:
    """The range without the `100 - percentile` percent of values farthest out, half of them at each end.

    Never beyond the extremes; linear within a bin.
    """
    if not histogram.counts.any():
        return histogram.lowest, histogram.highest
    cut = (100.0 - percentile) / 200.0
    low = max(histogram.lowest, _quantile(histogram, cut))
    high = min(histogram.highest, _quantile(histogram, 1.0 - cut))
    # all values in one bin, at one place of it
    return (low, high) if low <= high else (histogram.lowest, histogram.highest)


def _quantile(histogram: Histogram, share: float) -> float:
    below = np.cumsum(histogram.counts)
    wanted = share * float(below[-1])
    place = min(int(np.searchsorted(below, wanted, side="right")), int(np.flatnonzero(histogram.counts)[-1]))
    counted = int(histogram.counts[place])
    inside = (wanted - float(below[place] - counted)) / counted if counted else 0.0
    return float((place - len(histogram.counts) // 2 + inside) * histogram.width)


def entropy_range(histogram: Histogram) -> tuple[float, float]:
    """The range whose quantized distribution diverges least from the tensor's own (Kullback and Leibler).

    The calibration of Migacz, "8-bit inference with TensorRT" (GTC 2017): for each threshold on the magnitudes, what
    lies beyond is counted at the threshold (P), P is merged to the levels of the integer type and spread again over
    the bins that held something (Q), and the threshold with the least KL(P || Q) wins. 128 levels where both signs
    occur, 256 where one does: then the whole type serves it. Never beyond the extremes.
    """
    half = len(histogram.counts) // 2
    folded = histogram.counts[half:] + histogram.counts[:half][::-1]
    folded = _merged(folded, _ENTROPY_BINS)
    width = histogram.width * half / len(folded)
    one_sided = histogram.lowest >= 0 or histogram.highest <= 0
    levels = _ONE_SIDED_LEVELS if one_sided else _TWO_SIDED_LEVELS
    # zeros are exact in any range: the spike that ReLU and padding make would only hide what differs
    folded = folded.copy()
    folded[0] = 0
    filled = np.flatnonzero(folded)
    if not len(filled) or filled[-1] + 1 <= levels:
        return histogram.lowest, histogram.highest
    last = int(filled[-1]) + 1
    thresholds = np.unique(np.linspace(levels, last, _CANDIDATES).astype(np.int64))
    divergences = [_divergence(folded, int(threshold), levels) for threshold in thresholds]
    # of equals the widest: it clips least
    best = len(divergences) - 1 - int(np.argmin(divergences[::-1]))
    threshold = float(thresholds[best]) * width
    return max(histogram.lowest, -threshold), min(histogram.highest, threshold)


def _merged(counts: NDArray[np.int64], bins: int) -> NDArray[np.int64]:
    factor = max(1, len(counts) // bins)
    merged: NDArray[np.int64] = counts.reshape(-1, factor).sum(axis=1)
    return merged


def _divergence(counts: NDArray[np.int64], threshold: int, levels: int) -> float:
    kept = counts[:threshold].astype(np.float64)
    p = kept.copy()
    p[-1] += counts[threshold:].sum()
    level = np.arange(threshold) * levels // threshold
    filled = kept > 0
    mass = np.bincount(level, weights=kept, minlength=levels)
    places = np.bincount(level, weights=filled, minlength=levels)
    q = np.where(filled, mass[level] / np.maximum(places[level], 1), 0.0)
    if not q.sum():
        return np.inf
    # what was clipped into an empty last bin has no counterpart in q: a small one keeps the divergence finite
    p, q = p / p.sum(), np.maximum(q / q.sum(), 1e-12)
    seen = p > 0
    return float(np.sum(p[seen] * np.log(p[seen] / q[seen])))
