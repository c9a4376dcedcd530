"""The device's one connection to the broker: sends the outbox and the report, receives desired and stored.

Invariants:
- a record leaves the outbox only on the server's confirmation; a refused PUBACK holds it back for a while;
- at most `max_in_flight` publishes, or the broker's Receive Maximum if lower, are unacknowledged;
- the retained report the broker holds is the newest one; presence is online while connected, else offline by will;
- whatever arrives is bounded, decoded strictly and never raises into the network thread;
- certificate and key are read anew for each connection, so a renewed certificate needs no restart;
- without a broker the agent works on; attempts back off with full jitter up to `reconnect_max_s`.
"""

from __future__ import annotations

import logging
import random
import ssl
import threading
import time
from collections.abc import Callable
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from edge_agent.config import MqttSection, check_mqtt_url
from edge_agent.telemetry.outbox import Outbox
from fleet_protocol.errors import ProtocolError
from fleet_protocol.messages import MAX_CONTROL_BYTES, Presence, Reported, Stored, decode, encode
from fleet_protocol.topics import TopicKind, topic_of

_LOG = logging.getLogger(__name__)
_CONNECT_TIMEOUT_S = 10.0
_RESEND_CHECK_S = 1.0
_IN_FLIGHT_CHECK_S = 0.02
_BACKOFF_FIRST_S = 1.0
_FIRST_ANSWER_TIMEOUT_S = 3.0  # some brokers never answer a version they do not know; each silence doubles this
_CONTROL_MESSAGES_QUEUED = 16  # presence and reports, beside the records in flight
_REFUSED_RETRY_S = 60.0
_TURNED_AWAY_AFTER = 3  # once may be a broker that is just starting
_FAREWELL_S = 2.0  # without progress
_FAREWELL_MAX_S = 10.0
_SUBSCRIPTIONS = ((TopicKind.DESIRED, 1), (TopicKind.STORED, 0))


class MqttLink:
    """Keeps one connection up in its own thread. `protocol_in_use` tells what was agreed."""

    def __init__(
        self,
        *,
        settings: MqttSection,
        fleet: str,
        device: str,
        password: str | None,
        outbox: Outbox,
        make_report: Callable[[int], Reported],
        on_desired: Callable[[bytes], None],
        on_turned_away: Callable[[], None] = lambda: None,
    ) -> None:
        self._settings, self._device, self._password, self._outbox = settings, device, password, outbox
        self._make_report, self._on_desired, self._on_turned_away = make_report, on_desired, on_turned_away
        self._topics = {kind: topic_of(fleet, device, kind) for kind in TopicKind}
        self._client_id = f"edgefleet-{fleet}-{device}"
        self._version = MQTTProtocolVersion.MQTTv311 if settings.protocol == "3.1.1" else MQTTProtocolVersion.MQTTv5
        self._in_flight: dict[int, paho.MQTTMessageInfo] = {}
        self._refused: dict[int, ReasonCode] = {}
        self._in_flight_limit = settings.max_in_flight
        self._report_due, self._report_sequence = True, 0
        self._connected, self._stop, self._work = threading.Event(), threading.Event(), threading.Event()
        self._silences, self._version_refused = 0, False
        self.malformed_received = 0
        self._thread = threading.Thread(target=self._run, name="mqtt-link", daemon=True)

    def start(self) -> None:
        """Begin to connect; returns at once."""
        self._thread.start()

    def stop(self) -> None:
        """Say offline where connected, and end."""
        self._stop.set()
        self._work.set()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def is_connected(self) -> bool:
        """Whether the broker has accepted this connection."""
        return self._connected.is_set()

    @property
    def protocol_in_use(self) -> str:
        """The MQTT version spoken now, "5" or "3.1.1"."""
        return "5" if self._version is MQTTProtocolVersion.MQTTv5 else "3.1.1"

    def records_waiting(self) -> None:
        """The outbox has something new."""
        self._work.set()

    def report_changed(self) -> None:
        """The reported state is to be sent again."""
        self._report_due = True
        self._work.set()

    def _run(self) -> None:
        failures = 0
        while not self._stop.is_set():
            client = self._make_client()
            try:
                if self._connect(client):
                    failures = 0
                    self._serve(client)
                else:
                    failures += 1
                    self._was_turned_away(failures)
            except (OSError, ValueError) as error:
                failures += 1
                if isinstance(error, ssl.SSLError):
                    self._was_turned_away(failures)
                _LOG.log(logging.WARNING if failures == 1 else logging.DEBUG, "no broker: %s", error)
            finally:
                self._connected.clear()
                client.loop_stop()
                self._settle()
                self._in_flight.clear()
                self._refused.clear()
            ceiling_s = min(self._settings.reconnect_max_s, _BACKOFF_FIRST_S * 2 ** min(failures, 16))
            self._stop.wait(random.uniform(0, ceiling_s))

    def _was_turned_away(self, failures: int) -> None:
        """The broker was reached and did not let this device in."""
        if failures >= _TURNED_AWAY_AFTER:
            self._on_turned_away()

    def _make_client(self) -> paho.Client:
        settings = self._settings
        version_5 = self._version is MQTTProtocolVersion.MQTTv5
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=self._client_id,
            protocol=self._version,
            clean_session=None if version_5 else False,
            reconnect_on_failure=False,
        )
        if settings.certificate_file is None or settings.username or self._password:
            client.username_pw_set(settings.username or self._device, self._password)
        if check_mqtt_url(settings.url)[2]:
            client.tls_set_context(self._tls_context())
        client.max_queued_messages_set(settings.max_in_flight + _CONTROL_MESSAGES_QUEUED)
        client.max_inflight_messages_set(settings.max_in_flight)
        client.connect_timeout = _CONNECT_TIMEOUT_S
        client.will_set(self._topics[TopicKind.PRESENCE], self._presence(online=False), qos=1, retain=True)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        client.on_subscribe = self._on_subscribe
        return client

    def _tls_context(self) -> ssl.SSLContext:
        settings = self._settings
        context = ssl.create_default_context(cafile=str(settings.ca_file) if settings.ca_file else None)
        if settings.certificate_file and settings.key_file:
            context.load_cert_chain(settings.certificate_file, settings.key_file)
        return context

    def _connect(self, client: paho.Client) -> bool:
        """Connect and wait for the broker's word. Falls back to 3.1.1 where "auto" finds no version 5."""
        host, port, _ = check_mqtt_url(self._settings.url)
        answered = threading.Event()
        client.user_data_set(answered)
        properties = None
        if self._version is MQTTProtocolVersion.MQTTv5:
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call] # paho leaves it untyped
            properties.SessionExpiryInterval = self._settings.session_expiry_s
            properties.ReceiveMaximum = self._settings.max_in_flight
            properties.MaximumPacketSize = 2 * MAX_CONTROL_BYTES
            client.connect(host, port, self._settings.keepalive_s, clean_start=False, properties=properties)
        else:
            client.connect(host, port, self._settings.keepalive_s)
        client.loop_start()
        understood = answered.wait(min(_CONNECT_TIMEOUT_S, _FIRST_ANSWER_TIMEOUT_S * 2**self._silences))
        if self._connected.is_set():
            self._silences = 0
            return True
        if not understood or self._version_refused:
            self._silences = min(self._silences + 1, 8)
            if self._settings.protocol == "auto":
                version_5 = self._version is MQTTProtocolVersion.MQTTv5
                self._version = MQTTProtocolVersion.MQTTv311 if version_5 else MQTTProtocolVersion.MQTTv5
                _LOG.info("no answer to this MQTT version: trying %s", self.protocol_in_use)
        return False

    def _serve(self, client: paho.Client) -> None:
        """Publish what waits until the connection or the agent ends."""
        while self._connected.is_set() and not self._stop.is_set():
            self._work.clear()
            self._settle()
            self._send_report(client)
            while self._connected.is_set() and self._send_records(client):
                pass
            self._work.wait(_IN_FLIGHT_CHECK_S if self._in_flight else _RESEND_CHECK_S)
        if self._connected.is_set():
            self._send_report(client)
            farewell = client.publish(self._topics[TopicKind.PRESENCE], self._presence(online=False), 1, retain=True)
            started_s = progress_s = time.monotonic()
            while self._connected.is_set():
                now_s, waited_for = time.monotonic(), len(self._in_flight)
                self._settle()
                if self._send_records(client) or len(self._in_flight) < waited_for:
                    progress_s = now_s
                elif not self._in_flight and farewell.is_published():
                    break
                if now_s > min(progress_s + _FAREWELL_S, started_s + _FAREWELL_MAX_S):
                    break
                self._work.wait(_IN_FLIGHT_CHECK_S)
                self._work.clear()
            client.disconnect()

    def _send_records(self, client: paho.Client) -> bool:
        """Publish as many records as may be in flight. True when some were sent."""
        room = self._in_flight_limit - len(self._in_flight)
        if room <= 0:
            return False
        records = self._outbox.pending(room, excluding=self._in_flight)
        for record in records:
            info = client.publish(self._topics[record.kind], record.payload, qos=1)
            if info.rc != paho.MQTT_ERR_SUCCESS:
                return False
            self._in_flight[record.id] = info
        return bool(records)

    def _settle(self) -> None:
        """Take what the broker has acknowledged out of flight."""
        for record_id, info in list(self._in_flight.items()):
            if not info.is_published():
                continue
            del self._in_flight[record_id]
            refusal = self._refused.pop(info.mid, None)
            if refusal is None:
                self._outbox.taken_by_broker(record_id)
            else:
                _LOG.error("the broker refused a record: %s; it stays in the outbox", refusal)
                self._outbox.hold(record_id, _REFUSED_RETRY_S)

    def _send_report(self, client: paho.Client) -> None:
        if not self._report_due:
            return
        self._report_due = False
        self._report_sequence += 1
        payload = encode(self._make_report(self._report_sequence))
        info = client.publish(self._topics[TopicKind.REPORTED], payload, qos=1, retain=True)
        self._report_due = self._report_due or info.rc != paho.MQTT_ERR_SUCCESS

    def _presence(self, *, online: bool) -> bytes:
        return encode(Presence(device=self._device, boot_id=self._outbox.boot_id, online=online, at_ns=time.time_ns()))

    def _on_connect(
        self, client: paho.Client, answered: threading.Event, _flags: Any, reason: ReasonCode, properties: Any
    ) -> None:
        if reason.is_failure:
            self._version_refused = reason == "Unsupported protocol version"
            level = logging.INFO if self._version_refused else logging.WARNING
            _LOG.log(level, "the broker refused this device: %s", reason)
            answered.set()
            return
        broker_limit = getattr(properties, "ReceiveMaximum", None) or self._settings.max_in_flight
        self._in_flight_limit = min(self._settings.max_in_flight, broker_limit)
        client.subscribe([(self._topics[kind], qos) for kind, qos in _SUBSCRIPTIONS])
        client.publish(self._topics[TopicKind.PRESENCE], self._presence(online=True), qos=1, retain=True)
        self._report_due = True
        self._connected.set()
        answered.set()
        _LOG.info("connected to the broker with MQTT %s", self.protocol_in_use)

    def _on_subscribe(
        self, _client: paho.Client, _answered: Any, _mid: int, reasons: list[ReasonCode], _properties: Any
    ) -> None:
        for (kind, _), reason in zip(_SUBSCRIPTIONS, reasons, strict=False):
            if reason.is_failure:
                hint = " or set telemetry.confirmed_by = 'broker'" if kind is TopicKind.STORED else ""
                _LOG.error("the broker does not let this device read %s: allow it%s", self._topics[kind], hint)

    def _on_disconnect(
        self, _client: paho.Client, answered: threading.Event, _flags: Any, reason: ReasonCode, _properties: Any
    ) -> None:
        if self._connected.is_set() and not self._stop.is_set():
            _LOG.warning("the broker is gone: %s; working on offline", reason)
        self._connected.clear()
        answered.set()
        self._work.set()

    def _on_publish(self, _client: paho.Client, _answered: Any, mid: int, reason: ReasonCode, _properties: Any) -> None:
        # paho holds its own locks here: only note what came, the link's thread acts on it
        if reason.is_failure and len(self._refused) < self._settings.max_in_flight:
            self._refused[mid] = reason
        self._work.set()

    def _on_message(self, _client: paho.Client, _answered: Any, message: paho.MQTTMessage) -> None:
        try:
            payload = bytes(message.payload)
            if message.topic == self._topics[TopicKind.DESIRED]:
                if payload:
                    self._on_desired(payload)
            elif message.topic == self._topics[TopicKind.STORED]:
                stored = decode(Stored, payload)
                if stored.device == self._device:
                    self._outbox.confirm(stored.boot_id, stored.ranges)
        except ProtocolError as error:
            self.malformed_received += 1
            _LOG.warning("a message on %s is refused: %s", message.topic, error)
        except Exception:  # noqa: BLE001 - nothing that arrives may end the network thread
            _LOG.exception("a message on %s could not be handled", message.topic)
