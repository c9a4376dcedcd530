"""The merger: marked spans are read from the store, merged, written back, and their marks cleared.

One round, in this order, each part bounded:
1. hold the lease, or leave it to the server that has it;
2. minutes of the fleet that are due, the latest first, so that what people look at is never behind a backlog;
3. hours of the fleet, from their minutes;
4. hours of devices, a part of the round that DEVICE_ROUND_NS asks for.
For each: read, merge, write, and only then clear the mark (marks.py says what a lost race leaves). A crash anywhere
leaves the mark, and merging again writes the same. A store or database that is away is raised: nothing is lost.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing

from sqlalchemy import Engine

from fleet_server.database.leases import release_lease, take_lease
from fleet_server.errors import UnavailableError
from fleet_server.merging.cohorts import read_cohorts
from fleet_server.merging.due import device_slot, due_spans, oldest_start_ns
from fleet_server.merging.marks import (
    MarkedDevice,
    MarkedSpan,
    clear_device,
    clear_span,
    count_marked_devices,
    mark_spans,
    marked_devices,
    marked_spans,
)
from fleet_server.merging.spans import DeviceRead, device_hours, device_reads, runs, start_of
from fleet_server.telemetry_store.merge import merge, regroup
from fleet_server.telemetry_store.merged import Grain, MergedKey, MergedWindow
from fleet_server.telemetry_store.port import Slice, TelemetryStore

MINUTES_PER_STEP = 60
MINUTES_PER_READ = 10
WINDOWS_PER_READ = 200_000
"""As many minutes are read together as held no more windows the last time, at least one."""
HOURS_PER_STEP = 24
DEVICES_PER_STEP = 1_000
_MAX_FAILED_READS = 3
_LEASE_NS = 120 * 10**9
_COHORTS_KEPT_NS = 30 * 10**9
_CLOCKS_AHEAD_NS = 2 * 86_400 * 10**9
_LOG = logging.getLogger(__name__)

_Place = tuple[int, MergedKey]


class Merger:
    """Keeps the merged series of a fleet up to date; call `step` again and again, from one thread.

    Several processes may each have one: the lease lets one of them work.
    """

    def __init__(
        self,
        *,
        engine: Engine,
        store: TelemetryStore,
        fleet: str,
        raw_retention_s: int,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._engine, self._store, self._fleet, self._now_ns = engine, store, fleet, now_ns
        self._raw_retention_s = raw_retention_s
        self._holder = secrets.token_hex(8)
        self._lease = f"merging/{fleet}"
        self._cohort_of: Callable[[str], str] = lambda _: ""
        self._cohorts_until_ns = -1
        self._minutes_per_read = 1
        self._device_slot = -1
        self._devices_left = 0
        self._counters: Counter[str] = Counter()

    def step(self) -> bool:
        """One round; whether there is more to do at once. Raises UnavailableError, and SQLAlchemyError as it comes."""
        if not self._holds_lease():
            return False
        more = self._merge_minutes()
        more = self._merge_hours() or more
        return self._merge_devices() or more

    def close(self) -> None:
        """Give the lease back, so that another server need not wait."""
        with self._engine.begin() as connection:
            release_lease(connection, self._lease, self._holder)

    def counters(self) -> Mapping[str, float]:
        """Totals since the start."""
        return {f"edgefleet_merging_{name}_total": count for name, count in list(self._counters.items())}

    def _holds_lease(self) -> bool:
        with self._engine.begin() as connection:
            return take_lease(
                connection, self._lease, self._holder, now_ns=self._now_ns(), duration_ns=_LEASE_NS
            )  # fmt: skip  # as one call reads

    def _merge_minutes(self) -> bool:
        grain = Grain.FLEET_MINUTE
        due = self._due(grain)
        some = {span.start_ns: span for span in due[:MINUTES_PER_STEP]}
        for start_ns, end_ns in reversed(list(runs(some, grain.span_ns, longest=self._minutes_per_read))):
            spans = [some[start] for start in range(start_ns, end_ns, grain.span_ns)]
            self._merge_spans(grain, spans, self._minutes_of(start_ns, end_ns))
        return len(due) > len(some)

    def _merge_hours(self) -> bool:
        grain = Grain.FLEET_HOUR
        due = self._due(grain)
        for span in due[:HOURS_PER_STEP]:
            where = self._slice(span.start_ns, span.start_ns + grain.span_ns)

            def hour(where: Slice = where) -> list[MergedWindow]:
                return regroup(self._store.merged(where, Grain.FLEET_MINUTE), lambda key: key, grain.span_ns)

            self._merge_spans(grain, [span], hour)
        return len(due) > HOURS_PER_STEP

    def _due(self, grain: Grain) -> list[MarkedSpan]:
        """The spans to merge, latest first; those too old to be merged lose their mark."""
        now_ns = self._now_ns()
        oldest_ns = oldest_start_ns(now_ns, self._raw_retention_s)
        with self._engine.connect() as connection:
            marked = marked_spans(connection, self._fleet, grain, start_ns=-(2**62), end_ns=now_ns)
        too_old = [span for span in marked if span.start_ns < oldest_ns]
        if too_old:
            self._counters["spans_too_old"] += len(too_old)
            _LOG.warning("%d spans are older than windows are kept: they stay as they were merged", len(too_old))
            with self._engine.begin() as connection:
                for span in too_old:
                    clear_span(connection, self._fleet, grain, span, now_ns=now_ns)
        return due_spans((span for span in marked if span.start_ns >= oldest_ns), grain, now_ns=now_ns)

    def _minutes_of(self, start_ns: int, end_ns: int) -> Callable[[], list[MergedWindow]]:
        def minutes() -> list[MergedWindow]:
            with closing(self._store.each_window(self._slice(start_ns, end_ns))) as windows:
                merged = merge(windows, Grain.FLEET_MINUTE, self._cohorts())
            per_minute = sum(one.windows for one in merged) * Grain.FLEET_MINUTE.span_ns // (end_ns - start_ns)
            self._minutes_per_read = min(MINUTES_PER_READ, max(1, WINDOWS_PER_READ // max(1, per_minute)))
            return merged

        return minutes

    def _merge_spans(
        self, grain: Grain, spans: Sequence[MarkedSpan], compute: Callable[[], list[MergedWindow]]
    ) -> None:
        """Neighbouring spans: compute, replace all that is there, clear their marks."""
        starts = [span.start_ns for span in spans]
        where = self._slice(starts[0], starts[-1] + grain.span_ns)
        if not self._holds_lease():
            return
        try:
            fresh = compute()
            self._store.write_merged(self._fleet, grain, self._changes(where, grain, fresh))
        except UnavailableError:
            with self._engine.begin() as connection:  # let others go first: it may be these alone that cannot be read
                mark_spans(connection, self._fleet, grain, starts, now_ns=self._now_ns(), later=True)
            raise
        hour_ns = Grain.FLEET_HOUR.span_ns
        with self._engine.begin() as connection:
            for span in spans:
                if not clear_span(connection, self._fleet, grain, span, now_ns=self._now_ns()):
                    self._counters["lost_races"] += 1
            if grain is Grain.FLEET_MINUTE:
                hours = {start // hour_ns * hour_ns for start in starts}
                mark_spans(connection, self._fleet, Grain.FLEET_HOUR, hours, now_ns=self._now_ns())
        self._counters[f"{grain.value}s"] += len(spans)

    def _changes(self, where: Slice, grain: Grain, fresh: Iterable[MergedWindow]) -> list[MergedWindow]:
        """What to write so that exactly `fresh` is there."""
        there: dict[_Place, MergedWindow] = {(one.start_ns, one.key): one for one in self._store.merged(where, grain)}
        changed = [one for one in fresh if there.pop((one.start_ns, one.key), None) != one]
        return [*changed, *(MergedWindow(key=key, start_ns=start_ns) for start_ns, key in there)]

    def _merge_devices(self) -> bool:
        slot = device_slot(self._now_ns())
        if slot != self._device_slot and self._devices_left <= 0:
            with self._engine.connect() as connection:
                self._devices_left = count_marked_devices(connection, self._fleet)
            self._device_slot = slot
        if self._devices_left <= 0:
            return False
        now_ns = self._now_ns()
        with self._engine.connect() as connection:
            marked = marked_devices(
                connection, self._fleet, start_ns=-1, end_ns=2**63 - 1, limit=min(DEVICES_PER_STEP, self._devices_left)
            )
        self._devices_left = self._devices_left - len(marked) if marked else 0
        oldest_ns = oldest_start_ns(now_ns, self._raw_retention_s)
        first_ns = start_of(oldest_ns, Grain.DEVICE_HOUR.span_ns) + Grain.DEVICE_HOUR.span_ns
        failed: set[str] = set()
        failures: list[UnavailableError] = []
        reads = device_reads(device_hours(marked), start_ns=first_ns, end_ns=now_ns + _CLOCKS_AHEAD_NS)
        for number, read in enumerate(reads):
            if number % 16 == 0 and not self._holds_lease():
                return False
            try:
                self._merge_device_hours(read)
            except UnavailableError as error:
                failed |= read.devices
                failures.append(error)
                if len(failures) >= _MAX_FAILED_READS:
                    raise
        self._clear_devices([one for one in marked if one.device not in failed])
        if failures:
            raise failures[0]
        return self._devices_left > 0

    def _merge_device_hours(self, read: DeviceRead) -> None:
        where = Slice(fleet=self._fleet, start_ns=read.start_ns, end_ns=read.end_ns, devices=read.devices)
        with closing(self._store.each_window(where)) as windows:
            merged = merge(windows, Grain.DEVICE_HOUR, lambda _: "")
        self._store.write_merged(self._fleet, Grain.DEVICE_HOUR, merged)
        self._counters["device_hours"] += len(merged)

    def _clear_devices(self, marked: Sequence[MarkedDevice]) -> None:
        with self._engine.begin() as connection:
            for one in marked:
                if not clear_device(connection, self._fleet, one):
                    self._counters["lost_races"] += 1

    def _cohorts(self) -> Callable[[str], str]:
        now_ns = self._now_ns()
        if not now_ns < self._cohorts_until_ns <= now_ns + _COHORTS_KEPT_NS:
            with self._engine.connect() as connection:
                self._cohort_of = read_cohorts(connection, self._fleet)
            self._cohorts_until_ns = now_ns + _COHORTS_KEPT_NS
        return self._cohort_of

    def _slice(self, start_ns: int, end_ns: int) -> Slice:
        return Slice(fleet=self._fleet, start_ns=start_ns, end_ns=end_ns)
