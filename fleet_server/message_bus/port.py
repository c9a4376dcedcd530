"""The message bus's port.

Invariants every implementation keeps:
- a message is delivered again, now or after a restart, until it was acknowledged;
- `publish` returns once the broker has taken every QoS 1 message, or raises BusUnavailableError;
- what arrives before anyone listens waits in the broker, not here: the number of unacknowledged messages is bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Incoming:
    """A message to be acknowledged. `connection` and `packet` are the bus's own."""

    topic: str
    payload: bytes
    connection: int
    packet: int
    qos: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """A message to be sent with QoS 1, or QoS 0 when nobody needs to know that it arrived."""

    topic: str
    payload: bytes
    retain: bool = False
    qos: int = 1


class MessageBus(Protocol):
    """A connection that keeps itself up. Safe to call from several threads."""

    def start(
        self, filters: Sequence[str], on_message: Callable[[Incoming], None], on_new_session: Callable[[], None]
    ) -> None:
        """Connect in the background and subscribe with QoS 1.

        `on_message` may block, which holds the broker back. `on_new_session` is called when the broker remembers
        nothing of this server, neither its subscriptions nor, perhaps, what was retained.
        """

    def acknowledge(self, messages: Sequence[Incoming]) -> None:
        """Tell the broker that these need not come again. Ones from an earlier connection will come again."""

    def publish(self, messages: Sequence[Outgoing], *, timeout_s: float) -> None:
        """Send messages. Raises BusUnavailableError unless the broker took all of them in time."""

    def check(self) -> None:
        """Raise BusUnavailableError unless the broker is connected."""

    def stop(self) -> None:
        """Disconnect."""
