"""How traffic and features follow a site's local time. Pure.

Invariant: over any 24 hours without a weekend's edge the traffic's factor averages 1, and what a feature loses at night
it gains at noon, so a whole day looks like the reference.
"""

from __future__ import annotations

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from fleet_server.errors import InvalidRequestError

BUSIEST_HOUR, BRIGHTEST_HOUR = 15.0, 13.0
STEPS_PER_DAY = 96
"""Points of a day at which its mixture is added up."""
_NS_PER_HOUR = 3_600 * 10**9
_WEEKDAY_OF_1970 = 3  # a Thursday, Monday being 0
_SATURDAY = 5

Floats = NDArray[np.float64]


class DayNight(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`traffic`: how far the busiest hour lies above the day's mean, 0 to 1 of it. `features`: how far features that
    follow the hour move at noon, in standard deviations. `weekend`: traffic of a Saturday or Sunday over a weekday's.
    """

    traffic: float = 0.0
    features: float = 0.0
    weekend: float = 1.0

    def __post_init__(self) -> None:
        if not (0 <= self.traffic < 1 and 0 <= self.features <= 3 and 0 <= self.weekend <= 10):
            raise InvalidRequestError(
                f"day and night: traffic {self.traffic} lies in 0..1 (1 not included), features {self.features} in "
                f"0..3, weekend {self.weekend} in 0..10"
            )

    @property
    def is_flat(self) -> bool:
        """Whether every hour is like any other."""
        return self.traffic == 0 and self.features == 0 and self.weekend == 1

    def traffic_factors(self, at_ns: NDArray[np.int64], utc_offset_h: Floats) -> Floats:
        """The factor on a device's mean traffic at each time `[n]`."""
        local_h = at_ns / _NS_PER_HOUR + utc_offset_h
        weekday = (np.floor(local_h / 24).astype(np.int64) + _WEEKDAY_OF_1970) % 7
        return self._traffic(local_h) * np.where(weekday >= _SATURDAY, self.weekend, 1.0)

    def feature_shifts(self, at_ns: NDArray[np.int64], utc_offset_h: Floats) -> Floats:
        """How far features that follow the hour are moved at each time `[n]`, in standard deviations."""
        return self._shift(at_ns / _NS_PER_HOUR + utc_offset_h)

    def day(self) -> tuple[Floats, Floats]:
        """(shifts, weights adding up to 1) `[STEPS_PER_DAY]` of a day, weighted by its traffic."""
        hours = (np.arange(STEPS_PER_DAY) + 0.5) * 24 / STEPS_PER_DAY
        weights = self._traffic(hours)
        return self._shift(hours), weights / weights.sum()

    def _traffic(self, hours: Floats) -> Floats:
        factors: Floats = 1 + self.traffic * np.cos((hours - BUSIEST_HOUR) * (2 * np.pi / 24))
        return factors

    def _shift(self, hours: Floats) -> Floats:
        shifts: Floats = self.features * np.cos((hours - BRIGHTEST_HOUR) * (2 * np.pi / 24))
        return shifts
