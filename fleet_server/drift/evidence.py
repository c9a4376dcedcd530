"""Whether what devices saw differs from the reference by more than chance. Pure functions of counts.

The device is the unit of inference: each device's counts become a few scores, and the mean of the devices' scores
is held against the reference's, whose own sampling error (it is a sample too) is part of the variance. Each device
weighs the same, however much it saw, because devices differ and one busy device is still one device.

- Numbers: the scores are the first MOMENTS polynomials that are orthonormal under the reference, in ranks
  (Neyman's smooth test, 1937): location, spread, skew, peakedness.
- Classes: the scores are the shares of the classes that the reference knows well; the others are one class.
- The test is Dempster's (1958): the squared length of the difference over the trace V of its variance follows
  F(r, v) with r = (tr V)^2 / tr V^2 and v by Satterthwaite. It sums over scores, so no score whose variance five
  devices happened to show too small can raise an alarm alone. Welch's t on single scores with Bonferroni does that:
  up to 58 % false alarms with five devices that differ much, where this test stays under 5 %.
- Why no permutation: there is one reference, not a second group of devices to exchange labels with, and flipping
  the signs of five deviations cannot give a p-value below 1/16.

Across signals `holm` keeps the error rate of the whole answer. It is the rate of one look: whoever looks every
minute has another. Devices that change together (day and night, one shared light) are not independent: compare
whole days. Device effects as skewed as an exponential and as large as the spread of values raise 6 to 10 %.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import f as f_distribution
from scipy.stats import t as student_t

from fleet_server.errors import InvalidRequestError
from fleet_server.statistics.divergences import smoothed
from fleet_server.statistics.intervals import Interval, check_level

MIN_DEVICES = 5
"""Fewer devices say too little of how devices differ."""
MIN_VALUES_PER_DEVICE = 20
"""A device that saw fewer is left out: its shares are mostly chance."""
MIN_REFERENCE_VALUES = 30
MOMENTS = 4
MAX_CLASSES_TESTED = 20
MIN_REFERENCE_PER_CLASS = 10
_NO_VARIANCE = 1e-18

Matrix = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """The test of one signal.

    `shift` is how far the mean rank of a numeric value moved, from -1 to 1 (0.1 is from the median to the 60th
    percentile), with its interval; None for classes and where nothing can be said.
    """

    p_value: float
    shift: float | None = None
    shift_interval: Interval | None = None


def moment_scores(reference: NDArray[np.int64]) -> Matrix:
    """Scores `[bins, moments]` of a numeric reference `[bins]`: orthonormal polynomials of the bins' middle ranks."""
    weights = smoothed(reference)
    powers = np.vander(_ranks(reference) - 0.5, min(MOMENTS, len(weights) - 1) + 1, increasing=True)
    orthonormal, triangle = np.linalg.qr(np.sqrt(weights)[:, None] * powers)
    scores: Matrix = (orthonormal / np.sqrt(weights)[:, None] * np.sign(np.diag(triangle)))[:, 1:]
    return scores


def class_scores(reference: NDArray[np.int64]) -> Matrix:
    """Scores `[classes, kept]` of a reference over classes: membership in each class that is well known there."""
    common = np.argsort(-reference, kind="stable")[:MAX_CLASSES_TESTED]
    kept = np.sort(common[reference[common] >= MIN_REFERENCE_PER_CLASS])
    scores = np.zeros((len(reference), len(kept) + 1))
    scores[kept, np.arange(len(kept))] = 1.0
    scores[:, -1] = 1.0 - scores[:, :-1].sum(axis=1)
    return scores if scores[:, -1].any() else scores[:, :-1]


def compare_devices(
    counts: NDArray[np.int64], reference: NDArray[np.int64], *, ordered: bool, alpha: float
) -> Evidence:
    """Hold devices' counts `[devices, cells]` against the reference's `[cells]`.

    `ordered`: the cells are a number's bins; else they are classes. Every device has at least one count. The p-value
    is 1 with fewer than two devices and where nothing could differ. Raises InvalidRequestError when shapes do not fit.
    """
    check_level("alpha", alpha)
    if counts.ndim != 2 or counts.shape[1:] != reference.shape:
        raise InvalidRequestError(f"counts of {counts.shape[1:]} cells and a reference of {reference.shape} do not fit")
    if len(counts) < 2 or len(reference) < 2 or not reference.any():
        return Evidence(p_value=1.0)
    scores = moment_scores(reference) if ordered else class_scores(reference)
    difference, of_devices, of_reference = _difference(counts, reference, scores)
    total = of_devices + of_reference
    trace = float(np.trace(total))
    if trace <= _NO_VARIANCE:
        return Evidence(p_value=1.0)
    numerator = trace**2 / float((total**2).sum())
    denominator = _freedom(trace, of_devices, of_reference, len(counts), reference)
    p_value = float(f_distribution.sf(float(difference @ difference) / trace, numerator, denominator))
    if not ordered:
        return Evidence(p_value=p_value)
    shift, interval = _rank_shift(counts, reference, alpha)
    return Evidence(p_value=p_value, shift=shift, shift_interval=interval)


def _difference(counts: NDArray[np.int64], reference: NDArray[np.int64], scores: Matrix) -> tuple[Matrix, ...]:
    """(mean score of devices less the reference's `[k]`, its variance by devices `[k, k]`, and by the reference)."""
    by_device = counts / counts.sum(axis=1, keepdims=True) @ scores
    expected = smoothed(reference)
    mean = expected @ scores
    centred = scores - mean
    of_reference = (centred * expected[:, None]).T @ centred / reference.sum()
    of_devices = np.atleast_2d(np.cov(by_device, rowvar=False)) / len(counts)
    return by_device.mean(axis=0) - mean, of_devices, of_reference


def _freedom(
    trace: float, of_devices: Matrix, of_reference: Matrix, devices: int, reference: NDArray[np.int64]
) -> float:
    """Satterthwaite's degrees of freedom of a variance with these two parts."""
    spent = (of_devices**2).sum() / (devices - 1) + (of_reference**2).sum() / max(int(reference.sum()) - 1, 1)
    return trace**2 / float(spent)


def _rank_shift(counts: NDArray[np.int64], reference: NDArray[np.int64], alpha: float) -> tuple[float, Interval | None]:
    scores = _ranks(reference)[:, None]
    difference, of_devices, of_reference = _difference(counts, reference, scores)
    shift, variance = float(difference[0]), float((of_devices + of_reference)[0, 0])
    if variance <= _NO_VARIANCE:
        return shift, None
    freedom = _freedom(variance, of_devices, of_reference, len(counts), reference)
    half_width = float(student_t.isf(alpha / 2, freedom)) * variance**0.5
    return shift, Interval(lower=shift - half_width, upper=shift + half_width)


def _ranks(reference: NDArray[np.int64]) -> Matrix:
    weights = smoothed(reference)
    ranks: Matrix = np.cumsum(weights) - weights / 2
    return ranks


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values adjusted so that any at or under alpha keeps the error rate alpha over all of them (Holm 1979).

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted = [1.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, p_values[index] * (len(p_values) - rank)))
        adjusted[index] = highest
    return adjusted
