"""Fleets to merge, as fixtures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fleet_server.telemetry_store import InfluxStore
from tests.real_servers.influxdb import InfluxDB
from tests.real_servers.postgresql import PostgreSQL
from tests.server.merging.fleets import Fleet, open_fleet
from tests.server.telemetry_store.windows import RETENTION_S


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    """An empty fleet on SQLite and the embedded store."""
    with open_fleet(tmp_path) as opened:
        yield opened


@pytest.fixture(params=["sqlite and embedded", "postgresql and influx"])
def any_fleet(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Fleet]:
    """An empty fleet on what a laptop has, and on what a large fleet has."""
    if request.param == "sqlite and embedded":
        yield request.getfixturevalue("fleet")
        return
    server: InfluxDB = request.getfixturevalue("influxdb")
    postgresql: PostgreSQL = request.getfixturevalue("postgresql")
    store = InfluxStore(url=server.url, token=server.token, org=server.org, bucket=server.new_bucket())
    store.set_up(raw_retention_s=RETENTION_S, merged_retention_s=RETENTION_S)
    with open_fleet(tmp_path, database_url=postgresql.make_database()) as opened:
        yield replace(opened, store=store)
    store.close()
