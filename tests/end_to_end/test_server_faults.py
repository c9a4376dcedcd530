"""The server, its broker and its store go away and come back: no window is lost, none is counted twice."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

from tests.end_to_end.accounting import require_every_window_once
from tests.end_to_end.fleet import Fleet, eventually
from tests.real_servers.influxdb import InfluxDB
from tests.real_servers.processes import wait_until

Broker = Literal["mosquitto", "embedded"]
BOTH_BROKERS = pytest.mark.parametrize("broker", ["mosquitto", "embedded"])


@pytest.fixture
def own_influxdb(tmp_path: Path) -> Iterator[InfluxDB]:
    """An InfluxDB that this test may stop."""
    with InfluxDB(tmp_path / "influxdb") as server:
        yield server


def stored(fleet: Fleet) -> int:
    """Windows the server has counted."""
    return int(fleet.ingest_status()["windows"])


def kill_server_while_it_takes_in_a_backlog(fleet: Fleet) -> None:
    """Start the server and kill it within moments of its connection, when what waited pours in."""
    seen = fleet.server_log().count("connected to the broker")
    fleet.start_server(wait=False)
    wait_until(lambda: fleet.server_log().count("connected to the broker") > seen, 30, "the server connects")
    fleet.kill_server()


@BOTH_BROKERS
def test_a_server_killed_again_and_again_under_load_loses_no_window_and_counts_none_twice(
    tmp_path: Path, broker: Broker, request: pytest.FixtureRequest
) -> None:
    # what a laptop has, and what a large fleet has
    database_url = request.getfixturevalue("postgresql").make_database() if broker == "mosquitto" else ""
    with Fleet(tmp_path, broker=broker, database_url=database_url) as fleet:
        assert (fleet.data_dir / "fleet.db").exists() == (not database_url)
        devices = [fleet.add_device(f"camera-{number}", window_s=0.1) for number in range(3)]
        for again in (True, False):
            before = stored(fleet)
            eventually(lambda before=before: stored(fleet) > before + 15, 20, "windows are being stored")  # type: ignore[misc] # a bound default
            fleet.kill_server()
            if again:
                kill_server_while_it_takes_in_a_backlog(fleet)
            fleet.start_server()
        require_every_window_once(fleet, devices)


def test_a_server_killed_while_its_influxdb_is_down_stores_everything_once_both_are_back(
    tmp_path: Path, own_influxdb: InfluxDB
) -> None:
    with Fleet(tmp_path, influxdb=own_influxdb) as fleet:
        devices = [fleet.add_device(f"camera-{number}", window_s=0.1) for number in range(2)]
        eventually(lambda: stored(fleet) > 10, 20, "windows are being stored")
        own_influxdb.kill()
        eventually(lambda: fleet.ingested("store_failures") > 0, 20, "the server notices that the store is down")
        before = stored(fleet)
        waiting = {device.name: len(device.outbox()) for device in devices}
        for device in devices:
            eventually(
                lambda device=device: len(device.outbox()) > waiting[device.name] + 15,  # type: ignore[misc] # a bound default
                20,
                f"{device.name} keeps what the server does not confirm",
            )
        assert stored(fleet) == before
        assert not fleet.is_ready()
        fleet.kill_server()
        fleet.start_server()
        own_influxdb.start()
        eventually(fleet.is_ready, 30, "the server is ready again")
        require_every_window_once(fleet, devices)


@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_a_broker_restarted_mid_traffic_loses_no_window_and_repeats_none(tmp_path: Path, how: str) -> None:
    with Fleet(tmp_path) as fleet:
        devices = [fleet.add_device(f"camera-{number}", window_s=0.1) for number in range(3)]
        for _ in range(2):
            before = stored(fleet)
            eventually(lambda before=before: stored(fleet) > before + 15, 20, "windows are being stored")  # type: ignore[misc] # a bound default
            if how == "stopped":
                fleet.stop_broker()
            else:
                fleet.kill_broker()
            answered = devices[0].answered()
            eventually(lambda answered=answered: devices[0].answered() > answered, 10, "devices answer without it")  # type: ignore[misc] # a bound default
            fleet.start_broker()
        require_every_window_once(fleet, devices)


def test_a_broker_that_comes_last_finds_the_devices_windows_of_before(tmp_path: Path) -> None:
    with Fleet(tmp_path, start=("server",)) as fleet:
        device = fleet.add_device("camera-1", window_s=0.1)
        assert not fleet.is_ready()
        eventually(lambda: len(device.outbox()) > 10, 20, "windows wait on the device")
        assert device.answered() > 0
        assert fleet.windows("camera-1") == []
        fleet.start_broker()
        require_every_window_once(fleet, [device])


@BOTH_BROKERS
def test_a_server_that_comes_after_the_devices_gets_the_windows_of_before(tmp_path: Path, broker: Broker) -> None:
    with Fleet(tmp_path, broker=broker, start=("server",)) as fleet:
        device = fleet.add_device("camera-1", window_s=0.1, start=False)
        fleet.stop_server()
        fleet.start_broker()  # it has never seen the server, and drops what nobody listens to
        device.start()
        started_s = time.monotonic()
        eventually(lambda: device.status()["windows"] > 15, 20, "windows were made without a server")
        assert time.monotonic() - started_s < 15
        fleet.start_server()
        require_every_window_once(fleet, [device])
