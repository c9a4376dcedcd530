"""Merged windows and points as InfluxDB line protocol: pure text. See line_protocol for how text is escaped.

| what | measurement | database | tags besides `fleet` | time |
|---|---|---|---|---|
| device hour | inference_device_hour | the windows' | device, model, version, variant, arm | the span's start |
| minute of the fleet | inference_fleet | the windows' | model, version, variant, arm, cohort | the span's start |
| hour of the fleet | inference_fleet | the merged one | model, version, variant, arm, cohort | the span's start |
| point | its own | the merged one | its own | its own |

Invariants: a key and a span are one InfluxDB point, so the later one replaces the earlier; the field `merged` (of a
point: `point` and `point_tags`) holds the whole, every other field is for people and dashboards; a merged window
without windows writes zeros over what was there, and reads skip it. Numbers of points are all floats there: InfluxDB
gives a field one type for ever.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fleet_protocol.histogram import BUCKETS
from fleet_protocol.varint import MAX_COUNT
from fleet_server.telemetry_store._stored import pack
from fleet_server.telemetry_store.line_protocol import base64_text, escape_tag, float_fields, string_field
from fleet_server.telemetry_store.merged import Grain, MergedWindow
from fleet_server.telemetry_store.points import pack_fields, pack_tags
from fleet_server.telemetry_store.port import MAX_INT64, Point
from fleet_server.telemetry_store.sketches import decode_sparse_many, summarise

FLEET, DEVICE_HOUR = "inference_fleet", "inference_device_hour"

_QUANTILES = (
    ("p50_us", 0.50), ("p90_us", 0.90), ("p95_us", 0.95), ("p99_us", 0.99), ("p999_us", 0.999),
)  # fmt: skip  # one row of a table
_QUEUE_LEVEL = 0.95


def measurement_of(grain: Grain) -> str:
    """The measurement of a grain's merged windows."""
    return DEVICE_HOUR if grain is Grain.DEVICE_HOUR else FLEET


def merged_lines(fleet: str, grain: Grain, merged: Sequence[MergedWindow]) -> Iterator[str]:
    """The lines of merged windows, one each."""
    latency = summarise(
        decode_sparse_many([one.latency for one in merged], BUCKETS, max_count=MAX_COUNT),
        [level for _, level in _QUANTILES],
    )
    queue_wait = summarise(
        decode_sparse_many([one.queue_wait for one in merged], BUCKETS, max_count=MAX_COUNT), [_QUEUE_LEVEL]
    )
    for at, one in enumerate(merged):
        key = one.key
        about = f"device={escape_tag(key.device)}" if grain is Grain.DEVICE_HOUR else f"cohort={escape_tag(key.cohort)}"
        tags = (
            f"fleet={escape_tag(fleet)},{about},model={escape_tag(key.model)},version={escape_tag(key.version)}"
            f",variant={escape_tag(key.variant)},arm={escape_tag(key.arm)}"
        )
        numbers: dict[str, float | None] = {
            **{name: latency.quantiles_us[row, at] for row, (name, _) in enumerate(_QUANTILES)},
            "mean_us": latency.mean_us[at],
            "max_us": latency.max_us[at],
            "queue_p95_us": queue_wait.quantiles_us[0, at],
        }
        errors = min(sum(one.errors.values()), MAX_INT64)
        whole = base64_text(pack(one))
        if not one.windows:
            numbers, whole = dict.fromkeys(numbers, 0.0), ""
        yield (
            f"{measurement_of(grain)},{tags} count={one.count}i,errors={errors}i,devices={one.devices}i"
            f",windows={one.windows}i{float_fields(numbers)}"
            f',histogram="{base64_text(one.latency)}",merged="{whole}" {one.start_ns}'
        )


def point_lines(fleet: str, points: Sequence[Point]) -> Iterator[str]:
    """The lines of points that `check_points` took, one each."""
    for point in points:
        tags = "".join(f",{name}={escape_tag(value)}" for name, value in sorted(point.tags.items()))
        fields = "".join(f",{name}={_for_people(value)}" for name, value in sorted(point.fields.items()))
        whole = f"point={string_field(pack_fields(point.fields))},point_tags={string_field(pack_tags(point.tags))}"
        yield f"{point.measurement},fleet={escape_tag(fleet)}{tags} {whole}{fields} {point.at_ns}"


def _for_people(value: float | int | str) -> str:
    return string_field(" ".join(value.split())) if isinstance(value, str) else repr(float(value))
