"""A clock that is off is told apart from telemetry that is late."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select

from fleet_server.database.engine import open_engine
from fleet_server.database.tables import device_clocks, metadata
from fleet_server.ingest.clocks import AGREEING, TOLERANCE_NS, Clock, Clocks, write_clocks

S = 10**9
MINUTE = 60 * S
T0 = 1_750_000_000 * S


def test_prompt_messages_of_a_right_clock_show_a_skew_of_their_delay_at_most() -> None:
    clock, dice = Clock(), random.Random(1)
    for minute in range(60):
        sent = T0 + minute * MINUTE
        clock.observe(sent, sent + int(dice.uniform(0.02, 1.5) * S))
    assert clock.skew_ns is not None and -S // 4 < clock.skew_ns <= 0


def test_a_clock_ahead_shows_at_the_first_message() -> None:
    clock = Clock()
    clock.observe(T0 + 3600 * S, T0)
    assert clock.skew_ns == 3600 * S


def test_a_clock_that_was_never_set_shows_once_its_messages_agree() -> None:
    clock = Clock()
    for minute in range(AGREEING):
        clock.observe(minute * MINUTE + MINUTE, T0 + minute * MINUTE)
        assert (clock.skew_ns is not None) == (minute == AGREEING - 1)
    assert clock.skew_ns is not None and abs(clock.skew_ns + T0 - MINUTE) < TOLERANCE_NS


def test_a_backlog_of_a_right_clock_is_late_and_not_off() -> None:
    clock = Clock()
    for hour in range(48):
        clock.observe(T0 + hour * 3600 * S, T0 + 200 * 3600 * S + hour * S // 10)
    assert clock.skew_ns is None
    clock.observe(T0 + 200 * 3600 * S + 10 * S, T0 + 200 * 3600 * S + 10 * S + S // 10)
    assert clock.skew_ns == -S // 10
    assert clock.late_ns(T0, T0 + 5 * 3600 * S) // S == 5 * 3600 - 1


def test_what_is_heard_again_says_nothing() -> None:
    clock = Clock()
    for _ in range(3 * AGREEING):
        clock.observe(T0, T0 + 3600 * S)
    assert clock.skew_ns is None


def test_a_clock_that_was_set_back_or_forward_is_followed() -> None:
    clock = Clock()
    skews = [0, -7200, 0, 5400]
    for number, skew in enumerate(skews):
        for minute in range(2 * AGREEING):
            at = T0 + (number * 100 + minute) * MINUTE
            clock.observe(at + skew * S, at)
        assert clock.skew_ns == skew * S


def test_a_single_lie_is_forgotten() -> None:
    clock = Clock()
    clock.observe(2**63 - 1, T0)
    for minute in range(AGREEING):
        clock.observe(T0 + minute * MINUTE, T0 + minute * MINUTE)
    assert clock.skew_ns == 0


@given(
    st.integers(-(10**6), 10**6),
    st.lists(st.floats(0.0, 1.5), min_size=20, max_size=40),
    st.lists(st.integers(0, 500), max_size=20),
)
def test_the_skew_is_found_within_the_tolerance_whatever_backlog_comes_between(
    skew_s: int, delays_s: list[float], late_minutes: list[int]
) -> None:
    clock, received = Clock(), T0
    for late in late_minutes:
        received += S // 10
        clock.observe(T0 - late * MINUTE + skew_s * S, received)
    for minute, delay_s in enumerate(delays_s):
        sent = T0 + (minute + 1) * MINUTE
        clock.observe(sent + skew_s * S, sent + int(delay_s * S))
    assert clock.skew_ns is not None
    assert abs(clock.skew_ns - skew_s * S) <= TOLERANCE_NS


def test_a_figure_is_written_when_it_changed_and_not_with_every_message(database_url: str) -> None:
    engine = open_engine(database_url)
    metadata.create_all(engine)
    clocks, written = Clocks(), 0
    for minute in range(30):
        at = T0 + minute * MINUTE
        clocks.observe("pi-1", at, at + S // 20)
        rows = clocks.due({"pi-1": at}, at + S // 20)
        with engine.begin() as connection:
            write_clocks(connection, "acme", rows)
        clocks.note_written(rows)
        written += len(rows)
    assert written == 1
    at = T0 + 40 * MINUTE
    clocks.observe("pi-1", at - 600 * S, at)
    rows = clocks.due({"pi-1": at - 600 * S}, at)
    with engine.begin() as connection:
        write_clocks(connection, "acme", rows)
        [row] = connection.execute(select(device_clocks)).all()
    assert row.skew_ns == -S // 20
    assert row.late_ns == 600 * S - S // 20, "it is late: its clock is not off"
    engine.dispose()


def test_late_messages_with_prompt_ones_between_them_are_no_agreement() -> None:
    clock = Clock()
    for minute in range(4 * AGREEING):
        at = T0 + minute * MINUTE
        clock.observe(at - 600 * S, at)
        clock.observe(at, at)
    assert clock.skew_ns == 0
