"""Quantiles that may be looked at any time (Howard and Ramdas 2022, "Sequential estimation of quantiles").

At the true tau-quantile x, values at or under x are successes at rate tau; where values tie, a part of the tied ones
counts, whichever fits best. So the evidence against x is the mixture martingale of `binomial_sequences` at the share
nearest to its minimum among those possible at x.

- A histogram is a sample in which all values of a bucket tie at it: ranks at the edges are exact, and what is said
  is true of the raw values too, only wider by the bucket.
- Values must be independent draws: of one device, or of devices that do not differ. Across a fleet take each device's
  own quantile and `mean_interval`.
- Semantics of the confseq reference library (`quantile_ab_p_value`, `double_stitching_bound`).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq, minimize_scalar
from scipy.special import expit, logit, zeta

from fleet_server.errors import InvalidRequestError
from fleet_server.statistics.binomial_sequences import log_evidence
from fleet_server.statistics.intervals import Interval, check_level, check_positive

Values = NDArray[np.float64]


def quantile_interval(
    values: ArrayLike, tau: float, alpha: float, *, size_opt: float, alpha_opt: float = 0.05
) -> Interval:
    """Where the `tau`-quantile lies, given `values` `[n]`, at error rate `alpha` over all looks.

    Tightest at `size_opt` values. Ends are values seen, or infinite where they are too few.
    """
    ordered = np.sort(_sample(values))
    lowest, highest = _ranks(ordered.size, tau, alpha, size_opt=size_opt, alpha_opt=alpha_opt)
    return _between(ordered, ordered, lowest, highest)


def histogram_quantile_interval(
    counts: ArrayLike, edges: ArrayLike, tau: float, alpha: float, *, size_opt: float, alpha_opt: float = 0.05
) -> Interval:
    """As `quantile_interval`, from bucket counts `[buckets]` between rising `edges` `[buckets + 1]`."""
    bucket_counts, ends = _histogram(counts), np.asarray(edges, dtype=np.float64)
    if ends.shape != (bucket_counts.size + 1,) or not bool((np.diff(ends) > 0).all()):
        raise InvalidRequestError(f"{bucket_counts.size} buckets have {bucket_counts.size + 1} rising edges")
    total = int(bucket_counts.sum())
    lowest, highest = _ranks(total, tau, alpha, size_opt=size_opt, alpha_opt=alpha_opt)
    up_to = np.cumsum(bucket_counts)
    return Interval(
        lower=float(ends[np.searchsorted(up_to, lowest)]) if lowest >= 1 else -math.inf,
        upper=float(ends[np.searchsorted(up_to, highest) + 1]) if highest <= total else math.inf,
    )


def uniform_quantile_interval(values: ArrayLike, tau: float, alpha: float, *, size_opt: float) -> Interval:
    """As `quantile_interval`, for all `tau` at once: wider, by the double stitching bound."""
    ordered = np.sort(_sample(values))
    size = ordered.size
    if not size:
        return Interval(lower=-math.inf, upper=math.inf)
    lowest = math.floor(tau * size - double_stitching_bound(1 - tau, size, alpha, size_opt=size_opt)) + 1
    highest = math.ceil(tau * size + double_stitching_bound(tau, size, alpha, size_opt=size_opt))
    return _between(ordered, ordered, lowest, highest)


def quantile_ab_p_value(
    first: ArrayLike, second: ArrayLike, *, tau: float = 0.5, size_opt: float, alpha_opt: float = 0.05
) -> float:
    """The two-sided p-value, valid at any look, that two samples `[n]`, `[m]` come from equal `tau`-quantiles.

    >>> seen = np.arange(1, 1001)
    >>> round(quantile_ab_p_value(seen, seen + 85, size_opt=100), 7)
    0.0838055
    """
    left, right = np.sort(_sample(first)), np.sort(_sample(second))
    at = np.union1d(left, right)
    return _p_value(
        *((np.searchsorted(side, at, "left"), np.searchsorted(side, at, "right")) for side in (left, right)),
        tau=tau, size_opt=size_opt, alpha_opt=alpha_opt,
    )  # fmt: skip


def histogram_quantile_ab_p_value(
    first: ArrayLike, second: ArrayLike, *, tau: float = 0.5, size_opt: float, alpha_opt: float = 0.05
) -> float:
    """As `quantile_ab_p_value`, from counts in the same buckets `[buckets]`: never smaller than on raw values."""
    sides = [_histogram(first), _histogram(second)]
    if sides[0].shape != sides[1].shape:
        raise InvalidRequestError(f"histograms of {sides[0].size} and {sides[1].size} buckets cannot be compared")
    ends = [np.cumsum(side) for side in sides]
    return _p_value(
        *((end - side, end) for side, end in zip(sides, ends, strict=True)),
        tau=tau, size_opt=size_opt, alpha_opt=alpha_opt,
    )  # fmt: skip


def double_stitching_bound(
    tau: float, size: float, alpha: float, *, size_opt: float, delta: float = 0.5, s: float = 1.4, eta: float = 2.0
) -> float:
    """How far the count of values at or under a quantile ever strays above tau n, for all n and tau together.

    Theorem 3: `size_opt` (m) is where the bound starts to grow, `delta` the fineness of the grid of quantiles, `s`
    and `eta` share the error among epochs.

    >>> round(double_stitching_bound(0.5, 1000, 0.05, size_opt=100), 5)
    68.62803
    """
    for name, level in (("tau", tau), ("alpha", alpha)):
        check_level(name, level)
    for name, value in (
        ("size", size),
        ("size_opt", size_opt),
        ("delta", delta),
        ("s - 1", s - 1),
        ("eta - 1", eta - 1),
    ):
        check_positive(name, value)
    late = max(size, size_opt)
    odds = float(logit(tau))
    nearest = tau if tau >= 0.5 else min(0.5, float(expit(odds + 2 * delta * math.sqrt(size_opt * eta / late))))
    variance = nearest * (1 - nearest)
    cell = math.sqrt(late / size_opt) * abs(odds) / (2 * delta) + 1
    both = 2 * float(zeta(s)) * (2 * float(zeta(s)) + 1)
    spent = s * math.log(math.log(eta * late / size_opt)) + s * math.log(cell)
    spent += math.log(both / (alpha * math.log(eta) ** s))
    skew = (math.sqrt(eta) + 1) / 2 * (1 - 2 * tau) / 3 * spent
    scale = (eta**0.25 + eta**-0.25) ** 2 / 2 * variance * late * spent
    return delta * math.sqrt(eta * late * variance / size_opt) + math.sqrt(scale + skew**2) + skew


def _ranks(size: int, tau: float, alpha: float, *, size_opt: float, alpha_opt: float) -> tuple[int, int]:
    """The lowest and highest rank, from 1, that the quantile may have; 0 and size + 1 are without bound."""
    check_level("tau", tau)
    check_level("alpha", alpha)
    check_positive("size_opt", size_opt)
    if not size:
        return 0, 1
    threshold = math.log(1 / alpha)

    def excess(rank: float) -> float:
        return float(log_evidence(rank, size, tau, trials_opt=size_opt, alpha_opt=alpha_opt)) - threshold

    least = _least(size, tau, size_opt=size_opt, alpha_opt=alpha_opt)
    lowest = math.ceil(brentq(excess, 0.0, least)) if excess(0.0) > 0 else 0
    highest = math.floor(brentq(excess, least, float(size))) + 1 if excess(float(size)) > 0 else size + 1
    return lowest, highest


def _least(size: int, tau: float, *, size_opt: float, alpha_opt: float) -> float:
    """The number of successes of `size`, not whole, that speaks least against `tau`."""
    found = minimize_scalar(
        lambda rank: float(log_evidence(rank, size, tau, trials_opt=size_opt, alpha_opt=alpha_opt)),
        bounds=(0.0, float(size)), method="bounded", options={"xatol": 1e-6 * max(size, 1)},
    )  # fmt: skip
    return float(found.x)


def _p_value(*sides: tuple[NDArray[np.intp], NDArray[np.intp]], tau: float, size_opt: float, alpha_opt: float) -> float:
    """From the counts below and up to each point of both samples: the point that both contradict least, together."""
    together = np.zeros(sides[0][0].shape)
    for below, up_to in sides:
        size = int(up_to[-1]) if up_to.size else 0
        if not size:
            return 1.0
        least = _least(size, tau, size_opt=size_opt, alpha_opt=alpha_opt)
        nearest = np.clip(least, below, up_to)
        together += log_evidence(nearest, size, tau, trials_opt=size_opt, alpha_opt=alpha_opt)
    return min(1.0, math.exp(-float(together.min())))


def _between(lower_ends: Values, upper_ends: Values, lowest: int, highest: int) -> Interval:
    return Interval(
        lower=float(lower_ends[lowest - 1]) if lowest >= 1 else -math.inf,
        upper=float(upper_ends[highest - 1]) if highest <= upper_ends.size else math.inf,
    )


def _sample(values: ArrayLike) -> Values:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or bool(np.isnan(array).any()):
        raise InvalidRequestError("a sample is a list of numbers")
    return array


def _histogram(counts: ArrayLike) -> NDArray[np.intp]:
    array = np.asarray(counts, dtype=np.intp)
    if array.ndim != 1 or not array.size or not bool((array >= 0).all()):
        raise InvalidRequestError("a histogram has at least one bucket and counts from 0")
    return array
