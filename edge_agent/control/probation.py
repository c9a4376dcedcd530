"""Judges a newly active model on the device, without the server. Pure.

Fails at once on evidence of harm; passes only when the time is over. An idle device cannot gather evidence:
it waits four times as long, then the golden vectors it passed have to do.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from edge_agent.telemetry.series import ServingStats
from fleet_protocol.messages import Probation

_IDLE_PATIENCE = 4


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
        if incumbent is not None and incumbent.count >= rule.min_inferences and candidate.count:
            before_us, now_us = incumbent.latency.quantile_us(0.95), candidate.latency.quantile_us(0.95)
            if now_us > before_us * rule.max_p95_latency_ratio:
                return Ruling(
                    Judgement.REVERT,
                    f"p95 latency {now_us:.0f} us is more than {rule.max_p95_latency_ratio:g} times "
                    f"the incumbent's {before_us:.0f} us",
                )
    patience = 1 if attempts >= rule.min_inferences else _IDLE_PATIENCE
    return Ruling(Judgement.KEEP if elapsed_s >= rule.duration_s * patience else Judgement.WAIT)


def _error_rate(stats: ServingStats | None) -> float:
    if stats is None:
        return 0.0
    attempts = stats.count + stats.errors
    return stats.errors / attempts if attempts else 0.0
