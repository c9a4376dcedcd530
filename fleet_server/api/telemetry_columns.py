"""The columns of telemetry: of a series' rows, and of single windows. Units end names, times are UTC nanoseconds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fleet_protocol.errors import SketchError
from fleet_protocol.histogram import LatencyHistogram
from fleet_protocol.messages import EstimatedAccuracy, OutboxStatus, Outcomes, Resources, ShadowAgreement, Window
from fleet_protocol.varint import decode_sparse
from fleet_server.api.telemetry_export import Columns, Kind
from fleet_server.api.telemetry_series import finite, latency_figures
from fleet_server.telemetry_store.sketches import BIN_PLACES

_INTEGER, _NUMBER, _TEXT, _TRUTH = Kind.INTEGER, Kind.NUMBER, Kind.TEXT, Kind.TRUTH
_LATENCY: Columns = dict.fromkeys(
    ("p50_us", "p90_us", "p95_us", "p99_us", "p999_us", "mean_us", "max_us", "queue_p95_us"), _NUMBER
)
_FIGURES: Columns = {
    "windows": _INTEGER,
    "devices": _INTEGER,
    "count": _INTEGER,
    "errors": _INTEGER,
    "error_rate": _NUMBER,
    "correct": _INTEGER,
    "wrong": _INTEGER,
    "accuracy": _NUMBER,
    "accuracy_lower": _NUMBER,
    "accuracy_upper": _NUMBER,
    "estimated_accuracy": _NUMBER,
    "estimated_accuracy_count": _INTEGER,
    "shadow_compared": _INTEGER,
    "shadow_disagreed": _INTEGER,
    "shadow_disagreement": _NUMBER,
    **_LATENCY,
    "sketches_refused": _INTEGER,
}
_WINDOW: Columns = {
    "device": _TEXT,
    "boot_id": _TEXT,
    "sequence": _INTEGER,
    "model": _TEXT,
    "version": _TEXT,
    "variant": _TEXT,
    "arm": _TEXT,
    "start_ns": _INTEGER,
    "end_ns": _INTEGER,
    "count": _INTEGER,
    "errors": _TEXT,
    "classes": _TEXT,
    "batch_sizes": _TEXT,
    "latency_torn": _TRUTH,
    **_LATENCY,
    "correct": _INTEGER,
    "wrong": _INTEGER,
    "squared_error_sum": _NUMBER,
    "squared_error_count": _INTEGER,
    "estimated_accuracy": _NUMBER,
    "estimated_accuracy_count": _INTEGER,
    "shadow_compared": _INTEGER,
    "shadow_disagreed": _INTEGER,
    "embedding_count": _INTEGER,
    "covered_windows": _INTEGER,
    "cpu_percent": _NUMBER,
    "machine_cpu_percent": _NUMBER,
    "rss_bytes": _INTEGER,
    "temperature_c": _NUMBER,
    "throttled": _TRUTH,
    "disk_free_bytes": _INTEGER,
    "battery_percent": _NUMBER,
    "outbox_depth": _INTEGER,
    "outbox_dropped": _INTEGER,
    "outbox_merged": _INTEGER,
}
_NO_OUTCOMES, _NO_SHADOW, _NO_ESTIMATE = Outcomes(), ShadowAgreement(), EstimatedAccuracy()
_NO_RESOURCES = Resources()


def series_columns(group_by: Sequence[str]) -> Columns:
    """The columns of a series, its groups after the time."""
    return {"start_ns": _INTEGER, **dict.fromkeys(group_by, _TEXT), **_FIGURES}


def window_columns() -> Columns:
    """The columns of single windows."""
    return _WINDOW


def window_view(window: Window, *, with_features: bool) -> dict[str, Any]:
    """One window, its sketches summarised."""
    latency, queue_wait = _histogram(window.latency), _histogram(window.queue_wait)
    outcomes, shadow = window.outcomes or _NO_OUTCOMES, window.shadow or _NO_SHADOW
    estimate, resources = window.estimated_accuracy or _NO_ESTIMATE, window.resources or _NO_RESOURCES
    outbox: OutboxStatus | None = window.outbox
    view: dict[str, Any] = {
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
        "batch_sizes": {str(size): count for size, count in window.batch_sizes.items()},
        "latency_torn": latency is None,
        **latency_figures(latency or LatencyHistogram()),
        "queue_p95_us": finite((queue_wait or LatencyHistogram()).quantile_us(0.95)),
        "correct": outcomes.correct,
        "wrong": outcomes.wrong,
        "squared_error_sum": finite(outcomes.squared_error_sum),
        "squared_error_count": outcomes.squared_error_count,
        "estimated_accuracy": finite(estimate.confidence_sum / estimate.count) if estimate.count else None,
        "estimated_accuracy_count": estimate.count,
        "shadow_compared": shadow.compared,
        "shadow_disagreed": shadow.disagreed,
        "embedding_count": window.embedding_count,
        "covered_windows": len(window.covers),
        "cpu_percent": finite(resources.cpu_percent),
        "machine_cpu_percent": finite(resources.machine_cpu_percent),
        "rss_bytes": resources.rss_bytes,
        "temperature_c": finite(resources.temperature_c),
        "throttled": resources.throttled,
        "disk_free_bytes": resources.disk_free_bytes,
        "battery_percent": finite(resources.battery_percent),
        "outbox_depth": outbox.depth if outbox else None,
        "outbox_dropped": outbox.dropped if outbox else None,
        "outbox_merged": outbox.merged if outbox else None,
    }
    if with_features:
        view["features"] = {name: _places(blob) for name, blob in window.features.items()}
        view["score"] = _places(window.score)
    return view


def _histogram(blob: bytes) -> LatencyHistogram | None:
    try:
        return LatencyHistogram.from_bytes(blob)
    except SketchError:
        return None


def _places(blob: bytes) -> dict[str, int] | None:
    """Counts by place: the reference's bins, then under, over, missing, NaN, infinite. None of an unreadable sketch."""
    try:
        counts = decode_sparse(blob, BIN_PLACES)
    except SketchError:
        return None
    return {str(place): int(counts[place]) for place in np.flatnonzero(counts)}
