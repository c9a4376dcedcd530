"""Publishes desired states that the broker does not hold yet.

Invariant: a row counts as published only after the broker's acknowledgement, and only up to the generation that
was sent; one written meanwhile is sent with the next round.
"""

from __future__ import annotations

import logging
import threading

from sqlalchemy import Engine, bindparam, select, update
from sqlalchemy.exc import SQLAlchemyError

from fleet_protocol.topics import TopicKind, topic_of
from fleet_server.database.tables import desired
from fleet_server.errors import BusUnavailableError
from fleet_server.message_bus.port import MessageBus, Outgoing

_LOG = logging.getLogger(__name__)
_ROUND_S = 0.2
_MAX_A_ROUND = 2_000
_TIMEOUT_S = 10.0
_SENT = (
    update(desired)
    .where(
        desired.c.fleet == bindparam("of_fleet"),
        desired.c.device == bindparam("of_device"),
        desired.c.published_generation < bindparam("sent_generation"),
    )
    .values(published_generation=bindparam("sent_generation"))
)


class DesiredPublisher:
    """A loop over the table `desired`."""

    def __init__(self, *, bus: MessageBus, engine: Engine, fleet: str) -> None:
        self._bus, self._engine, self._fleet = bus, engine, fleet
        self._republish_all, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="desired-publisher", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def forget_published(self) -> None:
        """The broker may have lost its retained messages: publish every device's desired again."""
        self._republish_all.set()

    def publish_due(self) -> int:
        """Publish one round of due rows; returns how many. Raises BusUnavailableError."""
        with self._engine.connect() as connection:
            rows = connection.execute(
                select(desired.c.device, desired.c.generation, desired.c.envelope)
                .where(desired.c.fleet == self._fleet, desired.c.generation > desired.c.published_generation)
                .limit(_MAX_A_ROUND)
            ).all()
        if not rows:
            return 0
        messages = [
            Outgoing(topic=topic_of(self._fleet, row.device, TopicKind.DESIRED), payload=row.envelope, retain=True)
            for row in rows
        ]
        self._bus.publish(messages, timeout_s=_TIMEOUT_S)
        sent = [{"of_device": row.device, "sent_generation": row.generation} for row in rows]
        with self._engine.begin() as connection:
            connection.execute(_SENT, [{"of_fleet": self._fleet, **each} for each in sent])
        return len(rows)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                if self._republish_all.is_set():
                    self._republish_all.clear()
                    with self._engine.begin() as connection:
                        connection.execute(
                            update(desired).where(desired.c.fleet == self._fleet).values(published_generation=0)
                        )
                if self.publish_due() == _MAX_A_ROUND:
                    continue
            except (BusUnavailableError, SQLAlchemyError) as error:
                _LOG.debug("desired states wait: %s", error)
            self._stop.wait(_ROUND_S)
