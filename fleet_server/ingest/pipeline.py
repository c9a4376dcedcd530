"""The ingest: messages in, telemetry and fleet state out, in batches.

For each batch, in this order:
1. decode; what cannot be used is counted, logged and acknowledged, so that it does not come for ever;
2. write the windows that were not counted yet to the telemetry store (idempotent, so a crash after it costs
   nothing; a repeat with other contents never reaches it);
3. commit ledger, events, reports and presence in one transaction;
4. acknowledge to the broker, and confirm to the devices what is stored.
When 2 or 3 is not possible the batch is kept and tried again: the broker holds what follows. A batch that can
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

from sqlalchemy import Engine
from sqlalchemy.exc import DataError, SQLAlchemyError

from fleet_protocol.messages import Stored, encode
from fleet_protocol.topics import FROM_DEVICE, TopicKind, fleet_filter, topic_of
from fleet_server.errors import BusUnavailableError, UnavailableError
from fleet_server.ingest import device_records
from fleet_server.ingest.decoding import Batch, Refusal, decode_messages
from fleet_server.message_bus.port import Incoming, MessageBus, Outgoing
from fleet_server.telemetry_store.port import TelemetryStore

_LOG = logging.getLogger(__name__)
_MAX_BATCH = 500
_MAX_WAITING = 2000
_GATHER_S = 0.02
_RETRY_MAX_S = 10.0
_LOG_REFUSALS_EVERY_S = 10.0


class Ingest:
    """One worker. `counters` are totals since start, by their Prometheus names."""

    def __init__(
        self,
        *,
        bus: MessageBus,
        store: TelemetryStore,
        engine: Engine,
        fleet: str,
        on_new_session: Callable[[], None],
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._bus, self._store, self._engine, self._fleet, self._now_ns = bus, store, engine, fleet, now_ns
        self._on_new_session = on_new_session
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
        return {f"edgefleet_ingest_{name}_total": count for name, count in list(self._counters.items())}

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
        if batch.windows:
            with self._engine.connect() as connection:
                uncounted = device_records.uncounted_windows(connection, self._fleet, batch.windows)
            if uncounted:
                self._store.write(self._fleet, uncounted)
        now_ns = self._now_ns()
        with self._engine.begin() as connection:
            recorded = device_records.record_batch(connection, self._fleet, batch.windows, batch.events, now_ns=now_ns)
            device_records.record_reports(connection, self._fleet, batch.reports, now_ns=now_ns)
            device_records.record_presences(connection, self._fleet, batch.presences, now_ns=now_ns)
            senders = {window.device for window in batch.windows} | {event.device for event in batch.events}
            device_records.touch_devices(connection, self._fleet, senders, now_ns=now_ns)
            online = {(presence.device, presence.boot_id) for presence in batch.presences if presence.online}
            greetings = device_records.known_ranges(connection, self._fleet, online) if online else []
        self._counters["windows"] += recorded.fresh_windows
        self._counters["repeats"] += recorded.repeats
        self._counters["events"] += len(batch.events)
        return [*recorded.confirmations, *greetings]

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
