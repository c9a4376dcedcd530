"""Hundreds of virtual devices on a real broker and a real ingest: nothing lost, nothing twice, rollouts followed."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from sqlalchemy import select

from fleet_protocol.keys import PrivateKey
from fleet_protocol.messages import Phase
from fleet_server.database.tables import devices
from fleet_server.errors import InvalidRequestError
from fleet_server.message_bus import PahoBus
from fleet_server.simulator import Behaviour, FleetBehaviour, Simulation
from fleet_server.telemetry_store import Slice
from tests.real_servers.processes import free_port, wait_until
from tests.server.simulator.server_side import FLEET, MODEL, PASSWORD, ServerSide, running_broker

_BEHAVIOUR = FleetBehaviour(
    rate_per_s=40,
    window_s=1.0,
    update_s=0.4,
    by_version={
        "1.0.0": Behaviour(accuracy=0.93),
        "1.1.0": Behaviour(accuracy=0.96),
        "1.2.0": Behaviour(accuracy=0.10),
    },
)


@pytest.fixture
def silent_side(tmp_path: Path) -> Iterator[ServerSide]:
    """A broker that nobody listens to yet."""
    with running_broker(tmp_path) as running:
        yield running


@pytest.fixture
def side(silent_side: ServerSide) -> Iterator[ServerSide]:
    """The whole server's side at work."""
    with silent_side.listening():
        yield silent_side


def simulation(side: ServerSide, devices: int, behaviour: FleetBehaviour = _BEHAVIOUR) -> Simulation:
    return Simulation(
        bus=side.bus("simulator"),
        fleet=FLEET,
        devices=devices,
        behaviour=behaviour,
        director_keys=[side.director.public],
        confirm_timeout_s=3.0,
    )


def heard(side: ServerSide, *, online: bool) -> int:
    """How many devices reported and are online, or not."""
    query = select(devices.c.device).where(devices.c.online == online, devices.c.reported_sequence > 0)
    with side.engine.connect() as connection:
        return len(connection.execute(query).all())


def assert_stored_once(side: ServerSide, fleet: Simulation) -> None:
    everything = Slice(fleet=FLEET, start_ns=0, end_ns=time.time_ns())
    stored = side.store.windows(everything, limit=1_000_000)
    told = fleet.summary()
    assert told.windows > 0
    assert len({(window.device, window.sequence) for window in stored}) == len(stored) == told.windows
    assert sum(window.count for window in stored) == told.predictions
    assert sum(window.outcomes.correct for window in stored if window.outcomes) == told.correct
    assert side.counted()[0] == told.windows
    assert (told.unconfirmed, told.dropped, told.refused) == (0, 0, 0)


@pytest.mark.timeout(300)
def test_two_hundred_devices_follow_a_rollout_to_its_end_and_a_broken_version_back(side: ServerSide) -> None:
    side.publish("1.0.0", "1.1.0", "1.2.0")
    fleet = simulation(side, 200)
    fleet.start()
    try:
        wait_until(lambda: heard(side, online=True) == 200, 30, "every device reports")
        for version in ("1.0.0", "1.1.0"):
            view = side.roll_out(version, "COMPLETED")
            assert view.state == "COMPLETED", view.reason
            assert fleet.summary().versions == {f"{MODEL} {version}": 200}
        broken = side.roll_out("1.2.0", "ROLLED_BACK")
        assert broken.state == "ROLLED_BACK", broken.reason
        assert broken.reason.startswith("outcome_accuracy")
        assert broken.exposed_count == 20
        assert fleet.summary().versions == {f"{MODEL} 1.1.0": 200}
    finally:
        confirmed = fleet.stop()
    assert confirmed
    assert_stored_once(side, fleet)
    wait_until(lambda: heard(side, online=False) == 200, 10, "every device is offline")


@pytest.mark.timeout(300)
def test_every_window_is_stored_exactly_once_though_the_broker_is_killed_twice(side: ServerSide) -> None:
    side.publish("1.0.0")
    fleet = simulation(side, 60)
    fleet.start()
    try:
        wait_until(lambda: heard(side, online=True) == 60, 30, "every device reports")
        assert side.roll_out("1.0.0", "COMPLETED").state == "COMPLETED"
        for _ in range(2):
            before = side.counted()[0]
            wait_until(lambda before=before: side.counted()[0] > before + 60, 30, "telemetry flows")  # type: ignore[misc] # mypy cannot see a bound default
            side.broker.kill()
            side.broker.start()
    finally:
        confirmed = fleet.stop(drain_s=60)
    assert confirmed
    assert_stored_once(side, fleet)


@pytest.mark.timeout(300)
def test_windows_that_the_broker_took_and_lost_are_sent_again(silent_side: ServerSide) -> None:
    side = silent_side
    side.publish("1.0.0")
    fleet = simulation(side, 20)
    fleet.start()
    try:
        with side.listening():
            wait_until(lambda: heard(side, online=True) == 20, 30, "every device reports")
            assert side.roll_out("1.0.0", "COMPLETED").state == "COMPLETED"
        published = fleet.summary().published
        wait_until(lambda: fleet.summary().published > published + 40, 30, "windows wait in the broker")
        side.broker.kill()
        for kept in side.broker.folder.glob("mosquitto.db*"):
            kept.unlink()
        side.broker.start()
        with side.listening():
            assert fleet.stop(drain_s=60)
            assert_stored_once(side, fleet)
    finally:
        fleet.stop(drain_s=0)


def test_devices_that_revert_by_themselves_stop_a_rollout_and_answer_for_it(side: ServerSide) -> None:
    side.publish("1.0.0", "2.0.0")
    reverting = {"2.0.0": Behaviour(ends_in=Phase.REVERTED)}
    behaviour = FleetBehaviour(rate_per_s=40, window_s=1.0, update_s=0.2, by_version=reverting)
    fleet = simulation(side, 20, behaviour)
    fleet.start()
    try:
        wait_until(lambda: heard(side, online=True) == 20, 30, "every device reports")
        assert side.roll_out("1.0.0", "COMPLETED").state == "COMPLETED"
        view = side.roll_out("2.0.0", "ROLLED_BACK")
        assert view.reason.startswith("update_failures"), view.reason
        assert fleet.summary().versions == {f"{MODEL} 1.0.0": 20}
    finally:
        assert fleet.stop()


def test_a_desired_state_of_another_signer_is_refused(side: ServerSide) -> None:
    side.publish("1.0.0")
    fleet = Simulation(
        bus=side.bus("simulator"),
        fleet=FLEET,
        devices=3,
        behaviour=_BEHAVIOUR,
        director_keys=[PrivateKey.generate().public],
    )
    fleet.start()
    try:
        wait_until(lambda: heard(side, online=True) == 3, 30, "every device reports")
        side.create("1.0.0")
        wait_until(lambda: fleet.summary().refused > 0, 20, "a device refuses")
        assert fleet.summary().versions == {}
    finally:
        assert fleet.stop()


def test_a_simulation_that_never_finds_a_broker_ends_all_the_same() -> None:
    bus = PahoBus(url=f"mqtt://127.0.0.1:{free_port()}", client_id="x", username=None, password=None)
    fleet = Simulation(bus=bus, fleet=FLEET, devices=5, behaviour=_BEHAVIOUR)
    fleet.start()
    assert fleet.stop(drain_s=0.2)  # nothing to confirm: no model, no windows
    assert fleet.summary().published == 0


@pytest.mark.parametrize("devices", [0, 100_001])
def test_a_number_of_devices_that_no_process_carries_is_refused(side: ServerSide, devices: int) -> None:
    with pytest.raises(InvalidRequestError, match="devices"):
        simulation(side, devices)


def test_the_command_runs_for_its_duration_and_ends_with_a_summary(side: ServerSide, tmp_path: Path) -> None:
    (tmp_path / "password").write_text(PASSWORD + "\n")
    arguments = ["simulate", "--mqtt-url", side.broker.url, "--fleet", FLEET, "--devices", "30", "--duration", "1.5"]
    done = subprocess.run(
        [sys.executable, "-m", "fleet_server.cli", *arguments, "--password-file", tmp_path / "password", "--json"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    summary = msgspec.json.decode(done.stdout.splitlines()[-1])
    assert (summary["devices"], summary["unconfirmed"]) == (30, 0)
    wait_until(lambda: heard(side, online=False) == 30, 20, "every device came and went")
