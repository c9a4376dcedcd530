"""The fleet's books: what the devices counted themselves, against what the server stored."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from fleet_protocol.messages import Window
from tests.end_to_end.fleet import Device, Fleet, eventually

_DRAIN_TIMEOUT_S = 45.0
_GOODBYE_TIMEOUT_S = 10.0
_ON_THEIR_WAY_NS = 800_000_000
"""The span of windows that may be unconfirmed while a device works undisturbed."""


def require_every_window_once(fleet: Fleet, devices: Sequence[Device]) -> None:
    """Stop `devices`, each started once, and compare: every window stored, none twice, the sums equal.

    Broker, server and store must be there again. Raises AssertionError.
    """
    wait_until_drained(fleet, devices)
    for device in devices:
        assert device.stop() == 0, device.log()
    own_counts = {device.name: (device.status(), device.answered()) for device in devices}
    for device in devices:
        status, answered = own_counts[device.name]
        made = status["windows"]
        if not _arrive(fleet, device, made):
            _deliver_what_is_left(device)
        windows = _of_the_first_boot(fleet, device)
        assert len(windows) == made
        assert sum(window["count"] for window in windows) == answered
        assert status["errors"] == 0
    ingested = fleet.ingest_status()
    assert ingested["windows"] == sum(len(fleet.windows(device.name)) for device in devices)
    assert ingested["missing"] == 0, ingested["incomplete"]


def _arrive(fleet: Fleet, device: Device, made: int) -> bool:
    """Whether what a stopped device handed to the broker comes to be stored by itself."""
    try:
        return bool(eventually(lambda: len(_of_the_first_boot(fleet, device)) >= made, _GOODBYE_TIMEOUT_S, "all is in"))
    except AssertionError:
        return False


def _deliver_what_is_left(device: Device) -> None:
    """Start a stopped device again for as long as it takes to deliver what its goodbye was too short for."""
    left = identities_of(device.outbox())
    assert left, f"windows of {device.name} are neither stored nor kept:\n{device.log()}"
    device.start()
    eventually(
        lambda: not left & identities_of(device.outbox()),
        _DRAIN_TIMEOUT_S,
        f"{device.name} delivers what it kept over its stop:\n{device.log()}",
    )
    assert device.stop() == 0, device.log()


def _of_the_first_boot(fleet: Fleet, device: Device) -> list[dict[str, Any]]:
    windows = fleet.windows(device.name)
    first = min(windows, key=lambda window: window["start_ns"], default=None)
    return [window for window in windows if first is not None and window["boot_id"] == first["boot_id"]]


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
