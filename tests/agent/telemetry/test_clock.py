"""Windows on clocks that jump, or that nobody set yet."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.telemetry.outbox import CLOCK_WAIT_S, Outbox
from edge_agent.telemetry.recorder import Recorder
from edge_agent.telemetry.spans import CLOCK_IS_SET_NS, JUMP_NS, Spans
from fleet_protocol.messages import Window, decode
from fleet_protocol.topics import TopicKind
from tests.agent.telemetry.device import KEY

TODAY_S = 1_800_000_000.0
S = 10**9


class Clocks:
    """A wall clock and a monotonic one that pass together, unless the wall clock is set."""

    def __init__(self, now_s: float) -> None:
        self.now_s, self.monotonic_s = now_s, 1_000.0

    def pass_s(self, seconds: float) -> None:
        self.now_s += seconds
        self.monotonic_s += seconds


class ClockedDevice:
    """A recorder and an outbox on clocks of the test's own."""

    def __init__(self, folder: Path, clocks: Clocks) -> None:
        self.clocks = clocks
        self.outbox = Outbox(
            folder / "outbox.db", max_bytes=10**8, max_age_s=10**7, confirm_timeout_s=100.0,
            now_s=lambda: clocks.now_s, monotonic_s=lambda: clocks.monotonic_s,
        )  # fmt: skip
        self.recorder = Recorder(
            device="d1", window_s=60.0, outbox=self.outbox, data_dir=folder,
            wall_ns=lambda: round(clocks.now_s * S), monotonic_ns=lambda: round(clocks.monotonic_s * S),
        )  # fmt: skip
        self.recorder.serve(KEY, None)
        self.recorder.set_serving(frozenset({KEY}))

    def windows(self, count: int) -> None:
        for _ in range(count):
            self.clocks.pass_s(60.0)
            self.recorder.close_window()

    def sent(self) -> list[tuple[float, float]]:
        records = [one for one in self.outbox.pending(1_000) if one.kind is TopicKind.TELEMETRY]
        told = [decode(Window, one.payload) for one in records]
        return sorted((one.start_ns / S, one.end_ns / S) for one in told)


@pytest.fixture
def unset(tmp_path: Path) -> Iterator[ClockedDevice]:
    """A device that starts in 1970."""
    device = ClockedDevice(tmp_path, Clocks(10.0))
    yield device
    device.outbox.close()


def test_windows_wait_for_a_clock_that_was_never_set_and_then_tell_when_they_happened(unset: ClockedDevice) -> None:
    unset.windows(3)
    assert unset.sent() == []
    assert unset.outbox.status().depth == 3

    unset.clocks.pass_s(30.0)
    unset.clocks.now_s = TODAY_S
    unset.clocks.pass_s(30.0)
    unset.recorder.close_window()

    begun_s = TODAY_S - 210.0
    assert unset.sent() == [(begun_s + 60.0 * place, begun_s + 60.0 * (place + 1)) for place in range(4)]


def test_after_an_hour_without_a_clock_windows_go_as_they_are(unset: ClockedDevice) -> None:
    unset.windows(2)
    assert unset.sent() == []

    unset.clocks.pass_s(CLOCK_WAIT_S)

    assert unset.sent() == [(10.0, 70.0), (70.0, 130.0)]


def test_what_was_sent_without_a_clock_keeps_the_times_it_was_sent_with(unset: ClockedDevice) -> None:
    unset.windows(1)
    unset.clocks.pass_s(CLOCK_WAIT_S)
    assert unset.sent() == [(10.0, 70.0)]
    unset.clocks.now_s = TODAY_S
    unset.windows(1)

    assert [start_s < 100.0 for start_s, _ in unset.sent()] == [True, False]


def test_events_do_not_wait_for_the_clock(unset: ClockedDevice) -> None:
    unset.windows(1)
    unset.outbox.append(TopicKind.EVENTS, lambda sequence: b"{}")

    assert [one.kind for one in unset.outbox.pending(10)] == [TopicKind.EVENTS]


def test_a_clock_that_was_set_once_moves_nothing_that_was_told_before(tmp_path: Path) -> None:
    device = ClockedDevice(tmp_path, Clocks(TODAY_S))
    device.windows(2)
    device.clocks.now_s += 86_400.0
    device.windows(2)

    assert device.sent() == [
        (TODAY_S, TODAY_S + 60.0), (TODAY_S + 60.0, TODAY_S + 120.0), (TODAY_S + 120.0, TODAY_S + 180.0),
        (TODAY_S + 86_580.0, TODAY_S + 86_640.0),
    ]  # fmt: skip
    device.outbox.close()


@given(st.lists(st.tuples(st.integers(1, 100 * S), st.integers(-300 * S, 300 * S)), min_size=1, max_size=20))
def test_windows_are_as_long_as_they_lasted_and_overlap_no_more_than_the_clock_was_set_back(
    steps: list[tuple[int, int]],
) -> None:
    now_ns, monotonic_ns = CLOCK_IS_SET_NS + 10_000 * S, 5
    spans = Spans(now_ns=now_ns, monotonic_ns=monotonic_ns)
    told, set_back_ns = [], 0
    for lasted_ns, jump_ns in steps:
        now_ns, monotonic_ns = now_ns + lasted_ns + jump_ns, monotonic_ns + lasted_ns
        set_back_ns += max(-jump_ns, 0)
        told.append(spans.cut(now_ns=now_ns, monotonic_ns=monotonic_ns))

    assert [end - start for start, end in told] == [lasted_ns for lasted_ns, _ in steps]
    overlap_ns = sum(max(0, earlier[1] - later[0]) for earlier, later in itertools.pairwise(told))
    assert overlap_ns <= set_back_ns + JUMP_NS


def test_a_clock_that_is_corrected_slowly_moves_no_window() -> None:
    spans = Spans(now_ns=CLOCK_IS_SET_NS, monotonic_ns=0)

    first = spans.cut(now_ns=CLOCK_IS_SET_NS + 60 * S + JUMP_NS // 2, monotonic_ns=60 * S)
    second = spans.cut(now_ns=CLOCK_IS_SET_NS + 120 * S - JUMP_NS // 2, monotonic_ns=120 * S)

    assert first[1] == second[0]


def test_a_clock_before_1970_makes_no_window_the_server_would_refuse() -> None:
    spans = Spans(now_ns=-5 * S, monotonic_ns=0)

    assert spans.cut(now_ns=-4 * S, monotonic_ns=S) == (0, S)
    assert spans.cut(now_ns=-3 * S, monotonic_ns=2 * S)[0] >= 0
