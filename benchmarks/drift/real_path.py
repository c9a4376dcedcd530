"""A fleet-week through the server's own rooms: ingest with its ledger and checks, embedded store, merger, monitor.

Only the broker is left out: messages are handed to the ingest in process, as a bus would, and acknowledged by it. The
clock is virtual. Invariants: an hour is looked at only after everything that arrived by then is committed and merged;
what the ledger counted is told, so that repeats can be held against what was sent.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from sqlalchemy import func, insert, select

from benchmarks.drift.null_fleet import HOUR_NS, MODEL, MONDAY_NS, VERSION, arrivals, manifest
from fleet_protocol.messages import MAIN_ARM, ModelReport, Phase, Reported, encode
from fleet_protocol.topics import TopicKind, topic_of
from fleet_server.database.engine import open_engine
from fleet_server.database.tables import assigned_versions, ingest_ledger, metadata, models, versions
from fleet_server.drift.monitor import MonitorSettings
from fleet_server.drift.open_findings import OpenFinding, list_findings
from fleet_server.drift.watching import GRACE_S, DriftMonitor
from fleet_server.ingest.pipeline import Ingest
from fleet_server.merging.merger import Merger
from fleet_server.message_bus.port import Incoming, Outgoing
from fleet_server.simulator import VirtualFleet
from fleet_server.telemetry_store import EmbeddedStore

FLEET = "null"
RETENTION_S = 30 * 86_400
TAKEN_IN_TIMEOUT_S = 300.0
_MAX_MERGER_ROUNDS = 10_000
_NS = 10**9


@dataclass(frozen=True, kw_only=True)
class Watched:
    """What the server kept: `findings` with those that closed; windows and repeats as the ledger counted them."""

    findings: list[OpenFinding]
    windows_sent: int
    windows: int
    repeats: int
    counters: dict[str, float]


class HandedOver:
    """A message bus whose broker is the caller."""

    def __init__(self) -> None:
        self._on_message: Callable[[Incoming], None] | None = None
        self._acknowledged, self._changed = 0, threading.Condition()
        self.sent = 0

    def start(
        self, filters: Sequence[str], on_message: Callable[[Incoming], None], on_new_session: Callable[[], None]
    ) -> None:
        """Take messages from now on."""
        del filters, on_new_session
        self._on_message = on_message

    def acknowledge(self, messages: Sequence[Incoming]) -> None:
        """Count them."""
        with self._changed:
            self._acknowledged += len(messages)
            self._changed.notify_all()

    def publish(self, messages: Sequence[Outgoing], *, timeout_s: float) -> None:
        """Confirmations have nobody to go to."""

    def check(self) -> None:
        """It is there."""

    def stop(self) -> None:
        """Nothing to let go of."""

    def hand_over(self, topic: str, payload: bytes) -> None:
        """A message as it comes from a broker."""
        assert self._on_message is not None
        self.sent += 1
        self._on_message(Incoming(topic=topic, payload=payload, connection=1, packet=self.sent % 65_535 + 1, qos=1))

    def wait_until_taken_in(self) -> None:
        """Until everything handed over is acknowledged. Raises TimeoutError."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._acknowledged >= self.sent, TAKEN_IN_TIMEOUT_S):
                raise TimeoutError(f"{self.sent - self._acknowledged} messages were not taken in")


@dataclass
class _Clock:
    at_ns: int = field(default=MONDAY_NS)

    def __call__(self) -> int:
        return self.at_ns


def watch_fleet(fleet: VirtualFleet, settings: MonitorSettings, *, days: float) -> Watched:
    """Run a fleet's first days through the server."""
    with tempfile.TemporaryDirectory(prefix="edgefleet-d2-") as folder:
        engine = open_engine(f"sqlite:///{Path(folder) / 'fleet.db'}")
        store = EmbeddedStore(Path(folder) / "telemetry.db")
        try:
            metadata.create_all(engine)
            store.set_up(raw_retention_s=RETENTION_S)
            with engine.begin() as connection:
                connection.execute(insert(models).values(model=MODEL, created_ns=1))
                connection.execute(
                    insert(versions).values(
                        model=MODEL,
                        version=VERSION,
                        bundle="a" * 64,
                        manifest=msgspec.to_builtins(manifest()),
                        published_by="benchmark",
                        published_ns=1,
                    )
                )
                assigned = {"fleet": FLEET, "model": MODEL, "version": VERSION, "first_ns": MONDAY_NS}
                connection.execute(insert(assigned_versions), [{**assigned, "device": name} for name in fleet.names])
            clock, bus = _Clock(), HandedOver()
            ingest = Ingest(
                bus=bus,
                store=store,
                engine=engine,
                fleet=FLEET,
                on_new_session=lambda: None,
                now_ns=clock,
                raw_retention_s=RETENTION_S,
            )
            merger = Merger(engine=engine, store=store, fleet=FLEET, raw_retention_s=RETENTION_S, now_ns=clock)
            monitor = DriftMonitor(engine, store, fleet=FLEET, settings=settings, now_ns=clock)
            ingest.start()
            try:
                sent = _run(fleet, days, _Server(clock=clock, bus=bus, merger=merger, monitor=monitor))
            finally:
                ingest.stop()
                merger.close()
            counts = select(func.sum(ingest_ledger.c.windows), func.sum(ingest_ledger.c.repeats))
            with engine.connect() as connection:
                windows, repeats = connection.execute(counts).one()
            return Watched(
                findings=list_findings(engine, fleet=FLEET, closed=True),
                windows_sent=sent,
                windows=int(windows or 0),
                repeats=int(repeats or 0),
                counters={**ingest.counters(), **merger.counters()},
            )
        finally:
            store.close()
            engine.dispose()


@dataclass(frozen=True, kw_only=True)
class _Server:
    """The rooms at work on one virtual clock."""

    clock: _Clock
    bus: HandedOver
    merger: Merger
    monitor: DriftMonitor

    def look(self, due_ns: int) -> None:
        """What the server does in the round after an hour's grace has passed."""
        self.bus.wait_until_taken_in()
        self.clock.at_ns = due_ns
        for _ in range(_MAX_MERGER_ROUNDS):
            if not self.merger.step():
                break
        self.monitor.step()


def _run(fleet: VirtualFleet, days: float, server: _Server) -> int:
    for report in _reports(fleet):
        server.bus.hand_over(topic_of(FLEET, report.device, TopicKind.REPORTED), encode(report))
    server.bus.wait_until_taken_in()
    sent, due_ns = 0, MONDAY_NS + HOUR_NS + GRACE_S * _NS
    end_ns = MONDAY_NS + round(days * 24) * HOUR_NS + GRACE_S * _NS
    for arrival in arrivals(fleet, days=days):
        while due_ns <= min(arrival.at_ns, end_ns):
            server.look(due_ns)
            due_ns += HOUR_NS
        if arrival.at_ns > end_ns:
            break
        server.clock.at_ns = max(server.clock.at_ns, arrival.at_ns)
        server.bus.hand_over(topic_of(FLEET, arrival.window.device, TopicKind.TELEMETRY), encode(arrival.window))
        sent += 1
    while due_ns <= end_ns:
        server.look(due_ns)
        due_ns += HOUR_NS
    return sent


def _reports(fleet: VirtualFleet) -> list[Reported]:
    return [
        Reported(
            device=name,
            boot_id=f"{fleet.seed & 0xFFFFFFFF:08x}-00000001",
            sequence=1,
            at_ns=MONDAY_NS,
            models=[ModelReport(model=MODEL, phase=Phase.HEALTHY, active="a" * 64, version=VERSION, arm=MAIN_ARM)],
            cpu_signature=character.hardware.cpu_signature,
            labels=character.labels(),
        )
        for name, character in zip(fleet.names, fleet.characters, strict=True)
    ]
