"""The demo's broker: the one in EDGEFLEET_MQTT_URL, else a Mosquitto process, else the server's embedded one.

The two of the demo speak TLS and take the certificates of the run's own authority. An external broker brings its own
passwords: user name and password stand in the URL and are used by the server and the devices alike.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

from paho.mqtt import MQTTException, publish

from fleet_protocol.topics import RETAINED, topic_of
from fleet_server.demo.processes import ChildProcess, accepts, free_port, wait_until
from fleet_server.errors import ConfigError
from fleet_server.identity.certificate_authority import CertificateAuthority
from fleet_server.message_bus.broker_files import mosquitto_config, write_broker_files

_START_TIMEOUT_S = 15.0


class DemoBroker(Protocol):
    """A broker the demo can use."""

    description: str
    address: tuple[str, int]

    def server_settings(self) -> dict[str, Any]:
        """The server's [mqtt] section."""

    def device_settings(self, device: str) -> dict[str, Any]:
        """What a device's [mqtt] section has beside its url and its own secret."""

    def identity_settings(self) -> dict[str, Any]:
        """What the server's [identity] section has beside its authority."""

    def expect(self, devices: Sequence[str]) -> None:
        """These devices will come."""

    def stop(self) -> None:
        """End it where it is the demo's."""


def choose_broker(folder: Path, fleet: str, authority: CertificateAuthority) -> DemoBroker:
    """The first of the three that there is. Raises ConfigError for an unusable EDGEFLEET_MQTT_URL."""
    url = os.environ.get("EDGEFLEET_MQTT_URL")
    if url:
        return ExternalBroker(url, folder, fleet)
    program = shutil.which("mosquitto")
    return MosquittoBroker(Path(program), folder, fleet, authority) if program else EmbeddedBroker()


class ExternalBroker:
    """The broker somebody named."""

    def __init__(self, url: str, folder: Path, fleet: str) -> None:
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            parts, port = urlsplit(""), None
        if parts.scheme != "mqtt" or not parts.hostname:
            raise ConfigError("EDGEFLEET_MQTT_URL must be mqtt://[USER:PASSWORD@]HOST[:PORT]")
        self.address = (parts.hostname, port or 1883)
        self.description = f"the broker at {parts.hostname}:{self.address[1]} (EDGEFLEET_MQTT_URL)"
        self._user, self._password = unquote(parts.username or ""), unquote(parts.password or "")
        self._password_file = folder / "server.password"
        self._fleet, self._devices = fleet, list[str]()

    def server_settings(self) -> dict[str, Any]:
        """See the port."""
        host, port = self.address
        settings: dict[str, Any] = {"embedded": False, "url": f"mqtt://{host}:{port}"}
        if self._user:
            write_secret(self._password_file, self._password)
            settings |= {"username": self._user, "password_file": str(self._password_file)}
        return settings

    def device_settings(self, device: str) -> dict[str, Any]:
        """See the port: its own secret stays a device's password for downloads."""
        if not self._user:
            return {}
        return {"username": self._user, "password_file": str(self._password_file)}

    def identity_settings(self) -> dict[str, Any]:
        """See the port: certificates are issued, and this broker knows nothing of them."""
        return {}

    def expect(self, devices: Sequence[str]) -> None:
        """The names are for `stop`."""
        self._devices = list(devices)

    def stop(self) -> None:
        """Leave no retained message behind on a broker that is not ours."""
        topics = [topic_of(self._fleet, device, kind) for device in self._devices for kind in RETAINED]
        if topics:
            auth: Any = {"username": self._user, "password": self._password} if self._user else None
            messages: Any = [(topic, b"", 1, True) for topic in topics]
            with contextlib.suppress(OSError, MQTTException):
                publish.multiple(messages, hostname=self.address[0], port=self.address[1], auth=auth)


class MosquittoBroker:
    """A Mosquitto process with its own folder, certificates and access list."""

    def __init__(self, program: Path, folder: Path, fleet: str, authority: CertificateAuthority) -> None:
        self._folder = folder / "mosquitto"
        host, port = "127.0.0.1", free_port()
        self.address = (host, port)
        self.description = f"mosquitto ({program}) on port {port}, with TLS and certificates"
        config = mosquitto_config(port=port, at=str(self._folder), data=str(self._folder / "data"), address=host)
        if os.geteuid() == 0:
            config += "user root\n"  # or it gives up the rights to its own folder
        write_broker_files(self._folder, authority=authority, fleet=fleet, hosts=[host, "localhost"], config=config)
        (self._folder / "data").mkdir()
        self._process = ChildProcess("mosquitto", [program, "-c", self._folder / "mosquitto.conf"], folder=self._folder)
        wait_until(self._is_up, timeout_s=_START_TIMEOUT_S, what="the start of mosquitto")

    def _is_up(self) -> bool:
        self._process.require_running()
        return accepts(self.address[1])

    def server_settings(self) -> dict[str, Any]:
        """See the port."""
        host, port = self.address
        return {"embedded": False, "url": f"mqtts://{host}:{port}", "sign_in": "certificate"}

    def device_settings(self, device: str) -> dict[str, Any]:
        """See the port: the certificate says who it is."""
        return {}

    def identity_settings(self) -> dict[str, Any]:
        """See the port."""
        reload = ["kill", "-HUP", str(self._process.pid)]
        return {"crl_file": str(self._folder / "revoked.crl"), "reload_command": reload}

    def expect(self, devices: Sequence[str]) -> None:
        """Nothing: who has a certificate is let in."""

    def stop(self) -> None:
        """End the process."""
        self._process.stop()


class EmbeddedBroker:
    """amqtt inside the fleet server's process."""

    def __init__(self) -> None:
        self.address = ("127.0.0.1", free_port())
        self.description = f"the server's embedded broker (amqtt) on port {self.address[1]}, with TLS and certificates"

    def server_settings(self) -> dict[str, Any]:
        """See the port."""
        return {"embedded": True, "listen_host": self.address[0], "listen_port": self.address[1], "tls": True}

    def device_settings(self, device: str) -> dict[str, Any]:
        """See the port: amqtt speaks 3.1.1 only, so nobody needs to find that out."""
        return {"protocol": "3.1.1"}

    def identity_settings(self) -> dict[str, Any]:
        """See the port: it asks the server's database."""
        return {}

    def expect(self, devices: Sequence[str]) -> None:
        """Nothing: it asks the server's database."""

    def stop(self) -> None:
        """Nothing: it ends with the server."""


def write_secret(path: Path, text: str) -> None:
    """Write a file that only its owner reads."""
    path.touch(mode=0o600)
    path.write_text(text)
