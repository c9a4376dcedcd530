"""The real driver and devices' real update machines, over a channel that loses, repeats and reorders.

The server's side is the driver, the publisher, the ingest's record of reports and the embedded telemetry store, on a
database in memory; the devices' side is `joint_device`. Either side restarts, devices lose power between durable
writes, clocks jump, people command, somebody forges. DESIGN.md's invariants are checked after every step, and at the
end, once messages flow again, every rollout comes to an end and every device to what it is told.
`EDGEFLEET_JOINT_EXAMPLES` sets how many runs, for longer searches; these also look for the shortest failing run, which
takes minutes.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import Phase as HypothesisPhase
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from sqlalchemy import StaticPool, create_engine, insert, select

from fleet_protocol.envelope import DESIRED_TYPE, sign_envelope
from fleet_protocol.keys import PrivateKey
from fleet_protocol.messages import Assignment, Desired, Outcomes, Phase, Presence, Reported, Window, encode
from fleet_protocol.topics import TopicKind, topic_of
from fleet_server.database.tables import desired, devices, metadata, models, rollout_devices, rollouts, versions
from fleet_server.errors import UserError
from fleet_server.ingest.device_records import record_presences, record_reports
from fleet_server.message_bus.port import Outgoing
from fleet_server.rollouts.cohorts import stage_size
from fleet_server.rollouts.driver import RolloutDriver
from fleet_server.rollouts.policy import parse_policy
from fleet_server.rollouts.publisher import DesiredPublisher
from fleet_server.rollouts.repository import command_rollout, create_rollout, get_rollout
from fleet_server.rollouts.views import RolloutView
from fleet_server.rollouts.work_share import WorkShare
from fleet_server.telemetry_store.embedded import EmbeddedStore
from tests.server.rollouts.joint_device import FAILS_TO_LOAD, LOADS, REVERTS, JointDevice

_SEARCH = os.environ.get("EDGEFLEET_JOINT_EXAMPLES")
FLEET, MODEL = "acme", "digits"
S = 1_000_000_000
NAMES = tuple(f"device-{number}" for number in range(6))
VERSIONS = {
    "1.0.0": (LOADS, 98),
    "1.1.0": (LOADS, 98),
    "1.2.0": (LOADS, 30),
    "1.3.0": (FAILS_TO_LOAD, 98),
    "1.4.0": (REVERTS, 98),
}
BUNDLES = {version: version.replace(".", "").rjust(64, "0") for version in VERSIONS}
GATES = [{"gate": "update_failures"}, {"gate": "outcome_accuracy", "max_drop": 0.15}]
POLICIES: list[dict[str, Any]] = [
    {"stages": [{"percent": 50, "bake_s": 10}, {"percent": 100, "bake_s": 10}], "control": {"percent": 34}},
    {"stages": [{"count": 2, "bake_s": 10}, {"percent": 100, "bake_s": 5}], "retry": {"attempts": 1, "after_s": 5}},
    {"stages": [{"percent": 100, "bake_s": 10, "needs_approval": True}], "rate": {"per_minute": 10}},
    {"stages": [{"percent": 100, "bake_s": 10}], "on_fail": "pause", "on_inconclusive": "rollback"},
]
ENDS = ("COMPLETED", "ROLLED_BACK", "CANCELED")


class _Broker:
    """The message bus of these tests: it keeps what is retained, and everything that was ever sent."""

    def __init__(self) -> None:
        self.retained: dict[str, bytes] = {}
        self.sent: list[tuple[str, bytes]] = []

    def publish(self, messages: Sequence[Outgoing], *, timeout_s: float) -> None:
        for message in messages:
            self.retained[message.topic] = message.payload
            self.sent.append((message.topic, message.payload))


class ServerAndDevices(RuleBasedStateMachine):
    """One fleet of six devices and one model."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(prefix="edgefleet-joint-")
        self.engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
        metadata.create_all(self.engine)
        self.store = EmbeddedStore(Path(self.folder.name) / "telemetry.db")
        self.signer, self.thief = PrivateKey.generate(), PrivateKey.generate()
        self.broker = _Broker()
        self.now_ns = 1_700_000_000 * S
        self.uplink: list[Reported] = []
        self.window = 0
        self.before: RolloutView | None = None
        self.rollout = ""
        self.held: set[str] = set()
        self.truth_is_told = True
        released = {BUNDLES[version]: behaviour for version, (behaviour, _) in VERSIONS.items()}
        self.devices = {
            name: JointDevice(name=name, fleet=FLEET, model=MODEL, director=self.signer.public, released=released)
            for name in NAMES
        }
        self.restart_server()

    @initialize(version=st.sampled_from(sorted(VERSIONS)), policy=st.sampled_from(POLICIES))
    def a_fleet_on_its_first_version_and_a_rollout_of_another(self, version: str, policy: dict[str, Any]) -> None:
        with self.engine.begin() as connection:
            connection.execute(insert(models).values(model=MODEL, created_ns=1))
            for name, bundle in BUNDLES.items():
                manifest = {"variants": [{"name": "int8", "expected": {"accuracy": 0.98}}]}
                row = {"version": name, "bundle": bundle, "manifest": manifest, "published_by": "x"}
                connection.execute(insert(versions).values(model=MODEL, published_ns=1, **row))
        for name in NAMES:
            self.hear(self.devices[name].report(self.now_ns))
            self.tell_presence(name)
        self.create("1.0.0", {"stages": [{"percent": 100, "bake_s": 1}], "control": {"percent": 0}})
        self.let_everything_flow()
        assert {device.active.version for device in self.devices.values() if device.active} == {"1.0.0"}
        self.create(version, policy)
        self.the_driver_looks()
        self.the_driver_looks_and_the_publisher_publishes()

    def restart_server(self) -> None:
        always = WorkShare(spent=lambda: 0.0)  # what a look costs must not decide what is seen
        self.driver = RolloutDriver(self.engine, self.store, self.signer, lambda: self.now_ns, share=always)
        self.publisher = DesiredPublisher(bus=self.broker, engine=self.engine, fleet=FLEET)  # type: ignore[arg-type] # it only publishes

    def create(self, version: str, policy: dict[str, Any]) -> None:
        self.before, self.held = None, set()
        self.rollout = create_rollout(
            self.engine,
            fleet=FLEET,
            model=MODEL,
            version=version,
            policy_json={"salt": "joint", "gates": GATES, "deploy_deadline_s": 60, "max_bake_extensions": 1, **policy},
            created_by="ann",
            now_ns=self.now_ns,
        )

    def hear(self, report: Reported) -> None:
        with self.engine.begin() as connection:
            record_reports(connection, FLEET, [report], now_ns=self.now_ns)

    def tell_presence(self, name: str) -> None:
        device = self.devices[name]
        presence = Presence(device=name, boot_id=f"{device.boot:08x}-00000001", online=device.online, at_ns=self.now_ns)
        with self.engine.begin() as connection:
            record_presences(connection, FLEET, [presence], now_ns=self.now_ns)

    def latest(self) -> RolloutView:
        return get_rollout(self.engine, self.rollout)

    def is_over(self) -> bool:
        with self.engine.connect() as connection:
            state = connection.scalar(select(rollouts.c.state).where(rollouts.c.id == self.rollout))
        return state in ENDS

    @precondition(lambda self: self.is_over())
    @rule(version=st.sampled_from(sorted(VERSIONS)), policy=st.sampled_from(POLICIES))
    def somebody_creates_a_rollout(self, version: str, policy: dict[str, Any]) -> None:
        self.now_ns += 1
        self.create(version, policy)

    @rule()
    def the_driver_looks_and_the_publisher_publishes(self) -> None:
        report = self.driver.step()
        assert not report.failed
        self.publisher.publish_due()
        self.check_what_the_server_did()

    @rule()
    def the_driver_looks(self) -> None:
        assert not self.driver.step().failed
        self.check_what_the_server_did()

    @rule()
    def the_server_restarts(self) -> None:
        self.restart_server()

    @rule()
    def the_broker_loses_what_it_kept(self) -> None:
        self.broker.retained.clear()
        with self.engine.begin() as connection:
            connection.execute(desired.update().values(published_generation=0))

    @rule(data=st.data())
    def any_desired_state_that_was_ever_sent_arrives(self, data: st.DataObject) -> None:
        if self.broker.sent:
            _, payload = data.draw(st.sampled_from(self.broker.sent))
            for device in self.devices.values():  # of which it is meant for one
                device.receive(payload)

    @rule()
    def what_the_broker_keeps_arrives_at_who_is_online(self) -> None:
        for device in self.devices.values():
            payload = self.broker.retained.get(_topic(device.name))
            if device.online and payload is not None:
                device.receive(payload)

    @rule(name=st.sampled_from(NAMES), version=st.sampled_from(sorted(VERSIONS)), ahead=st.integers(1, 9))
    def somebody_forges_a_desired_state(self, name: str, version: str, ahead: int) -> None:
        device = self.devices[name]
        word = Desired(
            fleet=FLEET,
            device=name,
            generation=device.state.generation + ahead,
            issued_at_ns=self.now_ns,
            assignments=[Assignment(model=MODEL, version=version, bundle=BUNDLES[version])],
        )
        before = device.state
        device.receive(sign_envelope(DESIRED_TYPE, encode(word), [self.thief]))
        assert device.state == before

    @rule(name=st.sampled_from(NAMES), steps=st.integers(1, 6))
    def a_device_works(self, name: str, steps: int) -> None:
        for _ in range(steps):
            self.devices[name].work()
        self.say(name)

    @rule()
    def every_device_works(self) -> None:
        for name in NAMES:
            while self.devices[name].work():
                self.devices[name].check()
            self.say(name)

    def say(self, name: str) -> None:
        device = self.devices[name]
        if device.online:
            self.uplink.append(device.report(self.now_ns))

    @rule(name=st.sampled_from(NAMES), machine_restarted=st.booleans())
    def a_device_loses_power_or_its_process(self, name: str, machine_restarted: bool) -> None:
        device = self.devices[name]
        device.start_again(machine_restarted=machine_restarted)
        self.say(name)

    @rule(name=st.sampled_from(NAMES))
    def a_device_goes_dark_or_comes_back(self, name: str) -> None:
        self.devices[name].online = not self.devices[name].online
        self.tell_presence(name)
        self.say(name)

    @rule(data=st.data())
    def any_report_arrives_again_or_late(self, data: st.DataObject) -> None:
        if self.uplink:
            self.hear(data.draw(st.sampled_from(self.uplink[-12:])))

    @rule()
    def the_newest_reports_arrive(self) -> None:
        for name in NAMES:
            mine = [report for report in self.uplink if report.device == name]
            if mine:
                self.hear(mine[-1])

    @rule()
    def reports_get_lost(self) -> None:
        self.uplink.clear()

    @rule()
    def devices_answer_and_learn_the_truth(self) -> None:
        self.now_ns += S
        windows = []
        for device in self.devices.values():
            if device.active is None or not device.online:
                continue
            self.window += 1
            right = VERSIONS[device.active.version][1]
            outcomes = Outcomes(correct=right, wrong=100 - right) if self.truth_is_told else Outcomes()
            windows.append(
                Window(
                    device=device.name,
                    boot_id="0000ffff-00000001",
                    sequence=self.window,
                    model=MODEL,
                    version=device.active.version,
                    variant="int8",
                    arm="main",
                    start_ns=self.now_ns - S,
                    end_ns=self.now_ns,
                    count=100,
                    outcomes=outcomes,
                )
            )
        self.store.write(FLEET, windows)

    @rule()
    def nobody_tells_the_truth_any_more(self) -> None:
        self.truth_is_told = False

    @rule(seconds=st.sampled_from([1, 6, 12, 70]))
    def time_passes(self, seconds: int) -> None:
        self.now_ns += seconds * S

    @rule(seconds=st.sampled_from([-40, -5, 90]))
    def the_servers_clock_jumps(self, seconds: int) -> None:
        self.now_ns += seconds * S

    @rule(
        command=st.sampled_from(["approve", "pause", "resume", "abort", "rollback"]),
        actor=st.sampled_from(["ann", "bob"]),
    )
    def somebody_commands(self, command: str, actor: str) -> None:
        view = self.latest()
        try:
            command_rollout(self.engine, view.id, command, actor, self.now_ns)
        except UserError:
            return
        assert (command, actor) != ("approve", "ann"), "nobody approves a rollout of their own"

    def check_what_the_server_did(self) -> None:
        earlier, view = self.before, self.latest()
        self.before = view
        if earlier is None or earlier == view:
            return
        overall = {gate.gate: gate.verdict for gate in view.gates if not gate.segment}
        moved_on = view.stage > earlier.stage or view.step == "RELEASING" != earlier.step
        if moved_on or (view.state == "COMPLETED" and earlier.step == "GATING"):
            wanted = {gate["gate"] for gate in GATES}
            assert {gate for gate, verdict in overall.items() if verdict == "pass"} == wanted, view
        if view.state == "ROLLED_BACK" != earlier.state:
            self.check_that_devices_say_they_are_back(view)

    def check_that_devices_say_they_are_back(self, view: RolloutView) -> None:
        with self.engine.connect() as connection:
            told = {
                row.device: row
                for row in connection.execute(select(devices.c.device, devices.c.reported, devices.c.online))
            }
        for each in view.devices:
            row = told[each.device]
            assert each.restored
            if row.online:
                report = row.reported
                (told_of,) = [model for model in report["models"] if model["model"] == MODEL]
                assert report["generation"] >= each.assigned_generation
                assert told_of["active"] != view.bundle or each.incumbent_version == view.version
                runs_old = told_of["version"] == each.incumbent_version
                assert runs_old or Phase(told_of["phase"]).is_failure, "a reachable device says what it runs"

    @invariant()
    def every_device_keeps_its_promises(self) -> None:
        for device in self.devices.values():
            device.check()
            if device.has_worked:
                assert device.active is not None, "a device that had a working model has one"

    @invariant()
    def stages_hold_no_more_than_allowed_and_control_is_left_alone(self) -> None:
        with self.engine.connect() as connection:
            rows = connection.execute(select(rollout_devices)).all()
            now = {row.device: row for row in connection.execute(select(desired))}
        view = self.before
        if view is None or view.state in ENDS:
            return
        mine = [row for row in rows if row.rollout_id == view.id]
        exposed = [row for row in mine if not row.is_control]
        if view.step in ("DEPLOYING", "BAKING", "GATING"):
            stage = parse_policy(view.policy).stages[view.stage]
            assert len(exposed) <= stage_size(len(NAMES), stage), view
            assert not self.held & {row.device for row in exposed}, "control is exposed before its release"
        self.held |= {row.device for row in mine if row.is_control}
        for row in mine:
            if row.is_control:
                assert now[row.device].assignments == row.incumbent["assignments"], "control stays as it was"

    def let_everything_flow(self) -> None:
        """Messages arrive, devices work, time passes, until the rollout is over; a person decides where one must."""
        for name in NAMES:
            self.devices[name].online = True
            self.tell_presence(name)
        for turn in range(120):
            view = self.latest()
            if view.state in ENDS and turn:
                break
            try:
                if view.state == "AWAITING_APPROVAL":
                    self.somebody_commands("approve", "ann")
                    command_rollout(self.engine, view.id, "approve", "bob", self.now_ns)
                elif view.state == "PAUSED":
                    command_rollout(self.engine, view.id, "rollback", "bob", self.now_ns)
            except UserError:
                command_rollout(self.engine, view.id, "abort", "bob", self.now_ns)
            self.the_driver_looks()
            self.the_driver_looks_and_the_publisher_publishes()  # before anything of the first look has arrived
            self.stages_hold_no_more_than_allowed_and_control_is_left_alone()
            self.what_the_broker_keeps_arrives_at_who_is_online()
            self.every_device_works()
            self.every_device_keeps_its_promises()
            self.the_newest_reports_arrive()
            self.now_ns += 3 * S
            self.devices_answer_and_learn_the_truth()
        view = self.latest()
        assert view.state in ENDS, f"{view.state} {view.step} {view.next.what}: {view.reason} {view.phases}"

    def teardown(self) -> None:
        try:
            if self.rollout:
                self.let_everything_flow()
                self.check_that_devices_run_what_they_are_told()
        finally:
            self.store.close()
            self.engine.dispose()
            self.folder.cleanup()

    def check_that_devices_run_what_they_are_told(self) -> None:
        self.publisher.publish_due()
        self.what_the_broker_keeps_arrives_at_who_is_online()
        self.every_device_works()
        with self.engine.connect() as connection:
            told = dict(connection.execute(select(desired.c.device, desired.c.assignments)).all())
        for name, assignments in told.items():
            device = self.devices[name]
            if device.phase is Phase.HEALTHY:
                assert device.active is not None
                assert [entry["bundle"] for entry in assignments] == [device.active.bundle]
            else:
                assert device.phase in (Phase.FAILED, Phase.REVERTED, Phase.REJECTED, None)


def _topic(name: str) -> str:
    return topic_of(FLEET, name, TopicKind.DESIRED)


TestServerAndDevices = ServerAndDevices.TestCase
TestServerAndDevices.settings = settings(
    max_examples=int(_SEARCH or 15),
    stateful_step_count=30,
    deadline=None,
    phases=(HypothesisPhase.reuse, HypothesisPhase.generate, *([HypothesisPhase.shrink] if _SEARCH else [])),
    suppress_health_check=list(HealthCheck),
)
