"""Windows to store, made by hand and by Hypothesis."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from fleet_protocol.histogram import LatencyHistogram
from fleet_protocol.messages import EstimatedAccuracy, OutboxStatus, Outcomes, Resources, ShadowAgreement, Window

SECOND_NS = 1_000_000_000
MINUTE_NS = 60 * SECOND_NS
T0_NS = 1_750_000_020 * SECOND_NS
"""A whole minute. Every slice of the tests lies around it."""
assert T0_NS % MINUTE_NS == 0

RETENTION_S = 100 * 365 * 86_400
"""Long enough that the tests' fixed times never expire."""


def latency_of(*values_us: float) -> bytes:
    """The wire bytes of a latency histogram."""
    return LatencyHistogram.of(values_us).to_bytes()


def window(**changes: Any) -> Window:
    """A window of device dev-1 that ends at T0_NS, with the given fields changed."""
    end_ns = changes.pop("end_ns", T0_NS)
    fields: dict[str, Any] = {
        "device": "dev-1",
        "boot_id": "0123abcd-00000001",
        "sequence": 1,
        "model": "digits",
        "version": "1.0.0",
        "variant": "int8-qdq-u8s8",
        "arm": "main",
        "start_ns": max(0, end_ns - MINUTE_NS),
        "end_ns": end_ns,
        "count": 3,
        "latency": latency_of(100.0, 200.0, 400.0),
    }
    return Window(**{**fields, **changes})


_COUNTS = st.integers(0, 2**63 - 1)
_FLOATS = st.floats(allow_nan=False)  # NaN is stored too, but NaN != NaN
_POSITIVE_FLOATS = st.floats(min_value=0, allow_nan=False)
_SKETCHES = st.binary(max_size=60) | st.lists(st.floats(0.1, 1e9), max_size=20).map(lambda values: latency_of(*values))

any_window = st.builds(
    window,
    device=st.from_regex(r"^[a-z0-9][a-z0-9_-]{0,63}\Z"),
    boot_id=st.from_regex(r"^[0-9a-f]{8}-[0-9a-f]{8}\Z"),
    sequence=st.integers(1, 2**53 - 1),
    model=st.from_regex(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z"),
    version=st.sampled_from(["0.0.0", "1.4.0", "2.0.0-rc.1", "999999999.0.0--.-"]),
    variant=st.from_regex(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z"),
    arm=st.from_regex(r"^[a-z0-9][a-z0-9_-]{0,63}\Z"),
    end_ns=st.integers(0, 2**63 - 1) | st.integers(T0_NS - SECOND_NS, T0_NS + SECOND_NS),
    count=_COUNTS,
    errors=st.dictionaries(st.text(max_size=20), _COUNTS, max_size=4),
    latency=_SKETCHES,
    queue_wait=_SKETCHES,
    batch_sizes=st.dictionaries(st.integers(1, 64), _COUNTS, max_size=3),
    features=st.dictionaries(st.text(max_size=20), st.binary(max_size=30), max_size=3),
    classes=st.dictionaries(st.integers(0, 9), _COUNTS, max_size=3),
    score=st.binary(max_size=30),
    shadow=st.none() | st.builds(ShadowAgreement, compared=_COUNTS, disagreed=_COUNTS),
    outcomes=st.none()
    | st.builds(
        Outcomes,
        correct=_COUNTS,
        wrong=_COUNTS,
        squared_error_sum=_POSITIVE_FLOATS,
        squared_error_count=_COUNTS,
    ),
    estimated_accuracy=st.none() | st.builds(EstimatedAccuracy, count=_COUNTS, confidence_sum=_FLOATS),
    resources=st.none()
    | st.builds(
        Resources,
        cpu_percent=st.none() | _FLOATS,
        rss_bytes=st.none() | _COUNTS,
        temperature_c=st.none() | _FLOATS,
        throttled=st.none() | st.booleans(),
        disk_free_bytes=st.none() | _COUNTS,
    ),
    outbox=st.none() | st.builds(OutboxStatus, depth=_COUNTS, dropped=_COUNTS, merged=_COUNTS),
    covers=st.lists(st.integers(1, 2**53 - 1), max_size=5),
)
