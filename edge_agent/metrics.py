"""The agent's metrics as Prometheus text (prometheus.io/docs/instrumenting/exposition_formats, 0.0.4)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import psutil

from edge_agent.runtime.lane_scaling import ScalingHistory
from edge_agent.runtime.live_models import Serving
from edge_agent.runtime.model_slot import ResidencyFacts
from edge_agent.telemetry.series import SeriesKey, ServingStats
from fleet_protocol.messages import OutboxStatus

_QUANTILES = (0.5, 0.9, 0.95, 0.99)


_OF_A_SERVING: Mapping[str, tuple[str, str, Callable[[Serving], int | float]]] = {
    "edgefleet_lanes": ("gauge", "Runs of the model that may go on at once.", lambda s: s.lanes.load().limit),
    "edgefleet_lanes_busy": ("gauge", "Runs of the model that go on.", lambda s: s.lanes.load().running),
    "edgefleet_queue_depth": ("gauge", "Calls that wait for a lane.", lambda s: s.lanes.load().waiting),
    "edgefleet_lane_seconds_total": ("counter", "Time that lanes ran.", lambda s: s.lanes.load().busy_ns / 1e9),
    "edgefleet_model_loaded": ("gauge", "1 while in memory, 0 asleep.", lambda s: int(s.slot.model is not None)),
    "edgefleet_model_memory_bytes": ("gauge", "What loading the model took.", lambda s: s.slot.memory_bytes or 0),
    "edgefleet_arm_weight": ("gauge", "Share of the calls; 0 for a shadow.", lambda s: 0 if s.shadow else s.weight),
}


def render_metrics(
    *,
    stats: Mapping[SeriesKey, ServingStats],
    servings: Sequence[Serving],
    residents: Sequence[ResidencyFacts],
    scaling: ScalingHistory,
    outbox: OutboxStatus,
    broker_connected: bool | None,
) -> str:
    """One text page. `broker_connected` None leaves the broker's gauge out (an agent without a fleet)."""
    lines: list[str] = []
    _family(lines, "edgefleet_inferences_total", "counter", "Inferences answered.")
    for key, series in stats.items():
        lines.append(f"edgefleet_inferences_total{{{_labels(key)}}} {series.count}")
    _family(lines, "edgefleet_inference_errors_total", "counter", "Inferences that failed.")
    for key, series in stats.items():
        lines.append(f"edgefleet_inference_errors_total{{{_labels(key)}}} {series.errors}")
    _family(lines, "edgefleet_inference_refusals_total", "counter", "Calls refused: wrong inputs, or too many calls.")
    for key, series in stats.items():
        lines.append(f"edgefleet_inference_refusals_total{{{_labels(key)}}} {series.refused}")
    _family(lines, "edgefleet_inference_latency_seconds", "summary", "From call to answer.")
    for key, series in stats.items():
        _summary(lines, _labels(key), series)
    for name, (kind, text, value_of) in _OF_A_SERVING.items():
        _family(lines, name, kind, text)
        lines += [f"{name}{{{_labels(serving.series.key)}}} {value_of(serving)}" for serving in servings]
    _family(lines, "edgefleet_model_loads_total", "counter", "Times that a model was brought into memory.")
    lines += [f'edgefleet_model_loads_total{{model="{fact.name}"}} {fact.loads}' for fact in residents]
    gauges = {
        "edgefleet_lanes_added_total": ("counter", "Lanes added because calls waited.", scaling.ups),
        "edgefleet_lanes_removed_total": ("counter", "Lanes taken away again.", scaling.downs),
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
