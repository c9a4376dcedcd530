"""The fleet's key figures. Pure functions over sums.

Invariants: percentiles are those of merged histograms, never averages; where nothing was counted the answer is
None and not 0; a share of time is told with what it was measured on.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass

from msgspec import Struct

from fleet_protocol.histogram import LatencyHistogram
from fleet_server.telemetry_store.port import Totals

DAY_S = 86_400


class Kpis(Struct, frozen=True, kw_only=True):
    """Predictions, latency, errors and accuracy of a span; devices now.

    `errors` are inferences that failed, `predictions` those that were answered. `uptime_share` is the share of
    device slots of `uptime_slot_s` in which `uptime_devices` devices were heard; see `uptime_share`.
    """

    fleet: str
    at_ns: int
    span_s: int
    devices: int
    devices_online: int
    online_share: float | None
    uptime_share: float | None
    uptime_devices: int
    uptime_slot_s: int
    models: int
    predictions: int
    predictions_per_day: float
    windows: int
    errors: int
    error_rate: float | None
    correct: int
    wrong: int
    accuracy: float | None
    p50_us: float | None
    p95_us: float | None
    p99_us: float | None
    mean_us: float | None
    max_us: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Uptime:
    """How much of its time a sample of devices was heard; `share` None when there was no time to be heard in."""

    share: float | None
    devices: int
    slot_s: int


def key_figures(
    totals: Totals, *, fleet: str, at_ns: int, span_s: int, devices: int, online: int, models: int, uptime: Uptime
) -> Kpis:
    """The key figures of the `span_s` seconds that `totals` sums."""
    latency = totals.latency
    return Kpis(
        fleet=fleet,
        at_ns=at_ns,
        span_s=span_s,
        devices=devices,
        devices_online=online,
        online_share=_share(online, devices),
        uptime_share=uptime.share,
        uptime_devices=uptime.devices,
        uptime_slot_s=uptime.slot_s,
        models=models,
        predictions=totals.count,
        predictions_per_day=totals.count * DAY_S / span_s,
        windows=totals.windows,
        errors=totals.errors,
        error_rate=_share(totals.errors, totals.count + totals.errors),
        correct=totals.correct,
        wrong=totals.wrong,
        accuracy=_share(totals.correct, totals.correct + totals.wrong),
        p50_us=_finite(latency.quantile_us(0.5)),
        p95_us=_finite(latency.quantile_us(0.95)),
        p99_us=_finite(latency.quantile_us(0.99)),
        mean_us=_finite(latency.mean_us),
        max_us=_finite(latency.max_us),
    )


def uptime_share(heard: Sequence[tuple[int, Set[str]]], first_due_ns: dict[str, int], *, slot_s: int) -> Uptime:
    """The share of slots in which devices were heard.

    `heard` holds each slot's start and who was heard in it; a device counts from the first slot that begins at or
    after its `first_due_ns`. One window makes a slot: a shorter outage is not seen.

    >>> uptime_share([(0, {"a", "b"}), (60, {"a"})], {"a": 0, "b": 0}, slot_s=60).share
    0.75
    """
    due = present = 0
    counted: set[str] = set()
    for start_ns, names in heard:
        expected = {device for device, first_ns in first_due_ns.items() if first_ns <= start_ns}
        counted |= expected
        due += len(expected)
        present += len(expected & names)
    return Uptime(share=_share(present, due), devices=len(counted), slot_s=slot_s)


def merge_totals(parts: Iterable[Totals]) -> Totals:
    """The sum of totals."""
    latency = LatencyHistogram()
    windows = count = errors = correct = wrong = compared = disagreed = 0
    for part in parts:
        latency.merge(part.latency)
        windows += part.windows
        count += part.count
        errors += part.errors
        correct += part.correct
        wrong += part.wrong
        compared += part.shadow_compared
        disagreed += part.shadow_disagreed
    return Totals(
        windows=windows,
        count=count,
        errors=errors,
        correct=correct,
        wrong=wrong,
        latency=latency,
        shadow_compared=compared,
        shadow_disagreed=disagreed,
    )


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
