"""A real fleet for one test: `fleet serve`, a broker, a telemetry store and devices, each a process of its own.

    with Fleet(tmp_path) as fleet:                        # Mosquitto with passwords and ACL, the embedded store
        device = fleet.add_device("camera-1")             # enrolled, admitted, started; answers at once from a file
        fleet.kill_server(); fleet.start_server()         # also stop_ / kill_ / start_broker, restart_server, ...
        eventually(lambda: len(fleet.windows("camera-1")) > 20, 20, "twenty windows are stored")
        device.stop(); device.kill(); device.start()      # device.relay cuts, throttles, pauses its broker's link

Updates: `add_device(..., from_fleet=True)` waits for a rollout instead of serving a file;
`publish("1.1.0")` signs and uploads a bundle of models/digits, `roll_out("1.1.0", policy)` returns the rollout's id,
`fleet.client` is the API. `Fleet(folder, tls=True)`: TLS, with certificates in place of passwords.
`Fleet(folder, broker="embedded")` runs amqtt in the server's process (it stops and dies
with it), `Fleet(folder, influxdb=server, database_url=url)` works on a real InfluxDB and a PostgreSQL,
`Fleet(folder, start=())` starts nothing yet.

Invariants: ports, folders and credentials stay the same over stop, kill and restart, so that what was durable
is found again; nothing outlives the `with`.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import sqlite3
import sys
import time
import tomllib
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, TypeVar
from unittest.mock import patch

import httpx
import tomli_w

from edge_agent.cli import main as edge_agent_command
from fleet_protocol.bundle_folder import sign_bundle
from fleet_protocol.keys import PrivateKey
from fleet_protocol.messages import Window, decode
from fleet_server.cli.client import FleetClient, open_client
from fleet_server.cli.devices import write_agent_config
from fleet_server.cli.models import publish_bundle
from fleet_server.cli.starting import make_server_folder
from fleet_server.errors import UnavailableError
from fleet_server.identity.certificate_authority import CertificateAuthority
from fleet_server.message_bus.access import SERVER_USER, mosquitto_acl, mosquitto_passwords
from tests.real_servers.influxdb import InfluxDB
from tests.real_servers.mosquitto import Mosquitto, certify_mosquitto
from tests.real_servers.processes import Process, accepts, free_port
from tests.real_servers.relay import Relay

FLEET = "tests"
MODEL = "digits"
ROOT = Path(__file__).parents[2]
HOLDOUT = ROOT / "models" / MODEL / "holdout.npz"
WINDOW_S = 0.2
CONFIRM_TIMEOUT_S = 1.5
"""A device repeats what the broker took and the server did not confirm after this."""
_START_TIMEOUT_S = 40.0
_POLL_S = 0.1
_PAGE = 1_000
_PER_PROCESS = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
T = TypeVar("T")


def eventually(condition: Callable[[], T], timeout_s: float, what: str) -> T:
    """The first true value of `condition`, asked ten times a second; a server that is away counts as "not yet".

    Raises AssertionError with what was seen last.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        seen: T | Exception
        try:
            seen = condition()
            if seen:
                return seen
        except (UnavailableError, httpx.TransportError) as error:
            seen = error
        if time.monotonic() > deadline:
            raise AssertionError(f"within {timeout_s:g} s it did not happen that {what}; last seen: {seen!r}")
        time.sleep(_POLL_S)


class Device:
    """An application with an agent (examples/digits/device.py) in its own process, behind its own relay."""

    def __init__(self, name: str, *, config: Path, secret: str, relay: Relay, rate: float, seed: int) -> None:
        self.name, self.config, self.secret, self.relay = name, config, secret, relay
        self._arguments: list[str | Path] = ["--rate", str(rate), "--outcome-delay", "0.1", "--seed", str(seed)]
        self.process: Process | None = None

    @property
    def data_dir(self) -> Path:
        """What the agent keeps over restarts."""
        return self.config.parent / f"{self.name}.data"

    def start(self) -> None:
        """Start the process, with whatever its folder holds; returns once it has told its first counts."""
        self._status_file.unlink(missing_ok=True)
        application = ROOT / "examples" / "digits" / "device.py"
        self.process = Process(
            [sys.executable, application, self.config, HOLDOUT, *self._arguments],
            folder=self.config.parent,
            name=self.name,
            env=_PER_PROCESS,
        )
        self.process.wait_ready(self._status_file.exists, _START_TIMEOUT_S, "the device answers")

    def stop(self) -> int:
        """End it in good order: the last window is closed and sent; its return code."""
        return self._required().stop(20.0)

    def kill(self) -> None:
        """Kill -9."""
        self._required().kill()

    def restart(self) -> None:
        """Stop in good order, and start again."""
        self.stop()
        self.start()

    @property
    def is_running(self) -> bool:
        """Whether the process is there."""
        return self.process is not None and self.process.returncode is None

    def status(self) -> dict[str, Any]:
        """The application's own counts since its start, at most half a second old; final once it has stopped."""
        status: dict[str, Any] = json.loads(self._status_file.read_text())
        return status

    def answered(self) -> int:
        """Inferences since the start, by the application's own count."""
        return sum(self.status()["answered"].values())

    def outbox(self) -> list[Window]:
        """Every window that is durable on the device now, and that no server has confirmed, oldest first."""
        with contextlib.closing(sqlite3.connect(self.data_dir / "outbox.db", timeout=10)) as database:
            query = "SELECT payload FROM records WHERE kind = 'telemetry' ORDER BY id"
            return [decode(Window, payload) for (payload,) in database.execute(query)]

    def log(self) -> str:
        """What it wrote since its first start."""
        return self._required().output()

    @property
    def _status_file(self) -> Path:
        return self.config.with_suffix(".status.json")

    def _required(self) -> Process:
        if self.process is None:
            raise RuntimeError(f"{self.name} was never started")
        return self.process


class Fleet:
    """Use it in a `with`. `start` names what is started at once: "broker", "server"."""

    def __init__(
        self,
        folder: Path,
        *,
        broker: Literal["mosquitto", "embedded"] = "mosquitto",
        influxdb: InfluxDB | None = None,
        start: Collection[str] = ("broker", "server"),
        tls: bool = False,
        database_url: str = "",
    ) -> None:
        self.folder, self._start, self.tls = folder, start, tls
        self._database = {"EDGEFLEET_DATABASE_URL": database_url} if database_url else {}
        self._opened = ExitStack()
        self._passwords = {SERVER_USER: secrets.token_urlsafe(32)}
        self.mosquitto: Mosquitto | None = None
        self.server: Process | None = None
        self.devices: dict[str, Device] = {}
        self.http_port = free_port()
        self.url = f"http://127.0.0.1:{self.http_port}"
        if broker == "mosquitto" and not tls:
            self.mosquitto = Mosquitto(folder / "mosquitto", users=self._passwords, acl=mosquitto_acl(FLEET))
        self.mqtt_port = self.mosquitto.port if self.mosquitto else free_port()
        if broker == "mosquitto" and tls:  # its files need the authority, which the server's folder has
            self.mosquitto = Mosquitto(folder / "mosquitto", port=self.mqtt_port)
        ports = {"http_port": self.http_port, "mqtt_port": self.mqtt_port}
        with patch.dict(os.environ, self._database):
            made = make_server_folder(folder / "server", fleet=FLEET, host="127.0.0.1", tls=tls, **ports)
        self.server_config, self._release_key = made.config_file, PrivateKey.load(made.release_key)
        self.data_dir = folder / "server" / "data"
        self.bucket = influxdb.new_bucket() if influxdb else None
        self._write_server_config(influxdb)
        self.client: FleetClient = self._opened.enter_context(open_client(self.url, made.api_key_file))

    def __enter__(self) -> Fleet:
        try:
            if "broker" in self._start:
                self.start_broker()
            if "server" in self._start:
                self.start_server()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End every process; what it wrote stays in `folder`."""
        for device in self.devices.values():
            if device.process is not None:
                device.process.kill()
            device.relay.close()
        if self.server is not None:
            self.server.kill()
        if self.mosquitto is not None:
            self.mosquitto.kill()
        self._opened.close()

    @property
    def server_password(self) -> str:
        """The server's own password for the broker."""
        return self._passwords[SERVER_USER]

    def start_server(self, *, wait: bool = True) -> None:
        """Start `fleet serve`; with `wait` return when it answers HTTP."""
        self.server = Process(
            [sys.executable, "-m", "fleet_server.cli", "serve", "--config", self.server_config],
            folder=self.folder,
            name="server",
            env={**_PER_PROCESS, **self._database},
        )
        if wait:
            self.server.wait_ready(lambda: accepts(self.http_port), _START_TIMEOUT_S, "the server answers")

    def stop_server(self) -> int:
        """End it with SIGTERM; its return code."""
        return self._running_server().stop(20.0)

    def kill_server(self) -> None:
        """Kill -9; with the embedded broker, the broker too."""
        self._running_server().kill()

    def restart_server(self) -> None:
        """Stop in good order, and start again."""
        self.stop_server()
        self.start_server()

    def server_log(self) -> str:
        """What the server wrote since its first start."""
        return self._running_server().output()

    def start_broker(self) -> None:
        """Start Mosquitto; the embedded broker comes with the server."""
        if self.mosquitto is not None:
            self.mosquitto.start()
        if self.mosquitto is not None and self.tls:
            pid = self.mosquitto.process.pid if self.mosquitto.process else 0
            (self.folder / "reload").write_text(f"#!/bin/sh\nkill -HUP {pid}\n")
            (self.folder / "reload").chmod(0o755)

    def stop_broker(self) -> None:
        """Stop Mosquitto in good order."""
        self._own_broker().stop()

    def kill_broker(self) -> None:
        """Kill -9 Mosquitto: what it did not save within the last second is lost."""
        self._own_broker().kill()

    def enrol(self, device: str, labels: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Enrol through the API and admit to the broker; returns the answer, with `secret`."""
        answer: dict[str, Any] = self.client.change("POST", f"devices/{device}/enrol", {"labels": labels or {}})
        self._admit(device, answer["secret"])
        return answer

    def enrol_by_token(self, device: str, out: Path, labels: Mapping[str, str] | None = None) -> None:
        """Let the device itself make its key and enrol, as `edge-agent enrol` does it."""
        made = self.client.change("POST", "enrolment-tokens", {"device": device, "labels": labels or {}})
        token_file = out.with_suffix(".token")
        token_file.write_text(made["token"])
        names = ["--device", device, "--out", str(out), "--token-file", str(token_file)]
        assert edge_agent_command(["enrol", "--server", self.url, *names]) == 0

    @property
    def authority(self) -> CertificateAuthority:
        """What signs the certificates of this fleet."""
        keys = self.folder / "server" / "keys"
        return CertificateAuthority.load(certificate_file=keys / "ca.crt", key_file=keys / "ca.key")

    def add_device(
        self,
        name: str,
        *,
        start: bool = True,
        from_fleet: bool = False,
        labels: Mapping[str, str] | None = None,
        window_s: float = WINDOW_S,
        rate: float = 50.0,
        settings: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> Device:
        """Enrol a device (the server must run) and start its process.

        It serves models/digits/fp32/1.0.0.onnx as a plain file, or with `from_fleet` only what a rollout brings.
        `rate` is inferences per second; `settings` are sections to merge into its config file.
        """
        config_file = self.folder / f"{name}.toml"
        if self.tls:
            self.enrol_by_token(name, config_file, labels)
        else:
            write_agent_config(self.enrol(name, labels), config_file)
        relay = Relay(self.mqtt_port)
        relay.start()
        config = tomllib.loads(config_file.read_text())
        config["data_dir"] = f"{name}.data"
        config["telemetry"] = {"window_s": window_s, "confirm_timeout_s": CONFIRM_TIMEOUT_S}
        scheme = "mqtts" if self.tls else "mqtt"
        config["mqtt"] |= {"url": f"{scheme}://127.0.0.1:{relay.port}", "reconnect_max_s": 0.5, "keepalive_s": 5}
        if self.mosquitto is None:
            config["mqtt"]["protocol"] = "3.1.1"
        if not from_fleet:
            config["models"] = {MODEL: plain_model()}
        for section, values in (settings or {}).items():
            config[section] = {**config.get(section, {}), **values}
        config_file.write_text(tomli_w.dumps(config))
        secret = (self.folder / f"{name}.trust" / "secret").read_text().strip()
        device = Device(name, config=config_file, secret=secret, relay=relay, rate=rate, seed=len(self.devices))
        self.devices[name] = device
        if start:
            device.start()
        return device

    def publish(self, version: str, folder: Path | None = None) -> dict[str, Any]:
        """Sign a copy of a bundle folder (by default models/digits/bundles/VERSION) and publish it."""
        copy = self.folder / "bundles" / version
        if not copy.exists():
            shutil.copytree(folder or ROOT / "models" / MODEL / "bundles" / version, copy)
            sign_bundle(copy, [self._release_key])
        return publish_bundle(self.client, copy)

    def roll_out(self, version: str, policy: Mapping[str, Any]) -> str:
        """Create a rollout of MODEL; its id. `rollout(id)` is how it stands."""
        body = {"model": MODEL, "version": version, "policy": dict(policy)}
        return str(self.client.change("POST", "rollouts", body)["id"])

    def rollout(self, rollout_id: str) -> dict[str, Any]:
        """How a rollout stands."""
        view: dict[str, Any] = self.client.get(f"rollouts/{rollout_id}")
        return view

    def reported(self, device: str) -> dict[str, Any] | None:
        """What a device says of MODEL: its ModelReport as JSON, None before it said anything."""
        models = (self.client.get(f"devices/{device}")["reported"] or {}).get("models", [])
        return next((model for model in models if model["model"] == MODEL), None)

    def metrics(self) -> dict[str, float]:
        """The server's /metrics: name (with labels) → value. Counters start anew with the process."""
        text = httpx.get(f"{self.url}/metrics", timeout=10).text
        pairs = (line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#"))
        return {name: float(value) for name, value in pairs}

    def ingested(self, what: str) -> int:
        """One ingest counter since the server's start: windows, repeats, events, malformed, unsupported_schema, ..."""
        return int(self.metrics().get(f"edgefleet_ingest_{what}_total", 0))

    def is_ready(self) -> bool:
        """Whether every part the server needs answers."""
        return httpx.get(f"{self.url}/ready", timeout=10).status_code == 200

    def windows(self, device: str, *, start_ns: int = 0) -> list[dict[str, Any]]:
        """Every stored window of a device that ended after `start_ns`, oldest first, through the API."""
        found: dict[tuple[str, int], dict[str, Any]] = {}
        end_ns = time.time_ns() + 10**9
        while True:
            answer = self.client.get(f"devices/{device}/telemetry", start_ns=start_ns, end_ns=end_ns, limit=_PAGE)
            page = answer["windows"]
            by_identity = {(window["boot_id"], window["sequence"]): window for window in page}
            assert len(by_identity) == len(page), "the store holds a window twice"
            found |= by_identity
            if len(page) < _PAGE or page[0]["end_ns"] == end_ns:
                return sorted(found.values(), key=lambda window: (window["end_ns"], window["sequence"]))
            end_ns = page[0]["end_ns"]

    def ingest_status(self) -> dict[str, Any]:
        """What the server counted over every restart: windows, repeats, boots, missing sequences."""
        status: dict[str, Any] = self.client.get("ingest")
        return status

    def _admit(self, device: str, secret: str) -> None:
        self._passwords[device] = secret
        if self.mosquitto is None:
            return
        (self.mosquitto.folder / "passwords").write_text(mosquitto_passwords(self._passwords))
        if self.mosquitto.process is not None:
            self.mosquitto.process.signal(signal.SIGHUP)

    def _write_server_config(self, influxdb: InfluxDB | None) -> None:
        config = tomllib.loads(self.server_config.read_text())
        password_file = self.server_config.parent / "keys" / "mqtt.password"
        password_file.write_text(self.server_password)
        if self.mosquitto is not None and self.tls:
            certify_mosquitto(self.mosquitto, self.authority, fleet=FLEET)
            config["mqtt"] = {
                "embedded": False,
                "url": f"mqtts://127.0.0.1:{self.mqtt_port}",
                "sign_in": "certificate",
            }
            config["identity"] |= {
                "crl_file": str(self.mosquitto.folder / "revoked.crl"),
                "reload_command": [str(self.folder / "reload")],
            }
        elif self.mosquitto is not None:
            config["mqtt"] = {"embedded": False, "url": self.mosquitto.url, "password_file": str(password_file)}
        if influxdb is not None:
            address = f"influxdb+{influxdb.url}?org={influxdb.org or 'tests'}&bucket={self.bucket}"
            config["telemetry_store"] = {"url": address}
            if influxdb.token:
                token_file = self.server_config.parent / "keys" / "store.token"
                token_file.touch(mode=0o600)
                token_file.write_text(influxdb.token)
                config["telemetry_store"]["token_file"] = str(token_file)
        self.server_config.write_text(tomli_w.dumps(config))

    def _running_server(self) -> Process:
        if self.server is None:
            raise RuntimeError("the server was never started")
        return self.server

    def _own_broker(self) -> Mosquitto:
        if self.mosquitto is None:
            raise RuntimeError("the embedded broker is stopped with its server")
        return self.mosquitto


def plain_model() -> dict[str, Any]:
    """A [models.NAME] section: digits 1.0.0 from a plain file."""
    path = ROOT / "models" / MODEL / "fp32" / "1.0.0.onnx"
    return {"path": os.fspath(path), "version": "1.0.0", "task": "classification", "labels": list("0123456789")}
