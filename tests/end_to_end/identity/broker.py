"""A real Mosquitto by certificates, as `fleet broker-config` sets it up, and raw MQTT clients for it.

The clients say what became of them: `connected`, `ended` (alone where TLS refused their certificate), and what they
received; nothing of the project's own agent is in them, so that they may do what it never would.
"""

from __future__ import annotations

import ssl
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
from cryptography.hazmat.primitives.asymmetric import ed25519
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from fleet_server.identity.certificate_authority import CertificateAuthority, IssuedCertificate
from fleet_server.message_bus.tls import client_context
from tests.real_servers.mosquitto import Mosquitto, certify_mosquitto
from tests.server.identity.authority import key_pem, make_authority

FLEET = "tests"
ANSWER_S = 10.0


class CertifiedBroker:
    """Use it in a `with`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = make_authority(folder / "authority", FLEET)
        self.mosquitto = Mosquitto(folder / "mosquitto")
        certify_mosquitto(self.mosquitto, self.authority, fleet=FLEET)
        self.crl_file = folder / "mosquitto" / "revoked.crl"

    def __enter__(self) -> CertifiedBroker:
        self.mosquitto.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.mosquitto.stop()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"mqtts://127.0.0.1:{self.mosquitto.port}"

    @property
    def reload_command(self) -> list[str]:
        """What makes it read its files again."""
        assert self.mosquitto.process is not None
        return ["kill", "-HUP", str(self.mosquitto.process.pid)]

    def certificate(
        self, device: str, *, authority: CertificateAuthority | None = None, life: timedelta = timedelta(days=1)
    ) -> tuple[Path, IssuedCertificate]:
        """A file with a device's key and certificate."""
        key = ed25519.Ed25519PrivateKey.generate()
        issued = (authority or self.authority).issue_to_device(
            key.public_key(), fleet=FLEET, device=device, now=datetime.now(UTC), life=life
        )
        file = self.folder / f"{device}-{issued.serial[:8]}.pem"
        file.write_text(key_pem(key) + issued.pem)
        return file, issued

    def client(self, certificate: Path | None, **settings: Any) -> Client:
        """A client that trusts this broker and shows that certificate."""
        context = ssl.create_default_context(cadata=self.authority.pem)
        if certificate is not None:
            context.load_cert_chain(certificate)
        return Client(self.mosquitto.port, context, **settings)

    def server(self) -> Client:
        """A client with the server's own certificate."""
        context = client_context(broker_authority=self.authority.pem, authority=self.authority, user="fleet.server")
        return Client(self.mosquitto.port, context)


class Client:
    """One connection. Use it in a `with`."""

    def __init__(
        self,
        port: int,
        context: ssl.SSLContext,
        *,
        client_id: str = "anything",
        user: str | None = None,
        will: str = "",
    ) -> None:
        self.received: list[tuple[str, bytes]] = []
        self.connected, self.ended = threading.Event(), threading.Event()
        self._suback: dict[int, list[bool]] = {}
        self._client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            protocol=MQTTProtocolVersion.MQTTv5,
            reconnect_on_failure=False,
        )
        self._client.tls_set_context(context)
        if user is not None:
            self._client.username_pw_set(user, "x")
        if will:
            self._client.will_set(will, b"gone", 1)
        self._client.on_connect = self._on_connect
        self._client.on_disconnect = lambda *_: self.ended.set()
        self._client.on_message = lambda _c, _d, message: self.received.append((message.topic, message.payload))
        self._client.on_subscribe = lambda _c, _d, mid, reasons, _p: self._suback.update(
            {mid: [not reason.is_failure for reason in reasons]}
        )
        try:
            self._client.connect("127.0.0.1", port, keepalive=30)
        except OSError:
            self.ended.set()
        else:
            self._client.loop_start()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(RuntimeError):
            self._client.disconnect()
            self._client.loop_stop()

    def is_let_in(self) -> bool:
        """Whether the broker accepted it, after it made up its mind."""
        deadline = time.monotonic() + ANSWER_S
        while time.monotonic() < deadline:
            if self.connected.is_set():
                return True
            if self.ended.wait(0.02):
                return self.connected.is_set()
        raise AssertionError("the broker neither let the client in nor turned it away")

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Send with QoS 1 and wait for the broker's answer, whatever it is."""
        info = self._client.publish(topic, payload, qos=1, retain=retain)
        info.wait_for_publish(ANSWER_S)

    def subscribe(self, topic: str) -> None:
        """Subscribe and wait for the broker's answer; Mosquitto grants also what its access list never delivers."""
        _, mid = self._client.subscribe(topic, qos=1)
        deadline = time.monotonic() + ANSWER_S
        while mid not in self._suback:
            assert time.monotonic() < deadline, f"no answer to the subscription of {topic}"
            time.sleep(0.01)

    def _on_connect(self, _client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if not reason.is_failure:
            self.connected.set()
