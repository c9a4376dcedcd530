"""When a marked span is merged. Pure.

A span: GRACE_NS after its end, so that most of its windows are there, and SETTLE_NS after its first mark, so that what
comes late is merged together. Hours of the fleet are put together from the minutes, once they are over. Devices: every
DEVICE_ROUND_NS. What is older than windows are kept is not merged again: some of its windows may be gone.
"""

from __future__ import annotations

from collections.abc import Iterable

from fleet_server.merging.marks import MarkedSpan
from fleet_server.telemetry_store.merged import Grain

_NS = 10**9
GRACE_NS = 5 * _NS
SETTLE_NS = 20 * _NS
DEVICE_ROUND_NS = 600 * _NS
DEVICE_GRACE_NS = 15 * _NS
"""After the start of a ten minutes' slot, so that an hour's first round finds the last windows of the hour before."""
EXPIRY_MARGIN_NS = 600 * _NS
"""What will expire this soon is not merged any more, lest it expires in the middle."""


def oldest_start_ns(now_ns: int, raw_retention_s: int) -> int:
    """Spans that start before this are left as they were merged."""
    return now_ns - raw_retention_s * _NS + EXPIRY_MARGIN_NS


def due_spans(marked: Iterable[MarkedSpan], grain: Grain, *, now_ns: int) -> list[MarkedSpan]:
    """Those that should be merged now."""
    return [span for span in marked if _is_due(span, grain.span_ns, now_ns)]


def _is_due(span: MarkedSpan, span_ns: int, now_ns: int) -> bool:
    has_settled = not 0 <= now_ns - span.marked_ns < SETTLE_NS  # a mark of the future: the clock was set back
    return has_settled and now_ns >= span.start_ns + span_ns + GRACE_NS


def device_slot(now_ns: int) -> int:
    """The number of the round of device hours that should have begun by now."""
    return (now_ns - DEVICE_GRACE_NS) // DEVICE_ROUND_NS
