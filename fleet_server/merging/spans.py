"""Which windows to read for what is marked: reads that are as few as they may be large. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from fleet_server.merging.marks import MarkedDevice
from fleet_server.telemetry_store.merged import Grain

MAX_SPANS_PER_READ = 60
"""Minutes merged together."""
MAX_DEVICE_HOURS_PER_READ = 600
"""Devices x hours merged together; a device with a longer backlog is read by itself, a part at a time."""
_HOUR_NS = Grain.DEVICE_HOUR.span_ns


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRead:
    """Windows of these devices that end in (start_ns, end_ns], whole hours."""

    devices: frozenset[str]
    start_ns: int
    end_ns: int


def start_of(end_ns: int, span_ns: int) -> int:
    """The start of the span (start, start + span_ns] that `end_ns` lies in."""
    return (end_ns - 1) // span_ns * span_ns


def runs(starts: Iterable[int], span_ns: int, *, longest: int = MAX_SPANS_PER_READ) -> Iterator[tuple[int, int]]:
    """(start, end) of neighbouring spans put together, oldest first, at most `longest` spans each.

    >>> list(runs([0, 10, 20, 50], 10, longest=2))
    [(0, 20), (20, 30), (50, 60)]
    """
    first = last = None
    for start in sorted(set(starts)):
        if first is None or last is None:
            first = last = start
        elif start != last + span_ns or start - first >= longest * span_ns:
            yield first, last + span_ns
            first = last = start
        else:
            last = start
    if first is not None and last is not None:
        yield first, last + span_ns


def hours_of(from_ns: int, to_ns: int) -> tuple[int, int]:
    """The whole hours (start, end] that hold every end in [from_ns, to_ns]."""
    return start_of(from_ns, _HOUR_NS), start_of(to_ns, _HOUR_NS) + _HOUR_NS


def device_hours(marked: Iterable[MarkedDevice]) -> dict[str, tuple[int, int]]:
    """The unmerged hours (start, end] of each device, all of its boots together."""
    found: dict[str, tuple[int, int]] = {}
    for one in marked:
        start_ns, end_ns = hours_of(one.from_ns, one.to_ns)
        known = found.get(one.device, (start_ns, end_ns))
        found[one.device] = min(known[0], start_ns), max(known[1], end_ns)
    return found


def device_reads(hours: dict[str, tuple[int, int]], *, start_ns: int, end_ns: int) -> Iterator[DeviceRead]:
    """Reads that hold all of these device hours inside (start_ns, end_ns], each of bounded size."""
    alike: dict[tuple[int, int], list[str]] = {}
    for device, (first_ns, last_ns) in hours.items():
        span = max(first_ns, start_ns), min(last_ns, end_ns)
        if span[0] < span[1]:
            alike.setdefault(span, []).append(device)
    for (first_ns, last_ns), devices in sorted(alike.items()):
        for part_start in range(first_ns, last_ns, MAX_DEVICE_HOURS_PER_READ * _HOUR_NS):
            part_end = min(last_ns, part_start + MAX_DEVICE_HOURS_PER_READ * _HOUR_NS)
            together = max(1, MAX_DEVICE_HOURS_PER_READ * _HOUR_NS // (part_end - part_start))
            for some in _parts(sorted(devices), together):
                yield DeviceRead(devices=frozenset(some), start_ns=part_start, end_ns=part_end)


def _parts(names: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    for at in range(0, len(names), size):
        yield names[at : at + size]
