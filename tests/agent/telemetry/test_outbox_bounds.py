"""The outbox under pressure: it stays bounded, merges before it drops, and counts what it drops."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from fleet_protocol.histogram import LatencyHistogram
from fleet_protocol.messages import MAX_TELEMETRY_BYTES, Window, decode
from fleet_protocol.topics import TopicKind
from tests.agent.telemetry.windows import Clock, append, open_outbox, waiting


def test_under_pressure_windows_merge_and_no_count_is_lost(tmp_path: Path) -> None:
    outbox = open_outbox(tmp_path / "outbox.db", max_bytes=4_000)
    for number in range(300):
        append(outbox, errors={"inference": 1}, classes={number % 3: 2})
    status, windows = outbox.status(), waiting(outbox)
    outbox.close()

    assert status.dropped == 0
    assert status.merged == 300 - status.depth
    assert sum(one.count for one in windows) == 300
    assert sum(sum(one.classes.values()) for one in windows) == 600
    assert sum(one.errors["inference"] for one in windows) == 300
    assert sum(LatencyHistogram.from_bytes(one.latency).count for one in windows) == 300
    assert sorted(number for one in windows for number in (one.sequence, *one.covers)) == list(range(1, 301))
    assert min(one.start_ns for one in windows) == 10


def test_a_merged_window_spans_and_outlives_the_ones_it_covers(tmp_path: Path) -> None:
    outbox = open_outbox(tmp_path / "outbox.db", max_bytes=600)
    for _ in range(6):
        append(outbox)
    outbox.close()
    again = open_outbox(tmp_path / "outbox.db")

    first = waiting(again)[0]

    assert first.covers == list(range(1, first.sequence))
    assert (first.start_ns, first.end_ns) == (10, first.sequence * 10 + 10)
    again.close()


def test_a_window_that_was_handed_to_the_broker_is_never_merged(tmp_path: Path) -> None:
    outbox = open_outbox(tmp_path / "outbox.db", max_bytes=2_000)
    append(outbox)
    append(outbox)
    before = {record.sequence: record.payload for record in outbox.pending(10)}
    for _ in range(30):
        append(outbox)

    after = {record.sequence: record.payload for record in outbox.pending(100)}
    merged = [decode(Window, payload) for payload in after.values()]

    assert {sequence: after[sequence] for sequence in before} == before
    assert not {1, 2} & {covered for one in merged for covered in one.covers}
    outbox.close()


def test_windows_of_different_series_or_boots_are_never_merged(tmp_path: Path) -> None:
    first = open_outbox(tmp_path / "outbox.db")
    append(first)
    first.close()
    outbox = open_outbox(tmp_path / "outbox.db", max_bytes=1_500)
    for number in range(12):
        append(outbox, version=f"{number}.0.0")
    status = outbox.status()

    assert status.merged == 0
    assert status.dropped == 13 - status.depth > 0
    assert all(not one.covers for one in waiting(outbox))
    outbox.close()


@pytest.mark.parametrize("size", [200, 1_000, 50_000])
def test_the_outbox_never_grows_beyond_its_bound_and_drops_its_oldest_counted(tmp_path: Path, size: int) -> None:
    outbox = open_outbox(tmp_path / "outbox.db", max_bytes=100_000)
    for _ in range(1_000 if size < 1_000 else 200):
        outbox.append(TopicKind.EVENTS, lambda sequence: b"x" * size)
        kept = outbox.pending(0)
        assert kept == []
    status = outbox.status()
    records = outbox.pending(10_000)

    assert sum(len(record.payload) for record in records) <= 100_000
    assert status.dropped == (1_000 if size < 1_000 else 200) - len(records)
    assert records[-1].sequence == (1_000 if size < 1_000 else 200)
    assert [record.sequence for record in records] == sorted(record.sequence for record in records)
    outbox.close()


def test_a_record_larger_than_the_whole_outbox_is_dropped_and_counted(tmp_path: Path) -> None:
    outbox = open_outbox(tmp_path / "outbox.db", max_bytes=1_000)

    outbox.append(TopicKind.EVENTS, lambda sequence: b"x" * 2_000)

    assert (outbox.status().depth, outbox.status().dropped) == (0, 1)
    outbox.close()


def test_merging_never_makes_a_window_that_the_server_would_refuse(tmp_path: Path) -> None:
    big = tmp_path / "outbox.db"
    outbox = open_outbox(big, max_bytes=100_000)
    for offset in range(0, 30_000, 10_000):  # three bytes each: three such windows do not fit into one
        append(outbox, covers=list(range(20_000 + offset, 30_000 + offset)))
    for number in range(600):
        append(outbox, classes={number * 20 + place: 1 for place in range(20)})  # nor 12,000 classes into one table
    outbox.close()

    outbox = open_outbox(big)
    payloads = [record.payload for record in outbox.pending(1_000)]
    assert all(len(payload) <= MAX_TELEMETRY_BYTES for payload in payloads)
    assert all(decode(Window, payload) for payload in payloads)
    assert outbox.status().merged > 100
    outbox.close()


def test_a_record_whose_bytes_are_damaged_neither_stops_appending_nor_merging(tmp_path: Path) -> None:
    outbox = open_outbox(tmp_path / "outbox.db", max_bytes=3_000)
    outbox.append(TopicKind.TELEMETRY, lambda sequence: b"\xc1 no window")
    for _ in range(50):
        append(outbox)

    assert outbox.status().merged > 0
    assert outbox.status().depth > 1
    outbox.close()


def test_what_is_too_old_is_dropped_and_counted(tmp_path: Path) -> None:
    clock = Clock()
    outbox = open_outbox(tmp_path / "outbox.db", clock, max_age_s=100.0)
    append(outbox)
    clock.now_s += 60.0
    append(outbox)
    clock.now_s += 60.0
    append(outbox)

    assert [one.sequence for one in waiting(outbox)] == [2, 3]
    assert outbox.status().dropped == 1
    outbox.close()


def test_what_was_kept_before_the_clock_was_set_is_not_old_when_it_is_set(tmp_path: Path) -> None:
    clock = Clock()
    now_s, clock.now_s = clock.now_s, 30.0  # a device without a battery starts in 1970
    outbox = open_outbox(tmp_path / "outbox.db", clock, max_age_s=100.0)
    append(outbox)
    clock.now_s = now_s
    outbox.move_times(int((now_s - 30.0) * 1e9))
    append(outbox)

    assert [one.sequence for one in waiting(outbox)] == [1, 2]
    assert outbox.status().dropped == 0
    outbox.close()


def test_under_pressure_idle_windows_are_dropped_before_those_that_tell_something_and_events_last(
    tmp_path: Path,
) -> None:
    outbox = open_outbox(tmp_path / "outbox.db", max_bytes=1_000_000)
    boot = outbox.boot_id
    outbox.append(TopicKind.EVENTS, lambda sequence: b"{}" * 40)
    for number in range(12):  # each of a version of its own, so that none merge
        append(outbox, version=f"{number}.0.0", count=1, errors={"inference": 1} if number % 3 == 0 else {})
        append(outbox, version=f"{number}.1.0", count=0, latency=b"")
    outbox.close()
    seen = set()
    for max_bytes in range(6_000, 1_000, -150):
        outbox = open_outbox(tmp_path / "outbox.db", max_bytes=max_bytes)
        outbox.append(TopicKind.EVENTS, lambda sequence: b"{}")
        records = [one for one in outbox.pending(1_000) if one.boot_id == boot]
        windows = [decode(Window, one.payload) for one in records if one.kind is TopicKind.TELEMETRY]
        telling, idle = sum(bool(one.errors) for one in windows), sum(not one.count for one in windows)
        plain = len(windows) - telling - idle
        assert idle == 0 or (plain, telling) == (8, 4)
        assert plain == 0 or telling == 4
        assert len(records) - len(windows) == 1 or not windows
        seen.add((idle > 0, plain > 0, telling > 0))
        outbox.close()

    assert seen >= {(True, True, True), (False, True, True), (False, False, True)}


def test_plain_windows_merge_before_those_with_errors(tmp_path: Path) -> None:
    outbox = open_outbox(tmp_path / "outbox.db", max_bytes=1_700)
    while not outbox.status().merged:
        append(outbox, errors={"inference": 1} if outbox.status().depth < 3 else {})
    windows = waiting(outbox)

    assert [one.sequence for one in windows][:3] == [1, 2, 3]
    assert [one.covers for one in windows if one.errors] == [[], [], []]
    outbox.close()


def test_the_records_of_an_earlier_release_are_kept_and_their_events_given_up_last(tmp_path: Path) -> None:
    outbox = open_outbox(tmp_path / "outbox.db")
    append(outbox)
    outbox.append(TopicKind.EVENTS, lambda sequence: b"{}" * 40)
    outbox.close()
    with sqlite3.connect(tmp_path / "outbox.db") as old:
        old.executescript("DROP INDEX records_by_worth; ALTER TABLE records DROP COLUMN worth; DROP TABLE outcomes;")
    old.close()

    outbox = open_outbox(tmp_path / "outbox.db", max_bytes=260)
    outbox.append(TopicKind.EVENTS, lambda sequence: b"{}")

    assert [record.kind for record in outbox.pending(10)] == [TopicKind.EVENTS] * 2
    outbox.close()
