"""An asymptotic confidence sequence for the mean over devices: may be looked at any time.

Waudby-Smith, Arbour, Sinha, Kennedy, Ramdas: "Time-uniform central limit theory and asymptotic confidence
sequences", eq. 9: half-width  s sqrt(2 (n rho^2 + 1) / (n rho)^2 ln(sqrt(n rho^2 + 1) / alpha)), with
rho = sqrt((-2 ln alpha + ln(1 - 2 ln alpha)) / N). One value per device, because devices differ and the
events of one device are not independent draws from the fleet. It holds for large n only; with equal values
the variance says nothing, and there is no interval at all.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from fleet_server.statistics.intervals import Interval, check_level, check_positive


def mean_interval(values: ArrayLike, alpha: float, *, devices_opt: float) -> Interval | None:
    """Where the mean of the population of `values` `[devices]` lies, at error rate `alpha` over all looks.

    `devices_opt` (N) is the number of devices at which the interval is tightest, chosen before the data.
    None when the values cannot tell: fewer than two, not all finite, or without variance.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.size < 2 or not bool(np.isfinite(array).all()):
        return None
    deviation = float(array.std(ddof=1))
    if deviation <= 1e-12 * max(1.0, float(np.abs(array).max())):  # equal but for rounding
        return None
    half_width = deviation * unit_half_width(array.size, alpha, devices_opt=devices_opt)
    mean = float(array.mean())
    return Interval(lower=mean - half_width, upper=mean + half_width)


def estimate_interval(
    value: float, *, standard_error: float, size: float, alpha: float, size_opt: float
) -> Interval | None:
    """The same around any estimate that is a mean for large `size` (eq. 9 with s = sqrt(size) standard errors).

    `size` grows in proportion to 1 / `standard_error`^2, such as the number of devices; tightest at `size_opt`.
    None when the numbers cannot tell.
    """
    if not (math.isfinite(value) and math.isfinite(standard_error) and standard_error > 0 and size >= 1):
        return None
    half_width = standard_error * math.sqrt(size) * unit_half_width(size, alpha, devices_opt=size_opt)
    return Interval(lower=value - half_width, upper=value + half_width)


def unit_half_width(devices: float, alpha: float, *, devices_opt: float) -> float:
    """The half-width in standard deviations over devices."""
    check_level("alpha", alpha)
    check_positive("devices_opt", devices_opt)
    check_positive("devices", devices)
    rho_squared = mixture_variance(alpha, devices_opt=devices_opt)
    growth = devices * rho_squared + 1
    return math.sqrt(2 * growth / (devices**2 * rho_squared) * math.log(math.sqrt(growth) / alpha))


def mixture_variance(alpha: float, *, devices_opt: float) -> float:
    """rho^2 of eq. 9: the variance of the mixture over means, in standard deviations over devices."""
    check_level("alpha", alpha)
    check_positive("devices_opt", devices_opt)
    return (-2 * math.log(alpha) + math.log(1 - 2 * math.log(alpha))) / devices_opt
