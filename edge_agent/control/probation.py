"""Judges a newly active model on the device, without the server. Pure.

Fails at once on evidence of harm; passes only when the time is over. An idle device cannot gather evidence:
it waits four times as long, then the golden vectors it passed have to do.

A claim about shares ("fails more often", "more slow answers", "answers otherwise") is made only when what was counted
is hardly possible without it: the likelihood ratio of the counts against the nearest harmless truth exceeds
1 / FALSE_ALARM (for one share this is Chernoff's bound, Annals of Mathematical Statistics 23, 1952; for two the
generalized likelihood ratio of Wilks, the same 9, 1938). The level leaves room for looking hundreds of times.

Calls of one moment share its hiccups. So slowness is judged with the dispersion between moments (quasi-likelihood:
Wedderburn, Biometrika 61, 1974) and, as that is estimated of few, with the tail of Student's distribution; besides it
must hold for most of the moments. A pause of the machine alone takes no model back. What slows the machine for most of
the probation does, if it slows by more than the limit: only an incumbent that ran meanwhile could tell that apart.
"""

from __future__ import annotations

import math
from enum import Enum

import numpy as np
from msgspec import Struct

from edge_agent.telemetry.series import ServingStats
from fleet_protocol.histogram import LatencyHistogram, bucket_indices
from fleet_protocol.messages import Probation

FALSE_ALARM = 1e-6
"""The chance, at each look, that a model no worse than a limit is called worse."""
MIN_MOMENTS = 6
MEMORY_SLACK_BYTES = 8 * 1024 * 1024
"""So much more than the limit is no harm: memory is measured to a few megabytes."""
_IDLE_PATIENCE = 4
_QUANTILE = 0.95
_CANDIDATE_SHARES = 400  # of the nearest harmless truth, which is looked for on a grid
_MB = 1_000_000


class Judgement(Enum):
    """What to do with the model now."""

    WAIT = "wait"
    KEEP = "keep"
    REVERT = "revert"


class Ruling(Struct, frozen=True):
    """A judgement and, for a revert, the reason with its numbers."""

    judgement: Judgement
    reason: str = ""


class Moments(Struct, frozen=True):
    """What is known of slowness in spans of a second or more: sums over `number` of them.

    In `slow` of them more than 5 % of the calls took longer than allowed. `calls` are all calls, `late` those that took
    longer; `late_squares` sums late^2 / calls of each.
    """

    number: int = 0
    slow: int = 0
    calls: int = 0
    late: int = 0
    late_squares: float = 0.0

    def and_one(self, calls: int, late: int) -> Moments:
        """With one more moment."""
        return Moments(
            number=self.number + 1,
            slow=self.slow + (late > (1 - _QUANTILE) * calls),
            calls=self.calls + calls,
            late=self.late + late,
            late_squares=self.late_squares + late * late / calls,
        )

    @property
    def dispersion(self) -> float:
        """By how much the shares of late calls vary between moments beyond chance; 1 is chance alone."""
        share = self.late / self.calls if self.calls else 0.0
        if self.number < 2 or not 0 < share < 1:
            return 1.0
        squares = self.late_squares - 2 * share * self.late + share * share * self.calls
        return max(1.0, squares / (share * (1 - share) * (self.number - 1)))


class Evidence(Struct, frozen=True, kw_only=True):
    """What is known of a candidate `elapsed_s` after its activation, and of the incumbent before it (None: there was
    none).

    `oldest_run_s` is for how long its longest run in progress has been running. `memory_bytes` are as measured when it
    was loaded, 0 is not known; `leaked_bytes` is by how much its process has grown since, steadily. Of `compared`
    answers the incumbent gave `disagreed` otherwise.
    """

    elapsed_s: float
    candidate: ServingStats
    incumbent: ServingStats | None = None
    oldest_run_s: float = 0.0
    memory_bytes: int = 0
    incumbent_memory_bytes: int = 0
    leaked_bytes: int = 0
    compared: int = 0
    disagreed: int = 0
    moments: Moments = Moments()


def judge(rule: Probation, evidence: Evidence) -> Ruling:
    """Whether the candidate that answers is kept, taken back, or looked at again."""
    attempts = evidence.candidate.count + evidence.candidate.errors
    reason = _hangs(rule, evidence) or _takes_memory(rule, evidence) or _disagrees(rule, evidence)
    if not reason and attempts >= rule.min_inferences:
        reason = _fails(rule, evidence) or _is_slow(rule, evidence)
    if reason:
        return Ruling(Judgement.REVERT, reason)
    patience = 1 if attempts >= rule.min_inferences else _IDLE_PATIENCE
    return Ruling(Judgement.KEEP if evidence.elapsed_s >= rule.duration_s * patience else Judgement.WAIT)


def judge_shadow(rule: Probation, evidence: Evidence) -> Ruling:
    """A shadow answers nobody: it has to live for the duration, without hanging or taking the memory of others.

    Its errors are counted, for the server to see.
    """
    if reason := _hangs(rule, evidence) or _takes_memory(rule, evidence):
        return Ruling(Judgement.REVERT, reason)
    return Ruling(Judgement.KEEP if evidence.elapsed_s >= rule.duration_s else Judgement.WAIT)


def slow_limit_us(rule: Probation, incumbent: ServingStats | None) -> float | None:
    """What 95 % of the candidate's calls must not take longer than; None without an incumbent to compare with."""
    if incumbent is None or incumbent.count < max(1, rule.min_inferences):
        return None
    return incumbent.latency.quantile_us(_QUANTILE) * rule.max_p95_latency_ratio


def count_above(latency: LatencyHistogram, limit_us: float) -> int:
    """Calls in the buckets above that of the limit."""
    return int(latency.counts[int(bucket_indices(np.array([limit_us]))[0]) + 1 :].sum())


def _hangs(rule: Probation, evidence: Evidence) -> str:
    if evidence.oldest_run_s < rule.hang_timeout_s:
        return ""
    return f"a run hangs: it has taken {evidence.oldest_run_s:.1f} s, {rule.hang_timeout_s:g} s are allowed"


def _takes_memory(rule: Probation, evidence: Evidence) -> str:
    before, now = evidence.incumbent_memory_bytes, evidence.memory_bytes
    if not before or not now:
        return ""
    limit = before * rule.max_memory_ratio + MEMORY_SLACK_BYTES
    allowed = f"more than {rule.max_memory_ratio:g} times the incumbent's {before / _MB:.1f} MB"
    if now > limit:
        return f"memory of {now / _MB:.1f} MB is {allowed}"
    if now + evidence.leaked_bytes > limit:
        return f"memory grew steadily by {evidence.leaked_bytes / _MB:.1f} MB, with its {now / _MB:.1f} MB {allowed}"
    return ""


def _disagrees(rule: Probation, evidence: Evidence) -> str:
    compared, disagreed = evidence.compared, evidence.disagreed
    if not compared or not _is_above(disagreed, compared, rule.max_shadow_disagreement):
        return ""
    share = rule.max_shadow_disagreement
    return f"{disagreed} of {compared} answers differ from the incumbent's on the same inputs, {share:.1%} allowed"


def _fails(rule: Probation, evidence: Evidence) -> str:
    candidate, incumbent = evidence.candidate, evidence.incumbent or ServingStats(0, 0, LatencyHistogram())
    attempts, before = candidate.count + candidate.errors, incumbent.count + incumbent.errors
    increase = rule.max_error_rate_increase
    if not attempts or not _is_worse(candidate.errors, attempts, incumbent.errors, before, increase):
        return ""
    allowed = (incumbent.errors / before if before else 0.0) + increase
    return f"{candidate.errors} of {attempts} inferences failed, {allowed:.1%} allowed"


def _is_slow(rule: Probation, evidence: Evidence) -> str:
    candidate, incumbent, moments = evidence.candidate, evidence.incumbent, evidence.moments
    if incumbent is None or moments.number < MIN_MOMENTS or 2 * moments.slow <= moments.number:
        return ""
    before_us, now_us = incumbent.latency.quantile_us(_QUANTILE), candidate.latency.quantile_us(_QUANTILE)
    late_before = count_above(incumbent.latency, before_us)
    ratio = _likelihood_ratio(moments.late, moments.calls, late_before, incumbent.count, 0.0)
    freedom = moments.number - 1
    if (freedom + 1) / 2 * math.log1p(2 * ratio / (moments.dispersion * freedom)) < -math.log(FALSE_ALARM):
        return ""
    return (
        f"p95 latency {now_us:.0f} us is more than {rule.max_p95_latency_ratio:g} times "
        f"the incumbent's {before_us:.0f} us"
    )


def _is_above(count: int, of: int, share: float) -> bool:
    """Whether `count` of `of` is more than `share` by more than chance."""
    return count > share * of and _divergence(count, of, np.array([share]))[0] >= -math.log(FALSE_ALARM)


def _is_worse(count: int, of: int, count_before: int, of_before: int, increase: float) -> bool:
    """Whether the share of `count` is above that of `count_before` by more than `increase`, and by more than chance."""
    if not of_before:
        return _is_above(count, of, increase)
    return _likelihood_ratio(count, of, count_before, of_before, increase) >= -math.log(FALSE_ALARM)


def _likelihood_ratio(count: int, of: int, count_before: int, of_before: int, increase: float) -> float:
    """The logarithm of how much likelier the counts are as they came than if the share rose by at most `increase`."""
    if count / of <= count_before / of_before + increase:
        return 0.0
    # the nearest harmless truth has a share p before and p + increase now
    shares = np.linspace(count_before / of_before, max(count / of - increase, 0.0), _CANDIDATE_SHARES)
    both = _divergence(count_before, of_before, shares) + _divergence(count, of, np.minimum(shares + increase, 1.0))
    return float(both.min())


def _divergence(count: int, of: int, shares: np.ndarray[tuple[int], np.dtype[np.float64]]) -> np.ndarray:
    """`of` times the Kullback-Leibler divergence of the counted share from each of `shares`."""
    seen = count / of
    with np.errstate(divide="ignore"):
        hits = seen * (math.log(seen) - np.log(shares)) if seen > 0 else 0.0 * shares
        misses = (1 - seen) * (math.log1p(-seen) - np.log1p(-shares)) if seen < 1 else 0.0 * shares
    return of * (hits + misses)
