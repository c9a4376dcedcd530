"""Simulated rollouts run the real engine: what they answer, and that the world is the one that was asked for."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from fleet_protocol.messages import Phase
from fleet_server.errors import InvalidRequestError
from fleet_server.rollouts.policy import RolloutPolicy, parse_policy
from fleet_server.rollouts.progress import Progress
from fleet_server.rollouts.simulation import (
    Breaks,
    End,
    Look,
    RunResult,
    Scenario,
    binomial_share,
    parse_breaks,
    simulate_rollout,
    simulate_rollouts,
    summarize,
)
from fleet_server.rollouts.simulation.fleet import CODE, SimulatedFleet
from fleet_server.rollouts.simulation.recorded import recorded_devices
from fleet_server.rollouts.simulation.run import judge_by_gates
from fleet_server.rollouts.simulation.world import CORRECT, COUNT, ERRORS, WRONG, WorldSettings, make_world

_DEVICES = 600


def _policy(**changes: object) -> RolloutPolicy:
    document = {
        "stages": [{"percent": 10, "bake_s": 7200}, {"percent": 100, "bake_s": 7200}],
        "control": {"percent": 10},
        "retry": {"attempts": 2, "after_s": 300},
        "gates": [
            {"gate": "update_failures", "max_share": 0.02},
            {"gate": "latency", "max_increase": 0.1},
            {"gate": "outcome_accuracy", "max_drop": 0.05},
        ],
        "max_bake_extensions": 10,
    }
    return parse_policy(document | changes)


def _simulated(harm: str = "", seed: int = 1, **changes: object) -> RunResult:
    breaks = parse_breaks([harm]) if harm else Breaks()
    return simulate_rollout(Scenario(policy=_policy(**changes), devices=_DEVICES, breaks=breaks), seed)


def test_an_equal_model_reaches_every_device_and_no_gate_fails() -> None:
    result = _simulated()
    assert (result.end, result.failed, result.exposed) == (End.COMPLETED, False, _DEVICES)
    assert result.took_s > 2 * 7200


@pytest.mark.parametrize(
    ("harm", "gate"),
    [("latency:+40%", "latency"), ("accuracy:-20%", "outcome_accuracy"), ("crash:20%", "update_failures"),
     ("hang:20%", "update_failures")],
)  # fmt: skip
def test_a_harm_is_seen_by_its_gate_and_taken_back_from_the_first_stage(harm: str, gate: str) -> None:
    result = _simulated(harm)
    assert result.end is End.ROLLED_BACK
    assert result.gates == (gate,)
    assert 0 < result.exposed <= 0.1 * _DEVICES
    assert result.stopped_s is not None and result.back_s is not None


def test_errors_memory_and_silence_are_seen_by_their_gates() -> None:
    gates = [{"gate": "losses"}, {"gate": "error_rate"}, {"gate": "memory"}]
    for harm, gate in (("silent:60%", "losses"), ("errors:+20%", "error_rate"), ("memory:+80%", "memory")):
        assert _simulated(harm, gates=gates).gates == (gate,), harm


def test_drift_and_shadow_gates_have_their_measures() -> None:
    result = _simulated(gates=[{"gate": "drift"}, {"gate": "shadow_disagreement"}])
    assert result.end is End.COMPLETED


def test_on_fail_pause_ends_paused_by_the_gate_that_failed() -> None:
    result = _simulated("latency:+60%", on_fail="pause")
    assert (result.end, result.failed, result.gates) == (End.PAUSED_BY_FAIL, True, ("latency",))


def test_a_gate_that_cannot_say_pauses_and_counts_as_no_alarm() -> None:
    outcomes = [{"gate": "outcome_accuracy", "max_drop": 0.05, "min_outcomes": 1_000_000_000}]
    result = _simulated(gates=outcomes, max_bake_extensions=1)
    assert (result.end, result.is_alarm, result.gates) == (End.PAUSED_INCONCLUSIVE, False, ("outcome_accuracy",))


def test_the_deadline_of_the_policy_pauses() -> None:
    rate = {"per_minute": 0.05}
    assert _simulated(rate=rate, deadline_s=20_000).end is End.PAUSED_BY_DEADLINE


def test_approvals_are_given_after_their_delay() -> None:
    scenario = Scenario(policy=_policy(approvals=2), devices=_DEVICES, approval_delay_s=1e6)
    seen: list[float] = []

    def judge(policy: RolloutPolicy, progress: Progress, look: Look) -> tuple:  # type: ignore[type-arg]
        seen.append(look.now_s)
        return judge_by_gates(policy, progress, look)

    assert simulate_rollout(scenario, 1, judge=judge).end is End.COMPLETED
    assert seen[0] > 1e6


def test_the_pace_of_the_policy_holds_back_exposures() -> None:
    slow, quick = (
        _simulated(rate={"per_minute": per_minute}, gates=[{"gate": "update_failures"}]) for per_minute in (2, 1000)
    )
    assert slow.end is quick.end is End.COMPLETED
    extra_s = slow.took_s - quick.took_s
    assert _DEVICES * 0.9 / 2 * 60 * 0.8 < extra_s < _DEVICES / 2 * 60 * 1.5


def test_the_same_seed_makes_the_same_rollout_and_another_seed_another() -> None:
    first, again, other = (_simulated("latency:+30%", seed=seed) for seed in (7, 7, 8))
    assert first == again
    assert first != other


def test_segments_are_judged_by_hardware() -> None:
    result = _simulated("crash:50%", segments={"by": "hardware", "min_devices": 5})
    assert result.end is End.ROLLED_BACK
    assert result.failed


def test_devices_silenced_by_a_candidate_do_not_come_back() -> None:
    random = np.random.default_rng(1)
    settings = WorldSettings(dies_per_day=1e-9, no_space_share=0, network_share=0, power_share=0)
    world = make_world(200, settings=settings, breaks=parse_breaks(["silent:50%"]), random=random)
    fleet = SimulatedFleet(world, _policy(), maturity_s=0)
    everyone = np.arange(200)
    fleet.expose(everyone, 0.0)
    for hour in range(1, 11):
        fleet.advance(3600.0 * hour)
    assert 60 < int((~fleet.online).sum()) < 140
    assert set(fleet.phase.tolist()) <= {CODE[Phase.HEALTHY], CODE[Phase.PENDING]}


def test_what_is_counted_follows_the_harm_and_the_own_past_does_not() -> None:
    random = np.random.default_rng(2)
    harm = parse_breaks(["accuracy:-10%", "errors:+5%"])
    world = make_world(2000, settings=WorldSettings(), breaks=harm, random=random)
    everyone = np.arange(2000)
    now, past = (
        world.count(everyone, middle_s=0.0, seconds=36_000.0, with_candidate=broken, is_past=True).sum(axis=0)
        for broken in (True, False)
    )

    def rates(table: np.ndarray) -> tuple[float, float]:  # type: ignore[type-arg]
        return table[WRONG] / (table[WRONG] + table[CORRECT]), table[ERRORS] / (table[ERRORS] + table[COUNT])

    assert rates(now)[0] - rates(past)[0] == pytest.approx(0.10, abs=0.01)
    assert rates(now)[1] - rates(past)[1] == pytest.approx(0.05, abs=0.005)


def test_outcomes_come_late_and_count_once_they_are_mature() -> None:
    random = np.random.default_rng(3)
    world = make_world(300, settings=WorldSettings(outcome_delay_s=3600), breaks=Breaks(), random=random)
    fleet = SimulatedFleet(world, _policy(), maturity_s=1800)
    fleet.expose(np.arange(300), 0.0)
    known, counted = [], [0.0]
    for tick in range(1, 41):
        fleet.advance(600.0 * tick)
        ripe = fleet.ripe()
        counted.append(float(fleet.counted[:, [CORRECT, WRONG]].sum()))
        assert float(ripe[:, [CORRECT, WRONG]].sum()) == counted[max(0, tick - 3)]
        known.append(float(ripe[:, [CORRECT, WRONG]].sum() / max(1.0, ripe[:, COUNT].sum())))
    assert known[3] < 0.1
    assert 0.2 < known[-1] < 0.3


@pytest.mark.parametrize(
    "text", ["crush:2%", "accuracy", "accuracy:+5%", "latency:-20%", "crash:0%", "crash:200%", "latency:nan%", ""]
)
def test_what_is_no_harm_is_refused_with_what_is(text: str) -> None:
    with pytest.raises(InvalidRequestError, match="break"):
        parse_breaks([text])


def test_a_harm_named_twice_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="twice"):
        parse_breaks(["crash:1%", "crash:2%"])


def test_harms_are_read_as_shares() -> None:
    assert parse_breaks(["accuracy:-5%", "latency:+20%", "crash:2"]) == Breaks(accuracy=0.05, latency=0.2, crash=0.02)


def test_the_interval_of_a_share_is_the_exact_binomial_one() -> None:
    share = binomial_share(0, 100)
    assert (share.lower, share.upper) == (0.0, pytest.approx(1 - 0.025 ** (1 / 100)))
    assert binomial_share(5, 10).lower == pytest.approx(0.187086, abs=1e-6)


def test_a_summary_counts_ends_and_spreads() -> None:
    scenario = Scenario(policy=_policy(), devices=_DEVICES, breaks=parse_breaks(["latency:+40%"]))
    summary = summarize(list(simulate_rollouts(scenario, range(4))), devices=_DEVICES)
    assert summary.ends["rolled_back"].count == summary.alarms.count == summary.gates["latency"] == 4
    assert summary.exposed is not None and summary.exposed["median"] <= summary.exposed["p95"] <= 60
    assert msgspec.to_builtins(summary)["runs"] == 4


def test_recorded_devices_give_their_rates() -> None:
    points = [
        {
            "device": f"d{number}",
            "count": 950,
            "errors": 50,
            "correct": 80,
            "wrong": 20,
            "p95_us": 1000.0 * (1 + number),
        }
        for number in range(3)
    ]
    recorded = recorded_devices([*points, *points], hours=10)
    assert recorded.calls_per_hour.tolist() == [200.0] * 3
    assert recorded.error_rate == pytest.approx([0.05] * 3)
    assert recorded.wrong_rate == pytest.approx([0.2] * 3)
    assert recorded.outcome_share == pytest.approx([200 / 1900] * 3)
    assert recorded.p95_us == pytest.approx([1000, 2000, 3000])
    scenario = Scenario(policy=_policy(), devices=_DEVICES, breaks=parse_breaks(["latency:+60%"]), recorded=recorded)
    assert simulate_rollout(scenario, 1).end is End.ROLLED_BACK


def test_a_replay_without_devices_says_what_to_do() -> None:
    with pytest.raises(InvalidRequestError, match="leave --replay out"):
        recorded_devices([], hours=24)
