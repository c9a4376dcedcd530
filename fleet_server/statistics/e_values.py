"""E-values: evidence that may be averaged, multiplied and tested many at once. E[e] <= 1 without an effect.

By Markov, e >= 1/alpha has probability at most alpha; the larger, the stronger. What holds under which dependence:
- `e_bh` keeps the false discovery rate under any dependence of the e-values (Wang and Ramdas 2022);
- `average` is an e-value under any dependence, with weights chosen before the data;
- `product` needs independence, or that each factor is an e-value given all before it (a sequence of batches);
- calibrators make an e-value from any p-value, and lose power. Which one is chosen before the data.

`mean_e_value` is of a device mean, the device as the unit: exact for normal device values, else for many devices.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fleet_server.errors import InvalidRequestError
from fleet_server.statistics.confidence_sequences import mixture_variance
from fleet_server.statistics.intervals import check_level

Values = NDArray[np.float64]

_NO_DEVIATION = 1e-12


def e_bh(e_values: ArrayLike, alpha: float) -> NDArray[np.bool_]:
    """Which of M hypotheses `[M]` to reject so that at most a share `alpha` of the rejected is wrong, on average.

    The k largest, for the largest k with e_(k) >= M / (k alpha): under any dependence (Wang and Ramdas 2022,
    "False discovery rate control with e-values"). Without any true effect it rejects at all with probability
    <= alpha. Raises InvalidRequestError for what is no e-value.

    >>> e_bh([100.0, 1.0, 45.0, 0.2], 0.05).tolist()
    [True, False, True, False]
    """
    check_level("alpha", alpha)
    rejected: NDArray[np.bool_] = e_bh_levels(e_values) <= alpha * (1 + 1e-12)
    return rejected


def e_bh_levels(e_values: ArrayLike) -> Values:
    """The smallest alpha at which `e_bh` rejects each hypothesis `[M]`, at most 1: an adjusted p-value for FDR.

    >>> e_bh_levels([100.0, 1.0, 45.0, 0.2]).round(4).tolist()
    [0.04, 1.0, 0.0444, 1.0]
    """
    values = _checked(e_values)
    order = np.argsort(-values, kind="stable")
    with np.errstate(divide="ignore", over="ignore"):
        needed = values.size / (np.arange(1, values.size + 1) * values[order])
    levels = np.empty_like(values)
    levels[order] = np.minimum(np.minimum.accumulate(needed[::-1])[::-1], 1.0)
    return levels


def average(e_values: ArrayLike, *, weights: ArrayLike | None = None) -> float:
    """One e-value from many `[M]`, under any dependence: sum w e / sum w. 1 without any."""
    values = _checked(e_values)
    if not values.size:
        return 1.0
    shares = np.ones_like(values) if weights is None else np.asarray(weights, dtype=np.float64)
    if shares.shape != values.shape or not bool((shares >= 0).all()) or not 0 < float(shares.sum()) < math.inf:
        raise InvalidRequestError(f"{values.size} e-values are averaged with as many weights from 0, not all 0")
    there = shares > 0  # a weight of 0 leaves out an infinite e-value too
    return float(values[there] @ (shares[there] / shares.sum()))


def product(e_values: ArrayLike) -> float:
    """One e-value from many `[M]` that are independent, or each an e-value given those before it. 1 without any."""
    values = _checked(e_values)
    if bool((values == 0).any()):
        return 0.0
    return _exp(float(np.log(values).sum()))


def e_to_p(e_value: float) -> float:
    """The p-value min(1, 1/e): valid, and for an e-process valid at any stopping time."""
    return min(1.0, 1.0 / e_value) if e_value > 0 else 1.0


def power_calibrator(p_value: float, *, kappa: float = 0.5) -> float:
    """kappa p^(kappa - 1), an e-value for any p-value (Shafer, Shen, Vereshchagin, Vovk 2011); kappa in (0, 1).

    >>> power_calibrator(0.0001)
    50.0
    """
    _check_p(p_value)
    check_level("kappa", kappa)
    return math.inf if p_value == 0 else float(kappa * p_value ** (kappa - 1))


def mixture_calibrator(p_value: float) -> float:
    """The power calibrators averaged over kappa from 0 to 1: (1 - p + p ln p) / (p ln^2 p) (Vovk and Wang 2021).

    >>> round(mixture_calibrator(0.0001), 3)
    117.762
    """
    _check_p(p_value)
    if p_value == 0:
        return math.inf
    log_p = math.log(p_value)
    if log_p > -1e-4:
        return 0.5 - log_p / 6  # the series at p = 1, where the quotient is 0/0
    return (1 - p_value + p_value * log_p) / (p_value * log_p**2)


def step_calibrator(p_value: float, *, hypotheses: int, alpha: float) -> float:
    """The calibrator with which `e_bh` at `alpha` over M `hypotheses` loses the least: it is then Benjamini-Yekutieli.

    M / (alpha j) for the smallest whole j >= p M H / alpha with j <= M, H = 1 + 1/2 + ... + 1/M; else 0 (Wang and
    Ramdas 2022, section 4). Any p-value, any dependence. Meant for this M and alpha; at others it stays an e-value.

    >>> step_calibrator(0.0005, hypotheses=20, alpha=0.05), step_calibrator(0.02, hypotheses=20, alpha=0.05)
    (400.0, 0.0)
    """
    _check_p(p_value)
    check_level("alpha", alpha)
    if hypotheses < 1:
        raise InvalidRequestError(f"{hypotheses} hypotheses: there is at least one")
    step = max(1, math.ceil(p_value * hypotheses * _harmonic(hypotheses) / alpha * (1 - 1e-12)))
    return hypotheses / (alpha * step) if step <= hypotheses else 0.0


def rank_calibrator(rank: int, *, relabellings: int) -> float:
    """The e-value (B + 1) / (rank H) of a permutation test's rank among B `relabellings` and the observed one.

    H = 1 + 1/2 + ... + 1/(B + 1). Stronger for small ranks than calibrating the p-value, which knows no grid.

    >>> round(rank_calibrator(1, relabellings=1999), 1)
    244.5
    """
    if not 1 <= rank <= relabellings + 1:
        raise InvalidRequestError(f"no rank among {relabellings + 1} is {rank}")
    return (relabellings + 1) / (rank * _harmonic(relabellings + 1))


def mean_e_value(values: ArrayLike, *, null_mean: float, devices_opt: float, alpha_opt: float = 0.05) -> float:
    """The evidence of one value per device `[devices]` against a fleet mean of `null_mean`, on both sides.

    The t likelihood ratio averaged over a normal standardised effect of variance g (`mixture_variance`, tightest at
    `devices_opt` devices): an e-process as devices join, for normal values exactly (Wang and Ramdas 2024, "Anytime-
    valid t-tests"), else for many devices. 1, which says nothing, with fewer than two values, values that are not
    finite, or equal ones.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.size < 2 or not bool(np.isfinite(array).all()):
        return 1.0
    deviation = float(array.std(ddof=1))
    if deviation <= _NO_DEVIATION * max(1.0, float(np.abs(array).max())):
        return 1.0
    t = (float(array.mean()) - null_mean) * math.sqrt(array.size) / deviation
    return t_mixture_e_value(
        t, degrees=array.size - 1, size=array.size, variance=mixture_variance(alpha_opt, devices_opt=devices_opt)
    )


def mean_difference_e_value(
    first: ArrayLike, second: ArrayLike, *, devices_opt: float, alpha_opt: float = 0.05
) -> float:
    """The evidence that two groups of devices, one value each, differ in mean; 1 where nothing can be said.

    Welch's t with Satterthwaite's degrees of freedom in the mixture of `mean_e_value`; the size is the harmonic
    1 / (1/n + 1/m). Approximate also for normal values, as Welch's test is. `devices_opt` counts that size.
    """
    arrays = [np.asarray(side, dtype=np.float64) for side in (first, second)]
    if any(array.size < 2 or not bool(np.isfinite(array).all()) for array in arrays):
        return 1.0
    spreads = [float(array.var(ddof=1)) / array.size for array in arrays]
    largest = max(float(np.abs(array).max()) for array in arrays)
    if sum(spreads) <= (_NO_DEVIATION * max(1.0, largest)) ** 2:
        return 1.0
    degrees = sum(spreads) ** 2 / sum(s**2 / (a.size - 1) for s, a in zip(spreads, arrays, strict=True))
    t = (float(arrays[0].mean()) - float(arrays[1].mean())) / math.sqrt(sum(spreads))
    size = 1 / sum(1 / array.size for array in arrays)
    return t_mixture_e_value(
        t, degrees=degrees, size=size, variance=mixture_variance(alpha_opt, devices_opt=devices_opt)
    )


def t_mixture_e_value(t: float, *, degrees: float, size: float, variance: float) -> float:
    """The ratio of t densities, averaged over an effect d ~ N(0, `variance`) in standard deviations, t ~ d sqrt(size).

    (1 + size g)^(-1/2) ((1 + t^2/v) / (1 + t^2/(v (1 + size g))))^((v + 1)/2), g the variance, v the degrees.
    """
    if not (math.isfinite(t) and degrees > 0 and size > 0 and variance > 0):
        raise InvalidRequestError(f"no e-value for t {t}, {degrees} degrees, size {size}, variance {variance}")
    growth = 1 + size * variance
    gain = math.log1p(t**2 / degrees) - math.log1p(t**2 / (degrees * growth))
    return _exp((degrees + 1) / 2 * gain - math.log(growth) / 2)


def z_mixture_e_value(z: float, *, size: float, variance: float) -> float:
    """As `t_mixture_e_value` for a known deviation: (1 + size g)^(-1/2) exp(z^2/2 size g/(1 + size g)).

    It is at 1/alpha just where `mean_interval`'s end is at the null mean, for size n and g = rho^2.
    """
    if not (math.isfinite(z) and size > 0 and variance > 0):
        raise InvalidRequestError(f"no e-value for z {z}, size {size}, variance {variance}")
    growth = 1 + size * variance
    return _exp(z**2 / 2 * (growth - 1) / growth - math.log(growth) / 2)


def _exp(log_value: float) -> float:
    try:
        return math.exp(log_value)
    except OverflowError:
        return math.inf


def _harmonic(terms: int) -> float:
    return float((1 / np.arange(1, terms + 1)).sum())


def _check_p(p_value: float) -> None:
    if not 0 <= p_value <= 1:
        raise InvalidRequestError(f"{p_value} is no p-value: it lies from 0 to 1")


def _checked(e_values: ArrayLike) -> Values:
    values = np.asarray(e_values, dtype=np.float64)
    if values.ndim != 1 or not bool((values >= 0).all()):
        raise InvalidRequestError("e-values are a list of numbers from 0")
    return values
