"""Cuts a device's live connection to a broker that cannot be told to: by taking its place for a moment.

MQTT lets one client id be connected once: a newcomer ends the connection before it (MQTT 5, 3.1.4-3). The fleet's
authority makes a certificate of minutes with the device's name, the server connects with it and a clean start, which
ends the device's connection and the session the broker kept for it, and leaves. Works on every broker that takes
the certificate's common name as the user, whether it takes that as the client id too (Mosquitto's
`use_username_as_clientid`) or not.

It keeps nobody out: that is the list of revoked certificates, which the broker must have read before.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from fleet_server.errors import BusUnavailableError
from fleet_server.message_bus.tls import MakeContext

_TIMEOUT_S = 10.0
_FAREWELL_S = 1.0


class Takeover:
    """Cuts devices of one fleet on an mqtts:// broker. `make_tls(device)` signs in as the device."""

    def __init__(self, *, url: str, fleet: str, make_tls: Callable[[str], MakeContext]) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port or 8883
        self._fleet, self._make_tls = fleet, make_tls

    def cut(self, device: str) -> None:
        """End the device's connection and session. Raises BusUnavailableError when the broker does not let us in."""
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=f"edgefleet-{self._fleet}-{device}",  # as the agent names itself
            protocol=MQTTProtocolVersion.MQTTv311,
            clean_session=True,
            reconnect_on_failure=False,
        )
        client.tls_set_context(self._make_tls(device)())
        client.connect_timeout = _TIMEOUT_S
        answered, gone, said = threading.Event(), threading.Event(), ["it did not answer"]

        def on_connect(_client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
            said[0] = str(reason) if reason.is_failure else ""
            answered.set()

        def on_disconnect(_client: Any, _data: Any, _flags: Any, _reason: Any, _properties: Any) -> None:
            gone.set()
            answered.set()

        client.on_connect, client.on_disconnect = on_connect, on_disconnect
        try:
            client.connect(self._host, self._port, keepalive=30)
            client.loop_start()
            answered.wait(_TIMEOUT_S)
            if said[0]:
                raise BusUnavailableError(f"the broker did not let the server take {device}'s place: {said[0]}")
            client.disconnect()
            gone.wait(_FAREWELL_S)
        except (OSError, ValueError) as error:
            raise BusUnavailableError(f"the broker cannot be reached to cut {device}: {error}") from None
        finally:
            with suppress(RuntimeError):
                client.loop_stop()
