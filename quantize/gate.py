"""The decision whether an int8 variant may ship. Pure: measurements in, verdict and reason out.

It fails closed: a metric that is not a number, or an fp32 model that scores nothing, is no evidence that int8
is good.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from quantize.errors import InvalidOptionError
from quantize.metrics import Metric

DEFAULT_MAX_DROP = 0.005

_FRACTION = re.compile(r"(\d{1,3}(?:\.\d{1,9})?)(%?)")


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether int8 ships, and the sentence that says why."""

    accepted: bool
    reason: str


def judge(*, metric: Metric, fp32: float, int8: float, max_drop: float) -> Verdict:
    """Accept int8 when it keeps at least (1 - `max_drop`) of fp32's quality (`Metric.keeps`)."""
    if not (math.isfinite(fp32) and math.isfinite(int8)) or (metric.higher_is_better and fp32 <= 0):
        return Verdict(accepted=False, reason=f"no evidence: {metric.name} is {fp32} in fp32 and {int8} in int8")
    drop = 1.0 - metric.keeps(fp32=fp32, variant=int8)
    accepted = drop <= max_drop + 1e-12  # the division's own rounding is not a drop
    figures = (
        f"{metric.name} {fp32:.4f} in fp32, {int8:.4f} in int8: a drop of {drop:.2%} of fp32, {max_drop:.2%} is allowed"
    )
    return Verdict(accepted=accepted, reason=figures if accepted else f"int8 is refused and fp32 kept: {figures}")


def parse_max_drop(text: str) -> float:
    """The fraction in "0.5%" or "0.005", from 0 to 1. Raises InvalidOptionError."""
    match = _FRACTION.fullmatch(text.strip())
    value = float(match[1]) / (100.0 if match[2] else 1.0) if match else math.nan
    if not 0.0 <= value <= 1.0:
        raise InvalidOptionError(f"--max-drop {text!r} is not a fraction: write 0.5% or 0.005")
    return value
