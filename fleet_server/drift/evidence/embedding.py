"""Embeddings and raw inputs by sums of random Fourier features: maximum mean discrepancies (MMD).

The squared distance of two mean feature vectors is the squared MMD of a Gaussian kernel (Gretton et al. 2012; Rahimi
and Recht 2007), and devices send sums only. Where devices are the unit, a device's mean features are its scores, as
anywhere else. Where values are, the law needs how features vary over values: the bundle brings the traces t1, t2, t3 of
the first three powers of their covariance, and |d|^2 / c, a sum of squares weighted by that covariance's eigenvalues,
nearly follows a chi-squared law with their three moments (Pearson 1959), where c = 1/n + 1/m.

Whitening the leading 5 to 40 directions lost: it needs their vectors (thousands of numbers on every device) and found
less of every change but one (brightness x 0.85 at 20 values, which the features find anyway).

A cosine is at most 1 in size and its square is 1/2 on average, which gives the trace of the variance within a device
or of an older bundle without the values: D/2 less the squared length of the mean.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2

from fleet_protocol.embedding_sums import FEATURE_SCALE
from fleet_protocol.manifest import RandomFeatureReference
from fleet_server.drift.evidence.dependence import MIN_BLOCKS, design_effect
from fleet_server.drift.evidence.exchanging import exchange_labels, flip_pairs
from fleet_server.drift.evidence.quadratic import VariancePart, dempster_p_value
from fleet_server.drift.evidence.result import (
    Counts,
    Evidence,
    Matrix,
    check_same_devices,
    e_value_of,
    nothing_to_say,
)
from fleet_server.drift.findings import Effect
from fleet_server.errors import InvalidRequestError
from fleet_server.statistics.intervals import check_level

METHOD_FLEET = "random-feature MMD, device means (Dempster)"
METHOD_BETWEEN = "random-feature MMD, "
METHOD_VALUES = "random-feature MMD, values of one device"
METHOD_NO_LAW = "random-feature MMD: the bundle does not say how features vary, rebuild it"


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingSums:
    """What units (devices, or one device's windows) summed: `sums` `[units, features]` as decoded from windows (whole
    numbers, FEATURE_SCALE a cosine), over `counts` `[units]` samples.
    """

    sums: Counts
    counts: NDArray[np.int64]

    def __post_init__(self) -> None:
        if self.sums.ndim != 2 or self.counts.shape != self.sums.shape[:1]:
            raise InvalidRequestError(f"sums of {self.sums.shape} and counts of {self.counts.shape} do not fit")

    def means(self) -> tuple[Matrix, NDArray[np.int64]]:
        """Mean cosines `[units, features]` and sample counts `[units]` of the units that have a sample."""
        kept = self.counts > 0
        means: Matrix = self.sums[kept] / (FEATURE_SCALE * self.counts[kept])[:, None]
        return means, self.counts[kept]


def embedding_against_reference(
    devices: EmbeddingSums, reference: RandomFeatureReference, *, alpha: float = 0.05
) -> Evidence:
    """Hold devices' mean features against the reference's: the device is the unit.

    Its variance is made as in `fleet`. The p-value is 1 with fewer than two devices. Raises InvalidRequestError when
    the numbers of features differ.
    """
    check_level("alpha", alpha)
    expected = _reference_mean(devices, reference)
    means, counts = devices.means()
    if len(means) < 2:
        return nothing_to_say(METHOD_FLEET)
    difference = means.mean(axis=0) - expected
    centred = means - means.mean(axis=0)
    units, known = len(means), max(1.0, reference.count - 1.0)
    gram = centred @ centred.T if units <= means.shape[1] else centred.T @ centred
    trace, squared = float(np.trace(gram)) / (units - 1), float((gram**2).sum()) / (units - 1) ** 2
    of_values, of_values_squared = _traces(reference, expected)[:2]
    hidden = max(0.0, of_values - float(_within(means, counts).mean()) - trace)
    shape = of_values_squared / of_values**2 if of_values > 0 else 1.0
    parts = [
        VariancePart(trace=trace / units, squared_trace=squared / units**2, freedom=units - 1.0),
        VariancePart(trace=hidden / units, squared_trace=shape * (hidden / units) ** 2, freedom=known),
        VariancePart(
            trace=of_values / reference.count, squared_trace=of_values_squared / reference.count**2, freedom=known
        ),
    ]
    length = float(difference @ difference)
    p_value = dempster_p_value(length, [part for part in parts if part.trace > 0])
    return _evidence(p_value, METHOD_FLEET, length, means.shape[1])


def embedding_between_devices(
    seen: EmbeddingSums, expected: EmbeddingSums, *, alpha: float = 0.05, seed: int = 0
) -> Evidence:
    """Hold devices against other devices: exchanging of their labels."""
    check_level("alpha", alpha)
    _check_features(seen, expected.sums.shape[1])
    left, right = seen.means()[0], expected.means()[0]
    if not len(left) or not len(right) or len(left) + len(right) < 3:
        return nothing_to_say(METHOD_BETWEEN)
    p_value, method = exchange_labels(left, right, seed=seed)
    difference = left.mean(axis=0) - right.mean(axis=0)
    return _evidence(p_value, METHOD_BETWEEN + method, float(difference @ difference), left.shape[1])


def embedding_paired_devices(
    seen: EmbeddingSums, expected: EmbeddingSums, *, alpha: float = 0.05, seed: int = 0
) -> Evidence:
    """Hold devices against the same devices, row by row: flipping of signs."""
    check_level("alpha", alpha)
    _check_features(seen, expected.sums.shape[1])
    check_same_devices(len(seen.counts), len(expected.counts))
    both = (seen.counts > 0) & (expected.counts > 0)
    if both.sum() < 2:
        return nothing_to_say(METHOD_BETWEEN)
    left = EmbeddingSums(sums=seen.sums[both], counts=seen.counts[both]).means()[0]
    right = EmbeddingSums(sums=expected.sums[both], counts=expected.counts[both]).means()[0]
    p_value, method = flip_pairs(left - right, seed=seed)
    difference = (left - right).mean(axis=0)
    return _evidence(p_value, METHOD_BETWEEN + method, float(difference @ difference), left.shape[1])


def embedding_one_device(
    windows: EmbeddingSums, reference: RandomFeatureReference, *, alpha: float = 0.05, independent: bool = False
) -> Evidence:
    """Hold one device's windows, in time's order, against the reference; values are the unit (see `values`).

    `independent`: the caller knows that values are. The p-value is 1 where the bundle does not tell how features vary.
    """
    check_level("alpha", alpha)
    expected = _reference_mean(windows, reference)
    means, counts = windows.means()
    if not len(means):
        return nothing_to_say(METHOD_VALUES)
    if len(reference.covariance_traces) < 3:
        return nothing_to_say(METHOD_NO_LAW)
    design = 1.0 if independent else _design(means, counts, _traces(reference, expected)[0])
    mean = counts @ means / counts.sum()
    return _by_values(mean - expected, design / counts.sum() + 1 / reference.count, reference, design)


def embedding_one_device_over_time(
    seen: EmbeddingSums, expected: EmbeddingSums, reference: RandomFeatureReference, *, alpha: float = 0.05
) -> Evidence:
    """Hold one device's windows against its own earlier ones; fewer than MIN_BLOCKS on a side say nothing."""
    check_level("alpha", alpha)
    _check_features(seen, len(reference.sums))
    _check_features(expected, len(reference.sums))
    sides = [side.means() for side in (seen, expected)]
    if min(len(means) for means, _ in sides) < MIN_BLOCKS:
        return nothing_to_say(METHOD_VALUES)
    if len(reference.covariance_traces) < 3:
        return nothing_to_say(METHOD_NO_LAW)
    usual = _variance_of_all(*sides[1])
    designs = [_design(means, counts, usual) for means, counts in sides]
    left, right = (counts @ means / counts.sum() for means, counts in sides)
    noise = sum(design / float(counts.sum()) for design, (_, counts) in zip(designs, sides, strict=True))
    return _by_values(left - right, noise, reference, designs[0])


def _by_values(difference: Matrix, noise: float, reference: RandomFeatureReference, design: float) -> Evidence:
    length = float(difference @ difference)
    p_value = weighted_squares_p_value(length / noise, reference.covariance_traces)
    found = _evidence(p_value, METHOD_VALUES, length, len(difference))
    return Evidence(
        p_value=p_value, e_value=found.e_value, method=METHOD_VALUES, effect=found.effect, design_effect=design
    )


def weighted_squares_p_value(value: float, traces: list[float]) -> float:
    """The chance that a sum of squared normal numbers, weighted by eigenvalues with these power sums, is as large.

    A chi-squared law with the same mean, variance and skewness.

    >>> round(weighted_squares_p_value(9.487729, [4.0, 4.0, 4.0]), 4)
    0.05
    """
    first, second, third = traces
    if second <= 0 or third <= 0:
        return 1.0
    freedom = second**3 / third**2
    standard = (value - first) / math.sqrt(2.0 * second)
    return float(chi2.sf(standard * math.sqrt(2.0 * freedom) + freedom, freedom))


def _design(means: Matrix, counts: NDArray[np.int64], usual: float) -> float:
    variance = _variance_of_all(means, counts)
    return design_effect(means, counts, variance=variance, alike=variance / max(usual, 1e-300))


def _variance_of_all(means: Matrix, counts: NDArray[np.int64]) -> float:
    """The trace of the cosines' variance over all samples of all windows."""
    return float(_within((counts @ means / counts.sum())[None, :], np.array([counts.sum()]))[0])


def _within(means: Matrix, counts: NDArray[np.int64]) -> Matrix:
    """The trace of the cosines' variance over each unit's samples `[units]`, without bias."""
    biased = np.maximum(means.shape[1] / 2.0 - (means**2).sum(axis=1), 0.0)
    found: Matrix = biased * counts / np.maximum(counts - 1, 1)
    return found


def _traces(reference: RandomFeatureReference, mean: Matrix) -> tuple[float, float]:
    """The traces of the covariance and of its square; for older bundles by the cosines' squares, and the most."""
    if len(reference.covariance_traces) >= 2:
        return reference.covariance_traces[0], reference.covariance_traces[1]
    first = max(0.0, len(mean) / 2.0 - float(mean @ mean))
    return first, first**2


def _reference_mean(units: EmbeddingSums, reference: RandomFeatureReference) -> Matrix:
    """The reference's mean cosines `[features]`; its sums are of sqrt(2 / D) of them."""
    _check_features(units, len(reference.sums))
    if reference.count < 1:
        raise InvalidRequestError("the reference's random features are over no sample: rebuild the bundle")
    mean: Matrix = np.array(reference.sums) * math.sqrt(len(reference.sums) / 2.0) / reference.count
    return mean


def _check_features(units: EmbeddingSums, features: int) -> None:
    if units.sums.shape[1] != features:
        raise InvalidRequestError(f"sums of {units.sums.shape[1]} features and of {features} do not fit")


def _evidence(p_value: float, method: str, squared_length: float, features: int) -> Evidence:
    """`mmd` is in the kernel's own unit, where a sample's kernel with itself is 1."""
    size = math.sqrt(squared_length * 2.0 / features)
    return Evidence(
        p_value=p_value,
        e_value=e_value_of(p_value),
        method=method,
        effect=Effect(mmd=size, mmd_p_value=p_value),
    )
