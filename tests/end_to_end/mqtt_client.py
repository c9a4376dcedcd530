"""A bare MQTT client with any credential: what an attacker with a device's secret can use."""

from __future__ import annotations

import socket
import threading
from types import TracebackType
from typing import Any, Self

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from fleet_protocol.messages import Message, encode
from tests.end_to_end.fleet import Fleet

_TIMEOUT_S = 10.0
_MAX_QUEUED = 1_000


class MqttClient:
    """Connects in `with`; `accepted` tells whether the broker let it in. `received` are (topic, payload)."""

    def __init__(self, fleet: Fleet, *, user: str | None, password: str | None, client_id: str = "") -> None:
        embedded = fleet.mosquitto is None
        self._port, self.password = fleet.mqtt_port, password
        self.received: list[tuple[str, bytes]] = []
        self.accepted = False
        self._answered = threading.Event()
        self._client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=client_id or f"by-hand-{user or 'nobody'}",
            protocol=MQTTProtocolVersion.MQTTv311 if embedded else MQTTProtocolVersion.MQTTv5,
            reconnect_on_failure=False,
        )
        if user is not None:
            self._client.username_pw_set(user, password)
        self._client.max_queued_messages_set(_MAX_QUEUED)
        self._client.on_connect = self._on_connect
        self._client.on_disconnect = lambda *_: self._answered.set()
        self._client.on_message = lambda _client, _data, message: self.received.append(
            (message.topic, bytes(message.payload))
        )

    def __enter__(self) -> Self:
        self._client.connect("127.0.0.1", self._port, keepalive=30)
        self._client.loop_start()
        assert self._answered.wait(_TIMEOUT_S), "the broker says neither yes nor no"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def leave_a_will(self, topic: str, message: Message) -> None:
        """Ask, before connecting, for a retained last will."""
        self._client.will_set(topic, encode(message), qos=1, retain=True)

    def vanish(self) -> None:
        """End the connection without a word, so that the broker publishes the last will."""
        connection = self._client.socket()
        assert isinstance(connection, socket.socket)
        connection.shutdown(socket.SHUT_RDWR)

    def subscribe(self, *filters: str) -> None:
        """Ask for topics; a refusal is no error here."""
        for topic_filter in filters:
            self._client.subscribe(topic_filter, qos=1)

    def publish(self, topic: str, payload: bytes, *, retain: bool = False, wait: bool = True) -> None:
        """Publish with QoS 1; with `wait` return once the broker has acknowledged."""
        info = self._client.publish(topic, payload, qos=1, retain=retain)
        assert info.rc == paho.MQTT_ERR_SUCCESS, paho.error_string(info.rc)
        if wait:
            info.wait_for_publish(_TIMEOUT_S)
            assert info.is_published(), f"the broker did not acknowledge a message on {topic}"

    def _on_connect(self, _client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        self.accepted = not reason.is_failure
        self._answered.set()
