"""Axes: round ticks, and a range that shows what matters and keeps outliers at its edge."""

from __future__ import annotations

import math
from dataclasses import dataclass

_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True, kw_only=True)
class Axis:
    """Values from `low` to `high` on a drawing from `start` to `end` (which may be less than `start`)."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """Where a value is drawn; one outside of the range, at the edge."""
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def holds(self, value: float) -> bool:
        """Whether a value is within the range."""
        return self.low <= value <= self.high

    def ticks(self, most: int) -> list[tuple[float, str]]:
        """Round values within the range with their text, `most` at most, but never fewer than two are aimed at."""
        rough = (self.high - self.low) / max(2, most)
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * one for one in _STEPS if power * one >= rough * (1 - 1e-9))
        decimals = max(0, -math.floor(math.log10(step) + 1e-9) + (1 if abs(step / power - 2.5) < 1e-9 else 0))
        first = math.ceil(self.low / step - 1e-9)
        values = [(first + place) * step for place in range(most + 2)]
        return [(value, _tick(value, decimals)) for value in values if value <= self.high + step * 1e-9]


def widened(low: float, high: float, *, share: float = 0.08) -> tuple[float, float]:
    """The range with room at both ends; never empty."""
    room = (high - low) * share or abs(high) * 0.01 or 1.0
    # below the digits of a float nothing is left to draw
    room = max(room, 1e-9 * max(abs(low), abs(high)), 1e-12)
    return low - room, high + room


def _tick(value: float, decimals: int) -> str:
    if abs(value) >= 1e6 or decimals > 6:
        return f"{value:.3g}"
    return f"{value + 0.0:,.{decimals}f}".replace("-", "\N{MINUS SIGN}")
