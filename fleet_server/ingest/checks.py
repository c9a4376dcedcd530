"""Which windows may count: what a device says held against the clock, against itself and against the registry. Pure.

In this order, per window:
1. clock: it ended within the time that telemetry is kept, and at most MAX_AHEAD_S from now; its span is one that an
   agent can make;
2. numbers: none beyond what sums can hold, and none that contradict each other;
3. registry: of a published model, a version and variant that there are, and a version that was assigned to this device
   at some time. A model that the registry does not know, or served from a plain file, has nothing to be held against;
4. sketches: each can be read and fits the version's reference.
What fails 1 to 3 sets the window aside, with every reason. What fails 4 costs the sketch alone: the window counts
without it. A latency sketch that counts otherwise than its window sets the window aside.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum

from fleet_protocol.messages import Window
from fleet_server.telemetry_store.sketches import MAX_WINDOW_COUNT

MAX_AHEAD_S = 300
"""A window that ends later than this from now has a wrong clock."""
MAX_SPAN_S = 2 * 86_400
"""An agent's longest window is a day; its end may wait for a busy device."""
MAX_MERGED_SPAN_S = 60 * 86_400
"""Merged windows span what the device was offline, at most twice the usual age of an outbox."""
MAX_RATE_PER_S = 1_000_000
"""Inferences a second, far above what an agent on one machine answers."""
RATE_SLACK_S = 60
FILE_VARIANT = "file"
"""The variant of a model that a device serves from a plain file, without a bundle."""

_NS = 10**9
_EPS = 1e-6


class Reason(StrEnum):
    """Why a window, or a sketch of one, does not count."""

    TOO_OLD = "too_old"
    IN_THE_FUTURE = "in_the_future"
    SPAN = "span"
    OVERFLOW = "overflow"
    CONTRADICTION = "contradiction"
    UNKNOWN_VERSION = "unknown_version"
    UNKNOWN_VARIANT = "unknown_variant"
    NOT_ASSIGNED = "not_assigned"
    SKETCH_UNREADABLE = "sketch_unreadable"
    SKETCH_MISMATCH = "sketch_mismatch"


@dataclass(frozen=True, slots=True)
class Fault:
    """A reason, with what a person needs to understand it."""

    reason: Reason
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """What a published version's windows must fit. `classes` 0 is not known; `features` are places by name."""

    variants: frozenset[str]
    features: Mapping[str, int] = field(default_factory=dict)
    score_places: int = 0
    classes: int = 0
    embedding_features: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the server knows of a window's model, version and device. `reference` is None of an unknown version."""

    is_published: bool = False
    reference: Reference | None = None
    was_assigned: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """The time in which a window may have ended."""

    oldest_ns: int
    latest_ns: int


def span_at(now_ns: int, *, raw_retention_s: int) -> Span:
    """What may count now."""
    return Span(oldest_ns=now_ns - raw_retention_s * _NS, latest_ns=now_ns + MAX_AHEAD_S * _NS)


def faults_of(window: Window, facts: Facts, span: Span) -> list[Fault]:
    """Steps 1 to 3: why this window may not count; [] when it may, as far as its sketches are right."""
    faults: list[Fault] = []
    _check_clock(window, span, faults)
    _check_numbers(window, faults)
    if facts.is_published and window.variant != FILE_VARIANT:
        _check_registry(window, facts, faults)
    return faults


def _check_clock(window: Window, span: Span, faults: list[Fault]) -> None:
    if window.end_ns <= span.oldest_ns:
        faults.append(Fault(Reason.TOO_OLD, f"it ended {_date(window.end_ns)}, before what is kept"))
    elif window.end_ns > span.latest_ns:
        faults.append(Fault(Reason.IN_THE_FUTURE, f"it ends {_date(window.end_ns)}, which is yet to come"))
    longest_s = MAX_MERGED_SPAN_S if window.covers else MAX_SPAN_S
    if window.end_ns - window.start_ns > longest_s * _NS:
        seconds = (window.end_ns - window.start_ns) // _NS
        faults.append(Fault(Reason.SPAN, f"it spans {seconds} s from {_date(window.start_ns)}, at most {longest_s} s"))


def _check_numbers(window: Window, faults: list[Fault]) -> None:
    wrong = _contradiction(window)
    if wrong:
        faults.append(Fault(Reason.CONTRADICTION, wrong))
    highest, calls = _highest(window), window.count + sum(window.errors.values())
    seconds = (window.end_ns - window.start_ns) / _NS
    if highest > MAX_WINDOW_COUNT:
        faults.append(Fault(Reason.OVERFLOW, f"it counts {highest}, at most {MAX_WINDOW_COUNT}"))
    elif calls > (seconds + RATE_SLACK_S) * MAX_RATE_PER_S:
        faults.append(Fault(Reason.OVERFLOW, f"{calls} calls in {seconds:.0f} s: no device is as fast"))


def _highest(window: Window) -> int:
    """The highest of all counts."""
    highest = max(window.count, window.embedding_count)
    if window.errors:
        highest = max(highest, sum(window.errors.values()))
    if window.classes:
        highest = max(highest, *window.classes.values())
    if window.batch_sizes:
        highest = max(highest, *window.batch_sizes.values(), *window.batch_sizes)
    if (known := window.outcomes) is not None:
        highest = max(highest, known.correct, known.wrong, known.squared_error_count)
    if window.shadow is not None:
        highest = max(highest, window.shadow.compared)
    if window.estimated_accuracy is not None:
        highest = max(highest, window.estimated_accuracy.count)
    return highest


def _contradiction(window: Window) -> str:
    """What in the window cannot be true beside the rest of it; "" for nothing."""
    outcomes, shadow, estimate = window.outcomes, window.shadow, window.estimated_accuracy
    if outcomes is not None and not math.isfinite(outcomes.squared_error_sum):
        return "its squared errors add up to no number"
    if shadow is not None and shadow.disagreed > shadow.compared:
        return f"its shadow disagreed {shadow.disagreed} times in {shadow.compared}"
    if estimate is not None and not _is_within(estimate.confidence_sum, estimate.count):
        return f"the confidence of {estimate.count} predictions adds up to {estimate.confidence_sum}"
    if estimate is not None and not _is_within(estimate.variance_sum, estimate.count / 4):
        return f"the variance of {estimate.count} predictions adds up to {estimate.variance_sum}"
    if window.batch_sizes and min(window.batch_sizes) < 1:
        return f"a batch has {min(window.batch_sizes)} calls"
    if window.covers and max(window.covers) >= window.sequence:
        return f"window {window.sequence} covers {max(window.covers)}, which is not before it"
    return ""


def _check_registry(window: Window, facts: Facts, faults: list[Fault]) -> None:
    name = f"{window.model} {window.version}"
    if facts.reference is None:
        faults.append(Fault(Reason.UNKNOWN_VERSION, f"there is no version {name}"))
        return
    if facts.reference.variants and window.variant not in facts.reference.variants:
        faults.append(Fault(Reason.UNKNOWN_VARIANT, f"{name} has no variant {window.variant}"))
    if not facts.was_assigned:
        faults.append(Fault(Reason.NOT_ASSIGNED, f"{name} was never assigned to this device"))


def _is_within(value: float, limit: float) -> bool:
    """Whether a sum lies in 0..limit, rounding allowed; NaN does not."""
    return -_EPS <= value <= limit * (1 + _EPS) + _EPS


def _date(at_ns: int) -> str:
    try:
        return f"{datetime.fromtimestamp(at_ns // _NS, UTC):%Y-%m-%d %H:%M:%S} UTC"
    except (OverflowError, ValueError, OSError):
        return f"{at_ns // _NS} s after 1970"
