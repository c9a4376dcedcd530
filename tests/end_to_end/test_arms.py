"""Weighted arms and a shadow, from the signed desired state to the telemetry store, with real parts all the way."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_agent import Agent
from edge_agent.local_api.service import CallOptions
from edge_agent.prediction import Prediction
from fleet_protocol.messages import Assignment, Probation
from fleet_server.config import load_config
from fleet_server.database.engine import open_engine
from fleet_server.rollouts.desired import assign
from tests.end_to_end.fleet import FLEET, HOLDOUT, MODEL, Fleet, eventually

DEVICE = "camera-1"
WAIT_S = 30.0
AT_ONCE = Probation(duration_s=0.2, min_inferences=0)
BEYOND_CHANCE = 5.0
MAIN, B, SHADOW = "1.0.0", "1.1.0", "1.2.0"  # 1.2.0 is the version that reads digits wrongly


@pytest.fixture(scope="module")
def images() -> np.ndarray[Any, np.dtype[np.float32]]:
    with np.load(HOLDOUT) as arrays:
        return arrays["images"].astype(np.float32)[:, None, None]  # type: ignore[no-any-return] # numpy's own


@contextmanager
def device_with_arms(folder: Path) -> Iterator[tuple[Fleet, Agent, dict[str, str]]]:
    """A fleet with the three versions published, and one agent in this process that installs from it."""
    with Fleet(folder) as fleet:
        digests = {version: str(fleet.publish(version)["bundle"]) for version in (MAIN, B, SHADOW)}
        device = fleet.add_device(DEVICE, start=False, from_fleet=True)
        with Agent.open(device.config) as agent:
            yield fleet, agent, digests


def direct(fleet: Fleet, *assignments: Assignment) -> int:
    """What the device should run from now on, signed by the server's own key; the server publishes it."""
    config = load_config(fleet.server_config)
    engine = open_engine(config.database_url)
    try:
        with engine.begin() as connection:
            return assign(
                connection,
                fleet=FLEET,
                device=DEVICE,
                assignments={MODEL: list(assignments)},
                signer=config.director_key(),
                now_ns=time.time_ns(),
                probation=AT_ONCE,
            )
    finally:
        engine.dispose()


def reports(fleet: Fleet, generation: int) -> dict[str, dict[str, Any]]:
    """What the device says of each arm, once it has seen the generation."""
    reported = fleet.client.get(f"devices/{DEVICE}")["reported"] or {}
    models = reported.get("models", []) if reported.get("generation") == generation else []
    return {report["arm"]: report for report in models}


def phases(fleet: Fleet, generation: int) -> dict[str, str]:
    return {arm: report["phase"] for arm, report in reports(fleet, generation).items()}


def totals(fleet: Fleet, arm: str) -> dict[str, int]:
    """Sums of an arm's stored windows."""
    found = [window for window in fleet.windows(DEVICE) if window["arm"] == arm]
    return {name: sum(window[name] for window in found) for name in ("count", "shadow_compared", "shadow_disagreed")}


def ask(agent: Agent, image: np.ndarray[Any, Any], key: str | None = None) -> Prediction:
    return agent.infer(MODEL, {"image": image}, CallOptions(key=key))


def assignment(
    version: str, digests: dict[str, str], arm: str, weight: float = 1.0, *, shadow: bool = False
) -> Assignment:
    return Assignment(model=MODEL, version=version, bundle=digests[version], arm=arm, weight=weight, shadow=shadow)


def test_two_arms_and_a_shadow_reach_a_device_and_their_windows_the_store(
    tmp_path: Path, images: np.ndarray[Any, Any]
) -> None:
    with device_with_arms(tmp_path) as (fleet, agent, digests):
        generation = direct(
            fleet,
            assignment(MAIN, digests, "main", 0.8),
            assignment(B, digests, "b", 0.2),
            assignment(SHADOW, digests, "next", shadow=True),
        )
        healthy = {"main": "HEALTHY", "b": "HEALTHY", "next": "HEALTHY"}
        eventually(lambda: phases(fleet, generation) == healthy, WAIT_S, "both arms and the shadow are healthy")
        told = reports(fleet, generation)
        assert {arm: (report["weight"], report["shadow"]) for arm, report in told.items()} == {
            "main": (0.8, False), "b": (0.2, False), "next": (1.0, True),
        }  # fmt: skip

        keys = [f"user-{number}" for number in range(400)]
        first = {key: ask(agent, images[0], key).arm for key in keys}
        again = {key: ask(agent, images[1], key).arm for key in keys}
        assert first == again
        share = sum(arm == "b" for arm in first.values()) / len(keys)
        assert abs(share - 0.2) < BEYOND_CHANCE * math.sqrt(0.2 * 0.8 / len(keys))

        answered = {"main": 0, "b": 0}
        for arm in (*first.values(), *again.values()):
            answered[arm] += 1
        for number in range(2_000):
            if number % 20 == 0 and totals(fleet, "next")["shadow_disagreed"]:
                break
            prediction = ask(agent, images[number % len(images)])
            assert prediction.version == {"main": MAIN, "b": B}[prediction.arm]
            answered[prediction.arm] += 1
        eventually(
            lambda: {arm: totals(fleet, arm)["count"] for arm in answered} == answered,
            WAIT_S,
            f"the windows of both arms say {answered}",
        )
        shadow = totals(fleet, "next")
        assert shadow["count"] == 0
        assert 0 < shadow["shadow_disagreed"] <= shadow["shadow_compared"]
        series = fleet.client.get(f"models/{MODEL}/metrics", arm="next")["points"]
        assert sum(point["shadow_disagreed"] for point in series) > 0


def test_arms_change_their_shares_without_a_reload_and_hand_over_without_a_gap(
    tmp_path: Path, images: np.ndarray[Any, Any]
) -> None:
    with device_with_arms(tmp_path) as (fleet, agent, digests):
        first = direct(fleet, assignment(MAIN, digests, "main", 0.5), assignment(B, digests, "b", 0.5))
        eventually(lambda: phases(fleet, first) == {"main": "HEALTHY", "b": "HEALTHY"}, WAIT_S, "both arms are healthy")
        keys = [f"user-{number}" for number in range(200)]
        before = {key: ask(agent, images[0], key).arm for key in keys}

        second = direct(fleet, assignment(MAIN, digests, "main", 0.1), assignment(B, digests, "b", 0.9))
        eventually(lambda: reports(fleet, second).get("b", {}).get("weight") == 0.9, WAIT_S, "the weights changed")
        after = {key: ask(agent, images[0], key).arm for key in keys}
        assert {key for key in keys if before[key] == "b"} < {key for key in keys if after[key] == "b"}

        third = direct(fleet, assignment(SHADOW, digests, "c"))
        versions = set()
        deadline = time.monotonic() + WAIT_S
        while SHADOW not in versions and time.monotonic() < deadline:
            versions.add(ask(agent, images[0]).version)  # an unknown model would raise
        assert SHADOW in versions
        eventually(lambda: phases(fleet, third).get("c") == "HEALTHY", WAIT_S, "the new arm is healthy")
        assert set(reports(fleet, third)) == {"main", "c"}
        assert ask(agent, images[0]).version == SHADOW
