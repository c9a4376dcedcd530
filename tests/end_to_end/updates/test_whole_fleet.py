"""Rollouts over a whole fleet: the real server, Mosquitto and four devices that answer digits all the time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from tests.end_to_end.fleet import Device, Fleet, eventually

_DEVICES = tuple(f"press-{number}" for number in range(1, 5))
_WAIT_S = 60.0
_SHOWN_CHARS = 2_000
_GOOD, _BROKEN = "1.1.0", "1.2.0"
_ENDS = ("COMPLETED", "PAUSED", "ROLLED_BACK", "CANCELED")
_POLICY: dict[str, Any] = {
    "stages": [{"percent": 25, "bake_s": 0.5}, {"percent": 50, "bake_s": 0.5}, {"percent": 100, "bake_s": 0.5}],
    "max_bake_extensions": 100,
    "deploy_deadline_s": 60,
    # a shared machine's latency is not what these tests are about
    "probation": {"duration_s": 0.5, "min_inferences": 10, "max_p95_latency_ratio": 1000.0},
    "gates": [{"gate": "update_failures", "max_share": 0.0}],
}
_JUDGED_BY_OUTCOMES = {
    **_POLICY,
    "gates": [*_POLICY["gates"], {"gate": "outcome_accuracy", "max_drop": 0.1, "min_outcomes": 50}],
}


@contextlib.contextmanager
def _fleet(folder: Path) -> Iterator[Fleet]:
    """Four devices without a model, and 1.1.0 published. What they wrote is added to a failure."""
    with Fleet(folder) as fleet:
        try:
            for device in _DEVICES:
                fleet.add_device(device, from_fleet=True)
            fleet.publish(_GOOD)
            yield fleet
        except AssertionError as error:
            for device in _DEVICES:
                error.add_note(f"{device} wrote: {fleet.devices[device].log()[-_SHOWN_CHARS:]}")
            error.add_note(f"the server wrote: {fleet.server_log()[-_SHOWN_CHARS:]}")
            raise


def _exposed(fleet: Fleet, rollout: str) -> list[str]:
    return [device["device"] for device in fleet.rollout(rollout)["devices"]]


def _are_exposed(fleet: Fleet, rollout: str, count: int) -> bool:
    return len(_exposed(fleet, rollout)) >= count


def _has_answered(fleet: Fleet, version: str) -> bool:
    return any(_answers_more(device, version, 0) for device in fleet.devices.values())


def _healthy_on(fleet: Fleet, version: str) -> list[str]:
    reports = {device: fleet.reported(device) or {} for device in _DEVICES}
    return [
        device
        for device, report in reports.items()
        if (report.get("version"), report.get("phase")) == (version, "HEALTHY")
    ]


def _wait_for_state(fleet: Fleet, rollout: str, state: str) -> dict[str, Any]:
    def there() -> bool:
        view = fleet.rollout(rollout)
        assert view["state"] == state or view["state"] not in _ENDS, view
        return bool(view["state"] == state)

    eventually(there, _WAIT_S, f"the rollout is {state}")
    return fleet.rollout(rollout)


def _require_every_device_answers_with(fleet: Fleet, version: str) -> None:
    """Every device says so, and its application's own counts grow under that version alone."""
    eventually(lambda: len(_healthy_on(fleet, version)) == len(_DEVICES), _WAIT_S, f"all are HEALTHY on {version}")
    for device in fleet.devices.values():
        before = device.status()["answered"].get(version, 0)
        eventually(partial(_answers_more, device, version, before), _WAIT_S, f"{device.name} answers with {version}")


def _answers_more(device: Device, version: str, before: int) -> bool:
    return bool(device.status()["answered"].get(version, 0) > before)


def test_a_server_killed_in_the_middle_of_a_rollout_goes_on_with_it_when_it_is_back(tmp_path: Path) -> None:
    with _fleet(tmp_path) as fleet:
        rollout = fleet.roll_out(_GOOD, _POLICY)
        for reached in (1, 2):
            eventually(partial(_are_exposed, fleet, rollout, reached), _WAIT_S, f"{reached} are exposed")
            exposed_before = _exposed(fleet, rollout)
            fleet.kill_server()
            fleet.start_server()
            assert set(exposed_before) <= set(_exposed(fleet, rollout)), "a device was forgotten"
        _wait_for_state(fleet, rollout, "COMPLETED")
        _require_every_device_answers_with(fleet, _GOOD)
        for device in _DEVICES:
            desired = fleet.client.get(f"devices/{device}")["desired"]
            assert desired["generation"] == 1, f"{device} was told {desired['generation']} times"


def test_a_broken_version_is_rolled_back_by_itself_also_by_a_server_that_was_killed(tmp_path: Path) -> None:
    with _fleet(tmp_path) as fleet:
        _wait_for_state(fleet, fleet.roll_out(_GOOD, _POLICY), "COMPLETED")
        _require_every_device_answers_with(fleet, _GOOD)
        fleet.publish(_BROKEN)
        rollout = fleet.roll_out(_BROKEN, _JUDGED_BY_OUTCOMES)
        eventually(partial(_has_answered, fleet, _BROKEN), _WAIT_S, "a first device runs the broken version")
        fleet.kill_server()
        fleet.start_server()
        view = _wait_for_state(fleet, rollout, "ROLLED_BACK")
        assert "accuracy" in view["reason"], view["reason"]
        exposed = [device["device"] for device in view["devices"]]
        assert 1 <= len(exposed) < len(_DEVICES), "it was to be found at small exposure"
        _require_every_device_answers_with(fleet, _GOOD)
        for device in _DEVICES:
            answered_broken = fleet.devices[device].status()["answered"].get(_BROKEN, 0)
            assert (answered_broken > 0) == (device in exposed)
