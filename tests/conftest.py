"""Real servers as fixtures, the closing list of what this machine could not verify, and Hypothesis' settings:
the same examples on every run, and no deadline on a loaded machine.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy: threads that spin for small matrices slow a small machine

import pytest
from hypothesis import settings

from tests.real_servers.influxdb import InfluxDB
from tests.real_servers.mosquitto import Mosquitto
from tests.real_servers.postgresql import PostgreSQL
from tests.real_servers.requirements import unverified

settings.register_profile("edgefleet", deadline=None, max_examples=60, derandomize=True)
settings.load_profile("edgefleet")


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[Mosquitto]:
    """A running Mosquitto of this test's own: no passwords, persistence on."""
    with Mosquitto(tmp_path / "mosquitto") as broker:
        yield broker


@pytest.fixture(scope="session")
def influxdb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InfluxDB]:
    """A running InfluxDB shared by the session: use a bucket of your own (`new_bucket`), and never stop it."""
    with InfluxDB(tmp_path_factory.mktemp("influxdb")) as server:
        yield server


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    """A running PostgreSQL shared by the session: use a database of your own (`make_database`)."""
    with PostgreSQL() as server:
        yield server


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List every real part that was not there, with its reason."""
    reports = (
        report
        for outcome in ("passed", "failed", "error", "skipped", "")
        for report in terminalreporter.stats.get(outcome, [])
        if isinstance(report, pytest.TestReport)
    )
    lines = unverified(reports)
    if lines:
        terminalreporter.section("not verified on this machine:")
        for line in lines:
            terminalreporter.write_line(f"- {line}")
