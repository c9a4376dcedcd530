"""Two windows of one series as one: how the outbox makes room without losing a count.

Pure. Everything that is a sum adds up; what is a state (resources, outbox) is the later window's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TypeVar

from fleet_protocol.bins import MAX_BINS
from fleet_protocol.errors import SketchError
from fleet_protocol.histogram import BUCKETS
from fleet_protocol.messages import EstimatedAccuracy, Outcomes, ShadowAgreement, Window
from fleet_protocol.varint import decode_sparse, encode_sparse

_BIN_PLACES = MAX_BINS + 5

K = TypeVar("K")


def same_series(a: Window, b: Window) -> bool:
    """Whether two windows describe the same model version, variant and arm, with the same sketches."""
    return (a.model, a.version, a.variant, a.arm, a.boot_id, sorted(a.features)) == (
        b.model, b.version, b.variant, b.arm, b.boot_id, sorted(b.features)
    ) and not (a.embedding_sums or b.embedding_sums)  # fmt: skip


def merge_windows(earlier: Window, later: Window) -> Window:
    """One window over both spans under the later one's identity; it `covers` the earlier one's sequence.

    Raises SketchError when the two are not of the same series.
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
        count=earlier.count + later.count,
        errors=_add(earlier.errors, later.errors),
        latency=_merge_counts(earlier.latency, later.latency, BUCKETS),
        queue_wait=_merge_counts(earlier.queue_wait, later.queue_wait, BUCKETS),
        batch_sizes=_add(earlier.batch_sizes, later.batch_sizes),
        features={
            name: _merge_counts(earlier.features[name], later.features[name], _BIN_PLACES) for name in later.features
        },
        classes=_add(earlier.classes, later.classes),
        score=_merge_counts(earlier.score, later.score, _BIN_PLACES),
        shadow=_merge_shadow(earlier.shadow, later.shadow),
        outcomes=_merge_outcomes(earlier.outcomes, later.outcomes),
        estimated_accuracy=_merge_estimates(earlier.estimated_accuracy, later.estimated_accuracy),
        resources=later.resources,
        outbox=later.outbox,
        covers=sorted({*earlier.covers, earlier.sequence, *later.covers}),
    )


def _add(a: Mapping[K, int], b: Mapping[K, int]) -> dict[K, int]:
    return dict(Counter(a) + Counter(b))


def _merge_counts(a: bytes, b: bytes, size: int) -> bytes:
    return encode_sparse(decode_sparse(a, size) + decode_sparse(b, size)) if a and b else a or b


def _merge_outcomes(a: Outcomes | None, b: Outcomes | None) -> Outcomes | None:
    if a is None or b is None:
        return a or b
    return Outcomes(
        correct=a.correct + b.correct,
        wrong=a.wrong + b.wrong,
        squared_error_sum=a.squared_error_sum + b.squared_error_sum,
        squared_error_count=a.squared_error_count + b.squared_error_count,
    )


def _merge_shadow(a: ShadowAgreement | None, b: ShadowAgreement | None) -> ShadowAgreement | None:
    if a is None or b is None:
        return a or b
    return ShadowAgreement(compared=a.compared + b.compared, disagreed=a.disagreed + b.disagreed)


def _merge_estimates(a: EstimatedAccuracy | None, b: EstimatedAccuracy | None) -> EstimatedAccuracy | None:
    if a is None or b is None:
        return a or b
    return EstimatedAccuracy(
        count=a.count + b.count,
        confidence_sum=a.confidence_sum + b.confidence_sum,
        variance_sum=a.variance_sum + b.variance_sum,
    )
