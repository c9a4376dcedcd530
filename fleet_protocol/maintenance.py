"""When a device may begin an update: maintenance hours on the clock on the device's wall. Pure; both sides use it.

Invariants:
1. the hours are open exactly while a clock on the wall of the zone reads between their `start` and `end`, in hours
   that began on one of their days. An hour that the wall clock skips does not exist; one that it reads twice counts
   twice;
2. `end` not later than `start` is the next day's; both equal is the whole day;
3. the zone is the hours' own, else the one given for the device; "" and a zone nobody knows are UTC, so that an
   update waits for a known hour, never for good;
4. `next_opening_ns` is the first moment, to the second, from which `is_open` holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache

from fleet_protocol.messages import MaintenanceHours

HORIZON_DAYS = 22
"""How far ahead an opening is looked for: hours of one day a week that the clock skips open the week after."""
MAX_ZONES = 1024
"""Zones kept read; devices name them, so there may be any number."""

_NS = 10**9
_LATEST_S = 250_000_000_000  # the year 9892: within what a datetime holds, with room for the horizon
_DAY = timedelta(days=1)
_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


def is_open(hours: MaintenanceHours, at_ns: int, zone: str = "") -> bool:
    """Whether an update may begin at `at_ns` (UTC nanoseconds) on a device in `zone` (IANA name)."""
    return _is_open(hours, _second(at_ns), _read_zone(hours.time_zone or zone))


def next_opening_ns(hours: MaintenanceHours, at_ns: int, zone: str = "") -> int:
    """The first time not before `at_ns` at which the hours are open: `at_ns` itself when they are open then.

    Hours that do not open within HORIZON_DAYS answer that horizon, when it is to be asked again.
    """
    second, read = _second(at_ns), _read_zone(hours.time_zone or zone)
    if _is_open(hours, second, read):
        return at_ns
    return _first_change(hours, second, read, opens=True) * _NS


def next_closing_ns(hours: MaintenanceHours, at_ns: int, zone: str = "") -> int:
    """The first time not before `at_ns` at which the hours are closed: `at_ns` itself when they are closed then.

    Hours that never close (the whole of every day) answer the horizon.
    """
    second, read = _second(at_ns), _read_zone(hours.time_zone or zone)
    if not _is_open(hours, second, read):
        return at_ns
    return _first_change(hours, second, read, opens=False) * _NS


def is_known_zone(zone: str) -> bool:
    """Whether the time zone database has `zone`."""
    return _find_zone(zone) is not None


def _is_open(hours: MaintenanceHours, second: int, zone: tzinfo) -> bool:
    wall = datetime.fromtimestamp(second, zone)
    now, start, end = wall.strftime("%H:%M"), hours.start, hours.end
    if start < end:
        return start <= now < end and _is_day(hours, wall)
    return (now >= start and _is_day(hours, wall)) or (now < end and _is_day(hours, wall - _DAY))


def _is_day(hours: MaintenanceHours, wall: datetime) -> bool:
    return not hours.days or _DAYS[wall.weekday()] in hours.days


def _first_change(hours: MaintenanceHours, second: int, zone: tzinfo, *, opens: bool) -> int:
    found = [at for at in _edges(hours, second, zone) if at > second and _is_open(hours, at, zone) is opens]
    return min(found, default=second + HORIZON_DAYS * 86_400)


def _edges(hours: MaintenanceHours, second: int, zone: tzinfo) -> Iterator[int]:
    """Every second at which the hours can open or close: starts, ends, midnights, and the clock being changed."""
    today = datetime.fromtimestamp(second, zone).replace(hour=0, minute=0, second=0, microsecond=0, tzinfo=None)
    for ahead in range(-1, HORIZON_DAYS):
        day = today + ahead * _DAY
        for time in ("00:00", hours.start, hours.end):
            reading = day.replace(hour=int(time[:2]), minute=int(time[3:]), tzinfo=zone)
            yield int(reading.timestamp())
            yield int(reading.replace(fold=1).timestamp())
        yield from _clock_changes(second + ahead * 86_400, second + (ahead + 1) * 86_400, zone)


def _clock_changes(start: int, end: int, zone: tzinfo) -> Iterator[int]:
    """The second in (start, end] from which the zone has another offset, found by halving; nothing when it keeps it."""
    before = datetime.fromtimestamp(start, zone).utcoffset()
    if before == datetime.fromtimestamp(end, zone).utcoffset():
        return
    while end - start > 1:
        middle = (start + end) // 2
        if datetime.fromtimestamp(middle, zone).utcoffset() == before:
            start = middle
        else:
            end = middle
    yield end


def _second(at_ns: int) -> int:
    return min(max(at_ns // _NS, 2 * 86_400), _LATEST_S)


def _read_zone(zone: str) -> tzinfo:
    return (_find_zone(zone) if zone else None) or UTC


@lru_cache(maxsize=MAX_ZONES)
def _find_zone(zone: str) -> tzinfo | None:
    from zoneinfo import ZoneInfo  # only who keeps hours reads the database

    try:
        return ZoneInfo(zone)
    except (OSError, ValueError, LookupError):  # no such zone, a folder, a name that leaves the database
        return None
