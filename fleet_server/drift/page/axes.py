"""Axes: where a value is drawn, round ticks for numbers, and ticks for times that fall on whole hours and days."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fleet_server.drift.page.words import DAY_NS, HOUR_NS, SECOND_NS, calendar

MINUTE_NS = 60 * SECOND_NS
_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)
_TIME_STEPS_NS = (
    *(minutes * MINUTE_NS for minutes in (1, 2, 5, 10, 15, 30)),
    *(hours * HOUR_NS for hours in (1, 2, 3, 6, 12)),
    *(days * DAY_NS for days in (1, 2, 7, 14, 28, 91, 364)),
)


@dataclass(frozen=True, kw_only=True)
class Axis:
    """Values from `low` to `high`, drawn from `start` to `end`; a range that is empty or endless, at its start."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """Where a value is drawn; one outside of the range, at its edge."""
        width = self.high - self.low
        if not 0 < width < math.inf:
            return self.start
        share = (min(max(value, self.low), self.high) - self.low) / width
        return self.start + share * (self.end - self.start)


@dataclass(frozen=True, kw_only=True)
class Tick:
    """A place on an axis and its text; `major` ticks are kept where there is little room."""

    at: float
    text: str
    major: bool = True


def number_ticks(low: float, high: float, *, most: int = 6) -> list[Tick]:
    """Round values from `low` to `high`, about `most`; every other one is major."""
    rough = (high - low) / max(2, most)
    if not (math.isfinite(rough) and rough > 0):
        return []
    size = 10.0 ** math.floor(math.log10(rough))
    step = next((size * one for one in _STEPS if size * one >= rough * (1 - 1e-9)), size * 10)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9) + (abs(step / size - 2.5) < 1e-9))
    first = math.ceil(low / step - 1e-9)
    values = [(first + place) * step for place in range(most + 2)]
    kept = [value for value in values if value <= high + step * 1e-9]
    return [Tick(at=value, text=_text(value, decimals), major=place % 2 == 0) for place, value in enumerate(kept)]


def time_ticks(start_ns: int, end_ns: int, *, most: int = 9) -> list[Tick]:
    """Whole minutes, hours or days, UTC, at most `most`: midnight carries its date, and so does the first tick.

    Of many days about four are major; of few, every third tick, counted from midnight where there is one.
    """
    span_ns = end_ns - start_ns
    if span_ns <= 0 or calendar(start_ns) is None or calendar(end_ns) is None:
        return []
    step = next((one for one in _TIME_STEPS_NS if span_ns / one <= most), None)
    if step is None:
        step = DAY_NS * math.ceil(span_ns / DAY_NS / most)
    times = range(-(-start_ns // step) * step, end_ns + 1, step)
    dated = [place == 0 or time_ns % DAY_NS == 0 for place, time_ns in enumerate(times)]
    days = sum(dated)
    anchor = next((place for place, time_ns in enumerate(times) if time_ns % DAY_NS == 0), 0)
    ticks = []
    for place, (time_ns, has_date) in enumerate(zip(times, dated, strict=True)):
        at = calendar(time_ns)
        if at is None:
            continue
        day = f"{at.day} {at:%b}" if span_ns < 300 * DAY_NS else f"{at.day} {at:%b %Y}"
        text = day if time_ns % DAY_NS == 0 else f"{at:%H:%M}\n{day}" if has_date else f"{at:%H:%M}"
        nth_day = sum(dated[:place])
        major = (place - anchor) % 3 == 0 if days < 4 else has_date and nth_day % math.ceil(days / 4) == 0
        ticks.append(Tick(at=float(time_ns), text=text, major=major))
    return ticks


def _text(value: float, decimals: int) -> str:
    if abs(value) >= 1e6 or decimals > 5:
        return f"{value:.3g}".replace("-", "\N{MINUS SIGN}")
    return f"{value + 0.0:,.{decimals}f}".replace("-", "\N{MINUS SIGN}")
