"""Merged windows of a slice, exact at any moment: what is stored, and what is still marked merged on the fly.

Invariants:
1. the marks are read before the store: what is marked is computed from the windows, so that an answer holds every
   window that was counted before it was asked for, once;
2. an answer has one order: by start, then key;
3. never more than MAX_WINDOWS_ON_THE_FLY windows are merged for one answer: beyond, it says so with an error that may
   be tried again (the merger is at work), or, where the caller asked for it with `exact=False`, it is answered as it
   was last merged: at most some minutes behind, device hours at most about ten.

What is older than windows are kept can no longer be computed: the merger takes such marks away, and it is read as it
was merged.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import replace

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from fleet_protocol.messages import Window
from fleet_server.errors import UnavailableError
from fleet_server.merging.cohorts import read_cohorts
from fleet_server.merging.marks import MAX_MARKS, marked_devices, marked_spans
from fleet_server.merging.spans import device_hours, device_reads, runs
from fleet_server.telemetry_store.merge import merge, order, regroup
from fleet_server.telemetry_store.merged import Grain, MergedWindow
from fleet_server.telemetry_store.port import Slice, TelemetryStore, check_merged_slice

MAX_WINDOWS_ON_THE_FLY = 200_000
"""Windows merged for one answer: about ten seconds' work."""


def merged_windows(
    engine: Engine, store: TelemetryStore, where: Slice, grain: Grain, *, exact: bool = True
) -> Iterator[MergedWindow]:
    """Every merged window of a slice whose span starts in [start_ns, end_ns), by start, then key.

    `where.devices` is for device hours only, `where.cohort` for the fleet's grains only (InvalidRequestError). Raises
    UnavailableError when too much is still unmerged (see `exact` in the module), or database or store do not answer.
    """
    check_merged_slice(where, grain)
    if not exact:
        return store.merged(where, grain)
    reading = _Reading(engine, store, where)
    try:
        match grain:
            case Grain.DEVICE_HOUR:
                return reading.device_hours()
            case Grain.FLEET_MINUTE:
                return reading.minutes()
            case Grain.FLEET_HOUR:
                return reading.hours()
    except SQLAlchemyError as error:
        raise UnavailableError(f"the database does not answer: {str(error).splitlines()[0]}") from error


class _Reading:
    """One answer. Each of its ways reads the marks at once and the store as the answer is read."""

    def __init__(self, engine: Engine, store: TelemetryStore, where: Slice) -> None:
        self._engine, self._store, self._where = engine, store, where
        self._windows_left = MAX_WINDOWS_ON_THE_FLY

    def minutes(self) -> Iterator[MergedWindow]:
        where = self._where
        stale = self._stale(Grain.FLEET_MINUTE, where.start_ns, where.end_ns)
        fresh = self._merge_minutes(stale)
        return _together(self._store.merged(where, Grain.FLEET_MINUTE), fresh, lambda one: one.start_ns in stale)

    def hours(self) -> Iterator[MergedWindow]:
        where, span_ns = self._where, Grain.FLEET_HOUR.span_ns
        first_ns = -(-where.start_ns // span_ns) * span_ns
        end_ns = -(-where.end_ns // span_ns) * span_ns
        stale_minutes = self._stale(Grain.FLEET_MINUTE, first_ns, end_ns)
        stale = {minute // span_ns * span_ns for minute in stale_minutes}
        stale |= self._stale(Grain.FLEET_HOUR, where.start_ns, where.end_ns)
        fresh: list[MergedWindow] = []
        merged_minutes = self._merge_minutes(stale_minutes)
        for start_ns, stop_ns in runs(stale, span_ns):
            of_run = [one for one in merged_minutes if start_ns <= one.start_ns < stop_ns]
            stored = self._store.merged(replace(where, start_ns=start_ns, end_ns=stop_ns), Grain.FLEET_MINUTE)
            minutes = _together(stored, of_run, lambda one: one.start_ns in stale_minutes)
            fresh += regroup(minutes, lambda key: key, span_ns)
        return _together(self._store.merged(where, Grain.FLEET_HOUR), fresh, lambda one: one.start_ns in stale)

    def device_hours(self) -> Iterator[MergedWindow]:
        where, span_ns = self._where, Grain.DEVICE_HOUR.span_ns
        first_ns = -(-where.start_ns // span_ns) * span_ns
        end_ns = -(-where.end_ns // span_ns) * span_ns
        with self._engine.connect() as connection:
            marked = marked_devices(
                connection, where.fleet, start_ns=first_ns, end_ns=end_ns, devices=where.devices,
                limit=MAX_WINDOWS_ON_THE_FLY + 1,
            )  # fmt: skip  # as one call reads
        if len(marked) > MAX_WINDOWS_ON_THE_FLY:
            raise _too_much()
        stale = device_hours(marked)
        fresh: list[MergedWindow] = []
        for read in device_reads(stale, start_ns=first_ns, end_ns=end_ns):
            part = replace(where, start_ns=read.start_ns, end_ns=read.end_ns, devices=read.devices)
            fresh += merge(self._counted(self._store.each_window(part)), Grain.DEVICE_HOUR, _no_cohort)
        fresh.sort(key=order)

        def is_stale(one: MergedWindow) -> bool:
            hours = stale.get(one.key.device)
            return hours is not None and hours[0] <= one.start_ns < hours[1]

        return _together(self._store.merged(where, Grain.DEVICE_HOUR), fresh, is_stale)

    def _stale(self, grain: Grain, start_ns: int, end_ns: int) -> set[int]:
        with self._engine.connect() as connection:
            marked = marked_spans(connection, self._where.fleet, grain, start_ns=start_ns, end_ns=end_ns)
        if len(marked) >= MAX_MARKS:
            raise _too_much()
        return {span.start_ns for span in marked}

    def _merge_minutes(self, starts: Iterable[int]) -> list[MergedWindow]:
        """The minutes that start there, computed from the windows; sorted."""
        starts, span_ns = set(starts), Grain.FLEET_MINUTE.span_ns
        if not starts:
            return []
        with self._engine.connect() as connection:
            cohort_of = read_cohorts(connection, self._where.fleet)
        found: list[MergedWindow] = []
        for start_ns, end_ns in runs(starts, span_ns):
            part = replace(self._where, start_ns=start_ns, end_ns=end_ns, cohort=None)
            found += merge(self._counted(self._store.each_window(part)), Grain.FLEET_MINUTE, cohort_of)
        cohort = self._where.cohort
        return [one for one in found if cohort is None or one.key.cohort == cohort]

    def _counted(self, windows: Generator[Window, None, None]) -> Iterator[Window]:
        with closing(windows):
            for window in windows:
                self._windows_left -= 1
                if self._windows_left < 0:
                    raise _too_much()
                yield window


def _together(
    stored: Iterator[MergedWindow], fresh: list[MergedWindow], is_stale: Callable[[MergedWindow], bool]
) -> Iterator[MergedWindow]:
    return heapq.merge((one for one in stored if not is_stale(one)), fresh, key=order)


def _too_much() -> UnavailableError:
    return UnavailableError(
        f"more than {MAX_WINDOWS_ON_THE_FLY} windows of this slice are not merged yet: try again in some minutes, end"
        " the slice earlier, or ask for it as it was last merged"
    )


def _no_cohort(_device: str) -> str:
    return ""
