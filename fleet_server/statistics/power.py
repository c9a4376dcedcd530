"""How many units a planned comparison needs, and what it can see. Two-sided, two groups of equal size, one look.

- Means: the noncentral t distribution, as R's `power.t.test` without `strict`.
- Rates: n = (z_{a/2} sqrt(2 p q) + z_b sqrt(p1 q1 + p2 q2))^2 / (p1 - p2)^2 with p, q the average, as R's
  `power.prop.test` (Fleiss).
- Devices that differ: events of one device are alike by the intraclass correlation ICC, so with m events a device
  each event counts for 1 / (1 + (m - 1) ICC) of an independent one (Kish's design effect; Donner and Klar 2000).
"""

from __future__ import annotations

import math

from scipy.optimize import brentq
from scipy.stats import nct, norm
from scipy.stats import t as student_t

from fleet_server.errors import InvalidRequestError
from fleet_server.statistics.intervals import check_level, check_positive

_MANY = 1e6
"""Units from which t is normal for every purpose, and the noncentral t no longer computes."""


def mean_power(*, size: float, effect: float, deviation: float = 1.0, alpha: float = 0.05) -> float:
    """The chance that Welch's or Student's t finds a difference of means `effect` with `size` units a group.

    >>> round(mean_power(size=20, effect=1.0), 6)
    0.868953
    """
    _check(alpha=alpha, effect=abs(effect), deviation=deviation, size=size)
    _check_two(size)
    degrees = 2 * (size - 1)
    noncentrality = math.sqrt(size / 2) * abs(effect) / deviation
    return float(nct.sf(student_t.isf(alpha / 2, degrees), degrees, noncentrality))


def mean_size(*, effect: float, deviation: float = 1.0, alpha: float = 0.05, power: float = 0.8) -> float:
    """The units a group, not rounded up, with which a difference of means `effect` is found with chance `power`.

    At least 2, without which there is no deviation.

    >>> round(mean_size(effect=1.0, power=0.9), 4)
    22.0211
    """
    _check(alpha=alpha, effect=abs(effect), deviation=deviation)
    _check_power(alpha, power)
    guess = 2 * ((norm.isf(alpha / 2) + norm.isf(1 - power)) * deviation / effect) ** 2  # for a known deviation
    if guess > _MANY:
        return float(guess)
    if mean_power(size=2, effect=effect, deviation=deviation, alpha=alpha) >= power:
        return 2.0

    def missing(size: float) -> float:
        return power - mean_power(size=size, effect=effect, deviation=deviation, alpha=alpha)

    return float(brentq(missing, 2, guess + 100, xtol=1e-9))


def mean_effect(*, size: float, deviation: float = 1.0, alpha: float = 0.05, power: float = 0.8) -> float:
    """The smallest difference of means that `size` units a group find with chance `power`."""
    _check(alpha=alpha, deviation=deviation, size=size)
    _check_two(size)
    _check_power(alpha, power)
    guess = float((norm.isf(alpha / 2) + norm.isf(1 - power)) * math.sqrt(2 / size))
    if size > _MANY:
        return guess * deviation

    def missing(effect: float) -> float:
        return power - mean_power(size=size, effect=effect, alpha=alpha)

    return deviation * float(brentq(missing, guess / 2, guess * 100, xtol=1e-12))


def rate_size(
    *, control: float, treated: float, alpha: float = 0.05, power: float = 0.8, cluster_size: float = 1, icc: float = 0
) -> float:
    """The events a group, not rounded up, with which rates `control` and `treated` are told apart with chance `power`.

    `cluster_size` events come from one device, and are alike by `icc`.

    >>> round(rate_size(control=0.05, treated=0.06), 1)
    8157.7
    """
    _check_power(alpha, power)
    for name, rate in (("control", control), ("treated", treated)):
        check_level(name, rate)
    if control == treated:
        raise InvalidRequestError(f"rates that are both {control} are never told apart")
    middle = (control + treated) / 2
    apart = norm.isf(alpha / 2) * math.sqrt(2 * middle * (1 - middle))
    apart += norm.isf(1 - power) * math.sqrt(control * (1 - control) + treated * (1 - treated))
    return float((apart / (control - treated)) ** 2) * design_effect(cluster_size=cluster_size, icc=icc)


def rate_effect(
    *, control: float, size: float, alpha: float = 0.05, power: float = 0.8, cluster_size: float = 1, icc: float = 0
) -> float | None:
    """The smallest rise over the rate `control` that `size` events a group find with chance `power`, or None."""
    check_level("control", control)
    check_positive("size", size)

    def missing(rise: float) -> float:
        treated = control + rise
        return rate_size(
            control=control, treated=treated, alpha=alpha, power=power, cluster_size=cluster_size, icc=icc
        ) / size - 1  # fmt: skip

    least, most = (1 - control) * 1e-9, (1 - control) * (1 - 1e-9)
    if missing(most) > 0:
        return None
    return float(brentq(missing, least, most, xtol=1e-15)) if missing(least) > 0 else least


def design_effect(*, cluster_size: float, icc: float) -> float:
    """1 + (m - 1) ICC: how many times more events are needed when `cluster_size` of them come from each device."""
    if not (cluster_size >= 1 and math.isfinite(cluster_size) and 0 <= icc <= 1):
        raise InvalidRequestError(f"clusters of {cluster_size} with an ICC of {icc}: use a size from 1, an ICC in 0..1")
    return 1 + (cluster_size - 1) * icc


def devices_needed(
    *, control: float, treated: float, events_per_device: float, icc: float, alpha: float = 0.05, power: float = 0.8
) -> int:
    """The devices a group of a comparison of rates in which the device is assigned, not the event."""
    events = rate_size(
        control=control, treated=treated, alpha=alpha, power=power, cluster_size=events_per_device, icc=icc
    )
    return math.ceil(events / events_per_device)


def _check(*, alpha: float, **positive: float) -> None:
    check_level("alpha", alpha)
    for name, value in positive.items():
        check_positive(name, value)


def _check_two(size: float) -> None:
    if size < 2:
        raise InvalidRequestError(f"{size} units a group: a deviation needs 2")


def _check_power(alpha: float, power: float) -> None:
    check_level("alpha", alpha)
    if not alpha < power < 1:
        raise InvalidRequestError(f"a power of {power}: it lies between alpha, {alpha}, and 1")
