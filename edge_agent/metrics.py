"""The agent's metrics as Prometheus text (prometheus.io/docs/instrumenting/exposition_formats, 0.0.4)."""

from __future__ import annotations

from collections.abc import Mapping

import psutil

from edge_agent.telemetry.series import SeriesKey, ServingStats
from fleet_protocol.messages import OutboxStatus

_QUANTILES = (0.5, 0.9, 0.95, 0.99)


def render_metrics(
    *, stats: Mapping[SeriesKey, ServingStats], outbox: OutboxStatus, broker_connected: bool | None
) -> str:
    """One text page. `broker_connected` None leaves the broker's gauge out (an agent without a fleet)."""
    lines: list[str] = []
    _family(lines, "edgefleet_inferences_total", "counter", "Inferences answered.")
    for key, series in stats.items():
        lines.append(f"edgefleet_inferences_total{{{_labels(key)}}} {series.count}")
    _family(lines, "edgefleet_inference_errors_total", "counter", "Inferences that failed.")
    for key, series in stats.items():
        lines.append(f"edgefleet_inference_errors_total{{{_labels(key)}}} {series.errors}")
    _family(lines, "edgefleet_inference_latency_seconds", "summary", "Time inside the model for one call.")
    for key, series in stats.items():
        _summary(lines, _labels(key), series)
    gauges = {
        "edgefleet_outbox_records": ("gauge", "Windows and events not yet delivered.", outbox.depth),
        "edgefleet_outbox_dropped_total": ("counter", "Records dropped for room or age.", outbox.dropped),
        "edgefleet_outbox_merged_total": ("counter", "Windows merged into later ones for room.", outbox.merged),
        "process_resident_memory_bytes": ("gauge", "Resident memory.", psutil.Process().memory_info().rss),
    }
    if broker_connected is not None:
        gauges["edgefleet_broker_connected"] = ("gauge", "1 while connected to the broker.", int(broker_connected))
    for name, (kind, text, value) in gauges.items():
        _family(lines, name, kind, text)
        lines.append(f"{name} {value}")
    return "\n".join(lines) + "\n"


def _family(lines: list[str], name: str, kind: str, text: str) -> None:
    lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]


def _summary(lines: list[str], labels: str, series: ServingStats) -> None:
    name = "edgefleet_inference_latency_seconds"
    if series.latency.count:
        lines += [f'{name}{{{labels},quantile="{q}"}} {series.latency.quantile_us(q) / 1e6:.9f}' for q in _QUANTILES]
        lines.append(f"{name}_sum{{{labels}}} {series.latency.mean_us * series.latency.count / 1e6:.9f}")
    lines.append(f"{name}_count{{{labels}}} {series.latency.count}")


def _labels(key: SeriesKey) -> str:
    return ",".join(f'{name}="{value}"' for name, value in key._asdict().items())
