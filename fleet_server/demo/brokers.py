"""The demo's broker: the one in EDGEFLEET_MQTT_URL, else a Mosquitto process, else the server's embedded one.

Passwords are generated for each run. An external broker brings its own: user name and password stand in the URL
and are used by the server and the devices alike.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

from paho.mqtt import MQTTException, publish

from fleet_protocol.topics import RETAINED, topic_of
from fleet_server.demo.processes import ChildProcess, accepts, free_port, wait_until
from fleet_server.errors import ConfigError
from fleet_server.message_bus.access import SERVER_USER, mosquitto_acl, mosquitto_passwords

_START_TIMEOUT_S = 15.0


class DemoBroker(Protocol):
    """A broker the demo can use."""

    description: str
    address: tuple[str, int]

    def server_settings(self) -> dict[str, Any]:
        """The server's [mqtt] section."""

    def device_settings(self, device: str) -> dict[str, Any]:
        """What a device's [mqtt] section has beside its url and its own secret."""

    def admit(self, secrets_by_device: Mapping[str, str]) -> None:
        """Let these devices in."""

    def stop(self) -> None:
        """End it where it is the demo's."""


def choose_broker(folder: Path, fleet: str) -> DemoBroker:
    """The first of the three that there is. Raises ConfigError for an unusable EDGEFLEET_MQTT_URL."""
    url = os.environ.get("EDGEFLEET_MQTT_URL")
    if url:
        return ExternalBroker(url, folder, fleet)
    program = shutil.which("mosquitto")
    return MosquittoBroker(Path(program), folder, fleet) if program else EmbeddedBroker()


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

    def admit(self, secrets_by_device: Mapping[str, str]) -> None:
        """Nothing to do: the broker's owner decided. The names are for `stop`."""
        self._devices = list(secrets_by_device)

    def stop(self) -> None:
        """Leave no retained message behind on a broker that is not ours."""
        topics = [topic_of(self._fleet, device, kind) for device in self._devices for kind in RETAINED]
        if topics:
            auth: Any = {"username": self._user, "password": self._password} if self._user else None
            messages: Any = [(topic, b"", 1, True) for topic in topics]
            with contextlib.suppress(OSError, MQTTException):
                publish.multiple(messages, hostname=self.address[0], port=self.address[1], auth=auth)


class MosquittoBroker:
    """A Mosquitto process with its own folder, users and access list."""

    def __init__(self, program: Path, folder: Path, fleet: str) -> None:
        self._folder = folder / "mosquitto"
        self._folder.mkdir()
        self.address = ("127.0.0.1", free_port())
        self.description = f"mosquitto ({program}) on port {self.address[1]}"
        self._server_password = secrets.token_urlsafe(32)
        self._passwords = self._folder / "passwords"
        self._write_passwords({})
        (self._folder / "acl").write_text(mosquitto_acl(fleet))
        (self._folder / "data").mkdir()
        config = self._folder / "mosquitto.conf"
        config.write_text(
            f"listener {self.address[1]} 127.0.0.1\n"
            "allow_anonymous false\n"
            "use_username_as_clientid true\n"  # or a device could take over the session of another, or the server's
            f"password_file {self._passwords}\n"
            f"acl_file {self._folder / 'acl'}\n"
            f"persistence true\npersistence_location {self._folder / 'data'}/\nautosave_interval 1\n"
            "max_queued_messages 100000\nmax_inflight_messages 1000\n"
            + ("user root\n" if os.geteuid() == 0 else "")  # or it gives up the rights to its own folder
        )
        self._process = ChildProcess("mosquitto", [program, "-c", config], folder=self._folder)
        wait_until(self._is_up, timeout_s=_START_TIMEOUT_S, what="the start of mosquitto")

    def _is_up(self) -> bool:
        self._process.require_running()
        return accepts(self.address[1])

    def server_settings(self) -> dict[str, Any]:
        """See the port."""
        password_file = self._folder / "server.password"
        write_secret(password_file, self._server_password)
        host, port = self.address
        return {"embedded": False, "url": f"mqtt://{host}:{port}", "password_file": str(password_file)}

    def device_settings(self, device: str) -> dict[str, Any]:
        """See the port: the device id is the user name."""
        return {}

    def admit(self, secrets_by_device: Mapping[str, str]) -> None:
        """Add the devices to the password file and let Mosquitto read it again."""
        self._write_passwords(secrets_by_device)
        self._process.reload()

    def _write_passwords(self, secrets_by_device: Mapping[str, str]) -> None:
        write_secret(self._passwords, mosquitto_passwords({SERVER_USER: self._server_password, **secrets_by_device}))

    def stop(self) -> None:
        """End the process."""
        self._process.stop()


class EmbeddedBroker:
    """amqtt inside the fleet server's process."""

    def __init__(self) -> None:
        self.address = ("127.0.0.1", free_port())
        self.description = f"the server's embedded broker (amqtt) on port {self.address[1]}"

    def server_settings(self) -> dict[str, Any]:
        """See the port."""
        return {"embedded": True, "listen_host": self.address[0], "listen_port": self.address[1]}

    def device_settings(self, device: str) -> dict[str, Any]:
        """See the port: amqtt speaks 3.1.1 only, so nobody needs to find that out."""
        return {"protocol": "3.1.1"}

    def admit(self, secrets_by_device: Mapping[str, str]) -> None:
        """Nothing: it asks the server's database."""

    def stop(self) -> None:
        """Nothing: it ends with the server."""


def write_secret(path: Path, text: str) -> None:
    """Write a file that only its owner reads."""
    path.touch(mode=0o600)
    path.write_text(text)
