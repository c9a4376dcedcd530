"""When a device begins an update: not-before, jitter, maintenance hours, and clocks that were never set."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from msgspec.structs import replace

from edge_agent.control.starting import UNSET_CLOCK_PATIENCE_S, why_it_waits
from edge_agent.control.time_zone import device_time_zone
from edge_agent.control.trust import KnownTime
from fleet_protocol.messages import Desired, MaintenanceHours

NS = 10**9
NOON = int(datetime(2027, 3, 10, 12, tzinfo=UTC).timestamp()) * NS
NIGHT = MaintenanceHours(start="02:00", end="04:00")


def desired(**more: object) -> Desired:
    fields = {"fleet": "f", "device": "d", "generation": 1, "issued_at_ns": NOON, "assignments": [], **more}
    return Desired(**fields)  # type: ignore[arg-type]


def waits(wanted: Desired, at_ns: int, *, is_clock_set: bool = True, waited_s: float = 0.0, zone: str = "") -> str:
    return why_it_waits(wanted, now_ns=at_ns, is_clock_set=is_clock_set, waited_s=waited_s, time_zone=zone)


def test_nothing_begins_before_not_before() -> None:
    wanted = desired(not_before_ns=NOON + 60 * NS)
    assert waits(wanted, NOON) == "it may begin in 60 s"
    assert waits(wanted, NOON + 60 * NS) == ""


def test_jitter_gives_each_device_one_moment_of_its_own_within_it() -> None:
    starts = []
    for device in ("a", "b", "c", "d"):
        wanted = desired(device=device, jitter_s=100.0)
        starts.append(next(second for second in range(101) if not waits(wanted, NOON + second * NS)))
        assert waits(wanted, NOON + 100 * NS) == ""
    assert len(set(starts)) == 4


def test_an_update_waits_for_maintenance_hours_in_the_device_s_own_time_zone() -> None:
    wanted = desired(maintenance=NIGHT)
    assert "maintenance hours are 02:00 to 04:00" in waits(wanted, NOON)
    assert waits(wanted, NOON + 15 * 3_600 * NS) == ""
    assert waits(wanted, NOON + 15 * 3_600 * NS, zone="Asia/Tokyo") != ""
    assert waits(wanted, NOON + 6 * 3_600 * NS, zone="Asia/Tokyo") == ""  # 03:00 there
    fixed = replace(wanted, maintenance=replace(NIGHT, time_zone="Asia/Tokyo"))
    assert waits(fixed, NOON + 6 * 3_600 * NS, zone="Europe/Berlin") == ""


def test_a_clock_that_was_never_set_opens_no_hours_but_holds_an_update_for_a_bounded_time_only() -> None:
    wanted = desired(maintenance=MaintenanceHours(start="00:00", end="00:00"))  # every hour of every day
    assert "never set" in waits(wanted, NOON, is_clock_set=False)
    assert waits(wanted, NOON, is_clock_set=False, waited_s=UNSET_CLOCK_PATIENCE_S) == ""
    assert waits(desired(), 0, is_clock_set=False) == ""  # no hours to keep: nothing to wait for


def test_a_device_without_a_clock_goes_through_its_hours_by_the_server_s_time_run_on() -> None:
    uptime_s = 0.0
    known = KnownTime(clock_ns=lambda: 0, uptime_ns=lambda: int(uptime_s * NS))
    wanted = desired(maintenance=NIGHT)
    began_after_h = None
    for hour in range(30):
        uptime_s = hour * 3_600.0
        now_ns = known.now_ns(wanted.issued_at_ns)
        if not waits(wanted, now_ns, is_clock_set=False, waited_s=uptime_s):
            began_after_h = hour
            break
    assert began_after_h == 14


def test_a_deadline_that_has_passed_keeps_no_device_from_the_newest_desired_state() -> None:
    assert waits(desired(deadline_ns=NOON), NOON + 3_600 * NS) == ""


@pytest.mark.parametrize(
    ("named", "link", "file", "zone"),
    [
        ("Europe/Berlin", "/usr/share/zoneinfo/Asia/Tokyo", "", "Europe/Berlin"),
        (":Europe/Berlin", "", "", "Europe/Berlin"),
        ("", "/usr/share/zoneinfo/Asia/Tokyo", "Africa/Cairo", "Asia/Tokyo"),
        ("", "../usr/share/zoneinfo/Etc/UTC", "", "Etc/UTC"),
        ("", "", "Africa/Cairo\n", "Africa/Cairo"),
        ("", "/somewhere/else", "", ""),
        ("x" * 65, "", "", ""),
        ("", "", "", ""),
    ],
)
def test_the_time_zone_is_told_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, named: str, link: str, file: str, zone: str
) -> None:
    monkeypatch.setenv("TZ", named)
    if link:
        (tmp_path / "localtime").symlink_to(link)
    if file:
        (tmp_path / "timezone").write_text(file)
    assert device_time_zone(etc=tmp_path) == zone
