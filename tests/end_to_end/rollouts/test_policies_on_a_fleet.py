"""Rollout policies on a real fleet: the server, Mosquitto and two devices that answer digits all the time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fleet_server.cli.client import open_client
from fleet_server.errors import FleetError
from tests.end_to_end.fleet import Fleet, eventually

_DEVICES = ("press-1", "press-2")
_WAIT_S = 60.0
_POLICY: dict[str, Any] = {
    "stages": [{"percent": 100, "bake_s": 0.5}],
    "max_bake_extensions": 100,
    "deploy_deadline_s": 60,
    "control": {"percent": 0},
    # a shared machine's latency is not what these tests are about
    "probation": {"duration_s": 0.5, "min_inferences": 10, "max_p95_latency_ratio": 1000.0, "max_memory_ratio": 1000.0},
    "gates": [{"gate": "update_failures", "max_share": 0.4}],
}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Two devices that came to 1.0.0 by a first rollout."""
    with Fleet(tmp_path_factory.mktemp("policies")) as made:
        for device in _DEVICES:
            made.add_device(device, from_fleet=True)
        made.publish("1.0.0")
        made.publish("1.1.0")
        _wait_for(made, made.roll_out("1.0.0", _POLICY), "COMPLETED")
        yield made


def _wait_for(fleet: Fleet, rollout: str, state: str) -> dict[str, Any]:
    eventually(lambda: fleet.rollout(rollout)["state"] == state, _WAIT_S, f"the rollout is {state}")
    return fleet.rollout(rollout)


def _runs(fleet: Fleet, device: str, version: str) -> bool:
    report = fleet.reported(device) or {}
    return (report.get("version"), report.get("phase")) == (version, "HEALTHY")


def _running(fleet: Fleet, version: str) -> set[str]:
    return {device for device in _DEVICES if _runs(fleet, device, version)}


def _approver_key(fleet: Fleet, folder: Path) -> Path:
    answer = fleet.client.change("POST", "operators/keys", {"name": "bob", "role": "approver"})
    file = folder / "bob.key"
    file.touch(mode=0o600)
    file.write_text(answer["key"])
    return file


def test_four_eyes_let_a_rollout_start_and_its_control_is_held_until_the_others_have_passed(
    fleet: Fleet, tmp_path: Path
) -> None:
    rollout = fleet.roll_out("1.1.0", {**_POLICY, "approvals": 1, "control": {"percent": 50}})
    assert fleet.rollout(rollout)["state"] == "AWAITING_APPROVAL"
    with pytest.raises(FleetError, match="cannot approve it"):  # its author, also as admin
        fleet.client.change("POST", f"rollouts/{rollout}/approve", {})
    with open_client(fleet.url, _approver_key(fleet, tmp_path)) as bob:
        bob.change("POST", f"rollouts/{rollout}/approve", {})
    held: set[str] = set()

    def is_released() -> bool:
        nonlocal held
        view = fleet.rollout(rollout)
        running = _running(fleet, "1.1.0")
        if view["control_count"]:
            assert len(running) <= 1, "control is held on the incumbent"
            held = set(_DEVICES) - {device["device"] for device in view["devices"]}
        return bool(view["state"] == "COMPLETED")

    eventually(is_released, _WAIT_S, "the control was released and the rollout completed")
    assert len(held) == 1
    assert _running(fleet, "1.1.0") == set(_DEVICES)
    assert [each["actor"].endswith("bob") for each in fleet.rollout(rollout)["approvals"]] == [True]
    actions = [entry["action"] for entry in fleet.client.get("audit", limit=50)["items"]]
    assert actions.count("rollout.approve") == 1


def test_a_device_that_was_killed_for_the_time_of_a_rollback_comes_back_to_what_it_ran(fleet: Fleet) -> None:
    if not _running(fleet, "1.1.0"):
        _wait_for(fleet, fleet.roll_out("1.1.0", _POLICY), "COMPLETED")
    back_to = fleet.roll_out("1.0.0", {**_POLICY, "stages": [{"percent": 100, "bake_s": 600}]})
    eventually(lambda: _running(fleet, "1.0.0") == set(_DEVICES), _WAIT_S, "all run the candidate")
    dark = fleet.devices["press-2"]
    dark.kill()
    eventually(lambda: not fleet.client.get("devices/press-2")["online"], _WAIT_S, "the server knows it is dark")
    fleet.client.change("POST", f"rollouts/{back_to}/rollback", {})
    view = _wait_for(fleet, back_to, "ROLLED_BACK")
    assert "1 devices that cannot be reached" in view["reason"]
    dark.start()
    eventually(lambda: _running(fleet, "1.1.0") == set(_DEVICES), _WAIT_S, "it follows when it is back")
