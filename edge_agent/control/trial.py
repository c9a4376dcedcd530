"""One probation in progress: what was before, and what has been seen since. Gathers evidence; `probation` judges it."""

from __future__ import annotations

from msgspec import Struct

from edge_agent.control.memory_growth import MemoryGrowth
from edge_agent.control.probation import Evidence, Moments, count_above, slow_limit_us
from edge_agent.telemetry.series import ServingStats
from fleet_protocol.histogram import LatencyHistogram
from fleet_protocol.messages import Probation

MOMENT_S = 1.0
MOMENT_CALLS = 8
"""A moment takes so long, and longer until there were so many calls."""
NOTHING = ServingStats(0, 0, LatencyHistogram())


class Look(Struct, frozen=True, kw_only=True):
    """What serves as one arm, at this moment.

    `process_bytes` is the process's resident memory without what the ledger counts for models. `comparison` says why
    nothing is compared, "" where it is or where nobody wants it.
    """

    stats: ServingStats
    memory_bytes: int = 0
    process_bytes: int = 0
    oldest_run_s: float = 0.0
    compared: int = 0
    disagreed: int = 0
    comparison: str = ""


class Before(Struct, frozen=True, kw_only=True):
    """What a candidate is compared with; `stats` None is nothing."""

    stats: ServingStats | None = None
    memory_bytes: int = 0


class Trial:
    """The trial of one slot. `baseline` is what its series had counted when it began."""

    def __init__(self, *, started_s: float, baseline: ServingStats, before: Before) -> None:
        self._started_s, self._baseline, self._before = started_s, baseline, before
        self._growth = MemoryGrowth()
        self._last = baseline
        self._moment_s = started_s
        self._moments = Moments()

    def evidence(self, rule: Probation, look: Look, *, now_s: float) -> Evidence:
        """Everything known by now. Times in seconds of one monotonic clock."""
        self._growth.add(now_s, look.process_bytes)
        self._count_moment(rule, look.stats, now_s)
        return Evidence(
            elapsed_s=now_s - self._started_s,
            candidate=since(look.stats, self._baseline),
            incumbent=self._before.stats,
            oldest_run_s=look.oldest_run_s,
            memory_bytes=look.memory_bytes,
            incumbent_memory_bytes=self._before.memory_bytes,
            leaked_bytes=self._growth.leaked_bytes(),
            compared=look.compared,
            disagreed=look.disagreed,
            moments=self._moments,
        )

    def _count_moment(self, rule: Probation, stats: ServingStats, now_s: float) -> None:
        limit_us = slow_limit_us(rule, self._before.stats)
        if limit_us is None or now_s - self._moment_s < MOMENT_S or stats.count - self._last.count < MOMENT_CALLS:
            return
        moment, self._last, self._moment_s = since(stats, self._last), stats, now_s
        self._moments = self._moments.and_one(moment.count, count_above(moment.latency, limit_us))


def since(now: ServingStats, then: ServingStats) -> ServingStats:
    """What a series did between two moments."""
    return ServingStats(
        count=now.count - then.count,
        errors=now.errors - then.errors,
        latency=LatencyHistogram(now.latency.counts - then.latency.counts),
    )
