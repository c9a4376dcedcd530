"""amqtt inside the server's process: MQTT 3.1.1 for a laptop or a demo, with nothing to install.

It forgets everything when the process ends: devices then send again what the server did not confirm, and the
server publishes every desired state anew. Anonymous clients are refused, and `access` decides every topic.
With a TLS context a client may sign in with a certificate in place of a password.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import secrets
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from amqtt.contexts import Action, BaseContext
from amqtt.plugins.base import BaseAuthPlugin, BaseTopicPlugin
from amqtt.session import Session

from fleet_server.errors import ConfigError
from fleet_server.message_bus._embedded_door import GuardedBroker
from fleet_server.message_bus.access import AccessRule

_LOG = logging.getLogger(__name__)
_START_TIMEOUT_S = 15.0
_MAX_CONNECTIONS = 500
_CUT_TIMEOUT_S = 10.0

VerifyUser = Callable[[str, str], bool]
"""Whether (user name, password) belong together."""
VerifyCertificate = Callable[[str, str], bool]
"""Whether a certificate that TLS verified still counts: (its common name, its serial number in 32 hex digits)."""


class PasswordPlugin(BaseAuthPlugin):  # type: ignore[misc] # amqtt's plugins are untyped
    """Lets in who has a valid user name and password."""

    @dataclass
    class Config:
        """Set by EmbeddedBroker."""

        verify: Any = None

    def __init__(self, context: BaseContext) -> None:
        super().__init__(context)
        self._verify: VerifyUser = context.config.verify

    async def authenticate(self, *, session: Session) -> bool:
        """Check off the loop, because it may read a database."""
        user, password = session.username, session.password
        if not user or not password:
            return False
        return await asyncio.to_thread(self._verify, user, password)


class AccessPlugin(BaseTopicPlugin):  # type: ignore[misc] # amqtt's plugins are untyped
    """Applies the access rule to every publish, subscription and delivery."""

    @dataclass
    class Config:
        """Set by EmbeddedBroker."""

        rule: Any = None

    def __init__(self, context: BaseContext) -> None:
        super().__init__(context)
        self._rule: AccessRule = context.config.rule

    async def topic_filtering(
        self, *, session: Session | None = None, topic: str | None = None, action: Action | None = None
    ) -> bool:
        """Whether this client may do this."""
        user = session.username if session else None
        if not user or not topic:
            return False
        allowed = self._rule.may_publish if action == Action.PUBLISH else self._rule.may_receive
        return allowed(user, topic)


class EmbeddedBroker:
    """The broker in a thread of its own. `port` 0 is not possible: amqtt does not tell which it got."""

    def __init__(
        self,
        *,
        host: str,
        port: int,
        rule: AccessRule,
        verify_user: VerifyUser,
        tls: ssl.SSLContext | None = None,
        verify_certificate: VerifyCertificate | None = None,
    ) -> None:
        module = __name__
        self._address = f"{host}:{port}"
        self._admitted = secrets.token_urlsafe(32)
        listener = {"type": "tcp", "bind": self._address, "max_connections": _MAX_CONNECTIONS, "ssl": tls is not None}
        self._config = {
            "listeners": {"default": listener},
            "plugins": {
                f"{module}.PasswordPlugin": {"verify": self._was_admitted},
                f"{module}.AccessPlugin": {"rule": rule},
            },
        }
        self._verify, self._rule = verify_user, rule
        self._tls, self._verify_certificate = tls, verify_certificate or _no_certificate_counts
        self._broker: GuardedBroker | None = None
        self._started, self._failure = threading.Event(), ""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._run, name="embedded-broker", daemon=True)

    def start(self) -> None:
        """Listen. Raises ConfigError when the address cannot be used."""
        for name in ("amqtt", "transitions"):
            logging.getLogger(name).setLevel(logging.ERROR)
        self._thread.start()
        if not self._started.wait(_START_TIMEOUT_S) or self._failure:
            raise ConfigError(f"the embedded broker cannot listen on {self._address}: {self._failure or 'no answer'}")

    def stop(self) -> None:
        """Disconnect everybody and end."""
        if self._loop and self._stop and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()

    def cut(self, user: str) -> None:
        """End every connection of `user` and forget its sessions."""
        broker, loop = self._broker, self._loop
        if broker is not None and loop is not None and self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(broker.cut(user), loop).result(_CUT_TIMEOUT_S)

    def _was_admitted(self, user: str, password: str) -> bool:
        """amqtt asks once more after the door: whom the door let in by certificate has no password."""
        return hmac.compare_digest(password.encode(), self._admitted.encode()) or self._verify(user, password)

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        broker = GuardedBroker(
            self._config,
            verify=self._verify,
            may_publish=self._rule.may_publish,
            verify_certificate=self._verify_certificate,
            tls=self._tls,
            admitted=self._admitted,
        )
        self._broker = broker
        try:
            await broker.start()
        except Exception as error:  # noqa: BLE001 - amqtt raises its own and asyncio's errors alike
            self._failure = str(error) or type(error).__name__
            self._started.set()
            return
        self._started.set()
        await self._stop.wait()
        await broker.shutdown()


def _no_certificate_counts(_name: str, _serial: str) -> bool:
    return False
