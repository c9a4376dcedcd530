"""What counts as stuck: lanes that stand still, threads without a sign of life, a local API that says nothing."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path

import pytest

from edge_agent.agent import Agent
from edge_agent.config import AgentConfig, HttpSection
from edge_agent.runtime.lanes import Lanes
from edge_agent.service.heartbeat import ANY_TIME_S, LIMIT_S, Heartbeat
from edge_agent.service.liveness import Liveness, answers
from tests.agent.runtime import onnx_files


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def liveness(clock: Clock, lanes: Sequence[Lanes] = (), **parts: object) -> Liveness:
    settings = {"heartbeats": {}, "api": None, "run_limit_s": 10.0, "clock": clock, **parts}
    return Liveness(lanes=lambda: lanes, **settings)  # type: ignore[arg-type]


def test_lanes_that_are_all_taken_are_stuck_only_when_no_run_begins_or_ends_for_the_limit() -> None:
    clock, lanes = Clock(), Lanes(name="kws", limit=2, max_waiting=4, max_batch=1)
    live = liveness(clock, [lanes])

    def after(seconds: float) -> list[str]:
        clock.now_s += seconds
        return live.look()

    assert lanes.try_enter()
    assert after(0) == after(60) == []  # a lane is free: whoever calls is answered
    assert lanes.try_enter()
    assert after(0) == after(9) == []
    lanes.leave()
    assert lanes.try_enter()
    assert after(5) == after(9) == []  # a run ended, another began
    assert after(2) == ["every lane of kws has been at the same run for 11 s"]
    lanes.leave()
    assert after(60) == []


def test_lanes_that_were_exchanged_are_forgotten() -> None:
    clock, serving = Clock(), [Lanes(name="kws", limit=1, max_waiting=4, max_batch=1)]
    live = liveness(clock, serving)
    assert serving[0].try_enter() and live.look() == []
    serving[0] = Lanes(name="kws", limit=1, max_waiting=4, max_batch=1)
    clock.now_s += 60
    assert live.look() == []


def test_a_thread_without_a_sign_of_life_is_stuck_unless_it_may_take_any_time() -> None:
    clock = Clock()
    heartbeats = {name: Heartbeat(clock=clock) for name in ("updater", "telemetry")}
    live = liveness(clock, heartbeats=heartbeats)
    heartbeats["updater"].beat(ANY_TIME_S)

    clock.now_s += LIMIT_S
    assert live.look() == []
    clock.now_s += 5.0
    assert live.look() == ["the telemetry thread is stuck: its sign of life is 5 s late"]
    heartbeats["telemetry"].beat()
    assert live.look() == []


def test_a_local_api_that_says_nothing_is_stuck_and_one_that_says_anything_is_not(tmp_path: Path) -> None:
    clock, path = Clock(), tmp_path / "socket"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as silent:
        silent.bind(str(path))
        silent.listen()
        live = liveness(clock, api=path, api_limit_s=0.2)
        assert live.look() == []
        clock.now_s += 1.0
        assert live.look() == ["the local API has not answered for 1 s"]


@pytest.mark.parametrize("kind", ["port", "socket"])
def test_a_real_agent_is_alive(tmp_path: Path, kind: str) -> None:
    model = onnx_files.linear(tmp_path / "kws.onnx")
    http = HttpSection(port=0, host="0.0.0.0") if kind == "port" else HttpSection(socket=tmp_path / "api")  # noqa: S104
    with Agent(models={"kws": model}, config=AgentConfig(http=http)) as agent:
        assert agent.what_is_stuck() == []
        address = tmp_path / "api" if kind == "socket" else ("127.0.0.1", agent.http_port or 0)
        assert answers(address, timeout_s=5.0)
    assert not answers(address, timeout_s=0.2)
