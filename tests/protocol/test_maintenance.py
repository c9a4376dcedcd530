"""Maintenance hours by the clock on the device's wall: midnight, days, and the nights the clock is changed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet_protocol.maintenance import is_known_zone, is_open, next_closing_ns, next_opening_ns
from fleet_protocol.messages import MaintenanceHours

_NS = 10**9
_ZONES = ["Europe/Paris", "America/New_York", "Australia/Lord_Howe", "Africa/Cairo", "Asia/Kolkata", "UTC", ""]


def _hours(start: str, end: str, *days: str, zone: str = "") -> MaintenanceHours:
    return MaintenanceHours(start=start, end=end, days=list(days), time_zone=zone)  # type: ignore[arg-type]


def _at(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp()) * _NS


def _wall(at_ns: int, zone: str) -> str:
    from zoneinfo import ZoneInfo

    return datetime.fromtimestamp(at_ns // _NS, ZoneInfo(zone)).isoformat()


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        ("2026-06-10T08:59:59+02:00", False),
        ("2026-06-10T09:00:00+02:00", True),
        ("2026-06-10T16:59:59+02:00", True),
        ("2026-06-10T17:00:00+02:00", False),
    ],
)
def test_hours_begin_at_their_start_and_are_over_at_their_end(at: str, expected: bool) -> None:
    assert is_open(_hours("09:00", "17:00"), _at(at), "Europe/Paris") is expected


def test_hours_over_midnight_belong_to_the_day_on_which_they_begin() -> None:
    friday_night = _hours("22:00", "05:00", "fri")
    assert is_open(friday_night, _at("2026-06-12T22:00:00+02:00"), "Europe/Paris")  # a Friday
    assert is_open(friday_night, _at("2026-06-13T04:59:00+02:00"), "Europe/Paris")
    assert not is_open(friday_night, _at("2026-06-12T04:00:00+02:00"), "Europe/Paris")
    assert not is_open(friday_night, _at("2026-06-13T22:00:00+02:00"), "Europe/Paris")


def test_equal_ends_are_the_whole_day() -> None:
    sunday = _hours("06:00", "06:00", "sun", zone="UTC")
    opens = next_opening_ns(sunday, _at("2026-06-12T00:00:00+00:00"))
    assert opens == _at("2026-06-14T06:00:00+00:00")
    assert next_closing_ns(sunday, opens) == opens + 86_400 * _NS


def test_an_hour_the_clock_skips_does_not_exist() -> None:
    """Paris, 29 March 2026: 02:00 is 03:00."""
    before = _at("2026-03-29T00:00:00+01:00")
    assert _wall(next_opening_ns(_hours("02:00", "03:00"), before, "Europe/Paris"), "Europe/Paris").startswith(
        "2026-03-30T02:00:00"
    )
    assert _wall(next_opening_ns(_hours("02:30", "04:00"), before, "Europe/Paris"), "Europe/Paris").startswith(
        "2026-03-29T03:00:00+02:00"
    )


def test_an_hour_that_comes_twice_counts_twice() -> None:
    """Paris, 25 October 2026: 03:00 is 02:00 again."""
    hours = _hours("02:00", "02:30")
    first = next_opening_ns(hours, _at("2026-10-25T00:00:00+02:00"), "Europe/Paris")
    assert first == _at("2026-10-25T02:00:00+02:00")
    assert next_closing_ns(hours, first, "Europe/Paris") == _at("2026-10-25T02:30:00+02:00")
    second = next_opening_ns(hours, _at("2026-10-25T02:45:00+02:00"), "Europe/Paris")
    assert second == _at("2026-10-25T02:00:00+01:00")
    assert is_open(_hours("01:00", "02:30"), _at("2026-10-25T02:15:00+01:00"), "Europe/Paris")
    within = _hours("02:30", "02:45")
    assert next_opening_ns(within, _at("2026-10-25T02:45:00+02:00"), "Europe/Paris") == _at("2026-10-25T02:30:00+01:00")


def test_weekly_hours_in_the_skipped_hour_open_the_week_after() -> None:
    opens = next_opening_ns(_hours("02:00", "03:00", "sun"), _at("2026-03-28T12:00:00+01:00"), "Europe/Paris")
    assert opens == _at("2026-04-05T02:00:00+02:00")


def test_the_hours_own_zone_outranks_the_devices() -> None:
    at = _at("2026-06-10T10:00:00+00:00")
    assert is_open(_hours("09:00", "11:00", zone="UTC"), at, "Asia/Tokyo")
    assert not is_open(_hours("09:00", "11:00"), at, "Asia/Tokyo")


@pytest.mark.parametrize("zone", ["", "Mars/Olympus", "../../etc/passwd", "Europe", "/etc/localtime", "a\0b", "é" * 40])
def test_a_zone_that_nobody_knows_is_utc(zone: str) -> None:
    assert not is_known_zone(zone)
    assert is_open(_hours("09:00", "11:00"), _at("2026-06-10T10:00:00+00:00"), zone)


@pytest.mark.parametrize("at_ns", [0, -5, 2**63 - 1, 2**53])
def test_a_clock_that_is_far_off_still_gets_an_answer(at_ns: int) -> None:
    hours = _hours("09:00", "10:00")
    assert next_opening_ns(hours, at_ns, "Pacific/Apia") >= 0
    assert is_open(hours, at_ns) in (True, False)


_TIMES = st.integers(0, 47).map(lambda half: f"{half // 2:02d}:{half % 2 * 30:02d}")
_MOMENTS = st.integers(
    int(datetime(2025, 1, 1, tzinfo=UTC).timestamp()), int(datetime(2027, 1, 1, tzinfo=UTC).timestamp())
)


@settings(max_examples=60, deadline=None)
@given(_TIMES, _TIMES, st.lists(st.sampled_from(["mon", "thu", "sun"]), max_size=2), _MOMENTS, st.sampled_from(_ZONES))
def test_the_next_opening_is_the_first_open_moment(
    start: str, end: str, days: list[str], second: int, zone: str
) -> None:
    hours = _hours(start, end, *days)
    opens = next_opening_ns(hours, second * _NS, zone)
    assert opens >= second * _NS
    assert is_open(hours, opens, zone)
    if opens > second * _NS:
        assert not is_open(hours, opens - _NS, zone)
        steps = range(second, opens // _NS, 1800)
        assert not any(is_open(hours, step * _NS, zone) for step in steps)


@settings(max_examples=40, deadline=None)
@given(_TIMES, _TIMES, _MOMENTS, st.sampled_from(_ZONES))
def test_open_is_what_the_clock_on_the_wall_says(start: str, end: str, second: int, zone: str) -> None:
    from zoneinfo import ZoneInfo

    wall = datetime.fromtimestamp(second, ZoneInfo(zone or "UTC"))
    minute = timedelta(hours=wall.hour, minutes=wall.minute)
    first, last = (timedelta(hours=int(each[:2]), minutes=int(each[3:])) for each in (start, end))
    expected = first <= minute < last if first < last else not last <= minute < first
    assert is_open(_hours(start, end), second * _NS, zone) is expected
