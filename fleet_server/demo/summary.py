"""The demo's balance: what the devices say they did against what the fleet server has stored."""

from __future__ import annotations

import time
from typing import Any

from fleet_server.demo.fleet import MODEL, DemoFleet
from fleet_server.demo.scenario import Story

_SETTLE_TIMEOUT_S = 30.0
SCENES = ("installed", "upgraded", "rolled back", "offline")


def settle_and_summarise(fleet: DemoFleet, story: Story, *, started_ns: int) -> dict[str, Any]:
    """End the devices, wait until their last windows are stored, and compare."""
    versions = story.versions()
    devices = fleet.stop_devices()
    inferences = sum(sum(status.get("answered", {}).values()) for status in devices.values())
    windows_sent = sum(status.get("windows", 0) for status in devices.values())
    deadline = time.monotonic() + _SETTLE_TIMEOUT_S
    while True:
        stored = _stored(fleet, started_ns)
        complete = stored["windows"] >= windows_sent and stored["inferences"] >= inferences
        if complete or time.monotonic() > deadline:
            break
        time.sleep(0.2)
    ingest = fleet.client.get("ingest")
    first_answers = [status["first_answer_at"] for status in devices.values() if status.get("first_answer_at")]
    return {
        "ok": False,
        "broker": fleet.broker_description,
        "scenes": {scene: scene in story.done for scene in SCENES},
        "inferences": inferences,
        "inferences_stored": stored["inferences"],
        "windows_sent": windows_sent,
        "stored": stored["windows"],
        "duplicates": max(0, stored["windows"] - windows_sent),
        "repeats_dropped": ingest["repeats"],
        "lost": max(0, windows_sent - stored["windows"]),
        "seconds_to_first_inference": round(min(first_answers) - started_ns / 1e9, 2) if first_answers else None,
        "seconds_to_detect": story.seconds_to_detect,
        "devices_exposed": story.devices_exposed,
        "final_versions": versions,
    }


def is_success(summary: dict[str, Any]) -> bool:
    """Whether nothing was lost or doubled and the whole story happened."""
    return (
        all(summary["scenes"].values())
        and summary["lost"] == 0
        and summary["duplicates"] == 0
        and summary["inferences"] == summary["inferences_stored"] > 0
    )


def _stored(fleet: DemoFleet, started_ns: int) -> dict[str, int]:
    answer = fleet.client.get(
        f"models/{MODEL}/metrics", start_ns=started_ns, end_ns=time.time_ns() + 60 * 10**9, step_s=3600
    )
    return {
        "windows": sum(point["windows"] for point in answer["points"]),
        "inferences": sum(point["count"] for point in answer["points"]),
    }
