"""Runs the monitor: every hour one look at every version that sent telemetry a whole span ago. Thin around `monitor`.

Steps of a look at one version:
1. claim it: compare-and-set of the watch's `looked_ns`; another server that won is a normal return;
2. read the span (whole device hours that ended GRACE_S ago, so that most late windows are in) of the devices that were
   there from its beginning, and compare;
3. write the points of measurement `drift`; 4. keep the findings and the outcome watch, in one transaction.
A look that fails after its claim is not made up for: the next one sees 23 of its 24 hours.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import msgspec
from sqlalchemy import ColumnElement, Connection, Engine, and_, insert, select, update
from sqlalchemy.exc import IntegrityError

from fleet_server.database.tables import drift_watches, versions
from fleet_server.drift.findings import Verdict
from fleet_server.drift.monitor import (
    BEGINNING_S,
    MonitorSettings,
    OutcomeWatch,
    alpha_of_look,
    points_of,
    there_from_the_beginning,
    watch_outcomes,
)
from fleet_server.drift.open_findings import keep_findings
from fleet_server.drift.populations import Question, expected_population, seen_population
from fleet_server.drift.reading import DriftReader
from fleet_server.drift.signals import Reference, read_manifest, reference_of
from fleet_server.drift.tallies import HOUR_NS, Tally
from fleet_server.errors import InvalidRequestError
from fleet_server.merging.reading import merged_windows
from fleet_server.telemetry_store.merged import Grain
from fleet_server.telemetry_store.port import Slice, TelemetryStore

GRACE_S = 900
"""After an hour's end, before it is looked at."""
_NS = 10**9
_LOG = logging.getLogger(__name__)


class DriftMonitor:
    """The monitor of one fleet. Several servers may run it over one database."""

    def __init__(
        self,
        engine: Engine,
        store: TelemetryStore,
        *,
        fleet: str,
        settings: MonitorSettings,
        now_ns: Callable[[], int],
    ) -> None:
        self._engine, self._store, self._fleet = engine, store, fleet
        self._settings, self._now_ns = settings, now_ns

    def step(self) -> int:
        """Make the looks that are due; returns how many. Raises UnavailableError and database errors."""
        every_ns = self._settings.look_every_s * _NS
        look_ns = (self._now_ns() - GRACE_S * _NS) // every_ns * every_ns
        with self._engine.connect() as connection:
            entries = connection.execute(select(versions.c.model, versions.c.version)).all()
        reader: DriftReader | None = None
        looks = 0
        for model, version in entries:
            beginning = self._beginning(model, version, look_ns)
            if not self._store.windows(beginning, limit=1) or not self._claim(model, version, look_ns):
                continue
            reader = reader or DriftReader(self._engine, self._store, fleet=self._fleet)
            try:
                self._look(reader, model, version, look_ns)
            except InvalidRequestError as error:
                _LOG.warning("drift of %s %s is not watched: %s", model, version, error)
            looks += 1
        return looks

    def _look(self, reader: DriftReader, model: str, version: str, look_ns: int) -> None:
        reference = self._reference(model, version)
        question = Question(against=self._settings.against)
        seen = seen_population(
            question, model=model, version=version, start_ns=look_ns - self._settings.span_s * _NS, end_ns=look_ns
        )
        beginning = self._beginning(model, version, look_ns)
        early = merged_windows(self._engine, self._store, beginning, Grain.DEVICE_HOUR)
        report = reader.compare(
            reference,
            seen,
            expected_population(question, seen),
            alpha=alpha_of_look(self._settings),
            only=there_from_the_beginning(early, start_ns=beginning.start_ns),
        )
        watch, alarm = watch_outcomes(
            self._watch(model, version), self._new_outcomes(reference, look_ns), settings=self._settings
        )
        extra = [alarm] if alarm is not None else []
        self._store.write_points(self._fleet, points_of(report, extra, at_ns=look_ns))
        found = [finding for finding in (*report.signals, *extra) if finding.verdict is Verdict.DRIFT]
        with self._engine.begin() as connection:
            key = _key(self._fleet, model, version)
            connection.execute(update(drift_watches).where(key).values(outcomes=msgspec.to_builtins(watch)))
            newly = keep_findings(
                connection, fleet=self._fleet, model=model, version=version, found=found, look_ns=look_ns
            )
        for finding in found:
            if finding.signal in newly:
                _LOG.warning("%s %s: %s", model, version, finding.sentence)

    def _beginning(self, model: str, version: str, look_ns: int) -> Slice:
        start_ns = look_ns - self._settings.span_s * _NS
        return Slice(
            fleet=self._fleet, start_ns=start_ns, end_ns=start_ns + BEGINNING_S * _NS, model=model, version=version
        )

    def _new_outcomes(self, reference: Reference, look_ns: int) -> Tally:
        """The outcomes since the look before, as far as whole hours hold them."""
        start_ns = look_ns - max(self._settings.look_every_s * _NS, HOUR_NS)
        where = Slice(
            fleet=self._fleet, start_ns=start_ns, end_ns=look_ns, model=reference.model, version=reference.version
        )
        outcomes = Reference(
            model=reference.model,
            version=reference.version,
            signals=(),
            expected_accuracy=reference.expected_accuracy,
            values=reference.values,
        )
        hours = merged_windows(self._engine, self._store, where, Grain.DEVICE_HOUR)
        return Tally(outcomes, step_ns=HOUR_NS).add_all(hours)

    def _claim(self, model: str, version: str, look_ns: int) -> bool:
        key = _key(self._fleet, model, version)
        with self._engine.begin() as connection:
            row = connection.execute(select(drift_watches).where(key)).one_or_none()
            if row is None:
                return _first_claim(connection, self._fleet, model, version, look_ns)
            if row.looked_ns >= look_ns:
                return False
            claimed = connection.execute(
                update(drift_watches)
                .where(key & (drift_watches.c.revision == row.revision))
                .values(looked_ns=look_ns, revision=row.revision + 1)
            )
            return claimed.rowcount == 1

    def _watch(self, model: str, version: str) -> OutcomeWatch:
        with self._engine.connect() as connection:
            row = connection.execute(select(drift_watches).where(_key(self._fleet, model, version))).one()
        return msgspec.convert(row.outcomes, OutcomeWatch)

    def _reference(self, model: str, version: str) -> Reference:
        key = (versions.c.model == model) & (versions.c.version == version)
        with self._engine.connect() as connection:
            manifest = connection.execute(select(versions.c.manifest).where(key)).scalar_one()
        return reference_of(read_manifest(manifest))


def _key(fleet: str, model: str, version: str) -> ColumnElement[bool]:
    rows = drift_watches.c
    return and_(rows.fleet == fleet, rows.model == model, rows.version == version)


def _first_claim(connection: Connection, fleet: str, model: str, version: str, look_ns: int) -> bool:
    try:
        with connection.begin_nested():
            connection.execute(
                insert(drift_watches).values(
                    fleet=fleet, model=model, version=version, looked_ns=look_ns, outcomes={}, revision=1
                )
            )
    except IntegrityError:
        return False
    return True
