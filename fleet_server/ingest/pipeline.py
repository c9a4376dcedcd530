"""The ingest: messages in, telemetry and fleet state out, in batches.

For each batch, in this order:
1. decode; what cannot be used is counted, logged and acknowledged, so that it does not come for ever;
2. check the windows that were not counted yet (`checks`, `batch_checks`): what cannot be true is set aside;
3. write the others to the telemetry store (idempotent, so a crash after it costs nothing; a repeat with other
   contents never reaches it);
4. commit ledger, quarantine, events, reports, presence and clocks in one transaction;
5. acknowledge to the broker, and confirm to the devices what is stored, and what is set aside for good.
When 2, 3 or 4 is not possible the batch is kept and tried again: the broker holds what follows. A batch that can
never be taken in, because of a content that nobody foresaw, is halved until the one message is found; that one is
counted, logged and acknowledged like a malformed one, and never confirmed to its device.
"""

from __future__ import annotations

import logging
import queue
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.exc import DataError, SQLAlchemyError

from fleet_protocol.messages import Stored, encode
from fleet_protocol.topics import FROM_DEVICE, TopicKind, fleet_filter, topic_of
from fleet_server.errors import BusUnavailableError, UnavailableError
from fleet_server.ingest import device_records, quarantine
from fleet_server.ingest.batch_checks import Checked, SetAside, check_windows
from fleet_server.ingest.checks import span_at
from fleet_server.ingest.clocks import Clocks, write_clocks
from fleet_server.ingest.decoding import Batch, Refusal, decode_messages
from fleet_server.ingest.facts import FactReader
from fleet_server.message_bus.port import Incoming, MessageBus, Outgoing
from fleet_server.telemetry_store.port import TelemetryStore

_LOG = logging.getLogger(__name__)
_MAX_BATCH = 500
_MAX_WAITING = 2000
_GATHER_S = 0.02
_RETRY_MAX_S = 10.0
_LOG_REFUSALS_EVERY_S = 10.0
_USUAL_RETENTION_S = 14 * 86_400
_MAX_LINES_A_BATCH = 20


class Ingest:
    """One worker. `counters` are totals since start, by their Prometheus names. Windows that ended longer ago than
    `raw_retention_s`, the store's, do not count."""

    def __init__(
        self,
        *,
        bus: MessageBus,
        store: TelemetryStore,
        engine: Engine,
        fleet: str,
        on_new_session: Callable[[], None],
        now_ns: Callable[[], int] = time.time_ns,
        raw_retention_s: int = _USUAL_RETENTION_S,
    ) -> None:
        self._bus, self._store, self._engine, self._fleet, self._now_ns = bus, store, engine, fleet, now_ns
        self._on_new_session = on_new_session
        self._raw_retention_s, self._facts, self._clocks = raw_retention_s, FactReader(fleet=fleet), Clocks()
        self._waiting: queue.Queue[Incoming] = queue.Queue(_MAX_WAITING)
        self._counters: Counter[str] = Counter()
        self._refusals_logged_s = -_LOG_REFUSALS_EVERY_S
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ingest", daemon=True)

    def start(self) -> None:
        """Subscribe and begin."""
        self._thread.start()
        filters = [fleet_filter(self._fleet, kind) for kind in FROM_DEVICE]
        self._bus.start(filters, self._enqueue, self._on_new_session)

    def stop(self) -> None:
        """End after the batch in work; what waits is not acknowledged and comes again."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def counters(self) -> Mapping[str, float]:
        """Totals since start."""
        return {_metric(name): count for name, count in sorted(self._counters.items())}

    def _enqueue(self, message: Incoming) -> None:
        while not self._stop.is_set():
            try:
                self._waiting.put(message, timeout=0.5)
            except queue.Full:
                continue
            else:
                return

    def _run(self) -> None:
        while not self._stop.is_set():
            messages = self._gather()
            if messages:
                self._take_in_apart(messages)

    def _gather(self) -> list[Incoming]:
        """The next batch: what waits, or what comes within a moment of the first."""
        try:
            messages = [self._waiting.get(timeout=0.2)]
        except queue.Empty:
            return []
        deadline = time.monotonic() + _GATHER_S
        while len(messages) < _MAX_BATCH:
            try:
                messages.append(self._waiting.get(timeout=max(0.0, deadline - time.monotonic())))
            except queue.Empty:
                break
        return messages

    def _take_in_apart(self, messages: Sequence[Incoming]) -> None:
        try:
            self._take_in(messages)
        except Exception as error:  # noqa: BLE001 - an ended thread would be a server that hears nobody
            if len(messages) == 1:
                self._counters["unusable"] += 1
                _LOG.exception("a message on %s cannot be taken in: %s", messages[0].topic[:200], type(error).__name__)
                self._bus.acknowledge(messages)
                return
            half = len(messages) // 2
            self._take_in_apart(messages[:half])
            self._take_in_apart(messages[half:])

    def _take_in(self, messages: Sequence[Incoming]) -> None:
        batch = decode_messages(messages, self._fleet)
        self._note_refusals(batch.refusals)
        attempt = 0
        while True:
            try:
                confirmations = self._commit(batch)
                break
            except DataError:
                raise  # what the database has no form for today it has none for tomorrow
            except (UnavailableError, SQLAlchemyError) as error:
                attempt += 1
                self._counters["store_failures"] += 1
                _LOG.warning("ingest waits, nothing is lost: %s", str(error).splitlines()[0])
                if self._stop.wait(random.uniform(0, min(_RETRY_MAX_S, 0.25 * 2 ** min(attempt, 10)))):
                    return
        self._bus.acknowledge(messages)
        self._confirm(confirmations)

    def _commit(self, batch: Batch) -> list[Stored]:
        now_ns = self._now_ns()
        checked = self._check(batch, now_ns)
        if checked.kept:
            self._store.write(self._fleet, checked.kept)
        set_aside = [each.window for each in checked.set_aside]
        aside = {id(window) for window in set_aside}
        windows = [window for window in batch.windows if id(window) not in aside]
        clock_rows = self._watch_clocks(batch, now_ns)
        with self._engine.begin() as connection:
            recorded = device_records.record_batch(
                connection, self._fleet, windows, batch.events, now_ns=now_ns, quarantined=set_aside
            )
            fresh = {id(window) for window in recorded.quarantined}
            quarantined = [each for each in checked.set_aside if id(each.window) in fresh]
            first_seen = quarantine.record(connection, self._fleet, quarantined, checked.dropped, now_ns=now_ns)
            device_records.record_reports(connection, self._fleet, batch.reports, now_ns=now_ns)
            device_records.record_presences(connection, self._fleet, batch.presences, now_ns=now_ns)
            senders = {window.device for window in batch.windows} | {event.device for event in batch.events}
            device_records.touch_devices(connection, self._fleet, senders, now_ns=now_ns)
            write_clocks(connection, self._fleet, clock_rows)
            online = {(presence.device, presence.boot_id) for presence in batch.presences if presence.online}
            greetings = device_records.known_ranges(connection, self._fleet, online) if online else []
        self._clocks.note_written(clock_rows)
        self._counters["windows"] += recorded.fresh_windows
        self._counters["repeats"] += recorded.repeats
        self._counters["events"] += len(batch.events)
        self._note_quarantine(quarantined, checked, first_seen)
        return [*recorded.confirmations, *greetings]

    def _check(self, batch: Batch, now_ns: int) -> Checked:
        """The windows of a batch that the ledger has not counted, checked."""
        if not batch.windows:
            return Checked()
        with self._engine.connect() as connection:
            uncounted = device_records.uncounted_windows(connection, self._fleet, batch.windows)
            facts_of = self._facts.facts_of(connection, uncounted)
        return check_windows(uncounted, facts_of, span_at(now_ns, raw_retention_s=self._raw_retention_s))

    def _watch_clocks(self, batch: Batch, now_ns: int) -> list[dict[str, Any]]:
        """Let what devices dated tell of their clocks; returns the rows to write."""
        dated = [(presence.device, presence.at_ns) for presence in batch.presences if presence.online]
        dated += [(report.device, report.at_ns) for report in batch.reports]
        dated += [(event.device, event.at_ns) for event in batch.events]
        ended = [(window.device, window.end_ns) for window in batch.windows]
        for device, at_ns in [*dated, *ended]:
            self._clocks.observe(device, at_ns, now_ns)
        newest_ns = dict(sorted(dated)) | dict(sorted(ended))
        return self._clocks.due(newest_ns, now_ns)

    def _note_quarantine(
        self, quarantined: Sequence[SetAside], checked: Checked, first_seen: Sequence[quarantine.FirstSeen]
    ) -> None:
        for each in quarantined:
            for fault in each.faults:
                self._counters[f"quarantined:{fault.reason.value}"] += 1
        for dropped in checked.dropped:
            self._counters[f"sketches_dropped:{dropped.fault.reason.value}"] += 1
        for first in first_seen[:_MAX_LINES_A_BATCH]:
            device, fault = first.device, first.fault
            _LOG.warning("telemetry of device %s does not count: %s: %s", device, fault.reason, fault.detail)

    def _confirm(self, confirmations: Sequence[Stored]) -> None:
        """Best effort: a device that hears nothing sends its records again and is confirmed then."""
        try:
            self._bus.publish(
                [
                    Outgoing(
                        topic=topic_of(self._fleet, stored.device, TopicKind.STORED), payload=encode(stored), qos=0
                    )
                    for stored in confirmations
                ],
                timeout_s=1.0,
            )
        except BusUnavailableError as error:
            _LOG.debug("confirmations not sent: %s", error)

    def _note_refusals(self, refusals: Sequence[Refusal]) -> None:
        for refusal in refusals:
            self._counters[refusal.counter] += 1
            if time.monotonic() - self._refusals_logged_s >= _LOG_REFUSALS_EVERY_S:
                self._refusals_logged_s = time.monotonic()
                _LOG.warning("a message on %s is refused: %s", refusal.topic[:200], refusal.reason[:500])


def _metric(name: str) -> str:
    """The Prometheus name of a counter: "quarantined:span" has its reason as a label."""
    family, _, reason = name.partition(":")
    label = f'{{reason="{reason}"}}' if reason else ""
    return f"edgefleet_ingest_{family}_total{label}"
