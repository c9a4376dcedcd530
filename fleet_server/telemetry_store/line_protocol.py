"""A window as InfluxDB line protocol: pure text, escaped so that no content can become structure.

Syntax: docs.influxdata.com/influxdb/v2/reference/syntax/line-protocol.

Invariants:
- A tag's text is `tag_text(value)`: percent-encoded where line protocol has no form for it (backslash, control
  characters, the empty string). Names of the wire's form pass unchanged; different values keep different texts;
  queries compare with the same text.
- A point's identity is its measurement, tags and time. Its time is the window's end, rounded down to a millisecond,
  plus `(crc32(boot_id) + sequence) mod 1,000,000` nanoseconds. The same window always is the same point, so a repeat
  changes nothing; windows of one boot meet in a point only if their sequences are a million apart and they end
  within one millisecond; those of two boots only by a chance of one in a million within one millisecond. A slice
  therefore asks for a little more time than it wants (`time_range_ns`) and filters by the exact end in the window.
- Precision is nanoseconds. 1.x does not know "us" and would file such points under January 1970.
- The field `window` holds the whole window; every other field is for people and dashboards.
"""

from __future__ import annotations

import base64
import math
import re
import zlib
from collections.abc import Iterator, Sequence

from fleet_protocol.messages import Window
from fleet_server.telemetry_store._stored import error_count, outcomes, pack
from fleet_server.telemetry_store.sketches import decode_histograms, summarise

INFERENCE, OUTCOME, RESOURCE = "inference", "outcome", "resource"
SLOT_NS = 1_000_000
"""The span within which a point's time may differ from its window's end."""
MAX_TIME_NS = 9_223_372_036_854_775_806
"""The latest time InfluxDB stores (models.MaxNanoTime)."""
_LAST_BUCKET = MAX_TIME_NS // SLOT_NS - 1

_LATENCY_FIELDS = (("p50_us", 0.50), ("p90_us", 0.90), ("p95_us", 0.95), ("p99_us", 0.99))
_QUEUE_LEVEL = 0.95

_NOT_IN_TAGS = re.compile(r"[\x00-\x1f\x7f%\\\u0080-\u009f\u2028\u2029]")
_STRUCTURE_IN_TAGS = re.compile(r"([,= ])")


def tag_text(value: str) -> str:
    """The text a tag value is stored as; also what a query must compare with."""
    if not value:
        return "%"  # an empty tag does not exist; "%" alone encodes nothing else
    return _NOT_IN_TAGS.sub(lambda found: "".join(f"%{byte:02X}" for byte in found[0].encode()), value)


def escape_tag(value: str) -> str:
    """A tag value as it stands in a line."""
    return _STRUCTURE_IN_TAGS.sub(r"\\\1", tag_text(value))


def string_field(value: str) -> str:
    """A string field's value as it stands in a line, quotes included."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def point_time_ns(window: Window) -> int:
    """The time of a window's points: see the module's invariants."""
    slot = (zlib.crc32(window.boot_id.encode()) + window.sequence) % SLOT_NS
    return min(window.end_ns // SLOT_NS, _LAST_BUCKET) * SLOT_NS + slot


def time_range_ns(start_ns: int, end_ns: int) -> tuple[int, int]:
    """The first and last time, inclusive, of points whose windows end in (start_ns, end_ns]."""
    first = min(max(start_ns, 0) // SLOT_NS, _LAST_BUCKET) * SLOT_NS
    last = min(max(end_ns, 0) // SLOT_NS, _LAST_BUCKET) * SLOT_NS + SLOT_NS - 1
    return first, last


def lines_of(fleet: str, windows: Sequence[Window]) -> Iterator[str]:
    """The lines of windows: for each `inference`, then `outcome` and `resource` where it has them."""
    latency = summarise(
        decode_histograms([window.latency for window in windows]), [level for _, level in _LATENCY_FIELDS]
    )
    queue_wait = summarise(decode_histograms([window.queue_wait for window in windows]), [_QUEUE_LEVEL])
    for index, window in enumerate(windows):
        device = f"fleet={escape_tag(fleet)},device={escape_tag(window.device)}"
        tags = (
            f"{device},model={escape_tag(window.model)},version={escape_tag(window.version)}"
            f",variant={escape_tag(window.variant)},arm={escape_tag(window.arm)}"
        )
        time_ns = point_time_ns(window)
        numbers = {
            **{name: latency.quantiles_us[row, index] for row, (name, _) in enumerate(_LATENCY_FIELDS)},
            "mean_us": latency.mean_us[index],
            "max_us": latency.max_us[index],
            "queue_p95_us": queue_wait.quantiles_us[0, index],
        }
        yield (
            f"{INFERENCE},{tags} count={window.count}i,errors={error_count(window)}i,sequence={window.sequence}i"
            f"{float_fields(numbers)}{_shadow_fields(window)}"
            f",boot_id={string_field(window.boot_id)}"
            f',histogram="{base64_text(window.latency)}",window="{base64_text(pack(window))}" {time_ns}'
        )
        if window.outcomes is not None:
            known = outcomes(window)
            yield (
                f"{OUTCOME},{tags} correct={known.correct}i,wrong={known.wrong}i"
                f",squared_error_count={known.squared_error_count}i"
                f"{float_fields({'squared_error_sum': known.squared_error_sum})} {time_ns}"
            )
        fields = _resource_fields(window)
        if fields:
            yield f"{RESOURCE},{device} {fields} {time_ns}"


def _shadow_fields(window: Window) -> str:
    shadow = window.shadow
    return f",shadow_compared={shadow.compared}i,shadow_disagreed={shadow.disagreed}i" if shadow else ""


def _resource_fields(window: Window) -> str:
    machine, outbox = window.resources, window.outbox
    counts: dict[str, int | None] = {}
    floats: dict[str, float | None] = {}
    if machine is not None:
        counts |= {"rss_bytes": machine.rss_bytes, "disk_free_bytes": machine.disk_free_bytes}
        counts["throttled"] = None if machine.throttled is None else int(machine.throttled)
        floats |= {"cpu_percent": machine.cpu_percent, "temperature_c": machine.temperature_c}
    if outbox is not None:
        counts |= {"outbox_depth": outbox.depth, "outbox_dropped": outbox.dropped, "outbox_merged": outbox.merged}
    known = "".join(f",{name}={value}i" for name, value in counts.items() if value is not None)
    return (known + float_fields(floats)).removeprefix(",")


def float_fields(values: dict[str, float | None]) -> str:
    """Fields as they stand in a line, each after a comma; without those that are no number."""
    # line protocol has no NaN and no infinity: such a field is left out rather than the whole batch refused
    return "".join(
        f",{name}={float(value)!r}" for name, value in values.items() if value is not None and math.isfinite(value)
    )


def base64_text(data: bytes) -> str:
    """Bytes as text that needs no escape."""
    return base64.b64encode(data).decode("ascii")
