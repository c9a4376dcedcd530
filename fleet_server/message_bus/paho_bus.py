"""The message bus on paho-mqtt: any MQTT 5 or 3.1.1 broker, manual acknowledgement, a persistent session."""

from __future__ import annotations

import logging
import random
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal
from urllib.parse import urlsplit

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from fleet_server.errors import BusUnavailableError, ConfigError
from fleet_server.message_bus.port import Incoming, Outgoing
from fleet_server.message_bus.tls import MakeContext

_LOG = logging.getLogger(__name__)
_KEEPALIVE_S = 30
_CONNECT_TIMEOUT_S = 10.0
_BACKOFF_MAX_S = 10.0
_SESSION_EXPIRY_S = 7 * 86_400
_MAX_UNACKNOWLEDGED = 1000  # Receive Maximum: what a crash makes the broker send again
_MAX_PACKET_BYTES = 512 * 1024
_MAX_OUTGOING = 2000
_FIRST_ANSWER_TIMEOUT_S = 3.0  # some brokers never answer a version they do not know; each silence doubles this


class PahoBus:
    """`client_id` names the session the broker keeps while this process is away: one per ingest process.

    `make_tls` gives each connection to an mqtts:// broker its context; without it the system's authorities count.
    """

    def __init__(
        self,
        *,
        url: str,
        client_id: str,
        username: str | None,
        password: str | None,
        make_tls: MakeContext | None = None,
        protocol: Literal["auto", "5", "3.1.1"] = "auto",
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname:
            raise ConfigError(f"mqtt.url {url!r} must be mqtt://HOST[:PORT] or mqtts://HOST[:PORT]")
        self._host, self._tls = parts.hostname, parts.scheme == "mqtts"
        self._port = parts.port or (8883 if self._tls else 1883)
        self._client_id, self._credentials = client_id, (username, password)
        self._make_tls = make_tls or ssl.create_default_context
        self._may_fall_back = protocol == "auto"
        self._version = MQTTProtocolVersion.MQTTv311 if protocol == "3.1.1" else MQTTProtocolVersion.MQTTv5
        self._client: paho.Client | None = None
        self._connection = 0
        self._silences, self._version_refused = 0, False
        self._connected, self._lost, self._stop = threading.Event(), threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="message-bus", daemon=True)

    def start(
        self, filters: Sequence[str], on_message: Callable[[Incoming], None], on_new_session: Callable[[], None]
    ) -> None:
        """See the port."""
        self._filters, self._deliver, self._on_new_session = list(filters), on_message, on_new_session
        self._thread.start()

    def stop(self) -> None:
        """See the port."""
        self._stop.set()
        self._lost.set()
        if self._thread.is_alive():
            self._thread.join()

    def check(self) -> None:
        """See the port."""
        if not self._connected.is_set():
            raise BusUnavailableError(f"the broker {self._host}:{self._port} is not connected")

    def acknowledge(self, messages: Sequence[Incoming]) -> None:
        """See the port."""
        client, connection = self._client, self._connection
        if client is None or not self._connected.is_set():
            return
        for message in messages:
            if message.connection == connection and message.qos > 0:
                client.ack(message.packet, message.qos)

    def publish(self, messages: Sequence[Outgoing], *, timeout_s: float) -> None:
        """See the port."""
        self.check()
        client = self._client
        assert client is not None  # noqa: S101 - check() saw a connection
        deadline = time.monotonic() + timeout_s
        waiting = []
        for message in messages:
            info = client.publish(message.topic, message.payload, qos=message.qos, retain=message.retain)
            if info.rc != paho.MQTT_ERR_SUCCESS:
                raise BusUnavailableError(f"the broker does not take messages: {paho.error_string(info.rc)}")
            if message.qos:
                waiting.append(info)
        for info in waiting:
            while not info.is_published():
                if not self._connected.is_set() or time.monotonic() > deadline:
                    raise BusUnavailableError("the broker did not confirm a message in time")
                info.wait_for_publish(0.1)

    def _run(self) -> None:
        failures = 0
        while not self._stop.is_set():
            client = self._make_client()
            try:
                if self._connect(client):
                    failures = 0
                    self._lost.wait()
                    client.disconnect()
                else:
                    failures += 1
            except (OSError, ValueError) as error:
                failures += 1
                _LOG.log(logging.WARNING if failures == 1 else logging.DEBUG, "no broker: %s", error)
            finally:
                self._connected.clear()
                client.loop_stop()
            self._stop.wait(random.uniform(0, min(_BACKOFF_MAX_S, 0.5 * 2 ** min(failures, 16))))

    def _make_client(self) -> paho.Client:
        version_5 = self._version is MQTTProtocolVersion.MQTTv5
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=self._client_id,
            protocol=self._version,
            clean_session=None if version_5 else False,
            reconnect_on_failure=False,
            manual_ack=True,
        )
        username, password = self._credentials
        if username is not None:
            client.username_pw_set(username, password)
        if self._tls:
            client.tls_set_context(self._make_tls())
        client.max_inflight_messages_set(_MAX_OUTGOING)
        client.max_queued_messages_set(_MAX_OUTGOING)
        client.connect_timeout = _CONNECT_TIMEOUT_S
        client.on_connect, client.on_disconnect = self._on_connect, self._on_disconnect
        client.on_message = self._on_message
        return client

    def _connect(self, client: paho.Client) -> bool:
        answered = threading.Event()
        client.user_data_set(answered)
        self._lost.clear()
        if self._version is MQTTProtocolVersion.MQTTv5:
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call] # paho leaves it untyped
            properties.SessionExpiryInterval = _SESSION_EXPIRY_S
            properties.ReceiveMaximum = _MAX_UNACKNOWLEDGED
            properties.MaximumPacketSize = _MAX_PACKET_BYTES
            client.connect(self._host, self._port, _KEEPALIVE_S, clean_start=False, properties=properties)
        else:
            client.connect(self._host, self._port, _KEEPALIVE_S)
        self._client, self._connection = client, self._connection + 1
        client.loop_start()
        understood = answered.wait(min(_CONNECT_TIMEOUT_S, _FIRST_ANSWER_TIMEOUT_S * 2**self._silences))
        if self._connected.is_set():
            self._silences = 0
            return True
        if not understood or self._version_refused:
            self._silences = min(self._silences + 1, 8)
            if self._may_fall_back:
                version_5 = self._version is MQTTProtocolVersion.MQTTv5
                self._version = MQTTProtocolVersion.MQTTv311 if version_5 else MQTTProtocolVersion.MQTTv5
        return False

    def _on_connect(
        self, client: paho.Client, answered: threading.Event, flags: Any, reason: ReasonCode, _properties: Any
    ) -> None:
        if reason.is_failure:
            self._version_refused = reason == "Unsupported protocol version"
            level = logging.INFO if self._version_refused else logging.WARNING
            _LOG.log(level, "the broker refused the server: %s", reason)
        else:
            client.subscribe([(topic, 1) for topic in self._filters])
            self._connected.set()
            _LOG.info("connected to the broker %s:%s", self._host, self._port)
            if not flags.session_present:
                self._on_new_session()
        answered.set()

    def _on_disconnect(
        self, _client: paho.Client, answered: threading.Event, _flags: Any, reason: ReasonCode, _properties: Any
    ) -> None:
        if self._connected.is_set() and not self._stop.is_set():
            _LOG.warning("the broker is gone: %s", reason)
        self._connected.clear()
        self._lost.set()
        answered.set()

    def _on_message(self, _client: paho.Client, _answered: Any, message: paho.MQTTMessage) -> None:
        self._deliver(Incoming(message.topic, bytes(message.payload), self._connection, message.mid, message.qos))
