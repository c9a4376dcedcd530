"""The interval every estimate of this package is, and the checks its makers share."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fleet_server.errors import InvalidRequestError


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """Where a quantity lies, with the confidence its maker was asked for. Ends are included."""

    lower: float
    upper: float

    @property
    def is_finite(self) -> bool:
        """Whether both ends are numbers that bound something."""
        return math.isfinite(self.lower) and math.isfinite(self.upper)


def check_level(name: str, value: float) -> None:
    """Raise InvalidRequestError unless `value` is an error rate in (0, 1)."""
    if not 0 < value < 1:
        raise InvalidRequestError(f"{name} is {value}: an error rate lies between 0 and 1, such as 0.05")


def check_positive(name: str, value: float) -> None:
    """Raise InvalidRequestError unless `value` is a finite number above 0."""
    if not (math.isfinite(value) and value > 0):
        raise InvalidRequestError(f"{name} is {value}: use a finite number above 0")
