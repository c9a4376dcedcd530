"""The embedded broker's door: who a client is and what it asks for is settled before amqtt looks up any session.

amqtt finds a session by client id alone, gives it the newcomer's user name, and only then asks for the password;
and it publishes a last will without asking anyone. So here, in this order:
1. a client has CONNECT_TIMEOUT_S to send its CONNECT; what cannot be read as MQTT 3.1.1 is told so and let go;
2. who showed a certificate, which TLS has verified, is its common name where the certificate still counts, whatever
   user name it gives; from everybody else user name and password are verified;
3. its last will must be on a topic it may publish to;
4. its client id is prefixed with its user name: nobody reaches, ends or inherits a session of somebody else.
And amqtt sends a newcomer the retained messages of every subscription of every client: here, only of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable
from typing import Any

from amqtt.adapters import BufferReader, ReaderAdapter, WriterAdapter
from amqtt.broker import Broker
from amqtt.errors import AMQTTError, MQTTError
from amqtt.mqtt.connack import BAD_USERNAME_PASSWORD, NOT_AUTHORIZED, UNACCEPTABLE_PROTOCOL_VERSION, ConnackPacket
from amqtt.mqtt.connect import ConnectPacket
from amqtt.session import Session

CONNECT_TIMEOUT_S = 10.0
_LEVEL_3_1_1 = 4


class GuardedBroker(Broker):  # type: ignore[misc] # amqtt is untyped here
    """amqtt's broker behind the door."""

    def __init__(
        self,
        config: dict[str, Any],
        *,
        verify: Callable[[str, str], bool],
        may_publish: Callable[[str, str], bool],
        verify_certificate: Callable[[str, str], bool],
        tls: ssl.SSLContext | None,
        admitted: str,
    ) -> None:
        super().__init__(config)
        self._verify, self._may_publish, self._verify_certificate = verify, may_publish, verify_certificate
        self._tls, self._admitted = tls, admitted

    def _create_ssl_context(self, _listener: Any) -> Any:  # in amqtt a static method that reads files
        return self._tls

    async def cut(self, user: str) -> bool:
        """End every connection of `user` and forget its sessions; whether there was a connection."""
        mine = [client_id for client_id in self._sessions if client_id.startswith(f"{user}/")]
        connected = False
        for client_id in mine:
            session, handler = self._sessions[client_id]
            if session.transitions.is_connected():
                connected = True
                await handler.handle_connection_closed()
                await handler.stop()
            await self._delete_session(client_id)
        return connected

    async def _initialize_client_session(
        self, reader: ReaderAdapter, writer: WriterAdapter, remote_address: str, remote_port: int
    ) -> Any:
        connect = await self._read_connect(reader, writer)
        user, password = connect.username, connect.password
        shown = _shown_certificate(writer)
        if shown is not None:
            if not await asyncio.to_thread(self._verify_certificate, *shown):
                await _turn_away(writer, NOT_AUTHORIZED)
            user, connect.username, connect.password = shown[0], shown[0], self._admitted
            connect.username_flag = connect.password_flag = True
        elif not user or not password or not await asyncio.to_thread(self._verify, user, password):
            await _turn_away(writer, BAD_USERNAME_PASSWORD)
        if connect.will_flag and not self._may_publish(user, connect.will_topic or ""):
            await _turn_away(writer, NOT_AUTHORIZED)
        connect.client_id = f"{user}/{connect.client_id}"
        known = BufferReader(connect.to_bytes())
        return await super()._initialize_client_session(known, writer, remote_address, remote_port)

    async def _publish_retained_messages_for_subscription(
        self, subscription: tuple[str, int], session: Session
    ) -> None:
        if any(subscriber is session for subscriber, _ in self._subscriptions.get(subscription[0], ())):
            await super()._publish_retained_messages_for_subscription(subscription, session)

    async def _read_connect(self, reader: ReaderAdapter, writer: WriterAdapter) -> ConnectPacket:
        try:
            connect = await asyncio.wait_for(ConnectPacket.from_stream(reader), CONNECT_TIMEOUT_S)
            readable = connect.proto_level == _LEVEL_3_1_1
        except Exception:  # noqa: BLE001 - whatever amqtt's parser meets in a stranger's bytes
            readable = False
        if not readable:
            await _turn_away(writer, UNACCEPTABLE_PROTOCOL_VERSION)
        return connect


def _shown_certificate(writer: WriterAdapter) -> tuple[str, str] | None:
    """(common name, serial number as 32 hexadecimal digits) of the verified certificate, None without one."""
    tls = writer.get_ssl_info()
    certificate = tls.getpeercert() if tls is not None else None
    if not certificate:
        return None
    names = [value for part in certificate.get("subject", ()) for name, value in part if name == "commonName"]
    return (names[0] if len(names) == 1 else ""), str(certificate.get("serialNumber", "")).lower().zfill(32)


async def _turn_away(writer: WriterAdapter, code: int) -> None:
    """Answer with a refusal, close, and end the connection's handling by raising MQTTError."""
    with contextlib.suppress(AMQTTError, OSError):
        await ConnackPacket.build(0, code).to_stream(writer)
        await writer.close()
    raise MQTTError(f"a client was turned away with code {code}")
