"""The fleet server's process: opens the rooms in order, serves until told to stop, closes them in reverse.

Order: database → telemetry store → embedded broker (where configured) → rollouts and their publisher → merging →
ingest → HTTP. Until the ingest subscribes, the broker keeps what devices send.
"""

from __future__ import annotations

import hmac
import logging
import secrets
import socket
import threading
import time
from contextlib import ExitStack
from types import FrameType

import uvicorn
from sqlalchemy import Engine

from fleet_server.api.app import create_app
from fleet_server.api.services import Services
from fleet_server.config import ServerConfig
from fleet_server.database.engine import open_engine
from fleet_server.database.schema import upgrade
from fleet_server.drift.monitor import MonitorSettings
from fleet_server.drift.watching import DriftMonitor
from fleet_server.errors import ConfigError, UnavailableError
from fleet_server.identity.device_credentials import verify_device
from fleet_server.ingest.pipeline import Ingest
from fleet_server.merging.merger import Merger
from fleet_server.message_bus import PahoBus
from fleet_server.message_bus.access import AccessRule
from fleet_server.message_bus.embedded_broker import EmbeddedBroker
from fleet_server.registry.artifact_store import LocalArtifactStore
from fleet_server.rollouts.driver import RolloutDriver
from fleet_server.rollouts.publisher import DesiredPublisher
from fleet_server.rounds import start_rounds
from fleet_server.telemetry_store import EmbeddedStore, TelemetryStore, open_store

_LOG = logging.getLogger(__name__)
_ROLLOUT_ROUND_S = 0.5
_EXPIRY_ROUND_S = 3600.0
_MERGING_ROUND_S = 2.0
_STORE_RETRY_S = 2.0
_DRIFT_ROUND_S = 60.0


def serve(config: ServerConfig) -> None:
    """Run the server until SIGINT or SIGTERM. Raises ConfigError when it cannot start as configured."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    with ExitStack() as opened:
        listening = _listen(config.http.host, config.http.port)
        opened.callback(listening.close)
        services = _open_rooms(config, listening.getsockname()[1], opened)
        app = create_app(services)
        settings = uvicorn.Config(
            app, log_level="warning", access_log=False, timeout_graceful_shutdown=5, server_header=False
        )
        http = _HttpServer(settings, services.stopping)
        _LOG.info("fleet %s on %s", config.fleet, services.public_url)
        http.run(sockets=[listening])


class _HttpServer(uvicorn.Server):
    """Tells open event streams to end as soon as a signal comes, so that a stop does not wait for them."""

    def __init__(self, settings: uvicorn.Config, stopping: threading.Event) -> None:
        super().__init__(settings)
        self._stopping = stopping

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal: begin to stop."""
        self._stopping.set()
        super().handle_exit(sig, frame)


def _open_rooms(config: ServerConfig, http_port: int, opened: ExitStack) -> Services:
    release_keys, director_key = config.release_keys(), config.director_key()
    stop = threading.Event()
    engine = open_engine(config.database_url)
    opened.callback(engine.dispose)
    upgrade(engine)
    store = open_store(config.telemetry_store_url, token=config.store_token() or "")
    opened.callback(store.close)
    bus_password = _start_broker(config, engine, opened)
    bus = PahoBus(
        url=config.mqtt_url,
        client_id=f"edgefleet-server-{config.fleet}",
        username=config.mqtt.username,
        password=bus_password,
        ca_file=config.mqtt.ca_file,
        protocol="3.1.1" if config.mqtt.embedded else config.mqtt.protocol,
    )
    opened.callback(bus.stop)
    publisher = DesiredPublisher(bus=bus, engine=engine, fleet=config.fleet)
    publisher.start()
    opened.callback(publisher.stop)
    driver = RolloutDriver(engine, store, director_key, time.time_ns)
    rounds = [start_rounds("rollouts", driver.step, every_s=_ROLLOUT_ROUND_S, stop=stop)]
    _start_upkeep(config, store, opened, stop)
    merger = Merger(
        engine=engine, store=store, fleet=config.fleet, raw_retention_s=config.telemetry_store.raw_retention_s
    )
    rounds.append(start_rounds("merging", merger.step, every_s=_MERGING_ROUND_S, stop=stop, at_end=merger.close))
    if config.drift.watch:
        monitor = _drift_monitor(config, engine, store)
        rounds.append(start_rounds("drift watch", monitor.step, every_s=_DRIFT_ROUND_S, stop=stop))
    for thread in rounds:
        opened.callback(thread.join)
    opened.callback(stop.set)  # also where a later room does not open
    ingest = Ingest(
        bus=bus,
        store=store,
        engine=engine,
        fleet=config.fleet,
        on_new_session=publisher.forget_published,
        raw_retention_s=config.telemetry_store.raw_retention_s,
    )
    ingest.start()
    opened.callback(ingest.stop)
    opened.callback(stop.set)
    return Services(
        engine=engine,
        store=store,
        artifacts=LocalArtifactStore(config.artifacts_dir),
        fleet=config.fleet,
        release_keys=release_keys,
        release_threshold=config.trust.release_threshold,
        director_key=director_key.public,
        mqtt_url=config.mqtt_url,
        public_url=config.http.public_url.rstrip("/") or f"http://{config.http.host}:{http_port}",
        counters=lambda: {**ingest.counters(), **merger.counters()},
        checks={"message_bus": bus.check},
    )


def _start_broker(config: ServerConfig, engine: Engine, opened: ExitStack) -> str | None:
    """Start the embedded broker where configured; returns the server's own password for the broker."""
    password = config.mqtt_password()
    if not config.mqtt.embedded:
        return password
    own = password or secrets.token_urlsafe(32)

    def verify_user(user: str, given: str) -> bool:
        if user == config.mqtt.username:
            return hmac.compare_digest(given.encode(), own.encode())
        with engine.connect() as connection:
            return verify_device(connection, config.fleet, user, given)

    broker = EmbeddedBroker(
        host=config.mqtt.listen_host,
        port=config.mqtt.listen_port,
        rule=AccessRule(fleet=config.fleet, server_user=config.mqtt.username),
        verify_user=verify_user,
    )
    broker.start()
    opened.callback(broker.stop)
    _LOG.info("embedded broker on %s:%s", config.mqtt.listen_host, config.mqtt.listen_port)
    return own


def _start_upkeep(config: ServerConfig, store: TelemetryStore, opened: ExitStack, stop: threading.Event) -> None:
    """Set the store up as soon as it answers, then expire old windows where the store does not do it itself."""
    retention_s = config.telemetry_store.raw_retention_s
    merged_retention_s = config.telemetry_store.merged_retention_s

    def keep_up() -> None:
        while not stop.is_set():
            try:
                store.set_up(raw_retention_s=retention_s, merged_retention_s=merged_retention_s)
                break
            except UnavailableError as error:
                _LOG.warning("the telemetry store is not ready: %s", error)
                stop.wait(_STORE_RETRY_S)
        while isinstance(store, EmbeddedStore) and not stop.wait(_EXPIRY_ROUND_S):
            store.expire(time.time_ns())

    thread = threading.Thread(target=keep_up, name="store-upkeep", daemon=True)
    thread.start()
    opened.callback(thread.join)


def _drift_monitor(config: ServerConfig, engine: Engine, store: TelemetryStore) -> DriftMonitor:
    settings = MonitorSettings(
        look_every_s=config.drift.look_every_s,
        span_s=config.drift.span_s,
        false_alarms_per_week=config.drift.false_alarms_per_week,
        against=config.drift.against,
    )
    return DriftMonitor(engine, store, fleet=config.fleet, settings=settings, now_ns=time.time_ns)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, reuse_port=False)
    except OSError as error:
        raise ConfigError(f"http.host and http.port: cannot listen on {host}:{port}: {error.strerror}") from None
