"""The demo's fleet: a folder, a broker, a server and five devices, built with what a user has.

Everything is generated for the run: keys, passwords, API key, ports. Nothing outside the folder is touched.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sys
import tomllib
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from fleet_protocol.bundle_folder import sign_bundle
from fleet_protocol.keys import PrivateKey
from fleet_server.cli.client import FleetClient, open_client
from fleet_server.cli.models import publish_bundle
from fleet_server.cli.starting import make_server_folder
from fleet_server.demo.brokers import choose_broker, write_secret
from fleet_server.demo.processes import ChildProcess, accepts, free_port, wait_until
from fleet_server.demo.relay import Relay
from fleet_server.errors import ConfigError
from fleet_server.identity.certificate_authority import CertificateAuthority

MODEL = "digits"
DEVICES = tuple(f"camera-{number}" for number in range(1, 6))
WINDOW_S = 1.0
RATE_PER_S = 40.0
_START_TIMEOUT_S = 30.0
_SITES = ("lisbon", "porto")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """What the demo needs of the source tree: it is not part of the installed package."""

    application: Path
    holdout: Path
    bundles: Path

    @classmethod
    def find(cls, root: Path) -> Sources:
        """The sources under `root`. Raises ConfigError when it is not an edgefleet checkout."""
        found = cls(
            application=root / "examples" / "digits" / "device.py",
            holdout=root / "models" / MODEL / "holdout.npz",
            bundles=root / "models" / MODEL / "bundles",
        )
        for path in (found.application, found.holdout, found.bundles):
            if not path.exists():
                raise ConfigError(f"there is no {path}: run in an edgefleet checkout, or give --source")
        return found


class DemoFleet:
    """Owns every process of the demo. Use it in a `with`."""

    def __init__(self, sources: Sources, folder: Path) -> None:
        self._sources, self._folder = sources, folder
        self._name = f"demo-{secrets.token_hex(4)}"  # a broker that served an earlier demo remembers its topics
        self._opened = ExitStack()
        self._devices: dict[str, ChildProcess] = {}
        self.relays: dict[str, Relay] = {}

    def __enter__(self) -> DemoFleet:
        try:
            self._start()
        except BaseException:
            self._opened.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def _start(self) -> None:
        port = free_port()
        self.server_url = f"http://127.0.0.1:{port}"
        server_folder = self._folder / "server"
        made = make_server_folder(server_folder, fleet=self._name, host="127.0.0.1", http_port=port, mqtt_port=0)
        keys = server_folder / "keys"
        authority = CertificateAuthority.load(certificate_file=keys / "ca.crt", key_file=keys / "ca.key")
        self._broker = choose_broker(self._folder, self._name, authority)
        self._opened.callback(self._broker.stop)
        self.broker_description = self._broker.description
        config = tomllib.loads(made.config_file.read_text())
        config["mqtt"] = self._broker.server_settings()
        config["identity"] |= self._broker.identity_settings()
        made.config_file.write_text(tomli_w.dumps(config))
        self.api_key_file = made.api_key_file
        self._release_key = made.release_key
        self._server = ChildProcess(
            "server",
            [sys.executable, "-m", "fleet_server.cli", "serve", "--config", made.config_file],
            folder=self._folder,
        )
        self._opened.callback(self._server.stop)
        wait_until(lambda: self._server_answers(port), timeout_s=_START_TIMEOUT_S, what="the start of the server")
        self.client: FleetClient = self._opened.enter_context(open_client(self.server_url, self.api_key_file))
        self._enrol_and_start_devices()

    def _server_answers(self, port: int) -> bool:
        self._server.require_running()
        return accepts(port)

    def _enrol_and_start_devices(self) -> None:
        self._broker.expect(DEVICES)
        configs = self._enrol()
        for number, device in enumerate(DEVICES):
            self._adapt_config(configs[device], device)
            command: list[str | Path] = [
                sys.executable, self._sources.application, configs[device], self._sources.holdout,
                "--rate", str(RATE_PER_S), "--seed", str(number),
            ]  # fmt: skip
            child = ChildProcess(device, command, folder=self._folder, environment=_one_thread_each())
            self._devices[device] = child
            self._opened.callback(child.stop)

    def _enrol(self) -> dict[str, Path]:
        """Every device makes its key and enrols with its site's token, as a user's device does; device → its config."""
        tokens = {}
        for site in _SITES:
            terms = {"labels": {"site": site}, "device_pattern": "camera-*", "max_uses": len(DEVICES)}
            tokens[site] = self._folder / f"{site}.token"
            write_secret(tokens[site], self.client.change("POST", "enrolment-tokens", terms)["token"])
        configs = {device: self._folder / f"{device}.toml" for device in DEVICES}
        enrolling = []
        for number, device in enumerate(DEVICES):
            command: list[str | Path] = [
                sys.executable, "-m", "edge_agent", "enrol", "--server", self.server_url, "--device", device,
                "--token-file", tokens[_SITES[number % len(_SITES)]], "--out", configs[device],
            ]  # fmt: skip
            child = ChildProcess(f"enrol-{device}", command, folder=self._folder, environment=_one_thread_each())
            self._opened.callback(child.stop)
            enrolling.append(child)
        for child in enrolling:
            child.wait_done(_START_TIMEOUT_S)
        return configs

    def _adapt_config(self, path: Path, device: str) -> None:
        """Short windows, a folder of its own, and a way to the broker that can be cut."""
        relay = Relay(self._broker.address)
        self._opened.callback(relay.close)
        self.relays[device] = relay
        config = tomllib.loads(path.read_text())
        config["data_dir"] = str(self._folder / f"{device}.data")
        config["telemetry"] = {"window_s": WINDOW_S, "confirm_timeout_s": 5.0}
        config["mqtt"] |= self._broker.device_settings(device)
        scheme = config["mqtt"]["url"].partition("://")[0]
        config["mqtt"] |= {"url": f"{scheme}://127.0.0.1:{relay.port}", "reconnect_max_s": 2.0}
        path.write_text(tomli_w.dumps(config))

    def publish(self, version: str) -> dict[str, Any]:
        """Sign a copy of the version's bundle with the run's release key and publish it."""
        folder = self._folder / f"{MODEL}-{version}"
        shutil.copytree(self._sources.bundles / version, folder)
        sign_bundle(folder, [PrivateKey.load(self._release_key)])
        return publish_bundle(self.client, folder)

    def status(self, device: str) -> dict[str, Any]:
        """The device's own counts; empty before its first word."""
        self._devices[device].require_running()
        return self._last_status(device)

    def _last_status(self, device: str) -> dict[str, Any]:
        try:
            status: dict[str, Any] = json.loads((self._folder / f"{device}.status.json").read_text())
        except FileNotFoundError:
            return {}
        return status

    def stop_devices(self) -> dict[str, dict[str, Any]]:
        """End every device in good order; returns their last counts."""
        for child in self._devices.values():
            child.ask_to_stop()
        for child in self._devices.values():
            child.stop()
        return {device: self._last_status(device) for device in DEVICES}


def _one_thread_each() -> dict[str, str]:
    """Five devices share this machine: none should start a thread per core for numpy."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
