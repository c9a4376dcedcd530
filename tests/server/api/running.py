"""A real server over TCP: uvicorn in a thread, a SQLite database, the embedded store, a local artifact folder."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import uvicorn
from sqlalchemy import Engine

from fleet_protocol.bundle_folder import add_file, file_path, sign_bundle, write_manifest
from fleet_protocol.keys import PrivateKey
from fleet_protocol.manifest import Manifest, TensorSpec, Variant
from fleet_server.api import Services, create_app
from fleet_server.config import LimitsConfig, OidcConfig
from fleet_server.database.engine import open_engine
from fleet_server.database.schema import upgrade
from fleet_server.identity.api_keys import Role, create_api_key
from fleet_server.identity.certificates import Issuing
from fleet_server.identity.oidc_settings import identity_provider
from fleet_server.registry import LocalArtifactStore
from fleet_server.registry.deltas import DeltaStore
from fleet_server.telemetry_store import EmbeddedStore


@dataclass(frozen=True, kw_only=True)
class Server:
    """A running server and what a test needs to speak to it."""

    url: str
    services: Services
    engine: Engine
    store: EmbeddedStore
    folder: Path
    release_keys: list[PrivateKey]
    keys: dict[str, str]

    def client(self, role: str | None = "admin") -> httpx.Client:
        """A client with the API key of that role, without one for None."""
        headers = {"Authorization": f"Bearer {self.keys[role]}"} if role else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=20)


@contextmanager
def running_server(
    folder: Path,
    *,
    deltas: bool = False,
    oidc: OidcConfig | None = None,
    limits: LimitsConfig | None = None,
    issuing: Issuing | None = None,
) -> Iterator[Server]:
    """A server with everything it keeps in `folder`."""
    provider = identity_provider(oidc or OidcConfig())
    engine = open_engine(f"sqlite:///{folder / 'fleet.db'}")
    upgrade(engine)
    store = EmbeddedStore(folder / "telemetry.db")
    store.set_up(raw_retention_s=86_400)
    keys = {}
    with engine.begin() as connection:
        for role in Role:
            name = role.name.lower()
            _, keys[name] = create_api_key(connection, name=name, role=role, now_ns=1)
    release_keys = [PrivateKey.generate(), PrivateKey.generate()]
    artifacts = LocalArtifactStore(folder / "artifacts")
    made_deltas = DeltaStore(folder / "deltas", artifacts, max_bytes=10**8) if deltas else None
    services = Services(
        engine=engine,
        store=store,
        artifacts=artifacts,
        deltas=made_deltas,
        fleet="demo",
        release_keys=[key.public for key in release_keys],
        release_threshold=2,
        director_key=PrivateKey.generate().public,
        mqtt_url="mqtt://127.0.0.1:1883",
        public_url="http://fleet.test",
        counters=lambda: {"edgefleet_ingest_windows_total": 7},
        identity_provider=provider,
        limits=limits or LimitsConfig(),
        issuing=issuing,
    )
    config = uvicorn.Config(create_app(services), host="127.0.0.1", port=0, log_level="error")
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not running.started:
        assert time.monotonic() < deadline, "the server did not start"
        time.sleep(0.01)
    port = running.servers[0].sockets[0].getsockname()[1]
    yield Server(
        url=f"http://127.0.0.1:{port}",
        services=services,
        engine=engine,
        store=store,
        folder=folder,
        release_keys=release_keys,
        keys=keys,
    )
    services.stopping.set()
    running.should_exit = True
    thread.join(20)
    assert not thread.is_alive(), "the server did not stop"
    if made_deltas is not None:
        made_deltas.close()
    store.close()
    engine.dispose()
    if provider is not None:
        provider.close()


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A bundle folder, its signed envelope and its manifest."""

    folder: Path
    envelope: bytes
    manifest: Manifest

    def file(self, sha256: str) -> bytes:
        """The bytes of one of its files."""
        return file_path(self.folder, sha256).read_bytes()


def make_bundle(
    folder: Path, keys: list[PrivateKey], *, model: str = "digits", version: str = "1.0.0", content: bytes = b"weights"
) -> Bundle:
    """A small bundle, signed."""
    tensor = TensorSpec(name="x", datatype="FP32", shape=[1])
    manifest = Manifest(
        model=model,
        version=version,
        created_at_ns=1,
        task="classification",
        inputs=[tensor],
        outputs=[tensor],
        variants=[
            Variant(
                name="fp32",
                file=add_file(folder, content),
                opset=17,
                quantization="none",
                golden_tolerance=0.1,
                expected={"accuracy": 0.9},
            )
        ],
        golden=add_file(folder, b"golden " + version.encode()),
    )
    write_manifest(folder, manifest)
    return Bundle(folder=folder, envelope=sign_bundle(folder, keys), manifest=manifest)


def upload(client: httpx.Client, bundle: Bundle) -> None:
    """Upload a bundle's files."""
    for artifact in bundle.manifest.artifacts():
        answer = client.put(f"/api/v1/artifacts/{artifact.sha256}", content=bundle.file(artifact.sha256))
        assert answer.status_code == 200, answer.text


def publish(server: Server, bundle: Bundle) -> httpx.Response:
    """Upload and publish a bundle."""
    with server.client("operator") as client:
        upload(client, bundle)
        path = f"/api/v1/models/{bundle.manifest.model}/versions"
        return client.post(path, content=bundle.envelope, headers={"Content-Type": "application/vnd.dsse+json"})
