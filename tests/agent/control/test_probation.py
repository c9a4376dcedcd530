"""Probation's judgement on its evidence, and how often it is wrong about a model that is no worse."""

from __future__ import annotations

import numpy as np
import pytest
from msgspec.structs import replace

from edge_agent.control.memory_growth import MAX_SAMPLES, MemoryGrowth
from edge_agent.control.probation import MEMORY_SLACK_BYTES, Evidence, Judgement, Moments, judge, judge_shadow
from edge_agent.control.trial import Before, Look, Trial
from edge_agent.telemetry.series import ServingStats
from fleet_protocol.histogram import LatencyHistogram
from fleet_protocol.messages import Probation

RULE = Probation(
    duration_s=60.0,
    max_error_rate_increase=0.05,
    max_p95_latency_ratio=3.0,
    min_inferences=20,
    max_memory_ratio=2.0,
    max_shadow_disagreement=0.1,
    hang_timeout_s=30.0,
)
MB = 1_000_000


def moments(candidate: ServingStats, limit_us: float, number: int = 8, slow: int = 8) -> Moments:
    """The candidate's calls spread over so many moments, all late ones in the `slow` of them."""
    late = candidate.count if candidate.latency.quantile_us(0.95) > limit_us else 0
    made = Moments()
    for place in range(number):
        calls = candidate.count // number
        made = made.and_one(calls, late // number if place < slow else 0) if calls else made
    return made


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
        (0.0, stats(75, 25), None, Judgement.REVERT),
        (0.0, stats(94, 6), None, Judgement.WAIT),
        (0.0, stats(9_400, 600), None, Judgement.WAIT),
        (0.0, stats(9_100, 900), None, Judgement.REVERT),
        (0.0, stats(0, 20), None, Judgement.REVERT),
        (0.0, stats(0, 19), None, Judgement.WAIT),
        (0.0, stats(85, 15), stats(900, 100), Judgement.WAIT),
        (0.0, stats(55, 45), stats(900, 100), Judgement.REVERT),
        (0.0, stats(0, 40), stats(20), Judgement.REVERT),
        (0.0, stats(18, 2), stats(19, 1), Judgement.WAIT),
        (0.0, stats(0, 20), stats(0, 20), Judgement.WAIT),
        (0.0, stats(400, latency_us=310.0), stats(400, latency_us=100.0), Judgement.REVERT),
        (0.0, stats(400, latency_us=290.0), stats(400, latency_us=100.0), Judgement.WAIT),
        (0.0, stats(4_000, latency_us=9_000.0), stats(10, latency_us=100.0), Judgement.WAIT),
        (0.0, stats(19, latency_us=9_000.0), stats(100, latency_us=100.0), Judgement.WAIT),
        (1_000.0, stats(75, 25), None, Judgement.REVERT),
    ],
)
def test_the_judgement_follows_from_the_evidence(
    elapsed_s: float, candidate: ServingStats, incumbent: ServingStats | None, verdict: Judgement
) -> None:
    evidence = Evidence(elapsed_s=elapsed_s, candidate=candidate, incumbent=incumbent)
    ruling = judge(RULE, replace(evidence, moments=moments(candidate, 300.0)))

    assert ruling.judgement is verdict
    assert bool(ruling.reason) is (verdict is Judgement.REVERT)


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        ({"oldest_run_s": 29.9}, Judgement.WAIT),
        ({"oldest_run_s": 30.0}, Judgement.REVERT),
        ({"memory_bytes": 200 * MB + MEMORY_SLACK_BYTES, "incumbent_memory_bytes": 100 * MB}, Judgement.WAIT),
        ({"memory_bytes": 201 * MB + MEMORY_SLACK_BYTES, "incumbent_memory_bytes": 100 * MB}, Judgement.REVERT),
        ({"memory_bytes": 201 * MB + MEMORY_SLACK_BYTES}, Judgement.WAIT),
        ({"memory_bytes": MB, "incumbent_memory_bytes": 100_000}, Judgement.WAIT),
        ({"memory_bytes": 100 * MB, "incumbent_memory_bytes": 100 * MB, "leaked_bytes": 90 * MB}, Judgement.WAIT),
        ({"memory_bytes": 100 * MB, "incumbent_memory_bytes": 100 * MB, "leaked_bytes": 120 * MB}, Judgement.REVERT),
        ({"compared": 1_000, "disagreed": 110}, Judgement.WAIT),
        ({"compared": 1_000, "disagreed": 200}, Judgement.REVERT),
        ({"compared": 4, "disagreed": 4}, Judgement.WAIT),
        ({"compared": 10, "disagreed": 10}, Judgement.REVERT),
    ],
)
def test_a_hang_memory_and_other_answers_need_no_inferences_to_be_judged(
    found: dict[str, float], verdict: Judgement
) -> None:
    evidence = Evidence(elapsed_s=1.0, candidate=stats(0), **found)

    assert judge(RULE, evidence).judgement is verdict


def test_a_limit_that_allows_everything_finds_no_disagreement_and_one_of_zero_the_first() -> None:
    evidence = Evidence(elapsed_s=1.0, candidate=stats(0), compared=5_000, disagreed=5_000)

    assert judge(replace(RULE, max_shadow_disagreement=1.0), evidence).judgement is Judgement.WAIT
    one = replace(evidence, disagreed=1)
    assert judge(replace(RULE, max_shadow_disagreement=0.0), one).judgement is Judgement.REVERT


def test_a_revert_says_its_numbers() -> None:
    def reason(**found: object) -> str:
        return judge(RULE, Evidence(elapsed_s=0, candidate=stats(0), **found)).reason  # type: ignore[arg-type]

    assert judge(RULE, Evidence(elapsed_s=0, candidate=stats(60, 40))).reason == (
        "40 of 100 inferences failed, 5.0% allowed"
    )
    candidate = stats(400, latency_us=1_000.0)
    slow = Evidence(elapsed_s=0, candidate=candidate, incumbent=stats(400), moments=moments(candidate, 300.0))
    assert judge(RULE, slow).reason == "p95 latency 1004 us is more than 3 times the incumbent's 100 us"
    assert reason(oldest_run_s=31.25) == "a run hangs: it has taken 31.2 s, 30 s are allowed"
    assert reason(memory_bytes=300 * MB, incumbent_memory_bytes=100 * MB) == (
        "memory of 300.0 MB is more than 2 times the incumbent's 100.0 MB"
    )
    assert reason(memory_bytes=50 * MB, incumbent_memory_bytes=50 * MB, leaked_bytes=90 * MB) == (
        "memory grew steadily by 90.0 MB, with its 50.0 MB more than 2 times the incumbent's 50.0 MB"
    )
    assert reason(compared=50, disagreed=40) == (
        "40 of 50 answers differ from the incumbent's on the same inputs, 10.0% allowed"
    )


def test_without_a_minimum_a_probation_without_a_single_call_ends_in_time() -> None:
    rule = Probation(duration_s=10.0, min_inferences=0)
    evidence = Evidence(elapsed_s=10.0, candidate=stats(0), incumbent=stats(0))

    assert judge(rule, evidence).judgement is Judgement.KEEP


@pytest.mark.parametrize(("elapsed_s", "verdict"), [(59.9, Judgement.WAIT), (60.0, Judgement.KEEP)])
def test_a_shadow_has_only_to_live_for_the_duration(elapsed_s: float, verdict: Judgement) -> None:
    assert judge_shadow(RULE, Evidence(elapsed_s=elapsed_s, candidate=stats(0, 20))).judgement is verdict


def test_a_shadow_that_hangs_or_takes_the_memory_of_others_is_taken_back() -> None:
    hung = Evidence(elapsed_s=60.0, candidate=stats(0), oldest_run_s=31.0)
    large = Evidence(elapsed_s=60.0, candidate=stats(0), memory_bytes=500 * MB, incumbent_memory_bytes=MB)

    assert "hangs" in judge_shadow(RULE, hung).reason
    assert "memory" in judge_shadow(RULE, large).reason


def test_slowness_of_some_moments_takes_nothing_back_and_of_most_it_does() -> None:
    candidate = stats(4_000, latency_us=900.0)
    slow = Evidence(elapsed_s=1.0, candidate=candidate, incumbent=stats(40_000))

    for late, number, verdict in (
        (5, 5, "wait"),
        (6, 6, "revert"),
        (10, 20, "wait"),
        (16, 20, "revert"),
        (90, 200, "wait"),
        (110, 200, "revert"),
    ):
        evidence = replace(slow, moments=moments(candidate, 300.0, number, late))
        assert judge(RULE, evidence).judgement.value == verdict, (late, number)


def watch(latencies_us: list[np.ndarray], before: ServingStats, rule: Probation, errors: list[int]) -> bool:
    """Whether an update is taken back in which the calls between two looks took so long, and so many failed."""
    trial = Trial(started_s=0.0, baseline=stats(0), before=Before(stats=before))
    total, failed = LatencyHistogram(), 0
    for number, (moment, more) in enumerate(zip(latencies_us, errors, strict=True)):
        total = LatencyHistogram(total.counts + LatencyHistogram.of(moment).counts)
        failed += more
        look = Look(stats=ServingStats(count=total.count, errors=failed, latency=total))
        if judge(rule, trial.evidence(rule, look, now_s=number / 4)).judgement is Judgement.REVERT:
            return True
    return False


def hiccups(draw: np.random.Generator, looks: int, calls: int, often: float = 0.02) -> list[np.ndarray]:
    """Heavy-tailed latencies, and a machine that is ten times slower for a second now and then."""
    slow_from = draw.random(looks) < often
    slow = np.convolve(slow_from, np.ones(4))[:looks] > 0
    return [draw.lognormal(5.0, 0.5, calls) * (10.0 if is_slow else 1.0) for is_slow in slow]


@pytest.mark.parametrize(("before", "calls", "ratio"), [(20, 10, 1.1), (200, 10, 1.1), (2_000, 40, 1.05)])
def test_an_equal_model_on_a_machine_with_hiccups_is_taken_back_less_than_once_in_a_thousand_updates(
    before: int, calls: int, ratio: float
) -> None:
    rule = replace(RULE, max_p95_latency_ratio=ratio, max_error_rate_increase=0.01)
    draw, looks, updates = np.random.default_rng(before), 240, 30
    reverts = 0
    for _ in range(updates):
        seen = np.concatenate(hiccups(draw, before // calls, calls))
        failed = int(draw.binomial(before, 0.03))
        incumbent = ServingStats(count=before, errors=failed, latency=LatencyHistogram.of(seen))
        errors = [int(number) for number in draw.binomial(calls, 0.03, looks)]
        reverts += watch(hiccups(draw, looks, calls), incumbent, rule, errors)

    assert reverts == 0


def test_a_model_that_is_twice_as_slow_or_fails_in_a_tenth_of_its_calls_is_found_by_the_same_rules() -> None:
    rule = replace(RULE, max_p95_latency_ratio=1.1, max_error_rate_increase=0.01)
    draw, found, rare = np.random.default_rng(7), {"slow": 0, "failing": 0}, 0.005
    for _ in range(10):
        seen = np.concatenate(hiccups(draw, 200, 10, rare))
        incumbent = ServingStats(count=2_000, errors=60, latency=LatencyHistogram.of(seen))
        slower = [2.0 * moment for moment in hiccups(draw, 120, 10, rare)]
        found["slow"] += watch(slower, incumbent, rule, [0] * 120)
        errors = [int(number) for number in draw.binomial(10, 0.13, 120)]
        found["failing"] += watch(hiccups(draw, 120, 10, rare), incumbent, rule, errors)

    assert found["slow"] >= 9 and found["failing"] == 10


def test_the_comparison_of_an_equal_model_that_disagrees_as_often_as_it_may_reverts_none_of_a_thousand() -> None:
    draw = np.random.default_rng(3)
    disagreed = np.cumsum(draw.random((1_000, 400)) < RULE.max_shadow_disagreement, axis=1)
    reverts = 0
    for update in disagreed:
        looks = (
            Evidence(elapsed_s=1.0, candidate=stats(0), compared=place + 1, disagreed=int(update[place]))
            for place in range(0, 400, 20)
        )
        reverts += any(judge(RULE, look).judgement is Judgement.REVERT for look in looks)

    assert reverts == 0


def grown(sizes: np.ndarray) -> int:
    growth = MemoryGrowth()
    for place, size in enumerate(sizes):
        growth.add(place / 4, int(size))
    return growth.leaked_bytes()


def test_a_leak_is_seen_through_noise_and_told_from_a_step_a_wave_and_a_single_peak() -> None:
    draw, looks = np.random.default_rng(11), 400
    place = np.arange(looks)
    noise = draw.normal(0.0, 0.5 * MB, looks)
    level = 100 * MB + noise

    assert grown(level + place * 0.1 * MB) == pytest.approx(40 * MB, rel=0.15)
    assert grown(level) == 0
    assert grown(level + 50 * MB * (place > 200)) == 0
    assert grown(level + 50 * MB * (place > 20)) == 0
    assert grown(level + 30 * MB * np.sin(place / 20)) == 0
    assert grown(level + 80 * MB * (place == 200)) == 0
    assert grown(level - place * 0.1 * MB) == 0


def test_what_a_model_takes_more_and_more_of_in_its_first_seconds_is_no_leak() -> None:
    rising = 100 * MB + np.arange(400) * 0.5 * MB

    assert grown(rising[:170]) == 0
    assert grown(rising[:190]) > 80 * MB


def test_a_probation_of_days_keeps_few_samples_that_span_it_whole() -> None:
    growth = MemoryGrowth()
    for place in range(50_000):
        growth.add(float(place), place * 1_000)

    assert len(growth._samples) <= MAX_SAMPLES
    assert growth.leaked_bytes() == pytest.approx(50 * MB, rel=0.05)
