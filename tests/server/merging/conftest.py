"""Fleets to merge, as fixtures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fleet_server.telemetry_store import InfluxStore
from tests.real_servers.influxdb import InfluxDB
from tests.server.merging.fleets import Fleet, open_fleet
from tests.server.telemetry_store.windows import RETENTION_S


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    """An empty fleet on SQLite and the embedded store."""
    with open_fleet(tmp_path) as opened:
        yield opened


@pytest.fixture(params=["embedded", "influx"])
def any_fleet(request: pytest.FixtureRequest, fleet: Fleet) -> Iterator[Fleet]:
    """The same, over each store."""
    if request.param == "embedded":
        yield fleet
        return
    server: InfluxDB = request.getfixturevalue("influxdb")
    store = InfluxStore(url=server.url, token=server.token, org=server.org, bucket=server.new_bucket())
    store.set_up(raw_retention_s=RETENTION_S, merged_retention_s=RETENTION_S)
    yield replace(fleet, store=store)
    store.close()
