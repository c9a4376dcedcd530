"""How far apart chance alone puts two samples over the same bins, by simulation: also unequal and nearly empty bins.

The laws in `divergences` hold where every bin has many values, and the Wasserstein distance has no simple law at all.
Here the values of both samples are dealt out again and again, each bin's total kept, and p = (1 + hits) / (1 + draws):
exact, as a permutation test of values is, also with empty bins. (Drawing both from the multinomial with the pooled
shares is not: with twenty bins of a value or less it raises 8 % at 5 %.) Values are independent here too: across a
fleet exchange devices (`permutation`).

For a quadratic statistic of bins that weigh unequally, or of values that are alike within devices, the null is a sum
of unequal chi-squareds; `weighted_chi2_p_value` matches its mean and variance (Satterthwaite 1946, Rao and Scott
1981, second order).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import chi2

from fleet_server.errors import InvalidRequestError
from fleet_server.statistics.divergences import SMOOTHING

Values = NDArray[np.float64]

MAX_DRAWS = 100_000
_TIE = 1e-9
_MOST_DEALT = 10**9
"""numpy deals out no more values than this; with as many, drawing them from the pooled shares is the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergences:
    """The distances of two samples, or their p-values. `wasserstein_1` is None without edges."""

    psi: float
    jsd: float
    hellinger_squared: float
    ks_distance: float
    wasserstein_1: float | None = None


def null_p_values(
    left: ArrayLike, right: ArrayLike, *, edges: ArrayLike | None = None, draws: int = 1000, seed: int
) -> Divergences:
    """The chance of distances as large as those of counts `left` and `right` `[bins]` without a difference.

    Distances are of smoothed counts, as `divergences.smoothed` makes them; with `edges` `[bins + 1]`, rising, the
    Wasserstein distance too. A p-value is at least 1 / (1 + draws). Raises InvalidRequestError for what are no counts.
    """
    counts = [np.asarray(side, dtype=np.int64) for side in (left, right)]
    if any(side.ndim != 1 or side.shape != counts[0].shape or not bool((side >= 0).all()) for side in counts):
        raise InvalidRequestError("two samples have counts from 0 over the same bins")
    sizes = [int(side.sum()) for side in counts]
    if not all(sizes) or not 1 <= draws <= MAX_DRAWS:
        raise InvalidRequestError(f"samples of {sizes} values, {draws} draws: use a value or more, 1 to {MAX_DRAWS}")
    widths = None if edges is None else _between_middles(np.asarray(edges, dtype=np.float64), counts[0].size)
    pooled = counts[0] + counts[1]
    random = np.random.default_rng(seed)
    if sum(sizes) < _MOST_DEALT:
        dealt = random.multivariate_hypergeometric(pooled, sizes[0], draws)
        others = pooled - dealt
    else:
        dealt, others = (random.multinomial(size, pooled / sum(sizes), draws) for size in sizes)
    table = _distances(np.vstack((counts[0], dealt)), np.vstack((counts[1], others)), widths)
    hits = np.count_nonzero(table >= table[:, :1] * (1 - _TIE), axis=1) / (draws + 1)
    return Divergences(
        psi=float(hits[0]), jsd=float(hits[1]), hellinger_squared=float(hits[2]), ks_distance=float(hits[3]),
        wasserstein_1=float(hits[4]) if widths is not None else None,
    )  # fmt: skip


def weighted_chi2_p_value(value: float, *, mean: float, variance: float) -> float:
    """The chance that a sum of weighted chi-squareds with this mean and variance is as large as `value`.

    It is taken for a chi2(v), a = variance / (2 mean), v = 2 mean^2 / variance: exact where all weights are equal.

    >>> round(weighted_chi2_p_value(16.919, mean=9, variance=18), 3)
    0.05
    """
    if not (mean > 0 and variance > 0):
        raise InvalidRequestError(f"a sum of chi-squareds has a mean and a variance above 0, not {mean} and {variance}")
    return float(chi2.sf(value * 2 * mean / variance, 2 * mean**2 / variance))


def _distances(left: NDArray[np.int64], right: NDArray[np.int64], widths: Values | None) -> Values:
    """Every distance `[distances, draws]` of counts `[draws, bins]`."""
    p, q = ((side + SMOOTHING) / (side + SMOOTHING).sum(axis=1, keepdims=True) for side in (left, right))
    log_p, log_q, log_middle = np.log(p), np.log(q), np.log((p + q) / 2)
    apart = np.abs(np.cumsum(p - q, axis=1))
    rows = [
        ((p - q) * (log_p - log_q)).sum(axis=1),
        (p * (log_p - log_middle) + q * (log_q - log_middle)).sum(axis=1) / 2,
        ((np.sqrt(p) - np.sqrt(q)) ** 2).sum(axis=1) / 2,
        apart.max(axis=1),
    ]
    if widths is not None:
        rows.append(apart[:, :-1] @ widths)
    return np.stack(rows)


def _between_middles(edges: Values, bins: int) -> Values:
    if edges.shape != (bins + 1,) or not bool((np.diff(edges) > 0).all()):
        raise InvalidRequestError(f"{bins} bins have {bins + 1} rising edges")
    return np.diff((edges[:-1] + edges[1:]) / 2)
