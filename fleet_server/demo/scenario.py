"""The demo's story, scene by scene. Each scene acts through the API, then waits for what must be seen to happen."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from fleet_server.cli.stopping import StopFlag
from fleet_server.demo.fleet import DEVICES, MODEL, DemoFleet
from fleet_server.demo.processes import wait_until
from fleet_server.errors import FleetError, UnavailableError

_SCENE_TIMEOUT_S = 120.0
_CUT_S = 6.0
_POLICY = {
    "stages": [
        {"percent": 20, "bake_s": 1.5},
        {"percent": 60, "bake_s": 1.5},
        {"percent": 100, "bake_s": 1.5},
    ],
    "max_bake_extensions": 20,
    "deploy_deadline_s": 60,
    "probation": {"duration_s": 1.0, "min_inferences": 20},
    "gates": [
        {"gate": "update_failures", "max_share": 0.0},
        {"gate": "error_rate", "max_increase": 0.1},
        {"gate": "outcome_accuracy", "max_drop": 0.1, "min_outcomes": 50},
    ],
}

Say = Callable[[str], None]


class StoryInterrupted(FleetError):
    """Somebody ended the demo before the story was told."""


class Story:
    """Tells the scenes until `stop` is set, and keeps what happened for the summary."""

    def __init__(self, fleet: DemoFleet, say: Say, stop: StopFlag) -> None:
        self._fleet, self._say, self._stop = fleet, say, stop
        self._told: dict[str, str] = {}
        self.seconds_to_detect: float | None = None
        self.devices_exposed: int | None = None
        self.done: list[str] = []

    def install_first_version(self) -> None:
        """1.0.0 is published, signed and rolled out in stages; every device reaches HEALTHY."""
        self._say("1. digits 1.0.0, the first version: published, signed, rolled out in stages")
        self._complete("1.0.0")
        self.done.append("installed")

    def upgrade(self) -> None:
        """1.1.0, measurably better, is rolled out and completes."""
        self._say("2. digits 1.1.0, a better model")
        self._complete("1.1.0")
        before, after = self._measured_accuracy("1.0.0"), self._measured_accuracy("1.1.0")
        self._say(f"   measured accuracy: {before:.1%} with 1.0.0, {after:.1%} with 1.1.0")
        if after > before:
            self.done.append("upgraded")

    def take_back_broken_version(self) -> None:
        """1.2.0 passes its golden vectors and is often wrong: found by outcomes at the first stage, taken back."""
        self._say("3. digits 1.2.0, broken in a way its golden vectors do not show")
        self._publish("1.2.0")
        rollout = self._create("1.2.0")
        exposed_at: float | None = None

        def rolled_back() -> bool:
            nonlocal exposed_at
            view = self._narrate(rollout)
            if exposed_at is None and any(device["phase"] in ("PROBATION", "HEALTHY") for device in view["devices"]):
                exposed_at = time.monotonic()
            if self.seconds_to_detect is None and view["state"] in ("ROLLING_BACK", "ROLLED_BACK"):
                self.seconds_to_detect = round(time.monotonic() - (exposed_at or time.monotonic()), 2)
                self.devices_exposed = view["exposed_count"]
                self._say(
                    f"   found {self.seconds_to_detect:.1f} s after the first device ran it, "
                    f"{self.devices_exposed} of {len(DEVICES)} exposed: {view['reason']}"
                )
            if view["state"] in ("COMPLETED", "PAUSED", "CANCELED"):
                raise UnavailableError(f"the broken version was not rolled back: {view['state']} {view['reason']}")
            return bool(view["state"] == "ROLLED_BACK")

        self._wait_until(rolled_back, "the rollback of 1.2.0")
        self._wait_until(lambda: set(self.versions().values()) == {"1.1.0"}, "every device on 1.1.0")
        self._say("   every exposed device reports 1.1.0 again")
        self.done.append("rolled back")

    def cut_one_device_off(self) -> None:
        """One device loses the broker, keeps answering, and its windows arrive later, each in its own time."""
        device = self._unexposed_device()
        self._say(f"4. {device} is cut off from the broker for {_CUT_S:.0f} s")
        answered = self._answered(device)
        cut_ns = time.time_ns()
        self._fleet.relays[device].cut()
        self._stop.wait(_CUT_S)
        self._say(f"   meanwhile it answered {self._answered(device) - answered} digits")
        stored_meanwhile = len(self._windows_within(device, cut_ns, time.time_ns()))
        restored_ns = time.time_ns()
        self._fleet.relays[device].restore()
        expected = int(_CUT_S) - 1

        def arrived() -> bool:
            return len(self._windows_within(device, cut_ns, restored_ns)) >= expected

        self._wait_until(arrived, f"the arrival of {device}'s windows")
        late = self._windows_within(device, cut_ns, restored_ns)
        self._say(
            f"   back again: {len(late) - stored_meanwhile} windows came late, each in its own time "
            f"({_ago(late[0], restored_ns)} to {_ago(late[-1], restored_ns)} s before the reconnection)"
        )
        if self._answered(device) > answered:
            self.done.append("offline")

    def versions(self) -> dict[str, str]:
        """device → the version it reports as active, or its phase when it has none."""
        found = {}
        for device in self._fleet.client.pages("devices"):
            models = (device["reported"] or {}).get("models", [])
            found[device["device"]] = next((m.get("version") or m["phase"] for m in models if m["model"] == MODEL), "-")
        return found

    def _complete(self, version: str) -> None:
        self._publish(version)
        rollout = self._create(version)

        def completed() -> bool:
            view = self._narrate(rollout)
            if view["state"] in ("PAUSED", "ROLLING_BACK", "ROLLED_BACK", "CANCELED"):
                raise UnavailableError(f"the rollout of {version} did not complete: {view['state']} {view['reason']}")
            return bool(view["state"] == "COMPLETED")

        self._wait_until(completed, f"the completion of {version}")
        self._wait_until(lambda: set(self.versions().values()) == {version}, f"every device on {version}")
        self._say(f"   completed: all {len(DEVICES)} devices HEALTHY on {version}")

    def _wait_until(self, condition: Callable[[], bool], what: str) -> None:
        wait_until(lambda: self._stop.is_set() or condition(), timeout_s=_SCENE_TIMEOUT_S, what=what)
        if self._stop.is_set():
            raise StoryInterrupted(f"ended while waiting for {what}")

    def _publish(self, version: str) -> None:
        published = self._fleet.publish(version)
        self._say(f"   published, bundle {published['bundle'][:12]}")

    def _create(self, version: str) -> str:
        created = self._fleet.client.change("POST", "rollouts", {"model": MODEL, "version": version, "policy": _POLICY})
        return str(created["id"])

    def _narrate(self, rollout: str) -> dict[str, Any]:
        """The rollout now; tells what changed since the last look."""
        view: dict[str, Any] = self._fleet.client.get(f"rollouts/{rollout}")
        healthy = sum(device["phase"] == "HEALTHY" for device in view["devices"])
        text = f"   {view['state'].lower()}"
        if view["state"] == "ACTIVE":
            text = (
                f"   stage {view['stage'] + 1} of {view['stages']}, {(view['step'] or '').lower()}: "
                f"{healthy} of {view['exposed_count']} exposed devices healthy"
            )
        if self._told.get(rollout) != text and (view["exposed_count"] or view["state"] != "ACTIVE"):
            self._told[rollout] = text
            self._say(text)
        return view

    def _measured_accuracy(self, version: str) -> float:
        """Over every device's own count of right answers."""
        right = answered = 0
        for device in DEVICES:
            status = self._fleet.status(device)
            right += status["correct"].get(version, 0)
            answered += status["answered"].get(version, 0)
        return right / answered if answered else float("nan")

    def _answered(self, device: str) -> int:
        return sum(self._fleet.status(device).get("answered", {}).values())

    def _windows_within(self, device: str, start_ns: int, end_ns: int) -> list[dict[str, Any]]:
        answer = self._fleet.client.get(f"devices/{device}/telemetry", start_ns=start_ns, end_ns=end_ns, limit=1000)
        windows: list[dict[str, Any]] = answer["windows"]
        return windows

    def _unexposed_device(self) -> str:
        """A device that the broken version never reached."""
        broken = next(r for r in self._fleet.client.pages("rollouts") if r["version"] == "1.2.0")
        exposed = {device["device"] for device in self._fleet.client.get(f"rollouts/{broken['id']}")["devices"]}
        return next(device for device in DEVICES if device not in exposed)


def _ago(window: dict[str, Any], now_ns: int) -> str:
    return f"{(now_ns - window['end_ns']) / 1e9:.1f}"
