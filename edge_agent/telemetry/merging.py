"""Two windows of one series as one: how the outbox makes room without losing a count.

Pure. Everything that is a sum adds up; what is a state (resources, outbox) is the later window's. Sums do not depend on
the order of merging; no merged window claims more than the protocol allows a window to.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeVar

from fleet_protocol.bins import MAX_BINS
from fleet_protocol.embedding_sums import MAX_SUM, decode_sums, encode_sums
from fleet_protocol.errors import ProtocolError, SketchError
from fleet_protocol.histogram import BUCKETS
from fleet_protocol.messages import (
    MAX_TELEMETRY_BYTES,
    EstimatedAccuracy,
    Outcomes,
    ShadowAgreement,
    Window,
    decode,
    encode,
)
from fleet_protocol.packing import unpack
from fleet_protocol.varint import MAX_COUNT, decode_sparse, encode_sparse

_BIN_PLACES = MAX_BINS + 5
_MERGEABLE_BYTES = MAX_TELEMETRY_BYTES // 2  # unpacked: two larger ones might make a window that the server refuses

K = TypeVar("K")


Waiting = tuple[int, bytes, int, Window]
"""A record that may be merged: its id, payload, worth and window."""


def series_of(window: Window) -> tuple[object, ...]:
    """What windows must have in common to be merged: boot, model version, variant, arm and sketches."""
    return (
        window.boot_id, window.model, window.version, window.variant, window.arm, tuple(sorted(window.features)),
    )  # fmt: skip


def same_series(a: Window, b: Window) -> bool:
    """Whether two windows describe the same model version, variant and arm, with the same sketches."""
    return series_of(a) == series_of(b)


def merge_windows(earlier: Window, later: Window) -> Window:
    """One window over both spans under the later one's identity; it `covers` the earlier one's sequence.

    Raises SketchError when the two are not of the same series, when a sketch of one is torn, or when a sum would exceed
    what one window may tell.
    """
    if not same_series(earlier, later):
        raise SketchError("windows of different series cannot be merged")
    return Window(
        device=later.device,
        boot_id=later.boot_id,
        sequence=later.sequence,
        model=later.model,
        version=later.version,
        variant=later.variant,
        arm=later.arm,
        start_ns=min(earlier.start_ns, later.start_ns),
        end_ns=max(earlier.end_ns, later.end_ns),
        count=_sum(earlier.count, later.count),
        errors=_add(earlier.errors, later.errors),
        latency=_merge_counts(earlier.latency, later.latency, BUCKETS),
        queue_wait=_merge_counts(earlier.queue_wait, later.queue_wait, BUCKETS),
        batch_sizes=_add(earlier.batch_sizes, later.batch_sizes),
        features={
            name: _merge_counts(earlier.features[name], later.features[name], _BIN_PLACES) for name in later.features
        },
        classes=_add(earlier.classes, later.classes),
        score=_merge_counts(earlier.score, later.score, _BIN_PLACES),
        embedding_count=_sum(earlier.embedding_count, later.embedding_count),
        embedding_sums=_merge_sums(earlier.embedding_sums, later.embedding_sums),
        shadow=_merge_shadow(earlier.shadow, later.shadow),
        outcomes=_merge_outcomes(earlier.outcomes, later.outcomes),
        estimated_accuracy=_merge_estimates(earlier.estimated_accuracy, later.estimated_accuracy),
        resources=later.resources,
        outbox=later.outbox,
        covers=sorted({*earlier.covers, earlier.sequence, *later.covers}),
    )


def _sum(a: int, b: int) -> int:
    if a + b > MAX_COUNT:
        raise SketchError(f"a merged count of {a + b} exceeds the limit of {MAX_COUNT}")
    return a + b


def _real_sum(a: float, b: float) -> float:
    if not math.isfinite(a + b):
        raise SketchError("a merged sum is not finite")
    return a + b


def _add(a: Mapping[K, int], b: Mapping[K, int]) -> dict[K, int]:
    return {key: _sum(a.get(key, 0), b.get(key, 0)) for key in sorted({*a, *b})}  # type: ignore[type-var] # int or str


def _merge_counts(a: bytes, b: bytes, size: int) -> bytes:
    if not (a and b):
        return a or b
    counts = decode_sparse(a, size) + decode_sparse(b, size)
    if counts.max() > MAX_COUNT:
        raise SketchError(f"a merged count of {counts.max()} exceeds the limit of {MAX_COUNT}")
    return encode_sparse(counts)


def _merge_sums(a: bytes, b: bytes) -> bytes:
    if not (a and b):
        return a or b
    sums, others = decode_sums(a), decode_sums(b)
    if len(sums) != len(others):
        raise SketchError(f"embedding sums of {len(sums)} and of {len(others)} features cannot be merged")
    sums += others
    if abs(sums).max() > MAX_SUM:
        raise SketchError(f"a merged embedding sum exceeds the limit of {MAX_SUM}")
    return encode_sums(sums)


def _merge_outcomes(a: Outcomes | None, b: Outcomes | None) -> Outcomes | None:
    if a is None or b is None:
        return a or b
    return Outcomes(
        correct=_sum(a.correct, b.correct),
        wrong=_sum(a.wrong, b.wrong),
        squared_error_sum=_real_sum(a.squared_error_sum, b.squared_error_sum),
        squared_error_count=_sum(a.squared_error_count, b.squared_error_count),
    )


def _merge_shadow(a: ShadowAgreement | None, b: ShadowAgreement | None) -> ShadowAgreement | None:
    if a is None or b is None:
        return a or b
    return ShadowAgreement(compared=_sum(a.compared, b.compared), disagreed=_sum(a.disagreed, b.disagreed))


def _merge_estimates(a: EstimatedAccuracy | None, b: EstimatedAccuracy | None) -> EstimatedAccuracy | None:
    if a is None or b is None:
        return a or b
    return EstimatedAccuracy(
        count=_sum(a.count, b.count),
        confidence_sum=_real_sum(a.confidence_sum, b.confidence_sum),
        variance_sum=_real_sum(a.variance_sum, b.variance_sum),
    )


def mergeable(payload: bytes) -> Window | None:
    """The window in a record; None also where it is so large that another would hardly fit in."""
    try:
        plain = unpack(payload, limit=_MERGEABLE_BYTES)
        return decode(Window, plain) if len(plain) <= _MERGEABLE_BYTES else None
    except ProtocolError:
        return None


def neighbours(windows: Sequence[Waiting]) -> list[tuple[Waiting, Waiting]]:
    """Every window with the next one of its series, the oldest first.

    Only neighbours: where two do not fit together, the later one collects from there on.
    """
    pairs, latest = [], dict[tuple[object, ...], Waiting]()
    for one in windows:
        series = series_of(one[3])
        if series in latest:
            pairs.append((latest[series], one))
        latest[series] = one
    return pairs


def merged_payload(a: Window, b: Window) -> bytes | None:
    """The two as one payload; None when they do not fit into one that a server would take."""
    try:
        merged = encode(merge_windows(a, b))
    except ProtocolError:
        return None
    return merged if _is_readable(merged) else None


def _is_readable(payload: bytes) -> bool:
    try:
        decode(Window, payload)
    except ProtocolError:
        return False
    return True
