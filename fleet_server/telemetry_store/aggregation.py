"""Windows summed into totals: per device, model version and arm, and per step of time.

Both stores feed their rows through here, so a sum means the same in each. Invariants: counts and histograms
merge by addition, nothing is averaged; the order of rows changes nothing; memory is bounded by the number of
groups (MAX_GROUPS), never by the number of windows.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Generic, TypeVar

import numpy as np

from fleet_protocol.histogram import LatencyHistogram
from fleet_protocol.messages import Window
from fleet_server.errors import InvalidRequestError
from fleet_server.telemetry_store._stored import error_count, outcomes, shadow_agreement
from fleet_server.telemetry_store.group_sums import MAX_CLASSES, Counts
from fleet_server.telemetry_store.port import DeviceTotals, SeriesPoint, Slice, Totals
from fleet_server.telemetry_store.sketches import decode_histograms, sum_by_group

MAX_GROUPS = 50_000
"""Devices x model versions x arms, or steps, of one answer: each holds a dense histogram of 20 KB."""
MAX_TEMPERATURE_C = 1_000.0
"""What is further from 0 is no temperature of a device, nor is what is no number."""
_ROWS_PER_CHUNK = 4096

_LOG = logging.getLogger(__name__)
K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowSums:
    """What sums need of one window."""

    device: str
    model: str
    version: str
    arm: str
    end_ns: int
    count: int
    errors: int
    correct: int
    wrong: int
    latency: bytes
    shadow_compared: int
    shadow_disagreed: int
    classes: Mapping[int, int] = field(default_factory=dict)
    rss_bytes: int | None = None
    temperature_c: float | None = None


def sums_of(window: Window) -> WindowSums:
    """What sums need of a window."""
    known, shadow = outcomes(window), shadow_agreement(window)
    resources = window.resources
    return WindowSums(
        device=window.device,
        model=window.model,
        version=window.version,
        arm=window.arm,
        end_ns=window.end_ns,
        count=window.count,
        errors=error_count(window),
        correct=known.correct,
        wrong=known.wrong,
        latency=window.latency,
        shadow_compared=shadow.compared,
        shadow_disagreed=shadow.disagreed,
        classes=window.classes,
        rss_bytes=resources.rss_bytes if resources else None,
        temperature_c=resources.temperature_c if resources else None,
    )


def holds(where: Slice, window: Window) -> bool:
    """Whether a window of the slice's fleet lies in the slice."""
    return (
        where.start_ns < window.end_ns <= where.end_ns
        and where.model in (None, window.model)
        and where.version in (None, window.version)
        and where.variant in (None, window.variant)
        and where.arm in (None, window.arm)
        and (where.devices is None or window.device in where.devices)
    )


def is_empty(where: Slice) -> bool:
    """Whether no window at all can lie in the slice."""
    return where.start_ns >= where.end_ns or (where.devices is not None and not where.devices)


class _Group:
    __slots__ = (
        "classes", "correct", "count", "errors", "first_end_ns", "last_end_ns", "latency", "rss_bytes_sum",
        "rss_windows", "shadow_compared", "shadow_disagreed", "temperature_mc_sum", "temperature_windows", "windows",
        "wrong",
    )  # fmt: skip

    def __init__(self, first: WindowSums) -> None:
        self.windows = self.count = self.errors = self.correct = self.wrong = 0
        self.shadow_compared = self.shadow_disagreed = 0
        self.first_end_ns = self.last_end_ns = first.end_ns
        self.latency = LatencyHistogram()
        self.classes: Counts[int] = Counts(MAX_CLASSES)
        self.rss_bytes_sum = self.rss_windows = self.temperature_mc_sum = self.temperature_windows = 0

    def add(self, row: WindowSums) -> None:
        self.windows += 1
        self.count += row.count
        self.errors += row.errors
        self.correct += row.correct
        self.wrong += row.wrong
        self.shadow_compared += row.shadow_compared
        self.shadow_disagreed += row.shadow_disagreed
        self.first_end_ns = min(self.first_end_ns, row.end_ns)
        self.last_end_ns = max(self.last_end_ns, row.end_ns)
        if row.classes:
            self.classes.add(row.classes)
        if row.rss_bytes is not None:
            self.rss_bytes_sum += row.rss_bytes
            self.rss_windows += 1
        if row.temperature_c is not None and abs(row.temperature_c) <= MAX_TEMPERATURE_C:
            self.temperature_mc_sum += round(row.temperature_c * 1000)  # whole, so that no order changes the sum
            self.temperature_windows += 1

    def totals(self) -> Totals:
        return Totals(
            windows=self.windows,
            count=self.count,
            errors=self.errors,
            correct=self.correct,
            wrong=self.wrong,
            latency=self.latency,
            shadow_compared=self.shadow_compared,
            shadow_disagreed=self.shadow_disagreed,
            classes=self.classes.settle(),
            rss_bytes_sum=self.rss_bytes_sum,
            rss_windows=self.rss_windows,
            temperature_mc_sum=self.temperature_mc_sum,
            temperature_windows=self.temperature_windows,
        )


class _Groups(Generic[K]):
    """Sums per key. Raises InvalidRequestError beyond MAX_GROUPS keys."""

    def __init__(self, what: str) -> None:
        self._what = what
        self.by_key: dict[K, _Group] = {}

    def add_all(self, rows: Iterable[tuple[K, WindowSums]]) -> None:
        rows = iter(rows)
        while chunk := list(islice(rows, _ROWS_PER_CHUNK)):
            self._add_chunk(chunk)

    def _add_chunk(self, chunk: list[tuple[K, WindowSums]]) -> None:
        numbers: dict[K, int] = {}
        for key, row in chunk:
            numbers.setdefault(key, len(numbers))
            self._group(key, row).add(row)
        histograms = decode_histograms([row.latency for _, row in chunk])
        for owner in histograms.refused:
            row = chunk[owner][1]
            _LOG.warning("latency histogram of device %s, window ending %d, is torn: left out", row.device, row.end_ns)
        of_row = np.fromiter((numbers[key] for key, _ in chunk), dtype=np.int64, count=len(chunk))
        owners, places, counts = sum_by_group(histograms, of_row)
        bounds = np.searchsorted(owners, np.arange(len(numbers) + 1))
        for number, key in enumerate(numbers):
            here = slice(bounds[number], bounds[number + 1])
            self.by_key[key].latency.counts[places[here]] += counts[here]

    def _group(self, key: K, row: WindowSums) -> _Group:
        group = self.by_key.get(key)
        if group is None:
            if len(self.by_key) >= MAX_GROUPS:
                raise InvalidRequestError(f"the slice has more than {MAX_GROUPS} {self._what}: narrow it")
            group = self.by_key[key] = _Group(row)
        return group


def sum_by_device(rows: Iterable[WindowSums]) -> list[DeviceTotals]:
    """Sums per (device, model, version, arm), sorted by these. Raises InvalidRequestError beyond MAX_GROUPS."""
    groups: _Groups[tuple[str, str, str, str]] = _Groups("devices, model versions and arms")
    groups.add_all(((row.device, row.model, row.version, row.arm), row) for row in rows)
    return [
        DeviceTotals(
            device=device,
            model=model,
            version=version,
            arm=arm,
            totals=group.totals(),
            first_end_ns=group.first_end_ns,
            last_end_ns=group.last_end_ns,
        )
        for (device, model, version, arm), group in sorted(groups.by_key.items())
    ]


def sum_by_step(rows: Iterable[WindowSums], step_ns: int) -> list[SeriesPoint]:
    """Sums per step (start, start + step_ns] with start a multiple of `step_ns`, oldest first.

    Raises InvalidRequestError for a step below 1 ns and beyond MAX_GROUPS steps.
    """
    if step_ns < 1:
        raise InvalidRequestError(f"a series needs a step of at least 1 ns, not {step_ns}")
    groups: _Groups[int] = _Groups("steps")
    groups.add_all(((row.end_ns - 1) // step_ns, row) for row in rows)
    return [
        SeriesPoint(start_ns=step * step_ns, totals=group.totals()) for step, group in sorted(groups.by_key.items())
    ]
