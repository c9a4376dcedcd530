"""What the API works with: the rooms of the server, handed in by whoever assembles it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy import Engine

from fleet_protocol.keys import PublicKey
from fleet_server.config import LimitsConfig
from fleet_server.identity.certificates import Issuing
from fleet_server.identity.oidc import IdentityProvider
from fleet_server.registry.artifact_store import ArtifactStore
from fleet_server.registry.deltas import DeltaStore
from fleet_server.registry.roots import TrustRoots
from fleet_server.telemetry_store.port import TelemetryStore


def _no_counters() -> Mapping[str, float]:
    return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """The parts behind the API.

    `counters` gives Prometheus counters by their whole name (`edgefleet_ingest_windows_total`), `checks` the
    parts `/ready` asks besides database, telemetry store and artifacts: each raises a FleetError when its part is away.
    `roots` are None where the config lists plain keys; else they, and not `release_keys`, say who may release.
    `issuing` is None where the server has no authority to sign devices' certificates with; `mqtt_authority` is the
    PEM certificate of the one behind the broker's, "" for the system's.
    Set `stopping` before the HTTP server shuts down, so that event streams end by themselves.
    """

    engine: Engine
    store: TelemetryStore
    artifacts: ArtifactStore
    fleet: str
    release_keys: Sequence[PublicKey]
    release_threshold: int
    director_key: PublicKey
    mqtt_url: str
    public_url: str
    deltas: DeltaStore | None = None
    now_ns: Callable[[], int] = time.time_ns
    counters: Callable[[], Mapping[str, float]] = _no_counters
    checks: Mapping[str, Callable[[], None]] = field(default_factory=dict)
    stopping: threading.Event = field(default_factory=threading.Event)
    roots: TrustRoots | None = None
    identity_provider: IdentityProvider | None = None
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    issuing: Issuing | None = None
    mqtt_authority: str = ""

    def release_rule(self) -> tuple[Sequence[PublicKey], int]:
        """The keys that may release a bundle now, and how many of them must have signed."""
        return self.roots.release_rule() if self.roots else (self.release_keys, self.release_threshold)


def services_of(request: Request) -> Services:
    """The services of the app that serves this request."""
    services = request.app.state.services
    assert isinstance(services, Services)  # noqa: S101 - create_app put it there
    return services


ServicesOf = Annotated[Services, Depends(services_of)]
