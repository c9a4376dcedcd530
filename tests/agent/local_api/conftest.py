"""A running local API over small models."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_agent.local_api.limits import Timeouts
from edge_agent.local_api.server import LocalApi
from tests.agent.local_api.small_service import SmallService
from tests.agent.runtime import onnx_files

MAX_BODY_BYTES = 256 * 1024
TIMEOUTS = Timeouts(idle_s=0.6, spare_s=0.1, header_s=0.4, body_s=0.8, write_s=0.6, linger_s=0.4)


@pytest.fixture
def service(tmp_path: Path) -> SmallService:
    """One model, "linear", with the labels no and yes."""
    return SmallService({"linear": onnx_files.linear(tmp_path / "linear.onnx")}, labels=("no", "yes"))


@pytest.fixture
def port(service: SmallService) -> Iterator[int]:
    """The port of a server with ordinary timeouts."""
    with LocalApi(service=service, host="127.0.0.1", port=0, max_body_bytes=MAX_BODY_BYTES, max_waiting=8) as api:
        assert api.port is not None
        yield api.port


@pytest.fixture
def hasty_port(service: SmallService) -> Iterator[int]:
    """The port of a server whose timeouts are short."""
    with LocalApi(
        service=service, host="127.0.0.1", port=0, max_body_bytes=MAX_BODY_BYTES, timeouts=TIMEOUTS, max_connections=4
    ) as api:
        assert api.port is not None
        yield api.port
