"""The telemetry store's port: what the server needs of a time-series database.

Invariants every implementation keeps (tests/server/telemetry_store/test_contract.py runs over all):
- `write` returns only when the windows are durable, and raises StoreUnavailableError otherwise;
- writing a window again changes nothing: a window is stored under (device, boot_id, sequence);
- a late window lands in its own time (its `end_ns`);
- histograms and counts merge by addition; nothing is averaged;
- a merged window replaces the one under its key (`merged`), a point the one of its measurement, tags and time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from fleet_protocol.histogram import LatencyHistogram
from fleet_protocol.messages import Window
from fleet_server.telemetry_store.merged import Grain, MergedWindow


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """A part of the telemetry: windows whose `end_ns` is in (start_ns, end_ns], narrowed by what is not None.

    `devices` empty means no device at all, never every device.
    """

    fleet: str
    start_ns: int
    end_ns: int
    model: str | None = None
    version: str | None = None
    arm: str | None = None
    devices: frozenset[str] | None = None
    variant: str | None = None
    cohort: str | None = None
    """Of merged windows of the fleet only; single windows know no cohort."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """Sums over windows, with the merged latency histogram.

    `shadow_compared` are calls on which a shadow was held against what answered, `shadow_disagreed` those on which it
    answered otherwise.
    """

    windows: int
    count: int
    errors: int
    correct: int
    wrong: int
    latency: LatencyHistogram
    shadow_compared: int = 0
    shadow_disagreed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceTotals:
    """The totals of one device, model version and arm, and the end of its first and last window."""

    device: str
    model: str
    version: str
    arm: str
    totals: Totals
    first_end_ns: int
    last_end_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesPoint:
    """The totals of all windows that end in (start_ns, start_ns + step]."""

    start_ns: int
    totals: Totals


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One point of a measurement other than windows (`drift`, `alert`, `kpi` and the like; DESIGN.md has the names).

    (measurement, tags, at_ns) is its identity. Fields are numbers or text.
    """

    measurement: str
    at_ns: int
    tags: Mapping[str, str] = field(default_factory=dict)
    fields: Mapping[str, float | int | str] = field(default_factory=dict)


class TelemetryStore(Protocol):
    """A durable store of windows. Safe to call from several threads."""

    def set_up(self, *, raw_retention_s: int, merged_retention_s: int | None = None) -> None:
        """Create what is missing (tables, database, retentions); safe to call at every start.

        `merged_retention_s` is that of the merged hours; None leaves it at two years.
        """

    def check(self) -> None:
        """Raise StoreUnavailableError unless the store answers."""

    def write(self, fleet: str, windows: Sequence[Window]) -> None:
        """Store windows durably; windows that are there already stay as they are."""

    def windows(self, where: Slice, *, limit: int = 1000) -> list[Window]:
        """The latest `limit` windows of a slice, oldest first, as they were written."""

    def totals_by_device(self, where: Slice) -> list[DeviceTotals]:
        """Sums of a slice per (device, model, version, arm), sorted by these."""

    def series(self, where: Slice, *, step_ns: int) -> list[SeriesPoint]:
        """Sums of a slice per step, oldest first; steps start at multiples of `step_ns`, empty ones are left out."""

    def write_merged(self, fleet: str, grain: Grain, merged: Sequence[MergedWindow]) -> None:
        """Put merged windows in the place of those under their keys and spans, durably."""

    def merged(self, where: Slice, grain: Grain) -> Iterator[MergedWindow]:
        """Merged windows whose span starts in [start_ns, end_ns) of the slice, by start, then key."""

    def write_points(self, fleet: str, points: Sequence[Point]) -> None:
        """Store points durably; a point that is there already is replaced."""

    def points(
        self, fleet: str, measurement: str, *, start_ns: int, end_ns: int, tags: Mapping[str, str]
    ) -> list[Point]:
        """The points of a measurement in [start_ns, end_ns) that have these tags, oldest first."""

    def close(self) -> None:
        """Let go of files and connections."""
