"""How far apart two distributions over the same bins are, and how far chance alone puts two samples.

Distances take probabilities `[bins]`; `smoothed` makes them from counts, with half a count added to every bin
so that an empty bin costs no infinity. PSI is Jeffreys' divergence (Kullback and Leibler 1951), JSD is Lin 1991.

Null laws, for two independent samples of n and m values from one distribution and c = 1/n + 1/m:
PSI ~ c chi2(B - 1), JSD ~ Hellinger^2 ~ c chi2(B - 1)/8, KS: kstwobign(D / sqrt c), conservative on bins.
They hold for independent values only. Values of one device are not independent draws from the fleet: across a
fleet these laws raise false alarms by the dozen, and the device is the unit of inference.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import chi2, kstwobign

from fleet_server.errors import InvalidRequestError
from fleet_server.statistics.intervals import check_positive

Probabilities = NDArray[np.float64]

SMOOTHING = 0.5
"""Added to every bin's count."""
_SUM_TOLERANCE = 1e-6


def smoothed(counts: ArrayLike) -> Probabilities:
    """The probabilities of counts `[bins]`, each raised by SMOOTHING. Raises InvalidRequestError for no counts.

    >>> smoothed([0, 3]).tolist()
    [0.125, 0.875]
    """
    array = np.asarray(counts, dtype=np.float64)
    if array.ndim != 1 or not array.size or not bool((array >= 0).all()) or not math.isfinite(float(array.sum())):
        raise InvalidRequestError("a distribution needs at least one bin and counts from 0")
    raised = array + SMOOTHING
    probabilities: Probabilities = raised / raised.sum()
    return probabilities


def psi(p: ArrayLike, q: ArrayLike) -> float:
    """The population stability index, sum (p - q) ln(p / q); infinite where only one of them is 0.

    >>> round(psi([0.25, 0.25, 0.25, 0.25], [0.2, 0.25, 0.25, 0.3]), 7)
    0.0202733
    """
    left, right = _pair(p, q)
    return _relative_entropy(left, right) + _relative_entropy(right, left)


def jsd(p: ArrayLike, q: ArrayLike) -> float:
    """The Jensen-Shannon divergence in nats: 0 for equal distributions, ln 2 for disjoint ones."""
    left, right = _pair(p, q)
    middle = (left + right) / 2
    return max(0.0, (_relative_entropy(left, middle) + _relative_entropy(right, middle)) / 2)


def hellinger_squared(p: ArrayLike, q: ArrayLike) -> float:
    """The squared Hellinger distance: 0 for equal distributions, 1 for disjoint ones."""
    left, right = _pair(p, q)
    return float(((np.sqrt(left) - np.sqrt(right)) ** 2).sum()) / 2


def ks_distance(p: ArrayLike, q: ArrayLike) -> float:
    """The largest difference of the cumulative distributions, D = max |F - G|, seen at the bins' edges."""
    left, right = _pair(p, q)
    return float(np.abs(np.cumsum(left - right)).max())


def wasserstein_1(p: ArrayLike, q: ArrayLike, edges: ArrayLike) -> float:
    """The mean distance that mass moves, sum |F - G| dx, in the feature's unit; each bin's mass at its middle.

    `edges` `[bins + 1]` rise. Raises InvalidRequestError when they do not fit.
    """
    left, right = _pair(p, q)
    ends = np.asarray(edges, dtype=np.float64)
    if ends.shape != (left.size + 1,) or not bool((np.diff(ends) > 0).all()):
        raise InvalidRequestError(f"{left.size} bins have {left.size + 1} rising edges")
    middles = (ends[:-1] + ends[1:]) / 2
    return float(np.abs(np.cumsum(left - right))[:-1] @ np.diff(middles))


def psi_p_value(value: float, *, n: float, m: float, bins: int) -> float:
    """The chance of a PSI this large between samples of n and m independent values from one distribution."""
    return _chi2_tail(value / _c(n, m), bins)


def jsd_p_value(value: float, *, n: float, m: float, bins: int) -> float:
    """As `psi_p_value`, for JSD."""
    return _chi2_tail(8 * value / _c(n, m), bins)


def hellinger_squared_p_value(value: float, *, n: float, m: float, bins: int) -> float:
    """As `psi_p_value`, for the squared Hellinger distance."""
    return _chi2_tail(8 * value / _c(n, m), bins)


def ks_p_value(value: float, *, n: float, m: float) -> float:
    """As `psi_p_value`, for KS D; on bins the true chance is smaller."""
    return float(kstwobign.sf(value / math.sqrt(_c(n, m))))


def _c(n: float, m: float) -> float:
    check_positive("n", n)
    check_positive("m", m)
    return 1 / n + 1 / m


def _chi2_tail(value: float, bins: int) -> float:
    return float(chi2.sf(value, bins - 1)) if bins > 1 else 1.0


def _relative_entropy(p: Probabilities, q: Probabilities) -> float:
    there = p > 0
    if not bool((q[there] > 0).all()):
        return math.inf
    return float((p[there] * np.log(p[there] / q[there])).sum())


def _pair(p: ArrayLike, q: ArrayLike) -> tuple[Probabilities, Probabilities]:
    left, right = np.asarray(p, dtype=np.float64), np.asarray(q, dtype=np.float64)
    if left.ndim != 1 or left.shape != right.shape or not left.size:
        raise InvalidRequestError(f"two distributions over {left.shape} and {right.shape} bins cannot be compared")
    for side in (left, right):
        if not bool((side >= 0).all()) or not math.isclose(float(side.sum()), 1.0, abs_tol=_SUM_TOLERANCE):
            raise InvalidRequestError("a distribution has probabilities from 0 that sum to 1")
    return left, right
