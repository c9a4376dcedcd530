"""How long a client may keep the local API waiting, and how many bytes it may make it hold."""

from __future__ import annotations

from msgspec import Struct

MAX_HEADER_BYTES = 16 * 1024
MAX_HEADERS = 100
MAX_URL_BYTES = 8 * 1024
SMALL_BODY_BYTES = 64 * 1024
"""Bodies up to this size are always admitted; larger ones draw on the shared `Budget`."""

FEED_BYTES = 16 * 1024
"""The parser is fed at most this much at once, which bounds how many pipelined requests it can emit."""
MAX_BARREN_BYTES = MAX_HEADER_BYTES + MAX_URL_BYTES + FEED_BYTES
"""Fed bytes that brought neither a whole head nor a byte of body: an endless header, trailer or chunk extension."""


class Timeouts(Struct, frozen=True, kw_only=True):
    """How long a connection may stay in each state, in seconds.

    `spare_s` is how long it must have been idle before it may be closed to make room for a new one: a younger
    one's next request may be on its way already.
    """

    idle_s: float = 75.0
    spare_s: float = 1.0
    header_s: float = 10.0
    body_s: float = 30.0
    write_s: float = 30.0
    linger_s: float = 2.0


class Budget(Struct, kw_only=True):
    """Bytes that large request bodies may still occupy, over all connections. Used on the loop's thread only."""

    left_bytes: int

    def take(self, size_bytes: int) -> bool:
        """Take from the budget; False when it does not have that much."""
        if size_bytes > self.left_bytes:
            return False
        self.left_bytes -= size_bytes
        return True
