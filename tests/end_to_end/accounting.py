"""The fleet's books: what the devices counted themselves, against what the server stored."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from fleet_protocol.messages import Window
from tests.end_to_end.fleet import Device, Fleet, eventually

_DRAIN_TIMEOUT_S = 45.0
_ON_THEIR_WAY_NS = 800_000_000
"""The span of windows that may be unconfirmed while a device works undisturbed."""


def require_every_window_once(fleet: Fleet, devices: Sequence[Device]) -> None:
    """Stop `devices`, each started once, and compare: every window stored, none twice, the sums equal.

    Broker, server and store must be there again. Raises AssertionError.
    """
    wait_until_drained(fleet, devices)
    for device in devices:
        assert device.stop() == 0, device.log()
    for device in devices:
        made = device.status()["windows"]
        eventually(
            lambda device=device, made=made: len(fleet.windows(device.name)) >= made,  # type: ignore[misc] # a bound default
            _DRAIN_TIMEOUT_S,
            f"the server has all {made} windows of {device.name}, it has {len(fleet.windows(device.name))}",
        )
        windows = fleet.windows(device.name)
        assert len(windows) == made
        assert len({window["boot_id"] for window in windows}) == 1
        assert sum(window["count"] for window in windows) == device.answered()
        assert device.status()["errors"] == 0
    status = fleet.ingest_status()
    assert status["windows"] == sum(device.status()["windows"] for device in devices)
    assert status["missing"] == 0, status["incomplete"]


def wait_until_drained(fleet: Fleet, devices: Sequence[Device]) -> None:
    """Return when each device's link works again and only its newest windows are still on their way."""
    now_ns = time.time_ns()
    for device in devices:
        eventually(
            lambda device=device: fleet.windows(device.name, start_ns=now_ns) and _age_ns(device) < _ON_THEIR_WAY_NS,  # type: ignore[misc] # a bound default
            _DRAIN_TIMEOUT_S,
            f"{device.name} has delivered its outbox",
        )


def _age_ns(device: Device) -> int:
    """How long ago the oldest window ended that no server has confirmed; 0 without any."""
    now_ns = time.time_ns()
    return now_ns - min((window.end_ns for window in device.outbox()), default=now_ns)


def identities(windows: Sequence[Mapping[str, Any]]) -> set[tuple[str, int, int]]:
    """(boot id, sequence, end) of stored windows."""
    return {(window["boot_id"], window["sequence"], window["end_ns"]) for window in windows}


def identities_of(windows: Sequence[Window]) -> set[tuple[str, int, int]]:
    """(boot id, sequence, end) of windows on a device."""
    return {(window.boot_id, window.sequence, window.end_ns) for window in windows}
