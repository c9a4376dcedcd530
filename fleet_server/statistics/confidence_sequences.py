"""An asymptotic confidence sequence for the mean over devices: may be looked at any time.

Waudby-Smith, Arbour, Sinha, Kennedy, Ramdas: "Time-uniform central limit theory and asymptotic confidence
sequences", eq. 9: half-width  s sqrt(2 (n rho^2 + 1) / (n rho)^2 ln(sqrt(n rho^2 + 1) / alpha)), with
rho = sqrt((-2 ln alpha + ln(1 - 2 ln alpha)) / N). One value per device, because devices differ and the
events of one device are not independent draws from the fleet. It holds for large n only; with equal values
the variance says nothing, and there is no interval at all. For a few devices there is `few_devices_interval`, exact
for normal values.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fleet_server.statistics.intervals import Interval, check_level, check_positive


def mean_interval(values: ArrayLike, alpha: float, *, devices_opt: float) -> Interval | None:
    """Where the mean of the population of `values` `[devices]` lies, at error rate `alpha` over all looks.

    `devices_opt` (N) is the number of devices at which the interval is tightest, chosen before the data.
    None when the values cannot tell: fewer than two, not all finite, or without variance.
    """
    array = np.asarray(values, dtype=np.float64)
    deviation = _deviation(array)
    if deviation is None:
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


def few_devices_interval(values: ArrayLike, alpha: float, *, devices_opt: float) -> Interval | None:
    """As `mean_interval`, exact for normal values from the first devices on: the t mixture, inverted.

    The means at which `e_values.mean_e_value` is below 1/alpha (Wang and Ramdas 2024, "Anytime-valid t-tests").
    None when the values cannot tell: too few for this alpha (three at 0.05), not all finite, or without variance.
    """
    array = np.asarray(values, dtype=np.float64)
    deviation = _deviation(array)
    if deviation is None:
        return None
    return few_devices_estimate_interval(
        float(array.mean()),
        standard_error=deviation / math.sqrt(array.size),
        degrees=array.size - 1,
        size=array.size,
        alpha=alpha,
        size_opt=devices_opt,
    )


def few_devices_estimate_interval(
    value: float, *, standard_error: float, degrees: float, size: float, alpha: float, size_opt: float
) -> Interval | None:
    """The same around an estimate of `degrees` of freedom, such as Welch's difference: where the t mixture is 1/alpha.

    `size` grows in proportion to 1 / `standard_error`^2; tightest at `size_opt`. None when the numbers cannot tell.
    """
    if not (math.isfinite(value) and math.isfinite(standard_error) and standard_error > 0 and degrees > 0):
        return None
    growth = 1 + size * mixture_variance(alpha, devices_opt=size_opt)
    odds = (math.sqrt(growth) / alpha) ** (2 / (degrees + 1))
    if odds >= growth:
        return None
    half_width = standard_error * math.sqrt(degrees * (odds - 1) / (1 - odds / growth))
    return Interval(lower=value - half_width, upper=value + half_width)


def _deviation(array: NDArray[np.float64]) -> float | None:
    """The standard deviation over devices, None when it says nothing."""
    if array.size < 2 or not bool(np.isfinite(array).all()):
        return None
    deviation = float(array.std(ddof=1))
    equal_but_for_rounding = deviation <= 1e-12 * max(1.0, float(np.abs(array).max()))
    return None if equal_but_for_rounding else deviation


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
