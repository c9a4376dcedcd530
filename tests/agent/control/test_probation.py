"""Probation's judgement on its evidence."""

from __future__ import annotations

import pytest

from edge_agent.control.probation import Judgement, judge, judge_shadow
from edge_agent.telemetry.series import ServingStats
from fleet_protocol.histogram import LatencyHistogram
from fleet_protocol.messages import Probation

RULE = Probation(duration_s=60.0, max_error_rate_increase=0.05, max_p95_latency_ratio=3.0, min_inferences=20)


def stats(count: int, errors: int = 0, latency_us: float = 100.0) -> ServingStats:
    return ServingStats(count=count, errors=errors, latency=LatencyHistogram.of([latency_us] * count))


@pytest.mark.parametrize(
    ("elapsed_s", "candidate", "incumbent", "verdict"),
    [
        (0.0, stats(0), None, Judgement.WAIT),
        (59.9, stats(1_000), stats(1_000), Judgement.WAIT),
        (60.0, stats(1_000), stats(1_000), Judgement.KEEP),
        (60.0, stats(1_000), None, Judgement.KEEP),
        (60.0, stats(19), None, Judgement.WAIT),
        (239.9, stats(0), None, Judgement.WAIT),
        (240.0, stats(0), None, Judgement.KEEP),
        (240.0, stats(19), stats(1_000), Judgement.KEEP),
        (0.0, stats(94, 6), None, Judgement.REVERT),
        (0.0, stats(95, 5), None, Judgement.WAIT),
        (0.0, stats(0, 20), None, Judgement.REVERT),
        (0.0, stats(0, 19), None, Judgement.WAIT),
        (0.0, stats(85, 15), stats(90, 10), Judgement.WAIT),
        (0.0, stats(84, 16), stats(90, 10), Judgement.REVERT),
        (0.0, stats(20, latency_us=310.0), stats(20, latency_us=100.0), Judgement.REVERT),
        (0.0, stats(20, latency_us=290.0), stats(20, latency_us=100.0), Judgement.WAIT),
        (0.0, stats(20, latency_us=9_000.0), stats(19, latency_us=100.0), Judgement.WAIT),
        (0.0, stats(19, latency_us=9_000.0), stats(100, latency_us=100.0), Judgement.WAIT),
        (1_000.0, stats(94, 6), None, Judgement.REVERT),
    ],
)
def test_the_judgement_follows_from_the_evidence(
    elapsed_s: float, candidate: ServingStats, incumbent: ServingStats | None, verdict: Judgement
) -> None:
    ruling = judge(RULE, elapsed_s=elapsed_s, candidate=candidate, incumbent=incumbent)

    assert ruling.judgement is verdict
    assert bool(ruling.reason) is (verdict is Judgement.REVERT)


def test_a_revert_says_its_numbers() -> None:
    assert judge(RULE, elapsed_s=0, candidate=stats(90, 10), incumbent=None).reason == (
        "10 of 100 inferences failed, 5.0% allowed"
    )
    slow = judge(RULE, elapsed_s=0, candidate=stats(50, latency_us=1_000.0), incumbent=stats(50))
    assert "more than 3 times the incumbent's" in slow.reason


def test_without_a_minimum_a_probation_without_a_single_call_ends_in_time() -> None:
    rule = Probation(duration_s=10.0, min_inferences=0)

    assert judge(rule, elapsed_s=10.0, candidate=stats(0), incumbent=stats(0)).judgement is Judgement.KEEP


@pytest.mark.parametrize(("elapsed_s", "verdict"), [(59.9, Judgement.WAIT), (60.0, Judgement.KEEP)])
def test_a_shadow_has_only_to_live_for_the_duration(elapsed_s: float, verdict: Judgement) -> None:
    assert judge_shadow(RULE, elapsed_s=elapsed_s).judgement is verdict
