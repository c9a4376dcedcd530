"""The server's side of a simulation: a real Mosquitto with the fleet's ACL, and the server's own rooms."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, func, insert, select

from fleet_protocol.keys import PrivateKey
from fleet_server.database.engine import open_engine
from fleet_server.database.tables import ingest_ledger, metadata, models, versions
from fleet_server.ingest.pipeline import Ingest
from fleet_server.message_bus import PahoBus
from fleet_server.message_bus.access import SERVER_USER, mosquitto_acl
from fleet_server.rollouts.driver import RolloutDriver
from fleet_server.rollouts.publisher import DesiredPublisher
from fleet_server.rollouts.repository import create_rollout, get_rollout
from fleet_server.rollouts.views import RolloutView
from fleet_server.telemetry_store import EmbeddedStore
from tests.real_servers.mosquitto import Mosquitto
from tests.real_servers.processes import wait_until

FLEET = "acme"
MODEL = "digits"
PASSWORD = "the-server's"
_STEP_S = 0.2
POLICY: dict[str, Any] = {
    "stages": [{"percent": 10, "bake_s": 0.5}, {"percent": 100, "bake_s": 0.5}],
    "gates": [
        {"gate": "update_failures"},
        {"gate": "error_rate", "max_increase": 0.1},
        {"gate": "outcome_accuracy", "max_drop": 0.1},
    ],
    "max_bake_extensions": 100,
    "deploy_deadline_s": 60,
    "probation": {"duration_s": 0.5, "min_inferences": 0},
    "salt": "test",
}


def bundle(version: str) -> str:
    """The digest these tests give a version."""
    return version.replace(".", "").rjust(64, "0")


@dataclass(frozen=True, kw_only=True)
class ServerSide:
    """Everything that listens to the simulated fleet."""

    broker: Mosquitto
    engine: Engine
    store: EmbeddedStore
    director: PrivateKey

    def bus(self, client_id: str) -> PahoBus:
        """A connection with the server's credential."""
        return PahoBus(url=self.broker.url, client_id=client_id, username=SERVER_USER, password=PASSWORD)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Ingest, publisher and rollout driver at work."""
        stop = threading.Event()
        bus = self.bus("server")
        publisher = DesiredPublisher(bus=bus, engine=self.engine, fleet=FLEET)
        ingest = Ingest(
            bus=bus, store=self.store, engine=self.engine, fleet=FLEET, on_new_session=publisher.forget_published
        )
        driver = RolloutDriver(self.engine, self.store, self.director, time.time_ns)

        def drive() -> None:
            while not stop.wait(_STEP_S):
                driver.step()

        rollouts = threading.Thread(target=drive)
        publisher.start()
        ingest.start()
        rollouts.start()
        try:
            yield
        finally:
            stop.set()
            rollouts.join()
            ingest.stop()
            publisher.stop()
            bus.stop()

    def publish(self, *names: str) -> None:
        """Put versions into the catalogue."""
        with self.engine.begin() as connection:
            connection.execute(insert(models).values(model=MODEL, created_ns=1))
            for name in names:
                connection.execute(
                    insert(versions).values(
                        model=MODEL,
                        version=name,
                        bundle=bundle(name),
                        manifest={"variants": [{"name": "int8", "expected": {"accuracy": 0.95}}]},
                        published_by="test",
                        published_ns=1,
                    )
                )

    def create(self, version: str) -> str:
        """Create a rollout over the whole fleet; returns its id."""
        return create_rollout(
            self.engine,
            fleet=FLEET,
            model=MODEL,
            version=version,
            policy_json=POLICY,
            created_by="ann",
            now_ns=time.time_ns(),
        )

    def roll_out(self, version: str, *ends: str, timeout_s: float = 60) -> RolloutView:
        """Create a rollout and wait until it is in one of `ends`."""
        rollout = self.create(version)

        def ended() -> RolloutView | None:
            view = get_rollout(self.engine, rollout)
            return view if view.state in (*ends, "PAUSED", "COMPLETED", "ROLLED_BACK") else None

        view = wait_until(ended, timeout_s, f"the rollout of {version} reaches {ends}")
        assert view is not None
        return view

    def counted(self) -> tuple[int, int]:
        """(windows, repeats) of the ledger."""
        query = select(func.sum(ingest_ledger.c.windows), func.sum(ingest_ledger.c.repeats))
        with self.engine.connect() as connection:
            windows, repeats = connection.execute(query).one()
        return int(windows or 0), int(repeats or 0)


@contextmanager
def running_broker(folder: Path) -> Iterator[ServerSide]:
    """A broker, a database and a telemetry store in one folder; nobody listens yet."""
    engine = open_engine(f"sqlite:///{folder / 'fleet.db'}")
    metadata.create_all(engine)
    store = EmbeddedStore(folder / "telemetry.db")
    users = {SERVER_USER: PASSWORD}
    with Mosquitto(folder / "broker", users=users, acl=mosquitto_acl(FLEET)) as broker:
        yield ServerSide(broker=broker, engine=engine, store=store, director=PrivateKey.generate())
    store.close()
    engine.dispose()
