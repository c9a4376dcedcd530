"""What the telemetry store knows, as JSON: a model's series, a device's windows.

Percentiles are those of merged histograms, never averages. Where nothing was counted the answer is null.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

from fastapi import APIRouter, Query

from fleet_protocol.errors import SketchError
from fleet_protocol.histogram import LatencyHistogram
from fleet_protocol.messages import Window
from fleet_server.api.access import Viewer
from fleet_server.api.names import DeviceInPath, ModelInPath
from fleet_server.api.services import ServicesOf
from fleet_server.errors import InvalidRequestError
from fleet_server.telemetry_store.port import Slice, Totals

MAX_POINTS = 2_000
MAX_WINDOWS = 1_000
DEFAULT_SPAN_S = 3_600
_NS = 10**9

TimeInQuery = Annotated[int | None, Query(ge=0, le=2**63 - 1, description="UTC nanoseconds")]

router = APIRouter(prefix="/api/v1", tags=["telemetry"])


@router.get("/models/{model}/metrics")
def model_metrics(
    *,
    services: ServicesOf,
    _: Viewer,
    model: ModelInPath,
    start_ns: TimeInQuery = None,
    end_ns: TimeInQuery = None,
    step_s: Annotated[int, Query(ge=1, le=366 * 86_400)] = 60,
    version: Annotated[str | None, Query(max_length=80)] = None,
    arm: Annotated[str | None, Query(max_length=64)] = None,
) -> dict[str, Any]:
    """A model's series over the whole fleet; by default the last hour."""
    start, end = span(services.now_ns(), start_ns, end_ns)
    if (end - start) / (step_s * _NS) > MAX_POINTS:
        raise InvalidRequestError(
            f"the span holds more than {MAX_POINTS} steps: take a longer step_s or a shorter span"
        )
    where = Slice(fleet=services.fleet, start_ns=start, end_ns=end, model=model, version=version, arm=arm)
    points = services.store.series(where, step_ns=step_s * _NS)
    return {
        "model": model,
        "version": version,
        "arm": arm,
        "start_ns": start,
        "end_ns": end,
        "step_s": step_s,
        "points": [{"start_ns": point.start_ns, **totals_view(point.totals)} for point in points],
    }


@router.get("/devices/{device}/telemetry")
def device_telemetry(
    *,
    services: ServicesOf,
    _: Viewer,
    device: DeviceInPath,
    start_ns: TimeInQuery = None,
    end_ns: TimeInQuery = None,
    limit: Annotated[int, Query(ge=1, le=MAX_WINDOWS)] = 100,
) -> dict[str, Any]:
    """A device's latest windows, oldest first; by default of the last hour."""
    start, end = span(services.now_ns(), start_ns, end_ns)
    where = Slice(fleet=services.fleet, start_ns=start, end_ns=end, devices=frozenset({device}))
    windows = services.store.windows(where, limit=limit)
    return {"device": device, "start_ns": start, "end_ns": end, "windows": [window_view(window) for window in windows]}


def span(now_ns: int, start_ns: int | None, end_ns: int | None) -> tuple[int, int]:
    """The span asked for. Raises InvalidRequestError when it is empty."""
    end = now_ns if end_ns is None else end_ns
    start = max(0, end - DEFAULT_SPAN_S * _NS) if start_ns is None else start_ns
    if start >= end:
        raise InvalidRequestError("start_ns must lie before end_ns")
    return start, end


def totals_view(totals: Totals) -> dict[str, Any]:
    """Totals with their rates. `errors` are inferences that failed; `count` those that were answered."""
    tried, judged, compared = totals.count + totals.errors, totals.correct + totals.wrong, totals.shadow_compared
    return {
        "windows": totals.windows,
        "count": totals.count,
        "errors": totals.errors,
        "error_rate": totals.errors / tried if tried else None,
        "correct": totals.correct,
        "wrong": totals.wrong,
        "accuracy": totals.correct / judged if judged else None,
        "shadow_compared": compared,
        "shadow_disagreed": totals.shadow_disagreed,
        "shadow_disagreement": totals.shadow_disagreed / compared if compared else None,
        **_latency_view(totals.latency),
    }


def window_view(window: Window) -> dict[str, Any]:
    """One window, its sketches summarised."""
    try:
        latency, torn = LatencyHistogram.from_bytes(window.latency), False
    except SketchError:
        latency, torn = LatencyHistogram(), True
    outcomes, resources, outbox = window.outcomes, window.resources, window.outbox
    return {
        "boot_id": window.boot_id,
        "sequence": window.sequence,
        "model": window.model,
        "version": window.version,
        "variant": window.variant,
        "arm": window.arm,
        "start_ns": window.start_ns,
        "end_ns": window.end_ns,
        "count": window.count,
        "errors": window.errors,
        "classes": {str(index): count for index, count in window.classes.items()},
        "latency_torn": torn,
        **_latency_view(latency),
        "correct": outcomes.correct if outcomes else 0,
        "wrong": outcomes.wrong if outcomes else 0,
        "shadow_compared": window.shadow.compared if window.shadow else 0,
        "shadow_disagreed": window.shadow.disagreed if window.shadow else 0,
        "cpu_percent": _finite(resources.cpu_percent) if resources else None,
        "rss_bytes": resources.rss_bytes if resources else None,
        "temperature_c": _finite(resources.temperature_c) if resources else None,
        "throttled": resources.throttled if resources else None,
        "disk_free_bytes": resources.disk_free_bytes if resources else None,
        "outbox_depth": outbox.depth if outbox else None,
        "outbox_dropped": outbox.dropped if outbox else None,
        "outbox_merged": outbox.merged if outbox else None,
    }


def _latency_view(latency: LatencyHistogram) -> dict[str, float | None]:
    return {
        "p50_us": _finite(latency.quantile_us(0.5)),
        "p95_us": _finite(latency.quantile_us(0.95)),
        "p99_us": _finite(latency.quantile_us(0.99)),
        "mean_us": _finite(latency.mean_us),
        "max_us": _finite(latency.max_us),
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
