"""The telemetry store's port: what the server needs of a time-series database.

Invariants every implementation keeps (tests/server/telemetry_store/test_contract.py runs over all):
- `write` returns only when the windows are durable, and raises StoreUnavailableError otherwise;
- writing a window again changes nothing: a window is stored under (device, boot_id, sequence);
- a late window lands in its own time (its `end_ns`);
- histograms and counts merge by addition; nothing is averaged;
- a merged window replaces the one under its key and span, a point the one of its measurement, tags and time;
- single windows, device hours and minutes are kept for the raw retention; hours of the fleet and points, which are few
  and tell of trends, for the merged one.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from fleet_protocol.histogram import LatencyHistogram
from fleet_protocol.messages import Window
from fleet_server.errors import InvalidRequestError
from fleet_server.telemetry_store.merged import Grain, MergedWindow

MAX_INT64 = 2**63 - 1
"""The latest time, and the largest number, that columns hold."""
MERGED_RETENTION_S = 2 * 365 * 86_400
"""How long merged hours and points are kept unless it is set."""


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


def check_window_slice(where: Slice) -> None:
    """Raise InvalidRequestError for a slice that single windows cannot be asked for."""
    if where.cohort is not None:
        raise InvalidRequestError("single windows know no cohort: choose devices by their labels instead")


def check_merged_slice(where: Slice, grain: Grain) -> None:
    """Raise InvalidRequestError for a slice that this grain cannot be asked for."""
    if grain is Grain.DEVICE_HOUR and where.cohort is not None:
        raise InvalidRequestError("device hours know no cohort: choose devices by their labels instead")
    if grain is not Grain.DEVICE_HOUR and where.devices is not None:
        raise InvalidRequestError(f"a {grain.value} has no single devices: ask for device hours")


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """Sums over windows, with the merged latency histogram.

    `shadow_compared` are calls on which a shadow was held against what answered, `shadow_disagreed` those on which it
    answered otherwise. `classes` counts predictions by class. Memory and temperature are of the windows that have them.
    """

    windows: int
    count: int
    errors: int
    correct: int
    wrong: int
    latency: LatencyHistogram
    shadow_compared: int = 0
    shadow_disagreed: int = 0
    classes: Mapping[int, int] = field(default_factory=dict)
    rss_bytes_sum: int = 0
    rss_windows: int = 0
    temperature_mc_sum: int = 0
    temperature_windows: int = 0

    @property
    def p95_us(self) -> float | None:
        """The 95th percentile of the merged latencies, within 0.78 %; None without any."""
        return self.latency.quantile_us(0.95) if self.latency.counts.any() else None

    @property
    def rss_bytes(self) -> float | None:
        """The agent's mean memory at the end of a window; None where it was never told."""
        return self.rss_bytes_sum / self.rss_windows if self.rss_windows else None

    @property
    def temperature_c(self) -> float | None:
        """The mean temperature at the end of a window, from thousandths of a degree; None where it was never told."""
        return self.temperature_mc_sum / self.temperature_windows / 1000 if self.temperature_windows else None


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

    def each_window(self, where: Slice) -> Generator[Window, None, None]:
        """Every window of a slice, in no order; a thousand or so are in memory at once. Close it if you stop early."""

    def totals_by_device(self, where: Slice) -> list[DeviceTotals]:
        """Sums of a slice per (device, model, version, arm), sorted by these."""

    def series(self, where: Slice, *, step_ns: int) -> list[SeriesPoint]:
        """Sums of a slice per step, oldest first; steps start at multiples of `step_ns`, empty ones are left out."""

    def write_merged(self, fleet: str, grain: Grain, merged: Sequence[MergedWindow]) -> None:
        """Put merged windows in the place of those under their keys and spans, durably.

        One with `windows` = 0 takes that place away.
        """

    def merged(self, where: Slice, grain: Grain) -> Iterator[MergedWindow]:
        """Merged windows whose span starts in [start_ns, end_ns) of the slice, by start, then key.

        Raises InvalidRequestError for devices of a fleet's grain and for a cohort of device hours: neither is there.
        """

    def write_points(self, fleet: str, points: Sequence[Point]) -> None:
        """Store points durably; a point that is there already is replaced. Raises InvalidRequestError (points.py)."""

    def points(
        self, fleet: str, measurement: str, *, start_ns: int, end_ns: int, tags: Mapping[str, str]
    ) -> list[Point]:
        """The points of a measurement in [start_ns, end_ns) that have these tags, oldest first.

        Raises InvalidRequestError beyond MAX_POINTS of them.
        """

    def close(self) -> None:
        """Let go of files and connections."""
