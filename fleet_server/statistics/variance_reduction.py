"""The same difference with less noise: each device's own past, and likes compared with likes.

- CUPED (Deng, Xu, Kohavi, Walker 2013): y - theta (x - mean x), x the same figure before the treatment,
  theta = cov(y, x) / var(x) over all devices. The variance falls by the squared correlation. x must not be able to
  know of the treatment.
- Stratified difference (Miratrix, Sekhon, Yu 2013): within strata, then averaged with weights by stratum size. A
  stratum that lacks a group is left out and said so; one device in a group has no variance and is left out too.

The unit is the device. An estimate goes on to `interval` (any look) or to `fixed_interval` (one planned look).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import t as student_t

from fleet_server.errors import InvalidRequestError
from fleet_server.statistics.confidence_sequences import estimate_interval
from fleet_server.statistics.intervals import Interval, check_level

Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A difference of group means, first less second, its standard error, Satterthwaite's degrees and the devices."""

    value: float
    standard_error: float
    degrees: float
    devices: int
    devices_left_out: int = 0

    def interval(self, alpha: float, *, devices_opt: float) -> Interval | None:
        """Where the difference lies at any look, for many devices; None when it cannot be told."""
        return estimate_interval(
            self.value, standard_error=self.standard_error, size=self.devices, alpha=alpha, size_opt=devices_opt
        )

    def fixed_interval(self, alpha: float) -> Interval | None:
        """Where the difference lies at the one planned look; None when it cannot be told."""
        check_level("alpha", alpha)
        if not (self.standard_error > 0 and self.degrees > 0):
            return None
        half_width = float(student_t.isf(alpha / 2, self.degrees)) * self.standard_error
        return Interval(lower=self.value - half_width, upper=self.value + half_width)


def cuped(values: ArrayLike, past: ArrayLike) -> Values:
    """The values `[devices]`, of both groups together, less what each device's `past` `[devices]` foretold of them.

    Their mean stays. A past without variance changes nothing. Raises InvalidRequestError when they do not fit.
    """
    now, before = _numbers(values), _numbers(past)
    if now.shape != before.shape:
        raise InvalidRequestError(f"{now.size} devices have as many values of the past, not {before.size}")
    centred = before - before.mean() if before.size else before
    spread = float(centred @ centred)
    if spread <= 1e-24 * max(1.0, float(before @ before)):
        return now.copy()
    adjusted: Values = now - centred * (float(centred @ now) / spread)
    return adjusted


def stratified_difference(values: ArrayLike, *, is_first: ArrayLike, strata: ArrayLike | None = None) -> Estimate:
    """The mean of the first group less that of the second, within `strata` `[devices]`, or in all without them.

    Raises InvalidRequestError when no stratum has two devices of each group.
    """
    numbers, group = _numbers(values), np.asarray(is_first, dtype=np.bool_)
    labels = np.zeros(numbers.size, dtype=np.intp) if strata is None else np.asarray(strata)
    if not numbers.shape == group.shape == labels.shape:
        raise InvalidRequestError("values, groups and strata have one entry a device")
    differences, errors, sizes, spent = [], [], [], []
    for label in np.unique(labels):
        first, second = numbers[(labels == label) & group], numbers[(labels == label) & ~group]
        if min(first.size, second.size) < 2:
            continue
        parts = [float(side.var(ddof=1)) / side.size for side in (first, second)]
        differences.append(float(first.mean() - second.mean()))
        errors.append(sum(parts))
        sizes.append(first.size + second.size)
        spent.append(sum(p**2 / (side.size - 1) for p, side in zip(parts, (first, second), strict=True)))
    if not sizes:
        raise InvalidRequestError("no stratum has two devices of each group: compare with fewer strata or more devices")
    weights = np.array(sizes) / sum(sizes)
    variance = float(weights**2 @ np.array(errors))
    degrees = variance**2 / float(weights**4 @ np.array(spent)) if variance > 0 else math.inf
    return Estimate(
        value=float(weights @ np.array(differences)), standard_error=math.sqrt(variance), degrees=degrees,
        devices=sum(sizes), devices_left_out=numbers.size - sum(sizes),
    )  # fmt: skip


def _numbers(values: ArrayLike) -> Values:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not bool(np.isfinite(array).all()):
        raise InvalidRequestError("a device has one finite value")
    return array
