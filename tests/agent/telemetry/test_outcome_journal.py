"""Outcomes of a window that no process lived to close: counted in the next boot, once."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from edge_agent.telemetry import outcome_journal
from edge_agent.telemetry.outbox import Outbox
from edge_agent.telemetry.outcome_book import OutcomeBook
from edge_agent.telemetry.outcome_journal import ReportedOutcome
from fleet_protocol.messages import Outcomes, Window, decode
from fleet_protocol.topics import TopicKind
from tests.agent.telemetry.device import Device, X
from tests.agent.telemetry.windows import Clock, open_outbox
from tests.real_servers.processes import Process, wait_until

# Reports outcomes until it is killed, and says after each that it was taken.
_REPORTING = """
import sys, time
from pathlib import Path
from tests.agent.telemetry.device import Device, X
device = Device(Path(sys.argv[1]), window_s=float(sys.argv[2]))
device.put_to_work()
device.recorder.start()
while True:
    made = device.path.infer("m", X)
    device.path.report_outcome(made.id, correct=True)
    print(made.id, flush=True)
    time.sleep(0.0003)
"""


def outcome(number: int, *, version: str = "1.0.0") -> ReportedOutcome:
    return ReportedOutcome("00000001-0000abcd", number, "m", version, "fp32", "main", True, None)


def told(device: Device) -> list[Outcomes]:
    """Of every window in the outbox, after the open one was closed."""
    device.recorder.close_window()
    records = [one for one in device.outbox.pending(100_000) if one.kind is TopicKind.TELEMETRY]
    return [window.outcomes for one in records if (window := decode(Window, one.payload)).outcomes]


def test_outcomes_of_a_killed_process_are_counted_exactly_once_by_the_next(tmp_path: Path) -> None:
    said: list[str] = []
    for attempt, window_s in enumerate((3_600.0, 0.3)):  # one that closes no window, one that is killed among many
        arguments: list[str | Path] = [sys.executable, "-c", _REPORTING, tmp_path, str(window_s)]
        with Process(arguments, folder=tmp_path, name=f"child{attempt}") as child:
            child.wait_ready(lambda child=child: child.output().count("\n") > 2_500, 40, "outcomes were reported")  # type: ignore[misc]
            child.kill()
            said += child.stdout_path.read_text().splitlines()[:-1]

    device = Device(tmp_path)
    kept = sum(outcomes.correct for outcomes in told(device))
    for _ in range(2):
        for prediction_id in said:
            device.path.report_outcome(prediction_id, correct=True)
    counted = sum(outcomes.correct for outcomes in told(device))
    device.close()

    assert kept > len(said) - 2_000  # at most those of the last moments of each process were not on the disk yet
    assert len(said) <= counted <= len(said) + 2  # one that was counted and not yet said, for each process


def test_what_was_journaled_before_a_kill_is_in_the_next_boots_first_window(tmp_path: Path) -> None:
    outbox = open_outbox(tmp_path / "outbox.db")
    outbox.journal([outcome(1), outcome(2), outcome(3, version="2.0.0")])
    outbox.close()

    device = Device(tmp_path)
    windows = {window.version: window.outcomes for window in device.closed()}
    device.close()
    again = Device(tmp_path)

    assert windows == {"1.0.0": Outcomes(correct=2), "2.0.0": Outcomes(correct=1)}
    assert again.outbox.open_outcomes() == []
    assert again.closed() == []
    again.close()


def test_a_report_that_is_repeated_after_a_restart_counts_once(tmp_path: Path) -> None:
    before = Device(tmp_path)
    before.put_to_work()
    told_id, untold_id = before.path.infer("m", X).id, before.path.infer("m", X).id
    before.path.report_outcome(told_id, correct=True)
    before.closed()
    before.path.report_outcome(untold_id, correct=True)
    before.recorder._journal()
    before.close()

    after = Device(tmp_path)
    for _ in range(2):
        after.path.report_outcome(told_id, correct=True)
        after.path.report_outcome(untold_id, correct=True)

    assert [window.outcomes for window in after.closed()] == [Outcomes(correct=1)]
    after.close()


def test_an_outcome_is_on_the_disk_shortly_after_it_was_reported(tmp_path: Path) -> None:
    device = Device(tmp_path)
    device.put_to_work()
    device.recorder.start()
    device.path.report_outcome(device.path.infer("m", X).id, correct=False)

    wait_until(lambda: len(device.outbox.open_outcomes()) == 1, 10, "the outcome was journaled")
    device.close()


def test_outcomes_are_synced_within_seconds_also_when_no_more_come(tmp_path: Path) -> None:
    """The pragma in force at each commit says whether the disk was waited for."""
    clock_s, commits = [0.0], list[str]()
    outbox = Outbox(
        tmp_path / "outbox.db", max_bytes=10**8, max_age_s=1e9, confirm_timeout_s=100.0, monotonic_s=lambda: clock_s[0]
    )
    mode = "FULL"

    def trace(statement: str) -> None:
        nonlocal mode
        if statement.startswith("PRAGMA synchronous"):
            mode = statement.rsplit(" ", 1)[1]
        elif statement == "COMMIT":
            commits.append(mode)

    outbox._db.set_trace_callback(trace)
    for at_s, outcomes in ((0.0, [outcome(1)]), (1.0, [outcome(2)]), (2.0, []), (5.5, []), (20.0, [])):
        clock_s[0] = at_s
        outbox.journal(outcomes)

    assert commits == ["FULL", "NORMAL", "FULL"]
    outbox.close()


def test_a_squared_error_and_a_wrong_answer_survive_as_what_they_are(tmp_path: Path) -> None:
    kept = [outcome(1)._replace(correct=None, squared_error=2.25), outcome(2)._replace(correct=False)]
    outbox = open_outbox(tmp_path / "outbox.db")
    outbox.journal(kept)

    assert outbox.open_outcomes() == kept
    outbox.close()


def test_a_full_outbox_file_loses_no_outcome_that_is_still_open(tmp_path: Path) -> None:
    """The window that would have counted it is dropped whole, so the next boot counts it again."""
    outbox = open_outbox(tmp_path / "outbox.db")
    outbox.journal([outcome(1)])
    with pytest.raises(ZeroDivisionError):
        outbox.append(TopicKind.TELEMETRY, lambda sequence: bytes(1 // 0), counts=[outcome(1)])

    assert outbox.open_outcomes() == [outcome(1)]
    outbox.close()


def test_the_ids_that_are_kept_are_bounded_in_number_and_age(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcome_journal, "MAX_SEEN", 10)
    clock = Clock()
    outbox = open_outbox(tmp_path / "outbox.db", clock)
    for number in range(30):
        clock.now_s += 1.0
        outbox.append(TopicKind.EVENTS, lambda sequence: b"{}", counts=[outcome(number)])
    assert [number for _, number in outbox.counted_outcomes()] == list(range(20, 30))

    clock.now_s += outcome_journal.MAX_SEEN_AGE_S - 5.0
    outbox.append(TopicKind.EVENTS, lambda sequence: b"{}", counts=[outcome(30)])

    assert [number for _, number in outbox.counted_outcomes()] == [25, 26, 27, 28, 29, 30]
    outbox.close()


def test_more_open_outcomes_than_the_bound_are_counted_but_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_agent.telemetry.outcome_book.MAX_OPEN", 3)
    book = OutcomeBook()
    for number in range(5):
        book.add(outcome(number))

    assert all(book.has(outcome(number).identity) for number in range(5))
    assert len(book.take_new()) == 3


def test_a_window_takes_the_open_outcomes_of_its_own_series_only() -> None:
    book = OutcomeBook(left_open=[outcome(1)])
    book.add(outcome(2))
    book.add(outcome(3, version="2.0.0"))

    from edge_agent.telemetry.series import SeriesKey

    assert [one.number for one in book.take_open(SeriesKey("m", "1.0.0", "fp32", "main"))] == [1, 2]
    assert [one.number for one in book.take_new()] == [3]
    assert [one.number for one in book.take_open(SeriesKey("m", "2.0.0", "fp32", "main"))] == [3]
