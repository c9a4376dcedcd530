"""The dry run: who, in which order, how long, how much; and the route and texts that show it."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import pytest

from fleet_server.cli.rollout_plan import chance, show_plan
from fleet_server.errors import InvalidRequestError, NotFoundError
from fleet_server.rollouts.cohorts import control_devices, stage_devices
from fleet_server.rollouts.dry_run import plan_dry_run, traffic_of
from fleet_server.rollouts.planning import MAX_NAMED_DEVICES, RolloutPlan, plan_rollout
from fleet_server.rollouts.policy import parse_policy
from fleet_server.rollouts.power_of_gates import Traffic
from fleet_server.rollouts.selection import DeviceFacts
from tests.server.rollouts.fleet import FLEET, MODEL, POLICY, Fleet, S

_MONDAY_NOON = 1_780_920_000 * S  # 2026-06-08 12:00 UTC


def _devices(count: int, **changes: Any) -> list[DeviceFacts]:
    return [
        DeviceFacts(
            device=f"device-{number}",
            labels={"site": "lyon" if number % 2 else "nice"},
            hardware=("x86_64", "aarch64")[number % 2],
            has_reported=True,
            **changes,
        )
        for number in range(count)
    ]


def _plan(document: dict[str, Any], fleet: list[DeviceFacts], **changes: Any) -> RolloutPlan:
    sizes = {facts.device: 1000 for facts in fleet}
    told = {"now_ns": _MONDAY_NOON, "salt": "s", "traffic": Traffic(), "download_bytes": sizes, **changes}
    return plan_rollout(parse_policy(document), fleet, model="digits", version="1.1.0", **told)


def test_a_plan_names_the_devices_that_the_rollout_will_choose() -> None:
    document = {"control": {"percent": 20}, "exclude": [{"devices": ["device-7"]}]}
    fleet = [*_devices(60), DeviceFacts(device="silent")]
    plan = _plan(document, fleet)
    policy = parse_policy(document)
    hardware = {facts.device: facts.hardware for facts in fleet[:-1] if facts.device != "device-7"}
    control = control_devices(hardware, policy.control, "s")
    assert plan.control_devices == control
    assert (plan.selected, plan.control, plan.left_out) == (59, 11, {"excluded": 1, "never reported": 1})
    seen: list[str] = []
    for stage, planned in zip(policy.stages, plan.stages, strict=True):
        chosen = stage_devices(hardware, stage, "s", control=set(control))
        assert planned.devices == chosen[len(seen) :]
        assert (planned.new, planned.total) == (len(chosen) - len(seen), len(chosen))
        seen = chosen
    assert plan.release is not None
    assert plan.release.devices == control
    assert plan.size_bytes == 59_000


def test_the_least_time_is_that_of_exposing_and_baking_one_after_the_other() -> None:
    stages = [{"count": 10, "bake_s": 60}, {"percent": 100, "bake_s": 120}]
    plan = _plan({"stages": stages, "rate": {"per_minute": 30}, "control": {"percent": 0}}, _devices(100))
    assert [round(stage.deploy_s) for stage in plan.stages] == [20, 180]
    assert plan.least_s == pytest.approx(20 + 60 + 180 + 120)
    assert plan.release is None


def test_maintenance_hours_and_the_start_are_waited_for_in_each_time_zone() -> None:
    night = {"maintenance": {"start": "22:00", "end": "05:00"}, "stages": [{"percent": 100, "bake_s": 60}]}
    paris = _plan(night, _devices(5, time_zone="Europe/Paris"))
    assert paris.stages[0].deploy_s == pytest.approx(8 * 3600)  # 14:00 in Paris
    later = _plan({**night, "start_at": "2026-06-08T22:00:00Z"}, _devices(5, time_zone="Europe/Paris"))
    assert later.stages[0].deploy_s == 0
    assert later.starts_ns == _MONDAY_NOON + 10 * 3600 * S
    slow = _plan({**night, "rate": {"per_minute": 1}, "deploy_deadline_s": 86_400}, _devices(600))
    assert slow.stages[0].deploy_s == pytest.approx((10 + 24) * 3600 + (540 - 420) * 60)  # a night has 420 minutes


def test_later_stages_begin_later_and_faster() -> None:
    stages = [{"count": 10, "bake_s": 3600}, {"percent": 100, "bake_s": 60}]
    night = {"stages": stages, "maintenance": {"start": "22:00", "end": "05:00"}, "control": {"percent": 0}}
    plan = _plan(night, _devices(50))
    assert [stage.deploy_s for stage in plan.stages] == [pytest.approx(10 * 3600), 0]
    growing = {"stages": stages, "rate": {"per_minute": 10, "growth": 2, "grow_every": 10}, "control": {"percent": 0}}
    assert [round(stage.deploy_s) for stage in _plan(growing, _devices(20)).stages] == [60, 30]


def test_a_plan_for_nobody_says_what_it_waits_for() -> None:
    plan = _plan({}, [DeviceFacts(device="silent")])
    assert (plan.selected, plan.gates, plan.broken) == (0, [], [])
    assert "no device is selected" in plan.waits[0]


def test_a_plan_of_a_large_fleet_is_made_quickly_and_stays_small() -> None:
    fleet = _devices(30_000)
    began = time.process_time()
    plan = _plan({"rate": {"per_minute": 100, "growth": 2, "max_per_minute": 10_000}}, fleet)
    assert time.process_time() - began < 3  # 0.15 s on one core that has nothing else to do
    assert len(msgspec.json.encode(plan)) < 64_000
    assert all(len(stage.devices) <= MAX_NAMED_DEVICES for stage in plan.stages)


def test_a_dry_run_reads_the_fleet_and_its_telemetry_and_changes_nothing(fleet: Fleet) -> None:
    fleet.publish("1.2.0")
    fleet.enrol(10, v1_0_0=98, v1_1_0=98)
    told = {"fleet": FLEET, "model": MODEL, "now_ns": fleet.now_ns}
    plan = plan_dry_run(fleet.engine, fleet.store, version="1.2.0", policy_json=POLICY, **told)
    assert (plan.selected, plan.salt) == (10, "test")
    assert [gate.gate for gate in plan.gates[:3]] == ["update_failures", "error_rate", "outcome_accuracy"]
    assert plan.broken[0].passes[-1] < 0.2
    drawn = plan_dry_run(fleet.engine, fleet.store, version="1.2.0", policy_json={}, **told)
    assert len(drawn.salt) == 32
    with pytest.raises(InvalidRequestError, match="stagse"):
        plan_dry_run(fleet.engine, fleet.store, version="1.2.0", policy_json={"stagse": 1}, **told)
    with pytest.raises(NotFoundError, match="no version"):
        plan_dry_run(fleet.engine, fleet.store, version="9.9.9", policy_json={}, **told)
    fleet.store.close()
    away = plan_dry_run(fleet.engine, fleet.store, version="1.2.0", policy_json={}, **told)
    assert any("assumed" in gate.note for gate in away.gates)


def test_nothing_heard_is_assumed_and_said() -> None:
    assert traffic_of([]) == Traffic()
    plan = _plan({}, _devices(30))
    assert any("assumed, as nothing was heard" in gate.note for gate in plan.gates)


def test_a_plan_is_shown_with_the_real_chances(capsys: pytest.CaptureFixture[str]) -> None:
    plan = _plan({"control": {"percent": 0}, "stages": [{"percent": 100, "bake_s": 3600}]}, _devices(10))
    show_plan(msgspec.to_builtins(plan))
    shown = capsys.readouterr().out
    assert "nothing was changed" in shown
    assert "A model that reverts one device in five comes through update_failures: stage 1 10.7 %" in shown
    assert [chance(each) for each in (0, 1e-9, 0.107, 0.9999, 1)] == ["0 %", "< 0.1 %", "10.7 %", "> 99.9 %", "100 %"]
