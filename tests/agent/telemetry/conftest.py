"""A device of each test's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agent.telemetry.device import Device


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    """Its windows close when the test says so."""
    opened = Device(tmp_path)
    yield opened
    opened.close()
