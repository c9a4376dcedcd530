"""What ships: pure decisions over measured candidates.

1. Only what passes the accuracy gate (`quantize.gate`) may ship.
2. For the CPU that measured, the fastest such candidate ships, if it is faster than the float file; among those
   within SAME_SPEED of the fastest, the one whose outputs are nearest to fp32's: measuring noise decides nothing.
3. For an architecture that was not measured, the candidate meant for it with the nearest outputs ships too: devices
   measure it themselves.
4. The float file always ships: it is what a device falls back to.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from quantize.search_report import CandidateResult, Status

SAME_SPEED = 0.03
"""Two latencies closer than this share are one."""


def relative_latency(one: CandidateResult) -> float:
    """Its median latency in units of fp32's as given, with which it was measured in turns; infinite without one.

    Microseconds of two moments are not comparable on a machine that does other things too; these ratios are.
    """
    return 1.0 / one.speedup if one.speedup else math.inf


def fastest(candidates: Iterable[CandidateResult], *, within: float = SAME_SPEED) -> CandidateResult | None:
    """The surest of the measured candidates whose latency is `within` a share of the least; None of none."""
    measured = [one for one in candidates if one.status is Status.MEASURED]
    if not measured:
        return None
    limit = min(map(relative_latency, measured)) * (1 + within)
    near = [one for one in measured if relative_latency(one) <= limit]
    return max(near, key=surety)


def surety(one: CandidateResult) -> tuple[float, float, int, str]:
    """For sorting: the least noise at the output first. It tells two accurate candidates apart long before a metric
    over some hundred samples can.
    """
    return (one.signal_to_noise_db or 0.0, one.keeps or 0.0, -(one.size_bytes or 0), one.key)


def is_faster(one: CandidateResult, other: CandidateResult) -> bool:
    """Whether `one` is faster than `other` by more than SAME_SPEED."""
    return relative_latency(one) < relative_latency(other) * (1 - SAME_SPEED)


def pareto_front(candidates: Sequence[CandidateResult]) -> frozenset[str]:
    """The keys of candidates that no other beats in latency, quality and size at once."""
    points = [
        (one.key, relative_latency(one), -one.keeps, one.size_bytes)
        for one in candidates
        if one.speedup is not None and one.keeps is not None and one.size_bytes is not None
    ]
    return frozenset(
        point[0]
        for point in points
        if not any(
            all(mine >= theirs for mine, theirs in zip(point[1:], other[1:], strict=True)) and other[1:] != point[1:]
            for other in points
        )
    )
