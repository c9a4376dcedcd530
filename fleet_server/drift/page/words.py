"""Numbers, probabilities and times in words: as many digits as they mean, and a dash where there is none.

Every time is UTC and says so once where it stands alone.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime

NONE = "\N{EN DASH}"
SIGMA = "\N{GREEK SMALL LETTER SIGMA}"
_MINUS = "\N{MINUS SIGN}"
_TIMES = "\N{MULTIPLICATION SIGN}"
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
SECOND_NS = 1_000_000_000
HOUR_NS = 3600 * SECOND_NS
DAY_NS = 24 * HOUR_NS


def is_number(value: float | None) -> bool:
    """Whether there is a number to show."""
    return value is not None and math.isfinite(value)


def figure(value: float | None) -> str:
    """A number with three digits that mean something."""
    if value is None or not math.isfinite(value):
        return NONE
    size = abs(value)
    if size == 0:
        return "0"
    if size >= 1e6 or size < 1e-4:
        return power(value)
    decimals = max(0, 2 - math.floor(math.log10(size)))
    return _signed(f"{value:,.{min(decimals, 5)}f}")


def signed(value: float | None) -> str:
    """A change, with its sign."""
    if value is None or not math.isfinite(value):
        return NONE
    return f"+{figure(value)}" if value > 0 else figure(value)


def sigmas(value: float | None) -> str:
    """A move in standard deviations, with its sign."""
    if value is None or not math.isfinite(value):
        return NONE
    text = f"{value:+.2f}" if abs(value) < 1000 else signed(value)
    return f"{_signed(text) if text not in ('+0.00', '-0.00') else '0.00'}{_NBSP}{SIGMA}"


def power(value: float) -> str:
    """A very small or large number, such as 3.2e-5 with its exponent raised."""
    digits, exponent = f"{value:.1e}".split("e")
    return f"{_signed(digits)} {_TIMES} 10{str(int(exponent)).translate(_SUPERSCRIPT)}"


def probability(value: float | None) -> str:
    """A p-value: never 0, never more digits than it means."""
    if value is None or not math.isfinite(value):
        return NONE
    if value < 1e-9:
        return "< 10⁻⁹"
    if value < 1e-3:
        return power(value)
    return f"{value:.2g}" if value < 0.1 else f"{value:.2f}"


def e_value(value: float | None) -> str:
    """An e-value: the factor by which a fair bet against "no drift" has grown."""
    if value is None or math.isnan(value):
        return NONE
    if value >= 1e9:
        return "> 10⁹"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}" if value >= 1e-3 else "< 0.001"


def percent(share: float | None) -> str:
    """A share, such as "12.5 %"; never 0 % or 100 % unless it is."""
    if share is None or not math.isfinite(share):
        return NONE
    value = share * 100
    if 0 < value < 0.001:
        return f"< 0.001{_NBSP}%"
    text = f"{value:,.1f}" if not 0 < value < 0.95 else f"{value:.2g}" if value >= 0.01 else f"{value:.3f}"
    if text == "100.0" and share < 1:
        return f"> 99.9{_NBSP}%"
    return f"{_signed(text.removesuffix('.0'))}{_NBSP}%"


def points(difference: float | None) -> str:
    """A difference of shares in percentage points, with its sign."""
    if difference is None or not math.isfinite(difference):
        return NONE
    text = f"{difference * 100:+.1f}"
    return _signed(text) if text not in ("+0.0", "-0.0") else "0"


def accuracy(value: float | None) -> str:
    """An accuracy with two decimals, three where two would round to perfect."""
    if value is None or not math.isfinite(value):
        return NONE
    text = f"{value:.2f}"
    return f"{math.floor(value * 1000) / 1000:.3f}" if text == "1.00" and value < 1 else _signed(text)


def plural(number: int, one: str, many: str = "") -> str:
    """A number and its noun."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def of(part: int, whole: int) -> str:
    """How many of how many."""
    return f"{part:,} of {whole:,}"


def moment(time_ns: int, *, near_ns: int | None = None) -> str:
    """A time to the minute; without its date on the day of `near_ns`. Nanoseconds where no calendar has it."""
    at = calendar(time_ns)
    if at is None:
        return f"{time_ns} ns"
    near = None if near_ns is None else calendar(near_ns)
    return at.strftime("%H:%M" if near is not None and near.date() == at.date() else "%Y-%m-%d %H:%M")


def span(start_ns: int, end_ns: int) -> str:
    """A span, such as "2026-05-04 09:00 to 17:00 UTC (8 h)"."""
    return f"{moment(start_ns)} to {moment(end_ns, near_ns=start_ns)} UTC ({length(end_ns - start_ns)})"


def length(span_ns: int) -> str:
    """How long a span is, in its two largest units."""
    rest = max(0, round(span_ns / SECOND_NS))
    if rest == 0:
        return "0 s"
    said = []
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        number, rest = divmod(rest, size)
        if number:
            said.append(f"{number:,} {unit}")
    return " ".join(said[:2])


def calendar(time_ns: int) -> datetime | None:
    """The UTC date and time, None where no calendar has it."""
    try:
        return datetime.fromtimestamp(time_ns / SECOND_NS, UTC)
    except (ValueError, OverflowError, OSError):
        return None


_NBSP = "\N{NO-BREAK SPACE}"


def _signed(text: str) -> str:
    return text.replace("-", _MINUS, 1) if text.startswith("-") else text
