from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from edge_agent.config import LanesSection
from edge_agent.runtime.lane_load import LaneLoad
from edge_agent.runtime.lane_scaling import (
    COOLED_BAND_C,
    LOOK_EVERY_S,
    LaneChange,
    LaneScaler,
    ScalingMemory,
    decide,
    highest_limit,
)
from edge_agent.runtime.lanes import Lanes
from edge_agent.runtime.machine_state import MachineProbe, MachineState
from edge_agent.runtime.session import Model
from tests.agent.runtime.onnx_files import linear

SETTINGS = LanesSection(min=1, max=4, scale_up_wait_ms=2.0, scale_down_after_s=10.0)
FINE = MachineState(cores=4.0, cpu_percent=30.0, free_memory_percent=50.0, temperature_c=50.0)
IDLE = LaneLoad(
    at_s=0.0,
    limit=1,
    running=0,
    waiting=0,
    busy_ns=0,
    queued=0,
    queue_wait_ns=0,
    queue_wait_ewma_ms=0.0,
    longest_wait_ms=0.0,
    service_us=0.0,
    shed=0,
    cancelled=0,
)


class Course:
    """A model's lanes over time, looked at every LOOK_EVERY_S."""

    def __init__(self, *, limit: int = 1, settings: LanesSection = SETTINGS) -> None:
        self.load = replace(IDLE, limit=limit)
        self.settings = settings
        self.memory: ScalingMemory | None = None
        self.reasons: list[str] = []

    def look(
        self, machine: MachineState = FINE, *, busy: float | None = None, wait_ms: float = 0.0, waiting: int = 0
    ) -> int:
        """One look after a time in which `busy` lanes worked (all, where calls waited) and calls waited `wait_ms`.

        The limit from then on.
        """
        if busy is None:
            busy = float(self.load.limit) if wait_ms else 0.0
        self.load = replace(
            self.load,
            at_s=self.load.at_s + LOOK_EVERY_S,
            busy_ns=self.load.busy_ns + int(busy * LOOK_EVERY_S * 1e9),
            queued=self.load.queued + 10,
            queue_wait_ns=self.load.queue_wait_ns + int(10 * wait_ms * 1e6),
            waiting=waiting,
        )
        decision = decide(self.load, self.memory, self.settings, machine)
        self.memory = decision.memory
        if decision.limit != self.load.limit:
            self.reasons.append(decision.reason)
        self.load = replace(self.load, limit=decision.limit)
        return decision.limit

    def seconds_until(self, limit: int, *, busy: float) -> float:
        began_s = self.load.at_s
        while self.look(busy=busy) != limit:
            assert self.load.at_s - began_s < 120
        return self.load.at_s - began_s


def test_lanes_grow_after_two_slow_looks_and_not_after_one() -> None:
    course = Course()

    assert course.look(wait_ms=1.0) == 1
    assert course.look(wait_ms=5.0) == 1
    assert course.look(wait_ms=5.0) == 2
    assert course.reasons == ["calls waited 5.0 ms"]


def test_calls_that_meet_in_an_idle_model_need_no_lane() -> None:
    course = Course()

    assert [course.look(wait_ms=5.0, busy=0.2) for _ in range(8)] == [1] * 8


def test_one_slow_look_between_quick_ones_changes_nothing() -> None:
    course = Course()

    assert [course.look(wait_ms=wait_ms) for wait_ms in (1.0, 9.0, 1.0, 9.0, 1.0, 9.0)] == [1] * 6


def test_a_long_queue_doubles_the_lanes() -> None:
    course = Course(limit=2)
    course.look()
    course.look(wait_ms=50.0, waiting=30)

    assert course.look(wait_ms=50.0, waiting=30) == 4


def test_a_busy_cpu_keeps_lanes_from_growing() -> None:
    course = Course()

    assert [course.look(replace(FINE, cpu_percent=95.0), wait_ms=50.0) for _ in range(8)] == [1] * 8
    assert [course.look(replace(FINE, cpu_percent=None), wait_ms=50.0) for _ in range(8)] == [1] * 8
    assert course.look(wait_ms=50.0) == 2


def test_a_call_that_waits_since_long_counts_though_none_has_begun() -> None:
    course = Course()
    course.load = replace(course.load, longest_wait_ms=900.0)
    for _ in range(3):
        limit = course.look(busy=1.0)

    assert limit == 2


def test_quiet_lanes_are_taken_back_one_by_one_the_first_after_the_whole_time() -> None:
    course = Course(limit=3)

    first_s = course.seconds_until(2, busy=0.1)
    second_s = course.seconds_until(1, busy=0.1)

    assert 10.0 <= first_s < 11.0
    assert 5.0 <= second_s < 6.0


def test_all_lanes_are_back_within_thirty_seconds_of_a_load() -> None:
    course = Course(limit=4)
    for _ in range(40):
        course.look(busy=3.9)

    assert course.seconds_until(1, busy=0.2) <= 30.0


def test_lanes_that_the_remaining_ones_could_not_bear_are_kept() -> None:
    course = Course(limit=2)

    assert {course.look(busy=0.5) for _ in range(400)} == {2}


def test_a_short_burst_does_not_start_the_quiet_time_again_but_waiting_does() -> None:
    course = Course(limit=2)
    for _ in range(20):
        course.look(busy=0.1)
    course.look(busy=1.0)
    assert course.seconds_until(1, busy=0.1) < 8.0

    course = Course(limit=2)
    for _ in range(20):
        course.look(busy=0.1)
    course.look(replace(FINE, cpu_percent=99.0), busy=0.1, wait_ms=10.0)
    assert course.seconds_until(1, busy=0.1) >= 10.0


@pytest.mark.parametrize(
    ("strained", "word"),
    [
        (replace(FINE, temperature_c=90.0), "°C"),
        (replace(FINE, free_memory_percent=2.0), "memory"),
        (replace(FINE, throttled=True), "throttled"),
    ],
)
def test_a_machine_at_its_limit_loses_a_lane_at_every_look_though_calls_wait(strained: MachineState, word: str) -> None:
    course = Course(limit=4)

    assert [course.look(strained, wait_ms=50.0, waiting=90) for _ in range(5)] == [3, 2, 1, 1, 1]
    assert all(word in reason for reason in course.reasons)


def test_lanes_grow_again_only_when_the_machine_has_cooled_by_a_band() -> None:
    course = Course(limit=2)
    course.look(replace(FINE, temperature_c=86.0))
    warm = replace(FINE, temperature_c=85.0 - COOLED_BAND_C + 1)

    assert [course.look(warm, wait_ms=50.0) for _ in range(10)] == [1] * 10
    assert course.look(replace(FINE, temperature_c=85.0 - COOLED_BAND_C - 1), wait_ms=50.0) == 2


def test_a_machine_that_tells_no_figures_still_scales() -> None:
    course = Course()
    blind = MachineState(cores=4.0, cpu_percent=10.0)
    for _ in range(3):
        limit = course.look(blind, wait_ms=50.0)

    assert limit == 2


@pytest.mark.parametrize(("cores", "highest"), [(0.5, 1), (1.0, 1), (1.5, 2), (8.0, 8)])
def test_zero_is_one_lane_per_usable_core(cores: float, highest: int) -> None:
    assert highest_limit(LanesSection(max=0), cores=cores) == highest


@given(
    st.integers(1, 8),
    st.integers(0, 8),
    st.integers(1, 64),
    st.lists(
        st.tuples(
            st.floats(0, 100), st.floats(0, 8), st.floats(0, 100), st.integers(0, 300), st.floats(0, 110),
            st.floats(0, 100), st.booleans(),
        ),
        max_size=60,
    ),
)  # fmt: skip
def test_the_limit_never_leaves_its_bounds(
    lowest: int, highest: int, limit: int, looks: list[tuple[float, float, float, int, float, float, bool]]
) -> None:
    settings = LanesSection(min=lowest, max=max(lowest, highest) if highest else 0, scale_down_after_s=1.0)
    course = Course(limit=limit, settings=settings)
    for cpu, busy, wait_ms, waiting, hot, free, throttled in looks:
        machine = MachineState(
            cores=3.5, cpu_percent=cpu, temperature_c=hot, free_memory_percent=free, throttled=throttled
        )
        after = course.look(machine, busy=busy, wait_ms=wait_ms, waiting=waiting)
        assert lowest <= after <= highest_limit(settings, cores=3.5)


class CalmMachine(MachineProbe):
    """Two idle cores, whatever else runs here while testing."""

    def read(self) -> MachineState:
        return replace(FINE, cores=2.0)


def until(condition: Callable[[], bool], *, timeout_s: float = 10.0) -> None:
    ends = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < ends, f"waited {timeout_s} s in vain"
        time.sleep(0.005)


def test_the_scaler_gives_waiting_calls_a_lane_and_tells_so(tmp_path: Path) -> None:
    model = Model.load(linear(tmp_path / "linear.onnx"))
    changes: list[LaneChange] = []
    scaler = LaneScaler(settings=LanesSection(min=1, max=2), on_change=changes.append, probe=CalmMachine())
    lanes = Lanes(name="m", limit=1, max_waiting=8, max_batch=1)
    lanes.try_enter()
    try:
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(lanes.run, model, {"x": np.ones((1, 3), np.float32)})
            scaler.watch(lanes)
            waiting.result(10)
        until(lambda: bool(changes))
        history = scaler.history()
    finally:
        scaler.stop()

    assert (changes[0].name, changes[0].before, changes[0].after) == ("m", 1, 2)
    assert "waited" in changes[0].reason
    assert (history.ups, history.downs) == (1, 0)


def test_no_thread_is_started_where_lanes_cannot_grow() -> None:
    scaler = LaneScaler(settings=LanesSection(min=1, max=1))
    scaler.watch(Lanes(name="m", limit=1, max_waiting=1, max_batch=1))

    assert "lane-scaler" not in {thread.name for thread in threading.enumerate()}


def test_closed_lanes_are_forgotten_and_the_thread_ends() -> None:
    scaler = LaneScaler(settings=LanesSection(min=1, max=2))
    lanes = Lanes(name="m", limit=1, max_waiting=1, max_batch=1)
    scaler.watch(lanes)
    lanes.close()
    until(lambda: not scaler._watched)
    scaler.stop()

    assert "lane-scaler" not in {thread.name for thread in threading.enumerate()}


def test_a_look_at_the_machine_is_quick_and_sane() -> None:
    probe = MachineProbe()
    assert probe.read().cpu_percent is None
    took_s = []
    for _ in range(20):
        start = time.perf_counter()
        state = probe.read()
        took_s.append(time.perf_counter() - start)

    assert sorted(took_s)[10] < 0.001
    assert state.cpu_percent is not None
    assert state.cpu_percent >= 0
    assert state.free_memory_percent is not None
    assert 0 < state.free_memory_percent <= 100


def test_a_growing_throttle_count_is_throttling(tmp_path: Path) -> None:
    folder = tmp_path / "cpu0" / "thermal_throttle"
    folder.mkdir(parents=True)
    count = folder / "core_throttle_count"
    count.write_text("3\n")
    probe = MachineProbe(cpus=tmp_path)
    assert not probe.read().throttled
    count.write_text("4\n")
    probe._slow_at_s = float("-inf")

    assert probe.read().throttled
