"""Every implementation of the telemetry store, as one fixture."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fleet_server.telemetry_store import EmbeddedStore, InfluxStore, TelemetryStore
from tests.real_servers.influxdb import InfluxDB
from tests.real_servers.requirements import note_unverified
from tests.server.telemetry_store.windows import RETENTION_S


@dataclass(frozen=True)
class Place:
    """Where a store keeps its data: `open` gives a new store over the same data every time."""

    open: Callable[[], TelemetryStore]


@pytest.fixture(params=["embedded", "influx"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """An empty place of every implementation, one test each."""
    if request.param == "embedded":
        return Place(open=lambda: EmbeddedStore(tmp_path / "telemetry.db"))
    server: InfluxDB = request.getfixturevalue("influxdb")
    if not server.external:
        reason = "no server of these releases here: set EDGEFLEET_TEST_INFLUX_URL to one to run the same tests on it"
        note_unverified(request.node, "InfluxDB 1.8, 2.x and 3.x", f"{reason} (1.6 with a path rewrite was used)")
    bucket = server.new_bucket()
    return Place(open=lambda: InfluxStore(url=server.url, token=server.token, org=server.org, bucket=bucket))


@pytest.fixture
def store(place: Place) -> Iterator[TelemetryStore]:
    """A store that is set up and empty."""
    opened = place.open()
    opened.set_up(raw_retention_s=RETENTION_S, merged_retention_s=RETENTION_S)
    yield opened
    opened.close()
