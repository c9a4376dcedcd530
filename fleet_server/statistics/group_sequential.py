"""Looks that were planned: bounds for a z statistic that keep the error rate over all of them together.

Lan and DeMets (1983) spend the two-sided error alpha over the information fraction t, here as O'Brien and Fleming do:
alpha(t) = 4 - 4 Phi(z_{1 - alpha/4} / sqrt t). Little is spent early, so the last bound is near the fixed one. Any
information fractions will do, equal or not, decided by no interim result.

The chance to cross is Armitage, McPherson and Rowe's (1969) recursion: the density of the statistic that has not left
yet is integrated against the normal step to the next look, on Gauss-Legendre points.
Who looks at other times needs the confidence sequences of this package instead.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import roots_legendre
from scipy.stats import norm

from fleet_server.errors import InvalidRequestError
from fleet_server.statistics.intervals import check_level, check_positive

Values = NDArray[np.float64]

MAX_LOOKS = 200
_FARTHEST = 12.0
"""In standard deviations: the chance beyond is under 10^-32, and no bound is set farther out."""
_POINTS_PER_STEP = 8
_MIN_POINTS, _MAX_POINTS = 96, 4000


def spent_error(fraction: float, alpha: float) -> float:
    """The error that may be spent until the information `fraction`, in (0, 1]: 4 - 4 Phi(z_{1 - alpha/4} / sqrt t)."""
    check_level("alpha", alpha)
    if not 0 < fraction <= 1:
        raise InvalidRequestError(f"an information fraction of {fraction}: it lies above 0 and at most at 1")
    return float(4 * norm.sf(norm.isf(alpha / 4) / math.sqrt(fraction)))


def obrien_fleming_bounds(fractions: Sequence[float], alpha: float) -> list[float]:
    """The bounds on |z| at each look, at rising information `fractions` in (0, 1], by Lan and DeMets' spending.

    >>> [round(bound, 4) for bound in obrien_fleming_bounds([0.2, 0.4, 0.6, 0.8, 1.0], 0.05)]
    [4.8769, 3.357, 2.6803, 2.2898, 2.031]
    """
    _check_fractions(fractions)
    if fractions[-1] > 1:
        raise InvalidRequestError(f"an information fraction of {fractions[-1]}: the last look is at 1 at most")
    walk = _Walk()
    bounds: list[float] = []
    spent = 0.0
    for fraction in fractions:
        allowed = spent_error(fraction, alpha)
        bounds.append(walk.bound(fraction, allowed - spent))
        walk.step(fraction, bounds[-1])
        spent = allowed
    return bounds


def pocock_bound(looks: int, alpha: float) -> float:
    """The one bound on |z| for all of `looks` looks at equal steps of information (Pocock 1977).

    >>> round(pocock_bound(5, 0.05), 4)
    2.4132
    """
    check_level("alpha", alpha)
    if not 1 <= looks <= MAX_LOOKS:
        raise InvalidRequestError(f"{looks} looks: use 1 to {MAX_LOOKS}")
    fractions = [look / looks for look in range(1, looks + 1)]
    return float(
        brentq(lambda bound: sum(crossing_chances(fractions, [bound] * looks)) - alpha, 0.01, _FARTHEST, xtol=1e-10)
    )


def crossing_chances(fractions: Sequence[float], bounds: Sequence[float], *, drift: float = 0.0) -> list[float]:
    """The chance, look by look, to cross |z| >= bound for the first time there.

    `drift` is the mean of z at information 1: 0 gives the error rate, else the power.

    >>> round(sum(crossing_chances([0.2, 0.4, 0.6, 0.8, 1.0], [1.96] * 5)), 4)
    0.1417
    """
    _check_fractions(fractions)
    if len(bounds) != len(fractions) or not math.isfinite(drift):
        raise InvalidRequestError(f"{len(fractions)} looks have as many bounds, not {len(bounds)}, and a finite drift")
    for bound in bounds:
        check_positive("a bound", bound)
    walk = _Walk(drift)
    chances = []
    for fraction, bound in zip(fractions, bounds, strict=True):
        farthest = min(bound, _FARTHEST + abs(drift))
        chances.append(walk.leaving(fraction, farthest))
        walk.step(fraction, farthest)
    return chances


class _Walk:
    """A Brownian motion with drift that is stopped outside the bounds: its density on points, look by look."""

    def __init__(self, drift: float = 0.0) -> None:
        self._drift = drift
        self._time = 0.0
        self._points: Values = np.zeros(1)
        self._mass: Values = np.ones(1)

    def leaving(self, fraction: float, bound: float) -> float:
        """The chance to be outside at `fraction`, not having been outside before."""
        step = fraction - self._time
        reach = bound * math.sqrt(fraction)
        centre = self._points + self._drift * step
        outside = norm.sf((reach - centre) / math.sqrt(step)) + norm.cdf((-reach - centre) / math.sqrt(step))
        return float(self._mass @ outside)

    def bound(self, fraction: float, chance: float) -> float:
        """The bound that is left with just this chance."""
        if self.leaving(fraction, _FARTHEST) >= chance:
            return _FARTHEST
        return float(brentq(lambda bound: self.leaving(fraction, bound) - chance, 1e-6, _FARTHEST, xtol=1e-12))

    def step(self, fraction: float, bound: float) -> None:
        """Go on to `fraction`, inside the bound."""
        width = math.sqrt(fraction - self._time)
        reach = bound * math.sqrt(fraction)
        count = min(max(math.ceil(_POINTS_PER_STEP * 2 * reach / width), _MIN_POINTS), _MAX_POINTS)
        nodes, weights = roots_legendre(count)
        points = nodes * reach
        from_here = self._points + self._drift * (fraction - self._time)
        density = norm.pdf((points[:, None] - from_here) / width) @ self._mass / width
        self._mass = density * weights * reach
        self._points, self._time = points, fraction


def _check_fractions(fractions: Sequence[float]) -> None:
    rising = all(before < after for before, after in zip([0.0, *fractions], fractions, strict=False))
    if not 1 <= len(fractions) <= MAX_LOOKS or not rising or not math.isfinite(fractions[-1]):
        raise InvalidRequestError(f"information fractions rise from above 0, 1 to {MAX_LOOKS} of them")
