"""What the outbox sends first and what it gives up first: decided by pure functions."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.telemetry.outbox_order import Worth, sending_order, worth_of
from fleet_protocol.messages import Outcomes, ShadowAgreement, Window, decode
from fleet_protocol.topics import TopicKind
from tests.agent.telemetry.windows import Clock, append, open_outbox, window

IDS = st.lists(st.integers(1, 10_000), unique=True, max_size=30)


def test_after_a_long_time_offline_events_come_first_then_what_happens_now_then_the_backlog() -> None:
    order = sending_order(events=[7], fresh=[20, 21], backlog=[1, 2, 3], limit=10, turn=0)

    assert order == [7, 20, 21, 1, 2, 3]


def test_a_flood_of_events_leaves_windows_one_slot_in_four_and_the_backlog_one_in_eight() -> None:
    events, fresh, backlog = list(range(1_000)), list(range(1_000, 2_000)), list(range(2_000, 3_000))

    order = sending_order(events=events, fresh=fresh, backlog=backlog, limit=800, turn=0)

    assert [sum(low <= one < low + 1_000 for one in order) for low in (0, 1_000, 2_000)] == [600, 100, 100]


def test_slots_that_are_asked_for_one_by_one_starve_nobody_either() -> None:
    events, fresh, backlog, order = list(range(100)), list(range(100, 200)), list(range(200, 300)), []
    for turn in range(80):
        (one,) = sending_order(events=events, fresh=fresh, backlog=backlog, limit=1, turn=turn)
        order.append(one)
        for ids in (events, fresh, backlog):
            if one in ids:
                ids.remove(one)

    assert [sum(low <= one < low + 100 for one in order) for low in (0, 100, 200)] == [60, 10, 10]


@given(IDS, IDS, IDS, st.integers(0, 100), st.integers(0, 1_000))
def test_every_slot_is_used_once_and_each_kind_keeps_its_order(
    events: list[int], fresh: list[int], backlog: list[int], limit: int, turn: int
) -> None:
    tagged = [[(kind, one) for one in ids] for kind, ids in enumerate((events, fresh, backlog))]
    numbers = {pair: place for place, pair in enumerate(pair for ids in tagged for pair in ids)}
    lists = [[numbers[pair] for pair in ids] for ids in tagged]

    order = sending_order(events=lists[0], fresh=lists[1], backlog=lists[2], limit=limit, turn=turn)

    assert len(order) == len(set(order)) == min(limit, len(numbers))
    for ids in lists:
        chosen = [one for one in order if one in ids]
        assert chosen == ids[: len(chosen)]


@pytest.mark.parametrize(
    ("kind", "given_up", "worth"),
    [
        (TopicKind.TELEMETRY, window(1, count=0), Worth.IDLE),
        (TopicKind.TELEMETRY, None, Worth.IDLE),
        (TopicKind.TELEMETRY, window(1), Worth.PLAIN),
        (TopicKind.TELEMETRY, window(1, count=0, shadow=ShadowAgreement(compared=1)), Worth.PLAIN),
        (TopicKind.TELEMETRY, window(1, errors={"inference": 1}), Worth.TELLING),
        (TopicKind.TELEMETRY, window(1, count=0, outcomes=Outcomes(correct=1)), Worth.TELLING),
        (TopicKind.EVENTS, None, Worth.EVENT),
    ],
)
def test_the_worth_of_a_record(kind: TopicKind, given_up: Window | None, worth: Worth) -> None:
    assert worth_of(kind, given_up) is worth


def test_a_device_that_comes_back_tells_its_events_and_its_present_before_its_past(tmp_path: Path) -> None:
    clock = Clock()
    outbox = open_outbox(tmp_path / "outbox.db", clock)
    for _ in range(6):
        append(outbox)
        clock.now_s += 3_600.0
    append(outbox)
    outbox.append(TopicKind.EVENTS, lambda sequence: b"{}")

    records = outbox.pending(4)

    assert [record.sequence for record in records] == [8, 7, 1, 2]
    assert [record.sequence for record in outbox.pending(9, excluding=[one.id for one in records])] == [3, 4, 5, 6]
    outbox.close()


def test_what_waited_for_the_servers_word_is_sent_again_after_the_clock_was_set_back(tmp_path: Path) -> None:
    clock = Clock()
    outbox = open_outbox(tmp_path / "outbox.db", clock)
    append(outbox)
    outbox.taken_by_broker(outbox.pending(1)[0].id)
    clock.now_s -= 365 * 86_400.0

    assert [decode(Window, record.payload).sequence for record in outbox.pending(1)] == [1]
    outbox.close()
