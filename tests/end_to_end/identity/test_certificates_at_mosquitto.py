"""Who a real Mosquitto lets in by certificate, what they may do there, and how it ends."""

from __future__ import annotations

import os
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from sqlalchemy import Engine, select

from fleet_protocol.topics import TopicKind, topic_of
from fleet_server.database.engine import open_engine
from fleet_server.database.schema import upgrade
from fleet_server.database.tables import desired, devices
from fleet_server.identity.certificates import Issuing
from fleet_server.identity.enrolling import enrol_with_token
from fleet_server.identity.enrolment_tokens import TokenTerms, create_token
from fleet_server.identity.expulsion import Expulsion, RevocationListFile
from fleet_server.identity.revocation import get_revocation, note_cut, revoke
from fleet_server.message_bus.paho_bus import PahoBus
from fleet_server.message_bus.port import Outgoing
from fleet_server.message_bus.takeover import Takeover
from fleet_server.message_bus.tls import client_context
from tests.end_to_end.identity.broker import FLEET, CertifiedBroker
from tests.real_servers.processes import wait_until
from tests.server.identity.authority import key_pem, make_authority, request_of

TELEMETRY, DESIRED, PRESENCE = TopicKind.TELEMETRY, TopicKind.DESIRED, TopicKind.PRESENCE


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CertifiedBroker]:
    with CertifiedBroker(tmp_path_factory.mktemp("broker")) as running:
        yield running


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = open_engine(f"sqlite:///{tmp_path / 'fleet.db'}")
    upgrade(engine)
    yield engine
    engine.dispose()


def test_a_device_can_neither_write_nor_read_anothers_topics(broker: CertifiedBroker) -> None:
    one, two = broker.certificate("pi-1")[0], broker.certificate("pi-2")[0]
    with broker.server() as server, broker.client(one) as mine, broker.client(two) as other:
        assert server.is_let_in()
        assert mine.is_let_in()
        assert other.is_let_in()
        server.subscribe(f"edgefleet/1/{FLEET}/#")
        for topic in (
            topic_of(FLEET, "pi-2", DESIRED),
            f"edgefleet/1/{FLEET}/#",
            "#",
            f"edgefleet/1/{FLEET}/+/desired",
        ):
            mine.subscribe(topic)
        other.subscribe(topic_of(FLEET, "pi-2", DESIRED))
        for kind in TopicKind:
            mine.publish(topic_of(FLEET, "pi-2", kind), b"forged")
        for topic in (topic_of(FLEET, "pi-1", DESIRED), topic_of("fleet-2", "pi-1", TELEMETRY), "anything"):
            mine.publish(topic, b"forged")
        server.publish(topic_of(FLEET, "pi-2", DESIRED), b"for pi-2 alone")
        mine.publish(topic_of(FLEET, "pi-1", TELEMETRY), b"true")
        wait_until(lambda: server.received and other.received, 10, "both true messages arrived")
        mine.publish(topic_of(FLEET, "pi-1", TELEMETRY), b"the last")
        wait_until(lambda: (topic_of(FLEET, "pi-1", TELEMETRY), b"the last") in server.received, 10, "the last came")

    told = [message for message in server.received if message[1] != b"for pi-2 alone"]
    assert told == [(topic_of(FLEET, "pi-1", TELEMETRY), payload) for payload in (b"true", b"the last")]
    assert mine.received == []
    assert other.received == [(topic_of(FLEET, "pi-2", DESIRED), b"for pi-2 alone")]


def test_a_device_cannot_take_another_devices_or_the_servers_place(broker: CertifiedBroker) -> None:
    one, two = broker.certificate("pi-1")[0], broker.certificate("pi-2")[0]
    with broker.server() as server, broker.client(one) as victim:
        assert server.is_let_in()
        assert victim.is_let_in()
        for name in ("pi-1", f"edgefleet-{FLEET}-pi-1", "fleet.server", f"edgefleet-server-{FLEET}"):
            with broker.client(two, client_id=name, user=name) as thief:
                assert thief.is_let_in(), "as pi-2, whatever it says"
                thief.publish(topic_of(FLEET, "pi-1", TELEMETRY), b"forged")
        assert not victim.ended.is_set()
        assert not server.ended.is_set()


def _self_signed(folder: Path) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "pi-1")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(7).not_valid_before(now - timedelta(1)).not_valid_after(now + timedelta(1))
    pem = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()
    (folder / "self.pem").write_text(key_pem(key) + pem)
    return folder / "self.pem"


def test_nobody_connects_without_a_certificate_of_the_fleets_authority(broker: CertifiedBroker, tmp_path: Path) -> None:
    other = make_authority(tmp_path / "other", FLEET)
    brokers_own = tmp_path / "broker.pem"
    files = broker.mosquitto.folder
    brokers_own.write_text((files / "broker.key").read_text() + (files / "broker.crt").read_text())
    expired, _ = broker.certificate("pi-1", life=timedelta(minutes=-1))
    strangers: list[tuple[str, Path | None]] = [
        ("no certificate", None),
        ("another authority's", broker.certificate("pi-1", authority=other)[0]),
        ("self-signed", _self_signed(tmp_path)),
        ("the broker's own", brokers_own),
        ("expired", expired),
    ]
    for what, certificate in strangers:
        with broker.client(certificate, user="pi-1") as stranger:
            assert not stranger.is_let_in(), what
    with broker.client(broker.certificate("pi-1")[0]) as known:
        assert known.is_let_in()


def test_a_device_trusts_no_broker_that_shows_a_devices_certificate(broker: CertifiedBroker) -> None:
    """A stolen device's certificate stands up no false broker: it is not one for servers."""
    certificate, _ = broker.certificate("localhost")
    as_server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    as_server.load_cert_chain(certificate)
    client = ssl.create_default_context(cadata=broker.authority.pem)
    client.check_hostname = False
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    device = client.wrap_bio(incoming, outgoing, server_side=False)
    false = as_server.wrap_bio(outgoing, incoming, server_side=True)
    with pytest.raises(ssl.SSLCertVerificationError, match="purpose"):
        for _ in range(4):
            for end in (device, false):
                try:
                    end.do_handshake()
                except ssl.SSLWantReadError:
                    continue


class Operation:
    """The server's side of one test: database, bus and expulsion, at the real broker."""

    def __init__(self, engine: Engine, broker: CertifiedBroker, *, with_list: bool = True) -> None:
        self.engine, self.broker = engine, broker
        self.issuing = Issuing(authority=broker.authority)
        context = self._context
        self.bus = PahoBus(
            url=broker.url, client_id="server", username=None, password=None, make_tls=lambda: context("fleet.server")
        )
        takeover = Takeover(url=broker.url, fleet=FLEET, make_tls=lambda device: lambda: context(device))
        revoked = RevocationListFile(
            authority=broker.authority, path=broker.crl_file, reload_command=broker.reload_command
        )
        self.expulsion = Expulsion(
            engine=engine, bus=self.bus, fleet=FLEET, now_ns=time.time_ns, cut=takeover.cut,
            revocation_list=revoked if with_list else None,
        )  # fmt: skip

    def _context(self, user: str) -> ssl.SSLContext:
        return client_context(broker_authority=self.broker.authority.pem, authority=self.broker.authority, user=user)

    def __enter__(self) -> Operation:
        self.bus.start([f"edgefleet/1/{FLEET}/+/presence"], self._heard, lambda: None)
        wait_until(self._is_connected, 10, "the server is connected")
        return self

    def __exit__(self, *_: object) -> None:
        self.bus.stop()

    def _heard(self, message: object) -> None:
        self.bus.acknowledge([message])  # type: ignore[list-item]

    def _is_connected(self) -> bool:
        try:
            self.bus.check()
        except Exception:  # noqa: BLE001 - not yet
            return False
        return True

    def enrol(self, device: str) -> Path:
        """A file with the device's key and certificate, through a token."""
        key = ec.generate_private_key(ec.SECP256R1())
        now_ns = time.time_ns()
        with self.engine.begin() as connection:
            terms = TokenTerms(labels={}, device=device)
            _, token = create_token(connection, terms, fleet=FLEET, created_by="key:x", now_ns=now_ns)
            enrolled = enrol_with_token(
                connection, self.issuing, token=token, fleet=FLEET, device=device,
                csr=request_of(key), labels={}, now_ns=now_ns,
            )  # fmt: skip
        assert enrolled.certificate is not None
        file = self.broker.folder / f"{device}-{enrolled.certificate.serial[:8]}.pem"
        file.write_text(key_pem(key) + enrolled.certificate.pem)
        return file

    def revoke(self, device: str, *, decommission: bool = False) -> None:
        """As the API does it, then a round of expulsion."""
        with self.engine.begin() as connection:
            revoke(
                connection, fleet=FLEET, device=device, reason="stolen", revoked_by="key:x", now_ns=time.time_ns(),
                decommission=decommission,
            )  # fmt: skip
        self.expulsion.step()


@pytest.fixture
def operation(engine: Engine, broker: CertifiedBroker) -> Iterator[Operation]:
    with Operation(engine, broker) as running:
        yield running


def test_a_revoked_device_is_cut_within_seconds_and_cannot_come_back(operation: Operation) -> None:
    stolen, kept = operation.enrol("stolen"), operation.enrol("kept")
    broker = operation.broker
    with broker.client(stolen, will=topic_of(FLEET, "stolen", PRESENCE)) as thief, broker.client(kept) as other:
        assert thief.is_let_in()
        assert other.is_let_in()
        began = time.monotonic()
        operation.revoke("stolen")
        assert thief.ended.wait(5), "its connection was not cut"
        assert time.monotonic() - began < 5
        for _ in range(3):
            with broker.client(stolen) as again:
                assert not again.is_let_in()
        assert not other.ended.is_set(), "the others stay connected"
    with operation.engine.connect() as connection:
        revocation = get_revocation(connection, FLEET, "stolen")
    assert revocation is not None
    assert revocation.cut_ns is not None


def test_a_revoked_device_cannot_resume_the_tls_session_it_had(operation: Operation) -> None:
    certificate = operation.enrol("resumer")
    broker = operation.broker
    context = ssl.create_default_context(cadata=broker.authority.pem)
    context.load_cert_chain(certificate)
    context.maximum_version = ssl.TLSVersion.TLSv1_2  # where the session is there right after the handshake

    def shake_hands(session: ssl.SSLSession | None) -> ssl.SSLSession | None:
        with (
            socket.create_connection(("127.0.0.1", broker.mosquitto.port), timeout=5) as plain,
            context.wrap_socket(plain, server_hostname="127.0.0.1", session=session) as tls,
        ):
            return tls.session

    session = shake_hands(None)
    operation.revoke("resumer")
    with pytest.raises((ssl.SSLError, ConnectionError)):
        shake_hands(session)


def test_a_device_that_was_enrolled_again_is_let_in_with_its_new_certificate_alone(operation: Operation) -> None:
    old = operation.enrol("comeback")
    operation.revoke("comeback")
    new = operation.enrol("comeback")
    operation.expulsion.step()
    with operation.broker.client(new) as back, operation.broker.client(old) as thief:
        assert back.is_let_in()
        assert not thief.is_let_in()


def test_a_device_that_is_online_although_it_was_cut_is_cut_again(engine: Engine, broker: CertifiedBroker) -> None:
    """A broker that does not read the list: the device comes back, and is seen and cut again."""
    with Operation(engine, broker, with_list=False) as operation:
        stubborn = operation.enrol("stubborn")
        operation.revoke("stubborn")
        with broker.client(stubborn) as back:
            assert back.is_let_in(), "this broker was not told"
            with engine.begin() as connection:
                connection.execute(devices.update().where(devices.c.device == "stubborn").values(online=True))
            operation.expulsion.step()
            assert not back.ended.is_set(), "not at once: its last presence may be from before"
            with engine.begin() as connection:
                note_cut(connection, FLEET, "stubborn", now_ns=time.time_ns() - 60 * 10**9)
            operation.expulsion.step()
            assert back.ended.wait(5)


def test_decommissioning_clears_what_the_broker_keeps_and_what_the_device_should_run(operation: Operation) -> None:
    certificate = operation.enrol("gone")
    with operation.broker.client(certificate) as device:
        assert device.is_let_in()
        for kind in (TopicKind.REPORTED, PRESENCE):
            device.publish(topic_of(FLEET, "gone", kind), b"said", retain=True)
        wanted_topic = topic_of(FLEET, "gone", DESIRED)
        operation.bus.publish([Outgoing(topic=wanted_topic, payload=b"wanted", retain=True)], timeout_s=10)
        with operation.engine.begin() as connection:
            row = {"assignments": [{"model": "m"}], "envelope": b"x", "generation": 7, "issued_at_ns": 1}
            connection.execute(desired.insert().values(fleet=FLEET, device="gone", published_generation=7, **row))
            connection.execute(devices.update().where(devices.c.device == "gone").values(reported={"device": "gone"}))
        operation.revoke("gone", decommission=True)
        assert device.ended.wait(5)
    with operation.broker.server() as later:  # in the place of the bus: one name is one connection
        assert later.is_let_in()
        later.subscribe(f"edgefleet/1/{FLEET}/gone/#")
        later.publish(topic_of(FLEET, "gone", TopicKind.STORED), b"the last")
        wait_until(lambda: later.received, 10, "the last came")
    assert later.received == [(topic_of(FLEET, "gone", TopicKind.STORED), b"the last")]
    with operation.engine.connect() as connection:
        wanted = connection.execute(select(desired).where(desired.c.device == "gone")).one()
        known = connection.execute(select(devices).where(devices.c.device == "gone")).one()
    assert (wanted.assignments, wanted.envelope, wanted.generation) == ([], b"", 8), "the generation goes on counting"
    assert known.reported is None, "no rollout chooses a device without a report"


def test_a_reload_that_fails_cuts_nobody_and_is_tried_again(
    engine: Engine, broker: CertifiedBroker, caplog: pytest.LogCaptureFixture
) -> None:
    """Cut before the broker knows the list, the device would be back at once."""
    cut: list[str] = []
    with Operation(engine, broker) as operation:
        operation.enrol("waits")
        for command, expected in ((["false"], []), ([os.devnull], []), (["true"], ["waits"])):
            listed = RevocationListFile(authority=broker.authority, path=broker.crl_file, reload_command=command)
            add: Callable[[str], None] = cut.append
            operation.expulsion = Expulsion(
                engine=engine, bus=operation.bus, fleet=FLEET, now_ns=time.time_ns, cut=add, revocation_list=listed
            )
            operation.revoke("waits")
            assert cut == expected, command
    assert "did not reach the broker" in caplog.text
