"""The embedded broker with TLS: certificates and passwords side by side, and revocation that cuts at once."""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import paho.mqtt.client as paho
import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from sqlalchemy import Engine, insert

from fleet_protocol.topics import TopicKind, topic_of
from fleet_server.config import ServerConfig, parse_config
from fleet_server.database.identity_tables import device_certificates
from fleet_server.identity.certificate_authority import CertificateAuthority
from fleet_server.identity.device_credentials import enrol_device
from fleet_server.identity.revocation import revoke
from fleet_server.message_bus.opening import OpenedBus, open_bus
from tests.real_servers.processes import free_port, wait_until
from tests.server.identity.authority import key_pem, make_authority


class Broker:
    """A running embedded broker and its authority."""

    def __init__(self, folder: Path, engine: Engine, opened: ExitStack) -> None:
        self.folder, self.engine, self.port = folder, engine, free_port()
        self.authority = make_authority(folder / "keys", "demo")
        document = {
            "fleet": "demo",
            "mqtt": {"listen_port": self.port, "tls": True},
            "identity": {"ca_certificate": "keys/ca.crt", "ca_key": "keys/ca.key"},
            "trust": {"release_keys": ["none.pub"], "director_key": "none.key"},
        }
        self.config: ServerConfig = parse_config(document, folder=folder)
        self.opened: OpenedBus = open_bus(self.config, engine, opened)

    def certificate(self, device: str, *, authority: CertificateAuthority | None = None, known: bool = True) -> Path:
        """A file with a device's key and certificate; `known` as one that the server gave."""
        key = ed25519.Ed25519PrivateKey.generate()
        issued = (authority or self.authority).issue_to_device(
            key.public_key(), fleet="demo", device=device, now=datetime.now(UTC), life=timedelta(days=1)
        )
        if known:
            with self.engine.begin() as connection:
                row = {"serial": issued.serial, "key_sha256": "", "pem": issued.pem, "issued_ns": 1}
                values = {**row, "fleet": "demo", "device": device, "expires_ns": issued.expires_ns}
                connection.execute(insert(device_certificates).values(values))
        file = self.folder / f"{issued.serial}.pem"
        file.write_text(key_pem(key) + issued.pem)
        return file

    def client(self, certificate: Path | None = None, *, user: str = "", password: str = "", will: str = "") -> Client:
        """A client over TLS."""
        context = ssl.create_default_context(cadata=self.authority.pem)
        if certificate is not None:
            context.load_cert_chain(certificate)
        return Client(self.port, context, user=user, password=password, will=will)


class Client:
    """One MQTT 3.1.1 connection."""

    def __init__(self, port: int, context: ssl.SSLContext, *, user: str, password: str, will: str) -> None:
        self.said: list[str] = []
        self.received: list[bytes] = []
        self._client = paho.Client(
            CallbackAPIVersion.VERSION2, "some-id", protocol=MQTTProtocolVersion.MQTTv311, reconnect_on_failure=False
        )
        self._client.tls_set_context(context)
        if user:
            self._client.username_pw_set(user, password)
        if will:
            self._client.will_set(will, b"gone", 1)
        self._client.on_connect = lambda _c, _d, _f, reason, _p: self.said.append(str(reason))
        self._client.on_disconnect = lambda *_: self.said.append("ended")
        self._client.on_message = lambda _c, _d, message: self.received.append(message.payload)
        try:
            self._client.connect("127.0.0.1", port)
        except OSError:
            self.said.append("ended")
        else:
            self._client.loop_start()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def is_let_in(self) -> bool:
        """Whether the broker accepted it."""
        return wait_until(lambda: self.said, 10, "the broker answered")[0] == "Success"

    def publish(self, topic: str, payload: bytes) -> None:
        """Send with QoS 1, confirmed."""
        self._client.publish(topic, payload, 1).wait_for_publish(10)

    def subscribe(self, topic: str) -> None:
        """Ask for a topic."""
        self._client.subscribe(topic, 1)


@pytest.fixture
def broker(tmp_path: Path, engine: Engine) -> Iterator[Broker]:
    with ExitStack() as opened:
        yield Broker(tmp_path, engine, opened)


def test_a_certificate_or_a_password_lets_a_device_in_and_nothing_else_does(broker: Broker, tmp_path: Path) -> None:
    secret = enrol_device(broker.engine, "demo", "with-secret", now_ns=1)
    other = make_authority(tmp_path / "other", "demo")
    mine = broker.certificate("pi-1")
    for what, client, expected in (
        ("a certificate", broker.client(mine), True),
        ("a certificate beats another's name", broker.client(mine, user="with-secret", password=secret), True),
        ("a password", broker.client(user="with-secret", password=secret), True),
        ("a wrong password", broker.client(user="with-secret", password="x"), False),
        ("nothing", broker.client(), False),
        ("a certificate that this server never gave", broker.client(broker.certificate("pi-2", known=False)), False),
        ("another authority's", broker.client(broker.certificate("pi-1", authority=other)), False),
    ):
        with client:
            assert client.is_let_in() is expected, what


def test_the_certificates_name_decides_the_topics_whatever_user_name_is_given(broker: Broker) -> None:
    secret = enrol_device(broker.engine, "demo", "victim", now_ns=1)
    with (
        broker.client(broker.certificate("pi-1"), user="victim", password=secret) as thief,
        broker.client(user="victim", password=secret) as victim,
    ):
        assert thief.is_let_in()
        assert victim.is_let_in()
        heard: list[bytes] = []
        bus = broker.opened.bus
        bus.start(["edgefleet/1/demo/+/telemetry"], lambda message: heard.append(message.payload), lambda: None)
        wait_until(lambda: _is_up(broker), 10, "the server is connected, over TLS")
        thief.publish(topic_of("demo", "victim", TopicKind.TELEMETRY), b"forged")
        thief.publish(topic_of("demo", "pi-1", TopicKind.TELEMETRY), b"its own")
        victim.publish(topic_of("demo", "victim", TopicKind.TELEMETRY), b"true")
        wait_until(lambda: len(heard) >= 2, 10, "two messages came")
    assert sorted(heard) == [b"its own", b"true"]


def test_a_revoked_device_is_cut_at_once_and_not_let_in_again(broker: Broker) -> None:
    enrol_device(broker.engine, "demo", "stolen", now_ns=1)
    certificate = broker.certificate("stolen")
    kept = broker.certificate("kept")
    with broker.client(certificate) as thief, broker.client(kept) as other:
        assert thief.is_let_in()
        assert other.is_let_in()
        with broker.engine.begin() as connection:
            revoke(connection, fleet="demo", device="stolen", reason="", revoked_by="x", now_ns=time.time_ns())
        assert broker.opened.cut is not None
        broker.opened.cut("stolen")
        wait_until(lambda: "ended" in thief.said, 5, "the connection was cut")
        with broker.client(certificate) as again:
            assert not again.is_let_in()
        assert "ended" not in other.said
        broker.opened.cut("nobody")  # nothing to cut is nothing wrong


def _is_up(broker: Broker) -> bool:
    try:
        broker.opened.bus.check()
    except Exception:  # noqa: BLE001 - not yet
        return False
    return True
