"""Whole rollouts over a real database and a real telemetry store, with devices that report and answer."""

from __future__ import annotations

import threading
from contextlib import suppress

from sqlalchemy import func, select, update

from fleet_protocol.messages import Assignment, Phase, Probation
from fleet_server.database.tables import desired, gate_evaluations, rollout_devices, rollouts
from fleet_server.errors import ConflictError
from fleet_server.rollouts.desired import assign
from fleet_server.rollouts.driver import RolloutDriver
from fleet_server.rollouts.repository import command_rollout, get_rollout
from fleet_server.telemetry_store.embedded import EmbeddedStore
from fleet_server.telemetry_store.port import DeviceTotals, Slice
from tests.server.rollouts.fleet import FLEET, MODEL, POLICY, Fleet, S, bundle


def _with_incumbent(fleet: Fleet, count: int = 5, **accuracy: int) -> None:
    fleet.enrol(count, **{"v1_0_0": 98, "v1_1_0": 98, **accuracy})
    fleet.install("1.0.0")
    for _ in range(3):
        fleet.devices_answer()


def test_a_healthy_rollout_completes_on_every_device(fleet: Fleet) -> None:
    _with_incumbent(fleet)
    rollout = fleet.create("1.1.0")
    stages = {}
    while (view := get_rollout(fleet.engine, rollout)).state not in ("COMPLETED", "PAUSED", "ROLLING_BACK"):
        stages[view.stage] = view.exposed_count
        fleet.live(3)
    assert view.state == "COMPLETED", view.reason
    assert stages == {0: 1, 1: 5}
    assert fleet.running("1.1.0") == set(fleet.devices)
    assert {gate.verdict for gate in view.gates} == {"pass"}
    assert {device.phase for device in view.devices} == {"HEALTHY"}
    assert {device.incumbent_version for device in view.devices} == {"1.0.0"}


def test_a_broken_candidate_is_taken_back_with_only_the_first_stage_exposed(fleet: Fleet) -> None:
    _with_incumbent(fleet, v1_1_0=35)
    rollout = fleet.create("1.1.0")
    view = fleet.live_until(rollout, "ROLLED_BACK", seconds=1, outcomes=10)
    assert (view.stage, view.exposed_count) == (0, 1)
    assert "accuracy 3" in view.reason
    assert fleet.running("1.0.0") == set(fleet.devices)
    with fleet.engine.connect() as connection:
        generations = sorted(connection.scalars(select(desired.c.generation)))
    assert generations == [1, 1, 1, 1, 3]


def test_a_broken_candidate_is_seen_before_the_bake_is_over(fleet: Fleet) -> None:
    _with_incumbent(fleet, v1_1_0=35)
    rollout = fleet.create("1.1.0", stages=[{"percent": 20, "bake_s": 86_400}, {"percent": 100, "bake_s": 86_400}])
    began_ns = fleet.now_ns
    view = fleet.live_until(rollout, "ROLLED_BACK", seconds=1, outcomes=10)
    assert view.reason.startswith("outcome_accuracy")
    assert fleet.now_ns - began_ns < 60 * S


def test_a_first_install_is_judged_by_its_manifest_and_rolled_back_to_nothing(fleet: Fleet) -> None:
    fleet.enrol(3, v1_0_0=98, v1_1_0=40)
    good = fleet.create("1.0.0")
    assert fleet.live_until(good, "COMPLETED", "PAUSED").state == "COMPLETED"
    for device in fleet.enrol(2, labels={"line": "new"}, v1_0_0=98, v1_1_0=40):
        assert device.active is None
    bad = fleet.create("1.1.0", selector={"labels": {"line": "new"}})
    view = fleet.live_until(bad, "ROLLED_BACK", seconds=1, outcomes=10)
    assert [device.incumbent_version for device in view.devices] == [""]
    assert fleet.running("1.1.0") == set()
    wanted = fleet.desired(view.devices[0].device)
    assert wanted is not None
    assert wanted.assignments == []


def test_devices_that_revert_by_themselves_stop_the_rollout(fleet: Fleet) -> None:
    _with_incumbent(fleet)
    for device in fleet.devices.values():
        device.ends_in = Phase.REVERTED
    rollout = fleet.create("1.1.0")
    view = fleet.live_until(rollout, "ROLLED_BACK")
    assert view.reason.startswith("update_failures")
    assert view.exposed_count == 1


def test_a_device_that_stays_dark_is_lost_at_the_deadline_and_holds_up_no_rollback(fleet: Fleet) -> None:
    _with_incumbent(fleet)
    rollout = fleet.create("1.1.0")
    fleet.driver.step()
    fleet.driver.step()
    (dark,) = get_rollout(fleet.engine, rollout).devices
    fleet.devices[dark.device].online = False
    fleet.report(fleet.devices[dark.device])
    view = fleet.live_until(rollout, "PAUSED", "ROLLED_BACK", seconds=10)
    assert "update_failures" in view.reason
    if view.state == "PAUSED":  # it may have been the device's own trouble: a person decides
        assert view.phases == {"LOST": 1}
        command_rollout(fleet.engine, rollout, "rollback", "ann", fleet.now_ns)
    view = fleet.live_until(rollout, "ROLLED_BACK", seconds=10)
    assert "1 devices that cannot be reached" in view.reason
    fleet.devices[dark.device].online = True
    fleet.live()
    assert fleet.running("1.0.0") == set(fleet.devices)


def test_a_rollback_is_not_over_before_the_device_reports_the_old_digest(fleet: Fleet) -> None:
    _with_incumbent(fleet)
    rollout = fleet.create("1.1.0")
    while not fleet.running("1.1.0"):
        fleet.live()
    command_rollout(fleet.engine, rollout, "rollback", "ann", fleet.now_ns)
    for _ in range(5):
        fleet.driver.step()  # the desired state is written, but no device has taken it up
        assert get_rollout(fleet.engine, rollout).state == "ROLLING_BACK"
    fleet.devices_update()
    fleet.driver.step()
    assert get_rollout(fleet.engine, rollout).state == "ROLLED_BACK"


def test_a_store_that_is_away_never_passes_and_pauses_with_the_reason(fleet: Fleet) -> None:
    _with_incumbent(fleet)
    rollout = fleet.create("1.1.0")
    fleet.store.close()
    for _ in range(40):
        fleet.now_ns += 3 * S
        fleet.devices_update()
        fleet.driver.step()
    view = get_rollout(fleet.engine, rollout)
    assert (view.state, view.stage) == ("PAUSED", 0)
    assert "no telemetry to judge by" in view.reason
    verdicts = {gate.gate: gate.verdict for gate in view.gates}
    assert verdicts == {"update_failures": "pass", "error_rate": "inconclusive", "outcome_accuracy": "inconclusive"}


def test_without_outcomes_a_rollout_pauses_and_goes_on_when_they_come(fleet: Fleet) -> None:
    _with_incumbent(fleet)
    rollout = fleet.create("1.1.0")
    fleet.live_until(rollout, "PAUSED", outcomes=0)
    assert fleet.running("1.1.0") == {get_rollout(fleet.engine, rollout).devices[0].device}
    command_rollout(fleet.engine, rollout, "resume", "ann", fleet.now_ns)
    assert fleet.live_until(rollout, "COMPLETED", "PAUSED").state == "COMPLETED"


def test_a_device_that_appears_later_joins_by_the_cohort_rule(fleet: Fleet) -> None:
    _with_incumbent(fleet)
    rollout = fleet.create("1.1.0", stages=[{"count": 2, "bake_s": 10}, {"percent": 100, "bake_s": 30}])
    fleet.live()
    fleet.live()
    first = {device.device for device in get_rollout(fleet.engine, rollout).devices}
    assert len(first) == 2
    fleet.enrol(1, v1_0_0=98, v1_1_0=98)
    fleet.live()
    assert {device.device for device in get_rollout(fleet.engine, rollout).devices} == first
    while get_rollout(fleet.engine, rollout).step != "BAKING" or get_rollout(fleet.engine, rollout).stage != 1:
        fleet.live(3)
    (latecomer,) = fleet.enrol(1, v1_0_0=98, v1_1_0=98)
    fleet.live_until(rollout, "COMPLETED")
    assert latecomer.name in fleet.running("1.1.0")


def test_only_devices_the_selector_means_are_exposed(fleet: Fleet) -> None:
    fleet.enrol(3, v1_0_0=98, labels={"site": "lyon"})
    fleet.enrol(3, v1_0_0=98, labels={"site": "oslo"})
    rollout = fleet.create("1.0.0", selector={"labels": {"site": "oslo"}})
    fleet.live_until(rollout, "COMPLETED")
    assert fleet.running("1.0.0") == {"device-3", "device-4", "device-5"}


def test_a_rollout_leaves_other_models_of_a_device_as_they_are(fleet: Fleet) -> None:
    _with_incumbent(fleet, 1, v1_1_0=35)
    other = Assignment(model="other", version="2.0.0", bundle="f" * 64)
    with fleet.engine.begin() as connection:
        assign(
            connection,
            fleet=FLEET,
            device="device-0",
            assignments={"other": [other]},
            signer=fleet.signer,
            now_ns=fleet.now_ns,
            probation=Probation(),
        )
    fleet.live_until(fleet.create("1.1.0"), "ROLLED_BACK", seconds=1, outcomes=10)
    wanted = fleet.desired("device-0")
    assert wanted is not None
    assert {(entry.model, entry.version) for entry in wanted.assignments} == {("other", "2.0.0"), (MODEL, "1.0.0")}


def test_an_expose_writes_a_signed_desired_state_with_the_policys_probation(fleet: Fleet) -> None:
    _with_incumbent(fleet, 1)
    fleet.create("1.1.0", probation={"duration_s": 7})
    fleet.driver.step()
    fleet.driver.step()
    wanted = fleet.desired("device-0")
    assert wanted is not None
    assert wanted.assignments == [Assignment(model=MODEL, version="1.1.0", bundle=bundle("1.1.0"))]
    assert wanted.probation.duration_s == 7
    assert wanted.retry == [bundle("1.1.0")]
    with fleet.engine.connect() as connection:
        assert connection.execute(select(desired.c.generation, desired.c.published_generation)).one() == (2, 0)


def test_a_lost_race_is_a_normal_return_that_writes_nothing(fleet: Fleet) -> None:
    _with_incumbent(fleet)
    rollout = fleet.create("1.1.0")
    fleet.live()
    fleet.live()
    fleet.devices_update()

    class CommandedMeanwhile(EmbeddedStore):
        """A store during whose reading an operator pauses the rollout."""

        def totals_by_device(self, where: Slice) -> list[DeviceTotals]:
            with suppress(ConflictError):
                command_rollout(fleet.engine, rollout, "pause", "ann", fleet.now_ns)
            return super().totals_by_device(where)

    store = CommandedMeanwhile(fleet.folder / "telemetry.db")
    report = RolloutDriver(fleet.engine, store, fleet.signer, lambda: fleet.now_ns).step()
    store.close()
    assert (report.changed, report.lost, report.failed) == ((), (rollout,), ())
    view = get_rollout(fleet.engine, rollout)
    assert (view.state, view.step, view.reason) == ("PAUSED", "DEPLOYING", "paused by ann")
    assert view.gates == []


def test_two_drivers_at_once_apply_each_transition_once(fleet: Fleet) -> None:
    _with_incumbent(fleet, 10)
    rollout = fleet.create("1.1.0")
    drivers = [fleet.new_driver(), fleet.new_driver()]
    reports = []
    for _ in range(30):
        barrier = threading.Barrier(len(drivers))

        def look(driver: RolloutDriver, barrier: threading.Barrier = barrier) -> None:
            barrier.wait(timeout=10)
            reports.append(driver.step())

        threads = [threading.Thread(target=look, args=(driver,)) for driver in drivers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=30)
        fleet.now_ns += 3 * S
        fleet.devices_update()
        fleet.devices_answer()
    view = get_rollout(fleet.engine, rollout)
    assert view.state == "COMPLETED", view.reason
    assert not any(report.failed for report in reports)
    assert view.revision == 1 + sum(len(report.changed) for report in reports)
    with fleet.engine.connect() as connection:
        assert set(connection.scalars(select(desired.c.generation))) == {2}
        assert connection.scalar(select(func.count()).select_from(rollout_devices)) == 10


def test_a_rollout_whose_stored_policy_is_torn_stays_and_stops_no_other(fleet: Fleet) -> None:
    _with_incumbent(fleet)
    torn = fleet.create("1.1.0")
    with fleet.engine.begin() as connection:
        connection.execute(update(rollouts).where(rollouts.c.id == torn).values(policy={**POLICY, "gates": []}))
    report = fleet.driver.step()
    assert report.failed == (torn,)
    assert fleet.running("1.0.0") == set(fleet.devices)


def test_gate_evaluations_are_kept_when_they_are_news_only(fleet: Fleet) -> None:
    _with_incumbent(fleet)
    rollout = fleet.create("1.1.0", stages=[{"percent": 20, "bake_s": 600}, {"percent": 100, "bake_s": 600}])
    for _ in range(5):
        fleet.live()

    def kept() -> int:
        with fleet.engine.connect() as connection:
            return connection.scalar(select(func.count()).select_from(gate_evaluations)) or 0

    before, revision = kept(), get_rollout(fleet.engine, rollout).revision
    for _ in range(5):
        assert fleet.driver.step().changed == ()
    assert (kept(), get_rollout(fleet.engine, rollout).revision) == (before, revision)
    fleet.live(outcomes=1000)
    assert kept() > before
