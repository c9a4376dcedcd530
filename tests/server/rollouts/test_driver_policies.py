"""What policies ask of the engine: control, pace, hours, retries, segments, approvals; and devices that come and go."""

from __future__ import annotations

import msgspec
import pytest
from sqlalchemy import delete, insert, select, update

from fleet_protocol.messages import Phase
from fleet_server.database.identity_tables import revoked_devices
from fleet_server.database.tables import desired, devices, rollout_devices
from fleet_server.errors import ConflictError, ForbiddenError
from fleet_server.rollouts.freshness import refresh_due
from fleet_server.rollouts.repository import command_rollout, get_rollout
from fleet_server.rollouts.views import RolloutView
from tests.server.rollouts.fleet import FLEET, Fleet, S

ONE_STAGE = [{"percent": 100, "bake_s": 10}]


def _with_incumbent(fleet: Fleet, count: int, **accuracy: int) -> None:
    fleet.enrol(count, **{"v1_0_0": 98, "v1_1_0": 98, **accuracy})
    fleet.install("1.0.0")
    for _ in range(3):
        fleet.devices_answer()


def _control(fleet: Fleet, rollout: str) -> set[str]:
    query = select(rollout_devices.c.device).where(
        rollout_devices.c.rollout_id == rollout, rollout_devices.c.is_control.is_(True)
    )
    with fleet.engine.connect() as connection:
        return set(connection.scalars(query))


def _live_until_step(fleet: Fleet, rollout: str, step: str) -> RolloutView:
    for _ in range(60):
        view = get_rollout(fleet.engine, rollout)
        if view.step == step:
            return view
        fleet.live(3)
    raise AssertionError(f"never {step}: {view.state} {view.step} {view.reason}")


def test_control_is_held_on_the_incumbent_until_the_last_stage_passed_and_then_released(fleet: Fleet) -> None:
    _with_incumbent(fleet, 10)
    rollout = fleet.create("1.1.0", control={"percent": 20})
    held: set[str] = set()
    while (view := get_rollout(fleet.engine, rollout)).step != "RELEASING":
        assert view.state in ("SCHEDULED", "ACTIVE"), view.reason
        control = _control(fleet, rollout)
        assert not held or control == held
        held = control
        assert not held & fleet.running("1.1.0")
        fleet.live(3)
    assert (len(held), view.control_count, view.exposed_count) == (2, 2, 8)
    fleet.live_until(rollout, "COMPLETED")
    assert fleet.running("1.1.0") == set(fleet.devices)
    assert get_rollout(fleet.engine, rollout).control_count == 0


def test_a_rollback_leaves_the_control_alone(fleet: Fleet) -> None:
    _with_incumbent(fleet, 10, v1_1_0=35)
    rollout = fleet.create("1.1.0", control={"percent": 20})
    fleet.live_until(rollout, "ROLLED_BACK", seconds=1, outcomes=10)
    held = _control(fleet, rollout)
    assert len(held) == 2
    for name in held:
        wanted = fleet.desired(name)
        assert wanted is not None
        assert wanted.generation == 1


def test_the_pace_bounds_how_many_devices_are_exposed_in_a_minute(fleet: Fleet) -> None:
    _with_incumbent(fleet, 8)
    rollout = fleet.create("1.1.0", stages=ONE_STAGE, control={"percent": 0}, rate={"per_minute": 2})
    exposed = []
    for _ in range(30):
        fleet.live(10)
        exposed.append(get_rollout(fleet.engine, rollout).exposed_count)
        if exposed[-1] == 8:
            break
    steps = [after - before for before, after in zip(exposed, exposed[3:], strict=False)]
    assert exposed[-1] == 8
    assert max(steps) <= 2  # thirty seconds hold one device, and one at an edge
    assert get_rollout(fleet.engine, rollout).next.per_minute == 2


def test_a_device_is_exposed_only_in_its_own_maintenance_hours(fleet: Fleet) -> None:
    fleet.now_ns = 1_700_006_400 * S  # 2023-11-15 00:00 UTC
    fleet.enrol(2, v1_0_0=98)
    with fleet.engine.begin() as connection:
        reported = connection.scalar(select(devices.c.reported).where(devices.c.device == "device-1"))
        values = {"reported": {**(reported or {}), "time_zone": "Asia/Tokyo"}}
        connection.execute(update(devices).where(devices.c.device == "device-1").values(values))
    hours = {"start": "02:00", "end": "04:00"}
    rollout = fleet.create("1.0.0", stages=ONE_STAGE, maintenance=hours, deploy_deadline_s=86_400)
    fleet.live()
    fleet.live()
    view = get_rollout(fleet.engine, rollout)
    assert (view.exposed_count, view.next.blocked) == (0, 2)
    assert view.next.until_ns == (1_700_006_400 + 2 * 3600) * S
    fleet.now_ns += 2 * 3600 * S
    fleet.driver.step()
    assert [each.device for each in get_rollout(fleet.engine, rollout).devices] == ["device-0"]
    wanted = fleet.desired("device-0")
    assert wanted is not None
    assert wanted.maintenance is not None
    assert wanted.maintenance.start == "02:00"
    fleet.now_ns += 15 * 3600 * S  # 17:00 UTC is 02:00 in Tokyo
    fleet.driver.step()
    assert get_rollout(fleet.engine, rollout).exposed_count == 2


def test_a_failed_device_is_given_the_candidate_again_and_the_retry_counts(fleet: Fleet) -> None:
    _with_incumbent(fleet, 1)
    device = fleet.devices["device-0"]
    device.ends_in = Phase.FAILED
    rollout = fleet.create("1.1.0", stages=ONE_STAGE, retry={"attempts": 2, "after_s": 5})
    for _ in range(3):
        fleet.live()
    fleet.devices_update()
    assert device.generation == 2
    fleet.live(2)
    view = get_rollout(fleet.engine, rollout)
    assert (view.state, view.phases, view.devices[0].attempts) == ("ACTIVE", {"PENDING": 1}, 0)
    device.ends_in = Phase.HEALTHY
    fleet.live(8)
    assert get_rollout(fleet.engine, rollout).devices[0].attempts == 1
    wanted = fleet.desired("device-0")
    assert wanted is not None
    assert wanted.generation == 3
    assert fleet.live_until(rollout, "COMPLETED", "PAUSED", "ROLLED_BACK").state == "COMPLETED"


def test_a_device_that_fails_more_often_than_it_is_retried_fails(fleet: Fleet) -> None:
    _with_incumbent(fleet, 1)
    fleet.devices["device-0"].ends_in = Phase.FAILED
    rollout = fleet.create("1.1.0", stages=ONE_STAGE, retry={"attempts": 1, "after_s": 5})
    view = fleet.live_until(rollout, "ROLLED_BACK", "PAUSED")
    assert (view.devices[0].attempts, "update_failures" in view.reason) == (1, True)


def test_a_segment_that_fails_is_taken_back_and_the_others_complete(fleet: Fleet) -> None:
    good = fleet.enrol(6, labels={"line": "new"}, v1_0_0=98, v1_1_0=98)
    bad = fleet.enrol(6, labels={"line": "old"}, v1_0_0=98, v1_1_0=98)
    fleet.install("1.0.0")
    for _ in range(3):
        fleet.devices_answer()
    for device in bad:
        device.ends_in = Phase.REVERTED
    rollout = fleet.create("1.1.0", stages=ONE_STAGE, control={"percent": 0}, segments={"by": "line", "min_devices": 2})
    view = fleet.live_until(rollout, "COMPLETED", "ROLLED_BACK", "PAUSED")
    assert view.state == "COMPLETED", view.reason
    assert "taken back in part: old" in view.reason
    assert fleet.running("1.1.0") == {device.name for device in good}
    assert fleet.running("1.0.0") == {device.name for device in bad}
    by_name = {segment.segment: segment for segment in view.segments}
    assert (by_name["old"].restored, by_name["new"].restored) == (6, 0)
    assert by_name["old"].halted_because
    assert not by_name["new"].halted_because


def test_a_rollout_waits_for_its_stage_to_be_approved_by_somebody_else(fleet: Fleet) -> None:
    _with_incumbent(fleet, 5)
    stages = [{"percent": 20, "bake_s": 10}, {"percent": 100, "bake_s": 10, "needs_approval": True}]
    rollout = fleet.create("1.1.0", stages=stages)
    view = fleet.live_until(rollout, "AWAITING_APPROVAL", "PAUSED", "COMPLETED")
    assert (view.state, view.stage, view.approvals_needed) == ("AWAITING_APPROVAL", 1, 1)
    for _ in range(3):
        fleet.live(20)
    assert len(fleet.running("1.1.0")) == 1
    with pytest.raises(ForbiddenError, match="ann"):
        command_rollout(fleet.engine, rollout, "approve", "ann", fleet.now_ns)
    command_rollout(fleet.engine, rollout, "approve", "bob", fleet.now_ns)
    view = fleet.live_until(rollout, "COMPLETED", "PAUSED")
    assert view.state == "COMPLETED"
    assert [(each.actor, each.stage) for each in view.approvals] == [("bob", 1)]


def test_a_rollout_past_its_deadline_pauses_with_the_reason(fleet: Fleet) -> None:
    _with_incumbent(fleet, 2)
    rollout = fleet.create("1.1.0", stages=ONE_STAGE, deadline_s=60)
    for device in fleet.devices.values():
        device.online = False
    view = fleet.live_until(rollout, "PAUSED", seconds=20)
    assert "deadline" in view.reason


def test_a_device_that_leaves_the_fleet_holds_nothing_up_and_is_told_nothing(fleet: Fleet) -> None:
    _with_incumbent(fleet, 2)
    rollout = fleet.create("1.1.0", stages=ONE_STAGE, deploy_deadline_s=86_400)
    fleet.devices["device-0"].online = False
    while not get_rollout(fleet.engine, rollout).exposed_count:
        fleet.driver.step()
    with fleet.engine.begin() as connection:
        gone = {"fleet": FLEET, "device": "device-0", "revoked_by": "ann", "revoked_ns": 1, "decommissioned": True}
        connection.execute(insert(revoked_devices).values(gone))
        connection.execute(delete(desired).where(desired.c.device == "device-0"))
    view = fleet.live_until(rollout, "COMPLETED", "PAUSED", "ROLLED_BACK")
    assert view.state == "COMPLETED", view.reason
    assert view.phases == {"HEALTHY": 1, "SUPERSEDED": 1}
    fleet.now_ns += S
    again = fleet.create("1.0.0", stages=ONE_STAGE)
    fleet.live()
    fleet.live()
    command_rollout(fleet.engine, again, "rollback", "ann", fleet.now_ns)
    assert fleet.live_until(again, "ROLLED_BACK").state == "ROLLED_BACK"
    assert fleet.desired("device-0") is None


def test_a_device_that_was_dark_during_update_and_rollback_returns_to_what_it_ran(fleet: Fleet) -> None:
    _with_incumbent(fleet, 1)
    device = fleet.devices["device-0"]
    rollout = fleet.create("1.1.0", stages=ONE_STAGE)
    device.online = False
    fleet.report(device)
    while not get_rollout(fleet.engine, rollout).exposed_count:
        fleet.driver.step()
    command_rollout(fleet.engine, rollout, "rollback", "ann", fleet.now_ns)
    view = fleet.live_until(rollout, "ROLLED_BACK")
    assert "1 devices that cannot be reached" in view.reason
    device.online = True
    fleet.live()
    assert (device.generation, fleet.running("1.0.0")) == (3, {"device-0"})


def test_a_device_on_which_an_earlier_update_failed_is_given_back_what_it_really_ran(fleet: Fleet) -> None:
    fleet.publish("1.2.0")
    _with_incumbent(fleet, 1, v1_2_0=98)
    device = fleet.devices["device-0"]
    device.ends_in = Phase.REVERTED
    failed = fleet.create("1.2.0", stages=ONE_STAGE, on_fail="pause")
    fleet.live_until(failed, "PAUSED")
    command_rollout(fleet.engine, failed, "rollback", "ann", fleet.now_ns)
    command_rollout(fleet.engine, failed, "abort", "ann", fleet.now_ns)  # its device is still told 1.2.0
    device.ends_in = Phase.HEALTHY
    rollout = fleet.create("1.1.0", stages=ONE_STAGE)
    while not fleet.running("1.1.0"):
        fleet.live()
    view = command_rollout(fleet.engine, rollout, "rollback", "ann", fleet.now_ns)
    assert view.devices[0].incumbent_version == "1.0.0"
    assert fleet.live_until(rollout, "ROLLED_BACK").state == "ROLLED_BACK"
    assert fleet.running("1.0.0") == {"device-0"}


def test_a_rollback_that_cannot_end_can_be_given_up_and_says_so(fleet: Fleet) -> None:
    _with_incumbent(fleet, 1)
    rollout = fleet.create("1.1.0", stages=ONE_STAGE)
    while not fleet.running("1.1.0"):
        fleet.live()
    command_rollout(fleet.engine, rollout, "rollback", "ann", fleet.now_ns)
    fleet.driver.step()
    with pytest.raises(ConflictError, match="is open"):
        fleet.create("1.0.0")
    view = command_rollout(fleet.engine, rollout, "abort", "ann", fleet.now_ns)
    assert (view.state, "not every device is known to be back" in view.reason) == ("CANCELED", True)
    assert get_rollout(fleet.engine, fleet.create("1.0.0")).state == "SCHEDULED"


def test_a_desired_state_is_renewed_before_it_expires_with_the_same_content(fleet: Fleet) -> None:
    fleet.enrol(2, v1_0_0=98)
    fleet.install("1.0.0")
    first = fleet.desired("device-0")
    assert first is not None
    assert first.expires_ns == fleet.now_ns + 14 * 86_400 * S
    fleet.now_ns += 6 * 86_400 * S
    assert not refresh_due(fleet.engine, fleet=FLEET, signer=fleet.signer, now_ns=fleet.now_ns)
    assert fleet.desired("device-0") == first
    fleet.now_ns += 2 * 86_400 * S
    with fleet.engine.begin() as connection:
        connection.execute(update(desired).values(published_generation=1))
    refresh_due(fleet.engine, fleet=FLEET, signer=fleet.signer, now_ns=fleet.now_ns, root_version=3)
    renewed = fleet.desired("device-0")
    assert renewed == msgspec.structs.replace(
        first, issued_at_ns=fleet.now_ns, expires_ns=fleet.now_ns + 14 * 86_400 * S, root_version=3
    )
    with fleet.engine.connect() as connection:
        assert set(connection.scalars(select(desired.c.published_generation))) == {0}
