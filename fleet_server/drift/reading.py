"""Reads windows and references, and reports drift: the thin part around the pure ones.

Short spans of few devices are read window by window, exact to the nanosecond. Larger ones are read from the merged
hours of each device: the span is then whole hours, and the report says which. Where devices x hours exceed
MAX_DEVICE_HOURS, a salted hash of the device's name chooses which are read, the same ones at every look, and the report
says of how many.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import msgspec
from sqlalchemy import Connection, Engine, select

from fleet_server.database.tables import devices
from fleet_server.drift.drill_down import Where, refined_onset
from fleet_server.drift.findings import DriftReport, Population
from fleet_server.drift.onset import Onset
from fleet_server.drift.pairing import Judged
from fleet_server.drift.populations import (
    Question,
    expected_population,
    hour_spans,
    parse_selector,
    seen_population,
)
from fleet_server.drift.report import ALPHA, Comparison, compare
from fleet_server.drift.segments import DeviceFacts
from fleet_server.drift.signals import Reference, read_manifest, reference_of
from fleet_server.drift.tallies import HOUR_NS, Record, Tally, device_of, span_of
from fleet_server.errors import NotFoundError
from fleet_server.merging.reading import merged_windows
from fleet_server.registry import catalogue
from fleet_server.rollouts.cohorts import position
from fleet_server.telemetry_store.merged import Grain
from fleet_server.telemetry_store.port import Slice, TelemetryStore

MAX_WINDOWS = 10_000
"""Single windows of one side; beyond, the merged hours are read."""
MAX_DEVICE_HOURS = 240_000
"""Ten thousand devices for a day; about a gigabyte of memory with twenty features."""
SAMPLE_SALT = "edgefleet-drift"
WINDOW_S = 60
SURELY_TOO_MANY = 4
"""Times MAX_WINDOWS that devices would send at WINDOW_S: then single windows are not tried."""
STEPS_NS = tuple(minutes * 60 * 10**9 for minutes in (1, 5, 10, 15, 30, 60))
STEPS_PER_SPAN = 48
REFINED_DEVICES = 50
REFINED_STEP_NS = 5 * 60 * 10**9


def read_drift(
    engine: Engine,
    store: TelemetryStore,
    *,
    fleet: str,
    model: str,
    version: str | None,
    start_ns: int,
    end_ns: int,
    question: Question | None = None,
    alpha: float = ALPHA,
) -> list[DriftReport]:
    """A report per version, the highest first: the one asked for, or every published one that ran in the span.

    Raises NotFoundError for an unknown model or version, InvalidRequestError for a question that cannot be asked or a
    reference that does not add up.
    """
    question = question or Question()
    with engine.connect() as connection:
        if version is None:
            entries = catalogue.list_versions(connection, model)
        else:
            entries = [catalogue.get_version(connection, model, version)]
    reader = DriftReader(engine, store, fleet=fleet)
    reports = []
    for entry in entries:
        reference = reference_of(read_manifest(entry.manifest))
        seen = seen_population(question, model=model, version=entry.version, start_ns=start_ns, end_ns=end_ns)
        expected = expected_population(question, seen)
        found = reader.compare(reference, seen, expected, alpha=alpha, detail=question.detail)
        if found.windows or version is not None:
            reports.append(found)
    if not reports:
        raise NotFoundError(f"no published version of {model!r} sent telemetry in this span: take a longer one")
    return reports


class DriftReader:
    """Compares populations of one fleet, as they stand in its database and telemetry store."""

    def __init__(self, engine: Engine, store: TelemetryStore, *, fleet: str) -> None:
        self._engine, self._store, self._fleet = engine, store, fleet
        with engine.connect() as connection:
            self.facts = read_device_facts(connection, fleet)

    def compare(
        self,
        reference: Reference,
        seen: Population,
        expected: Population,
        *,
        alpha: float,
        detail: bool = False,
        only: frozenset[str] | None = None,
    ) -> DriftReport:
        """One comparison; the onset of what drifts is looked for again inside its hour.

        `only` narrows the devices that were seen. Raises NotFoundError for an unknown version, UnavailableError when
        database or store do not answer.
        """
        is_one = bool(seen.device) and expected.device in ("", seen.device)
        own_past = is_one and (expected.is_reference or expected.device == seen.device)
        of_seen = self._read(reference, seen, unit_of=span_of if own_past else device_of, only=only)
        of_expected = None
        if not expected.is_reference:
            other = reference if expected.version == seen.version else self._reference(expected)
            if not expected.same_hours and expected.end_ns <= seen.start_ns:
                expected = whole_hours_before(expected)
            of_expected = self._read(other, expected, unit_of=span_of if own_past else device_of)
        comparison = Comparison(
            seen=of_seen.tally,
            expected=None if of_expected is None else of_expected.tally,
            seen_population=of_seen.population,
            expected_population=expected if of_expected is None else of_expected.population,
            facts=self.facts,
            windows_truncated=of_seen.is_truncated,
            read_from=of_seen.read_from,
            devices_sampled_of=of_seen.sampled_of,
        )

        def refine(judged: Judged, where: Where, onset: Onset) -> Onset:
            return self._refined(reference, of_seen, judged, where, onset)

        return compare(comparison, alpha=alpha, detail=detail, refine=refine)

    def _reference(self, population: Population) -> Reference:
        with self._engine.connect() as connection:
            entry = catalogue.get_version(connection, population.model, population.version)
        return reference_of(read_manifest(entry.manifest))

    def _read(
        self,
        reference: Reference,
        population: Population,
        *,
        unit_of: Callable[[Record], str],
        only: frozenset[str] | None = None,
    ) -> _Read:
        spans = hour_spans(population)
        chosen = self._devices(population)
        if only is not None:
            chosen = only if chosen is None else chosen & only
        known = len(self.facts) if chosen is None else len(chosen)
        seconds = sum(end - start for start, end in spans) / 10**9
        if known * seconds / WINDOW_S <= SURELY_TOO_MANY * MAX_WINDOWS:
            read = self._read_windows(reference, population, spans, chosen, unit_of)
            if not read.is_truncated:
                return read
            hours = self._read_hours(reference, population, spans, chosen, unit_of)
            return hours if hours.population.windows >= read.population.windows else read
        return self._read_hours(reference, population, spans, chosen, unit_of)

    def _read_windows(
        self,
        reference: Reference,
        population: Population,
        spans: list[tuple[int, int]],
        chosen: frozenset[str] | None,
        unit_of: Callable[[Record], str],
    ) -> _Read:
        tally = Tally(reference, step_ns=step_of(population), unit_of=unit_of)
        left, start_ns, is_truncated = MAX_WINDOWS, population.start_ns, False
        for start, end in reversed(spans):  # the latest are those to keep
            found = self._store.windows(self._slice(population, start, end, chosen), limit=left + 1)
            if len(found) > left:
                found, is_truncated = found[-left:] if left else [], True
                start_ns = found[0].start_ns if found else end
            tally.add_all(found)
            left -= len(found)
            if is_truncated:
                break
        whole = msgspec.structs.replace(population, start_ns=start_ns)
        return _Read(tally=tally, population=_counted(whole, tally), is_truncated=is_truncated)

    def _read_hours(
        self,
        reference: Reference,
        population: Population,
        spans: list[tuple[int, int]],
        chosen: frozenset[str] | None,
        unit_of: Callable[[Record], str],
    ) -> _Read:
        whole = [(start // HOUR_NS * HOUR_NS, -(-end // HOUR_NS) * HOUR_NS) for start, end in spans]
        names = frozenset(self.facts) if chosen is None else chosen
        hours = sum(end - start for start, end in whole) // HOUR_NS
        sampled_of = 0
        if len(names) * hours > MAX_DEVICE_HOURS:
            share = MAX_DEVICE_HOURS / (len(names) * hours)
            sampled_of, chosen = len(names), frozenset(name for name in names if position(name, SAMPLE_SALT) < share)
        tally = Tally(reference, step_ns=HOUR_NS, unit_of=unit_of)
        for start, end in whole:
            where = self._slice(population, start, end, chosen)
            tally.add_all(merged_windows(self._engine, self._store, where, Grain.DEVICE_HOUR))
        rounded = msgspec.structs.replace(population, start_ns=whole[0][0], end_ns=whole[-1][1])
        return _Read(tally=tally, population=_counted(rounded, tally), read_from="device hours", sampled_of=sampled_of)

    def _slice(self, population: Population, start: int, end: int, chosen: frozenset[str] | None) -> Slice:
        return Slice(
            fleet=self._fleet,
            start_ns=start,
            end_ns=end,
            model=population.model,
            version=population.version or None,
            variant=population.variant or None,
            arm=population.arm or None,
            devices=chosen,
        )

    def _devices(self, population: Population) -> frozenset[str] | None:
        """The devices of a population; None is every one."""
        if population.device:
            return frozenset({population.device})
        if not population.selector:
            return None
        selector = parse_selector(population.selector)
        return frozenset(name for name, facts in self.facts.items() if selector.matches(facts.labels))

    def _refined(self, reference: Reference, read: _Read, judged: Judged, where: Where, onset: Onset) -> Onset:
        """The onset within its hour, from single windows of some devices that moved; as it was where that fails."""
        if read.read_from == "windows":
            return onset
        span = (max(0, onset.earliest_ns - HOUR_NS), onset.latest_ns + HOUR_NS)
        devices = frozenset(sorted(where.moved, key=lambda name: position(name, SAMPLE_SALT))[:REFINED_DEVICES])
        windows = self._store.windows(self._slice(read.population, *span, devices), limit=MAX_WINDOWS)
        tally = Tally(reference, step_ns=REFINED_STEP_NS).add_all(windows)
        finer = refined_onset(judged, tally, where.direction, start_ns=span[0], end_ns=span[1])
        if finer is None or not onset.earliest_ns <= finer.at_ns <= onset.latest_ns:
            return onset
        return finer


@dataclass(frozen=True, slots=True, kw_only=True)
class _Read:
    """One side as it was read."""

    tally: Tally
    population: Population
    read_from: str = "windows"
    is_truncated: bool = False
    sampled_of: int = 0


def read_device_facts(connection: Connection, fleet: str) -> Mapping[str, DeviceFacts]:
    """Labels and CPU signature of every device of a fleet, by name."""
    signature = devices.c.reported["cpu_signature"].as_string()
    query = select(devices.c.device, devices.c.labels, signature.label("cpu_signature")).where(devices.c.fleet == fleet)
    return {
        row.device: DeviceFacts(labels=row.labels or {}, cpu_signature=row.cpu_signature or "")
        for row in connection.execute(query)
    }


def whole_hours_before(population: Population) -> Population:
    """The population to the last whole hour: where it ends before another begins, their hours must not overlap."""
    end_ns = population.end_ns // HOUR_NS * HOUR_NS
    return population if end_ns <= population.start_ns else msgspec.structs.replace(population, end_ns=end_ns)


def step_of(population: Population) -> int:
    """The length of a step of time, for at most STEPS_PER_SPAN of them or hours."""
    length = population.end_ns - population.start_ns
    return next((step for step in STEPS_NS if length <= step * STEPS_PER_SPAN), STEPS_NS[-1])


def _counted(population: Population, tally: Tally) -> Population:
    is_spans = bool(population.device)
    return msgspec.structs.replace(
        population,
        devices=min(len(tally.names), 1) if is_spans else len(tally.names),
        windows=tally.windows,
        values=tally.values,
    )
