"""The fleet the driver's tests run on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.rollouts.fleet import Fleet


@pytest.fixture
def fleet(tmp_path: Path, database_url: str) -> Iterator[Fleet]:
    """An empty fleet with versions 1.0.0 and 1.1.0 published, on each database."""
    made = Fleet(tmp_path, database_url)
    made.publish("1.0.0")
    made.publish("1.1.0")
    yield made
    made.close()
