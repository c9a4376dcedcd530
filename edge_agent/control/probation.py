"""Judges a newly active model on the device, without the server. Pure.

Fails at once on evidence of harm; passes only when the time is over. An idle device cannot gather evidence:
it waits four times as long, then the golden vectors it passed have to do.

"Slower" is a claim about a quantile of few inferences, where one hiccup of the machine is the whole p95. It is made
only when the share of inferences above the limit is more than a right model shows by chance: Chernoff's bound on a
binomial tail (Annals of Mathematical Statistics 23, 1952), at a level that leaves room for looking hundreds of times.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

import numpy as np

from edge_agent.telemetry.series import ServingStats
from fleet_protocol.histogram import LatencyHistogram, bucket_indices
from fleet_protocol.messages import Probation

_IDLE_PATIENCE = 4
_QUANTILE = 0.95
_FALSE_ALARM = 1e-6
"""The chance, at each look, that a model no slower than the limit is called slower."""


class Judgement(Enum):
    """What to do with the model now."""

    WAIT = "wait"
    KEEP = "keep"
    REVERT = "revert"


@dataclass(frozen=True, slots=True)
class Ruling:
    """A judgement and, for a revert, the reason with its numbers."""

    judgement: Judgement
    reason: str = ""


def judge(rule: Probation, *, elapsed_s: float, candidate: ServingStats, incumbent: ServingStats | None) -> Ruling:
    """Compare the candidate since its activation with the incumbent before it (None: there was none)."""
    attempts = candidate.count + candidate.errors
    if attempts >= rule.min_inferences:
        allowed = _error_rate(incumbent) + rule.max_error_rate_increase
        rate = candidate.errors / attempts if attempts else 0.0
        if rate > allowed:
            return Ruling(
                Judgement.REVERT, f"{candidate.errors} of {attempts} inferences failed, {allowed:.1%} allowed"
            )
        if incumbent is not None and incumbent.count >= max(1, rule.min_inferences) and candidate.count:
            before_us, now_us = incumbent.latency.quantile_us(_QUANTILE), candidate.latency.quantile_us(_QUANTILE)
            if _is_slower(candidate.latency, before_us * rule.max_p95_latency_ratio):
                return Ruling(
                    Judgement.REVERT,
                    f"p95 latency {now_us:.0f} us is more than {rule.max_p95_latency_ratio:g} times "
                    f"the incumbent's {before_us:.0f} us",
                )
    patience = 1 if attempts >= rule.min_inferences else _IDLE_PATIENCE
    return Ruling(Judgement.KEEP if elapsed_s >= rule.duration_s * patience else Judgement.WAIT)


def judge_shadow(rule: Probation, *, elapsed_s: float) -> Ruling:
    """A shadow answers nobody: it has only to live for the duration. Its errors are counted, for the server to see."""
    return Ruling(Judgement.KEEP if elapsed_s >= rule.duration_s else Judgement.WAIT)


def _is_slower(latency: LatencyHistogram, limit_us: float) -> bool:
    """Whether more than 5 % of inferences take longer than the limit, beyond doubt."""
    count = latency.count
    above = int(latency.counts[int(bucket_indices(np.array([limit_us]))[0]) + 1 :].sum())
    share, expected = above / count, 1 - _QUANTILE
    if share <= expected:
        return False
    rest = (1 - share) * math.log((1 - share) / _QUANTILE) if share < 1 else 0.0
    return count * (share * math.log(share / expected) + rest) >= -math.log(_FALSE_ALARM)


def _error_rate(stats: ServingStats | None) -> float:
    if stats is None:
        return 0.0
    attempts = stats.count + stats.errors
    return stats.errors / attempts if attempts else 0.0
