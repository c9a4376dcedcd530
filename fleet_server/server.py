"""The fleet server's process: opens the rooms in order, serves until told to stop, closes them in reverse.

Order: database → telemetry store → embedded broker (where configured) → rollouts and their publisher → merging →
ingest → HTTP. Until the ingest subscribes, the broker keeps what devices send.
"""

from __future__ import annotations

import logging
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
from fleet_server.identity.expulsion import Expulsion, RevocationListFile
from fleet_server.identity.oidc_settings import identity_provider
from fleet_server.ingest.pipeline import Ingest
from fleet_server.merging.merger import Merger
from fleet_server.message_bus.opening import OpenedBus, open_bus
from fleet_server.registry.artifact_store import ArtifactStore, LocalArtifactStore
from fleet_server.registry.deltas import DeltaStore
from fleet_server.registry.roots import TrustRoots
from fleet_server.rollouts.driver import RolloutDriver
from fleet_server.rollouts.freshness import freshness_rounds
from fleet_server.rollouts.publisher import DesiredPublisher
from fleet_server.rounds import start_rounds
from fleet_server.telemetry_store import EmbeddedStore, TelemetryStore, open_store

_LOG = logging.getLogger(__name__)
_ROLLOUT_ROUND_S = 0.5
_FRESHNESS_ROUND_S = 60.0
_EXPIRY_ROUND_S = 3600.0
_EXPULSION_ROUND_S = 1.0
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
    provider = identity_provider(config.oidc)
    if provider is not None:
        opened.callback(provider.close)
    stop = threading.Event()
    engine = open_engine(config.database_url)
    opened.callback(engine.dispose)
    upgrade(engine)
    roots = _open_roots(config, engine)
    store = open_store(config.telemetry_store_url, token=config.store_token() or "")
    opened.callback(store.close)
    opened_bus = open_bus(config, engine, opened)
    bus, issuing = opened_bus.bus, opened_bus.issuing

    def root_version() -> int:
        return roots.newest().version if roots is not None else 0

    publisher = DesiredPublisher(bus=bus, engine=engine, fleet=config.fleet)
    publisher.start()
    opened.callback(publisher.stop)
    driver = RolloutDriver(engine, store, director_key, time.time_ns, root_version=root_version)
    rounds = [start_rounds("rollouts", lambda: driver.step().acted, every_s=_ROLLOUT_ROUND_S, stop=stop)]
    renew = freshness_rounds(
        engine,
        fleet=config.fleet,
        signer=director_key,
        now_ns=time.time_ns,
        root_version=root_version,
        root_changed_ns=roots.changed_ns if roots is not None else lambda: 0,
    )
    rounds.append(start_rounds("freshness", renew, every_s=_FRESHNESS_ROUND_S, stop=stop))
    _start_upkeep(config, store, opened, stop)
    merger = Merger(
        engine=engine, store=store, fleet=config.fleet, raw_retention_s=config.telemetry_store.raw_retention_s
    )
    rounds.append(start_rounds("merging", merger.step, every_s=_MERGING_ROUND_S, stop=stop, at_end=merger.close))
    if config.drift.watch:
        monitor = _drift_monitor(config, engine, store)
        rounds.append(start_rounds("drift watch", monitor.step, every_s=_DRIFT_ROUND_S, stop=stop))
    expulsion = _expulsion(config, engine, opened_bus)
    rounds.append(start_rounds("expulsion", expulsion.step, every_s=_EXPULSION_ROUND_S, stop=stop))
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
    artifacts = LocalArtifactStore(config.artifacts_dir)
    deltas = _open_deltas(config, artifacts, opened)
    return Services(
        engine=engine,
        store=store,
        artifacts=artifacts,
        deltas=deltas,
        fleet=config.fleet,
        release_keys=release_keys,
        release_threshold=config.trust.release_threshold,
        roots=roots,
        director_key=director_key.public,
        mqtt_url=config.mqtt_url,
        public_url=config.http.public_url.rstrip("/") or f"http://{config.http.host}:{http_port}",
        counters=lambda: {**ingest.counters(), **merger.counters(), **(deltas.counters() if deltas else {})},
        checks={"message_bus": bus.check},
        identity_provider=provider,
        limits=config.limits,
        issuing=issuing,
        mqtt_authority=opened_bus.broker_authority,
    )


def _open_roots(config: ServerConfig, engine: Engine) -> TrustRoots | None:
    """The chain of trust roots where one is pinned; the director key must be one that it names."""
    pinned = config.pinned_root()
    if pinned is None:
        return None
    roots = TrustRoots(engine=engine, fleet=config.fleet, pinned=pinned, where=f"trust.root {config.trust.root}")
    newest, own = roots.newest(), config.director_key().public.key_id
    if own not in newest.director.key_ids:
        _LOG.warning(
            "trust root %s does not name this server's director key %s: devices refuse what it signs until a root does",
            newest.version,
            own[:16],
        )
    return roots


def _open_deltas(config: ServerConfig, artifacts: ArtifactStore, opened: ExitStack) -> DeltaStore | None:
    if not config.deltas.max_bytes:
        return None
    deltas = DeltaStore(config.deltas_dir, artifacts, max_bytes=config.deltas.max_bytes)
    opened.callback(deltas.close)
    return deltas


def _expulsion(config: ServerConfig, engine: Engine, opened_bus: OpenedBus) -> Expulsion:
    revoked = None
    if opened_bus.issuing is not None:
        revoked = RevocationListFile(
            authority=opened_bus.issuing.authority,
            path=config.crl_file,
            reload_command=config.identity.reload_command,
        )
    return Expulsion(
        engine=engine,
        bus=opened_bus.bus,
        fleet=config.fleet,
        now_ns=time.time_ns,
        cut=opened_bus.cut,
        revocation_list=revoked,
    )


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
