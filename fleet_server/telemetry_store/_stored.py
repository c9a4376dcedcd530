"""A window as the bytes a store keeps, and the few numbers of it that sums need.

Invariants: `unpack(pack(window)) == window`; the numbers always fit the signed 64-bit columns and
fields of every store, whatever a device sent.
"""

from __future__ import annotations

import msgspec

from fleet_protocol.messages import Outcomes, ShadowAgreement, Window, encode
from fleet_server.errors import StoreUnavailableError

MAX_INT64 = 2**63 - 1

# Not messages.decode: its size limit is for what arrives, and our own canonical bytes may be a little longer.
_DECODER = msgspec.msgpack.Decoder(Window)
_NO_OUTCOMES = Outcomes()
_NO_SHADOW = ShadowAgreement()


def pack(window: Window) -> bytes:
    """The bytes to keep of a window."""
    return encode(window)


def unpack(blob: bytes, where: str) -> Window:
    """The window of kept bytes. Raises StoreUnavailableError, naming `where` they were kept."""
    try:
        return _DECODER.decode(blob)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise StoreUnavailableError(
            f"a window kept in {where} cannot be read ({error}): if a later release wrote it, run that release"
        ) from None


def error_count(window: Window) -> int:
    """Errors of every kind, at most what a signed 64-bit number holds."""
    return min(sum(window.errors.values()), MAX_INT64) if window.errors else 0


def outcomes(window: Window) -> Outcomes:
    """The window's outcomes, all zero when it has none."""
    return window.outcomes or _NO_OUTCOMES


def shadow_agreement(window: Window) -> ShadowAgreement:
    """How the window's shadow agreed, all zero when it has none."""
    return window.shadow or _NO_SHADOW
