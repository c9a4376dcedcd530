"""The accuracy gate: whether a variant may ship. Pure, and it fails closed: without a figure nothing ships."""

from __future__ import annotations

import math
import re

from quantize.errors import InvalidOptionError

DEFAULT_MAX_DROP = 0.005

_FRACTION = re.compile(r"(\d{1,3}(?:\.\d{1,9})?)(%?)")
_ROUNDING = 1e-12


def is_accurate(keeps: float | None, max_drop: float) -> bool:
    """Whether a variant that keeps the share `keeps` of fp32's quality (`Metric.keeps`) loses at most `max_drop`."""
    return keeps is not None and 1.0 - keeps <= max_drop + _ROUNDING


def parse_max_drop(text: str) -> float:
    """The fraction in "0.5%" or "0.005", from 0 to 1. Raises InvalidOptionError."""
    match = _FRACTION.fullmatch(text.strip())
    value = float(match[1]) / (100.0 if match[2] else 1.0) if match else math.nan
    if not 0.0 <= value <= 1.0:
        raise InvalidOptionError(f"--max-drop {text!r} is not a fraction: write 0.5% or 0.005")
    return value
