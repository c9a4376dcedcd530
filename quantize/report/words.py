"""Numbers in words: with their units, as many digits as they mean, and "not measured" where there is none."""

from __future__ import annotations

import math
from datetime import UTC, datetime

NOT_MEASURED = "not measured"
NO_DIFFERENCE_DB = 200.0
"""The signal-to-noise ratio that the search gives to outputs without any noise."""
TIMES = "\N{MULTIPLICATION SIGN}"
_MINUS = "\N{MINUS SIGN}"


def is_known(value: float | None) -> bool:
    """Whether there is a number."""
    return value is not None and math.isfinite(value)


def known(value: float | None) -> float | None:
    """The number; None where it is none."""
    return value if is_known(value) else None


def metric_value(value: float | None) -> str:
    """A metric: four decimals, or four digits where that would show nothing."""
    if value is None or not math.isfinite(value):
        return NOT_MEASURED
    if value == 0 or 0.01 <= abs(value) < 1000:
        return _signed(f"{value:.4f}")
    if abs(value) < 1e9:
        return _signed(f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.4g}")
    return _signed(f"{value:.4g}")


def microseconds(value_us: float | None) -> str:
    """A time, as µs, ms or s."""
    if value_us is None or not math.isfinite(value_us):
        return NOT_MEASURED
    for size, unit in ((1e6, "s"), (1e3, "ms")):
        if abs(value_us) >= size:
            return f"{_three_digits(value_us / size)} {unit}"
    return f"{_three_digits(value_us)} µs"


def seconds(value_s: float | None) -> str:
    """A span of work, such as "12.3 s" or "3 min 20 s"."""
    if value_s is None or not math.isfinite(value_s):
        return NOT_MEASURED
    if value_s < 60:
        return f"{_three_digits(value_s)} s"
    minutes, rest = divmod(round(value_s), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min" if hours else f"{minutes} min {rest} s"


def size(value_bytes: float | None) -> str:
    """A size in B, kB, MB or GB of powers of a thousand."""
    if value_bytes is None or not math.isfinite(value_bytes):
        return NOT_MEASURED
    for unit_bytes, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(value_bytes) >= unit_bytes:
            return f"{_three_digits(value_bytes / unit_bytes)} {unit}"
    return f"{value_bytes:,.0f} B"


def count(value: int | None) -> str:
    """A number of things."""
    return NOT_MEASURED if value is None else f"{value:,}"


def times(value: float | None) -> str:
    """A speed beside fp32's, with the sign for times."""
    return NOT_MEASURED if value is None or not math.isfinite(value) else f"{value:,.2f}{TIMES}"


def keeps(value: float | None) -> str:
    """The share of fp32's quality, rounded down near 100 %, so that a loss never reads as none."""
    if value is None or not math.isfinite(value):
        return NOT_MEASURED
    share = value * 100
    if 99 <= share < 100:
        return f"{math.floor(share * 100 + 1e-6) / 100:.2f}".rstrip("0").rstrip(".") + " %"
    return "100 %" if share == 100 else f"{share:,.1f} %"


def percent(value: float) -> str:
    """A share, such as "0.5 %"."""
    return f"{value * 100:.2f}".rstrip("0").rstrip(".") + " %"


def points(difference: float | None) -> str:
    """A difference of two shares, in percentage points, with its sign."""
    if difference is None or not math.isfinite(difference):
        return NOT_MEASURED
    rounded = round(difference * 100, 1)
    return "0" if rounded == 0 else _signed(f"{rounded:+.1f}")


def decibels(value_db: float | None) -> str:
    """A signal-to-noise ratio."""
    if value_db is None or not math.isfinite(value_db):
        return NOT_MEASURED
    return "no difference" if value_db >= NO_DIFFERENCE_DB else _signed(f"{value_db:.1f} dB")


def change(saved_us: float | None) -> str:
    """What leaving a layer in float does to a run, such as "4.5 µs faster"."""
    if saved_us is None or not math.isfinite(saved_us):
        return NOT_MEASURED
    return f"{microseconds(abs(saved_us))} {'faster' if saved_us >= 0 else 'slower'}"


def probability(value: float | None) -> str:
    """A p-value."""
    if value is None or not math.isfinite(value):
        return NOT_MEASURED
    return "p < 0.001" if value < 0.001 else f"p = {value:.2f}" if value >= 0.1 else f"p = {value:.3f}"


def moment(time_ns: int) -> str:
    """A time of day, UTC; the number itself where no calendar has it."""
    try:
        return datetime.fromtimestamp(time_ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (ValueError, OverflowError, OSError):
        return f"{time_ns} ns"


def plural(number: int, one: str, many: str = "") -> str:
    """A number and its noun, such as "1 layer" or "2 layers"."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def _three_digits(value: float) -> str:
    digits = 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    return _signed(f"{value:,.{digits}f}")


def _signed(text: str) -> str:
    return text.replace("-", _MINUS, 1) if text.startswith("-") else text
