"""Drift from the devices' windows to what the operator reads: a real broker, a real server, the real commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fleet_protocol.bundle_folder import read_manifest
from fleet_protocol.messages import encode
from fleet_protocol.topics import TopicKind, topic_of
from fleet_server.simulator import DayNight, FleetBehaviour, VirtualFleet, simulate_windows
from fleet_server.simulator.drift import Drift, DriftKind
from tests.end_to_end.fleet import FLEET, MODEL, ROOT, Fleet, eventually
from tests.end_to_end.telemetry.test_intake import assign_version, by_hand
from tests.real_servers.influxdb import InfluxDB

VERSION = "1.1.0"
DEVICES, HOURS = 12, 6
_HOUR_NS = 3_600 * 10**9


def fleet_command(fleet: Fleet, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`fleet ...` against the test's server, as an operator types it."""
    return subprocess.run(
        [sys.executable, "-m", "fleet_server.cli", *arguments, "--server", fleet.url],
        env={**os.environ, "EDGEFLEET_API_KEY_FILE": str(fleet.server_config.parent / "admin.key"), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("store", ["embedded", "influxdb"])
def test_a_feature_that_moves_everywhere_is_told_shown_and_written_down(
    tmp_path: Path, store: str, request: pytest.FixtureRequest
) -> None:
    influxdb: InfluxDB | None = request.getfixturevalue("influxdb") if store == "influxdb" else None
    manifest = read_manifest(ROOT / "models" / MODEL / "bundles" / VERSION)
    end_ns = time.time_ns()
    moved = Drift(kind=DriftKind.FEATURE_SHIFT, feature="brightness", by=1.5, after_s=HOURS / 2 * 3_600)
    virtual = VirtualFleet(
        behaviour=FleetBehaviour(
            rate_per_s=0.1,
            window_s=1_800.0,
            day=DayNight(),
            sites={"lisbon": 0.0, "tokyo": 9.0},
            manifests={(MODEL, VERSION): manifest},
            drifts=(moved,),
        ),
        model=MODEL,
        version=VERSION,
        devices=DEVICES,
        seed=5,
    )
    windows = list(simulate_windows(virtual, start_ns=end_ns - HOURS * _HOUR_NS, end_ns=end_ns))
    with Fleet(tmp_path, influxdb=influxdb) as fleet:
        bundle = str(fleet.publish(VERSION)["bundle"])
        for name in virtual.names:
            with by_hand(fleet, name) as client:
                assign_version(fleet, name, VERSION, bundle)
                for window in windows:
                    if window.device == name:
                        client.publish(topic_of(FLEET, name, TopicKind.TELEMETRY), encode(window))
        eventually(lambda: fleet.ingested("windows") >= len(windows), 20, "every window is taken in")

        told = fleet_command(fleet, "drift", "show", MODEL, VERSION, "--hours", str(HOURS), "--json")
        assert told.returncode == 0, told.stderr
        (report,) = json.loads(told.stdout)["reports"]
        found = {signal["signal"]: signal for signal in report["signals"]}
        assert (report["verdict"], report["seen"]["devices"]) == ("drift", DEVICES)
        assert found["brightness"]["verdict"] == "drift"
        assert found["sharpness"]["verdict"] == "not_found"
        assert "brightness moved by" in report["sentence"] + found["brightness"]["sentence"]

        read = fleet_command(fleet, "drift", "show", MODEL, VERSION, "--hours", str(HOURS))
        assert read.returncode == 0, read.stderr
        assert "brightness" in read.stdout

        page = tmp_path / "drift.html"
        written = fleet_command(fleet, "drift", "report", MODEL, "--hours", str(HOURS), "--out", str(page))
        assert written.returncode == 0, written.stderr
        assert found["brightness"]["sentence"].split(";")[0][:20] in page.read_text("utf-8")
        assert fleet_command(fleet, "drift", "show", "nobody").returncode != 0
