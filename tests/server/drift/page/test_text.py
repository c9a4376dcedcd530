"""The reports in a terminal."""

from __future__ import annotations

import pytest

from fleet_server.cli.drift_text import COURSE_CHARS, course_of, show_reports, signal_row
from fleet_server.drift.page.heat_map import times_of
from tests.server.drift.page import examples


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")


@pytest.mark.usefixtures("wide")
def test_the_verdict_comes_first_and_what_moved_on_top(capsys: pytest.CaptureFixture[str]) -> None:
    show_reports(examples.one_site())
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("digits 1.4.0: brightness moved by 0.8")
    assert lines[1] == "A sample of 200 of 10,000 devices was read."
    rows = [line for line in lines if "no drift found" in line or (" drift " in line and "SIGNAL" not in line)]
    assert "brightness" in " ".join(rows[:2])
    assert "no drift found" in rows[-1]
    assert "14 of 200" in " ".join(rows[:2])
    assert any("▁▁▁▁▁··▁▁" in row for row in rows)


def test_a_time_without_data_is_a_dot_and_a_large_move_a_high_bar() -> None:
    report = examples.one_site()[0]
    times = times_of(report, most=COURSE_CHARS)
    assert times is not None
    brightness = next(one for one in report.signals if one.signal == "brightness")
    course = course_of(brightness, times)
    assert len(course) == 24
    assert course[5:7] == "··"
    assert set(course[18:]) <= {"▆", "█"}
    assert set(course[:5]) <= {"▁", "▂"}


def test_two_weeks_of_hours_fit_a_line() -> None:
    report = examples.many_features()[0]
    times = times_of(report, most=COURSE_CHARS)
    assert times is not None
    row = signal_row(report, report.signals[0], times)
    assert 16 <= len(row[-1]) <= COURSE_CHARS
    assert len(row[0]) <= 40


@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize("name", examples.SHAPES)
def test_every_report_can_be_shown_and_steers_no_terminal(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    show_reports(examples.SHAPES[name]())
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\u202e" not in out


@pytest.mark.usefixtures("wide")
def test_too_little_data_is_told_without_a_number(capsys: pytest.CaptureFixture[str]) -> None:
    show_reports(examples.not_enough())
    out = capsys.readouterr().out
    assert out.count("not enough evidence") == 4
    assert "no drift" not in out
    assert "0 of 2" not in out
