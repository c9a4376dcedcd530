"""The outbox: nothing accepted is lost, nothing is merged that may be counted already, and it stays bounded."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_agent.telemetry.outbox import Outbox
from fleet_protocol.messages import Window, decode
from tests.agent.telemetry.windows import Clock, append, open_outbox, waiting
from tests.real_servers.processes import Process

# Appends until it is killed and says after each append that it returned.
_APPENDING = """
import sys
from pathlib import Path
from tests.agent.telemetry.windows import append, open_outbox
outbox = open_outbox(Path(sys.argv[1]))
while True:
    print(outbox.boot_id, append(outbox), flush=True)
"""


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def outbox(tmp_path: Path, clock: Clock) -> Iterator[Outbox]:
    opened = open_outbox(tmp_path / "outbox.db", clock)
    yield opened
    opened.close()


def pairs(windows: list[Window]) -> list[tuple[str, int]]:
    return [(one.boot_id, one.sequence) for one in windows]


def test_what_was_appended_is_there_after_the_process_was_killed(tmp_path: Path) -> None:
    said: list[tuple[str, int]] = []
    for attempt in range(3):
        with Process(
            [sys.executable, "-c", _APPENDING, tmp_path / "outbox.db"], folder=tmp_path, name=f"child{attempt}"
        ) as child:
            child.wait_ready(lambda child=child: child.output().count("\n") > 30, 30, "thirty windows were kept")  # type: ignore[misc]
            child.kill()
            lines = child.stdout_path.read_text().splitlines()
            said += [(boot, int(sequence)) for boot, sequence in map(str.split, lines[:-1])]

    outbox = open_outbox(tmp_path / "outbox.db")
    kept = pairs(waiting(outbox))
    outbox.close()

    assert set(said) <= set(kept)
    assert len(kept) == len(set(kept))
    assert len({boot for boot, _ in said}) == 3


def test_records_come_out_oldest_first_with_the_sequence_they_were_built_with(outbox: Outbox) -> None:
    sequences = [append(outbox) for _ in range(5)]

    records = outbox.pending(3)

    assert [record.sequence for record in records] == sequences[:3] == [1, 2, 3]
    assert [decode(Window, record.payload).sequence for record in records] == [1, 2, 3]
    assert [record.sequence for record in outbox.pending(10, excluding=[records[0].id])] == [2, 3, 4, 5]


def test_every_boot_has_a_new_id_that_sorts_after_the_last(tmp_path: Path) -> None:
    boots = []
    for _ in range(3):
        outbox = open_outbox(tmp_path / "outbox.db")
        boots.append(outbox.boot_id)
        assert append(outbox) == 1
        outbox.close()

    assert boots == sorted(set(boots))
    assert [boot[:8] for boot in boots] == ["00000001", "00000002", "00000003"]


def test_a_wiped_device_does_not_take_the_boot_id_of_its_former_life(tmp_path: Path) -> None:
    first, second = open_outbox(tmp_path / "a.db"), open_outbox(tmp_path / "b.db")

    assert first.boot_id != second.boot_id
    first.close()
    second.close()


def test_records_of_an_earlier_boot_keep_their_name(tmp_path: Path) -> None:
    first = open_outbox(tmp_path / "outbox.db")
    append(first)
    first.close()
    second = open_outbox(tmp_path / "outbox.db")
    append(second)

    assert pairs(waiting(second)) == [(first.boot_id, 1), (second.boot_id, 1)]
    second.close()


def test_a_record_leaves_only_on_the_servers_word_and_not_on_the_brokers(outbox: Outbox) -> None:
    append(outbox)
    [record] = outbox.pending(10)

    outbox.taken_by_broker(record.id)
    assert (outbox.status().depth, outbox.pending(10)) == (1, [])

    outbox.confirm(outbox.boot_id, [(1, 1)])
    assert outbox.status().depth == 0


def test_what_the_broker_took_is_sent_again_by_the_next_boot(tmp_path: Path, clock: Clock) -> None:
    first = open_outbox(tmp_path / "outbox.db", clock)
    append(first)
    first.taken_by_broker(first.pending(10)[0].id)
    first.close()
    second = open_outbox(tmp_path / "outbox.db", clock)

    assert second.pending(10) == []
    clock.now_s += 100.0
    assert pairs(waiting(second)) == [(first.boot_id, 1)]
    second.close()


def test_the_servers_first_word_after_a_silence_ends_every_longer_wait(outbox: Outbox, clock: Clock) -> None:
    append(outbox)
    for _ in range(8):
        [record] = outbox.pending(10)
        outbox.taken_by_broker(record.id)
        clock.now_s += 100.0 * 2**8
    outbox.taken_by_broker(record.id)
    assert outbox.pending(10) == []

    outbox.confirm("00000009-00000000", [(1, 1)])
    clock.now_s += 100.0

    assert [one.sequence for one in outbox.pending(10)] == [1]


def test_an_unconfirmed_record_is_sent_again_ever_more_rarely(outbox: Outbox, clock: Clock) -> None:
    append(outbox)
    waits = []
    for _ in range(12):
        [record] = outbox.pending(10)
        outbox.taken_by_broker(record.id)
        start_s = clock.now_s
        while not outbox.pending(10):
            clock.now_s += 50.0
        waits.append(clock.now_s - start_s)

    assert waits[:4] == [100.0, 200.0, 400.0, 800.0]
    assert waits[-3:] == [25_600.0] * 3


def test_a_refused_record_is_held_back_and_then_offered_again(outbox: Outbox, clock: Clock) -> None:
    append(outbox)
    [record] = outbox.pending(10)

    outbox.hold(record.id, 30.0)
    assert outbox.pending(10) == []
    clock.now_s += 30.0
    assert outbox.pending(10) == [record]


@pytest.mark.parametrize("ranges", [[(1, 2)], [(1, 1), (2, 2)], [(2, 2), (1, 1), (1, 2)]])
def test_a_confirmation_takes_exactly_its_boots_ranges(outbox: Outbox, ranges: list[tuple[int, int]]) -> None:
    for _ in range(4):
        append(outbox)
    outbox.pending(10)

    outbox.confirm("00000009-00000000", [(1, 4)])
    outbox.confirm(outbox.boot_id, ranges)

    assert [one.sequence for one in waiting(outbox)] == [3, 4]


def test_a_confirmation_of_what_was_never_sent_removes_nothing(outbox: Outbox) -> None:
    append(outbox)

    outbox.confirm(outbox.boot_id, [(1, 2**53 - 1)])

    assert outbox.status().depth == 1


def test_many_threads_append_and_take_without_losing_or_repeating_a_sequence(outbox: Outbox) -> None:
    taken: list[int] = []

    def produce() -> None:
        for _ in range(25):
            append(outbox)

    def consume() -> None:
        while len(taken) < 100:
            for record in outbox.pending(10):
                taken.append(record.sequence)
                outbox.confirm(record.boot_id, [(record.sequence, record.sequence)])

    threads = [threading.Thread(target=produce, daemon=True) for _ in range(4)]
    threads.append(threading.Thread(target=consume, daemon=True))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert sorted(taken) == list(range(1, 101))
    assert outbox.status().depth == 0


def test_where_the_operator_says_so_the_brokers_word_is_enough(tmp_path: Path) -> None:
    outbox = open_outbox(tmp_path / "outbox.db", Clock(), confirmed_by="broker")
    append(outbox)
    (record,) = outbox.pending(10)

    outbox.taken_by_broker(record.id)

    assert outbox.status().depth == 0
    assert outbox.status().dropped == 0
    outbox.close()
