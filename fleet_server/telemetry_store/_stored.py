"""A window, or a merged one, as the bytes a store keeps, and the few numbers of a window that sums need.

Kept plain: packing costs ten times what reading does, and InfluxDB packs by itself. A window that was kept packed, as
it travels, is read as well.

Invariants: `unpack(pack(window)) == window`, and the same for merged ones; the numbers always fit the signed 64-bit
columns and fields of every store, whatever a device sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import msgspec

from fleet_protocol import packing
from fleet_protocol.errors import ProtocolError
from fleet_protocol.messages import Outcomes, ShadowAgreement, Window
from fleet_server.errors import StoreUnavailableError
from fleet_server.telemetry_store.merged import MergedWindow
from fleet_server.telemetry_store.port import MAX_INT64

# Not messages.encode and decode: their size limit is for what arrives, and our own bytes may be a little longer.
_ENCODER = msgspec.msgpack.Encoder()
_WINDOWS = msgspec.msgpack.Decoder(Window)
_MERGED = msgspec.msgpack.Decoder(MergedWindow)
_CLASSES = msgspec.msgpack.Decoder(dict[int, int])
_MAX_UNPACKED_BYTES = 64 * 2**20
_NO_OUTCOMES = Outcomes()
_NO_SHADOW = ShadowAgreement()
_NO_CLASSES: Mapping[int, int] = {}
T = TypeVar("T")


def pack(window: Window | MergedWindow) -> bytes:
    """The bytes to keep of a window or a merged one."""
    return _ENCODER.encode(window)


def unpack(blob: bytes, where: str) -> Window:
    """The window of kept bytes. Raises StoreUnavailableError, naming `where` they were kept."""
    return _unpack(_WINDOWS, blob, where)


def unpack_merged(blob: bytes, where: str) -> MergedWindow:
    """The merged window of kept bytes. Raises StoreUnavailableError, naming `where` they were kept."""
    return _unpack(_MERGED, blob, where)


def _unpack(decoder: msgspec.msgpack.Decoder[T], blob: bytes, where: str) -> T:
    try:
        if packing.is_packed(blob):
            blob = packing.unpack(blob, limit=_MAX_UNPACKED_BYTES)
        return decoder.decode(blob)
    except (msgspec.DecodeError, ProtocolError, UnicodeDecodeError, RecursionError) as error:
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


def pack_classes(classes: Mapping[int, int]) -> bytes | None:
    """Predictions by class as a column keeps them, None for none."""
    return msgspec.msgpack.encode(classes) if classes else None


def unpack_classes(kept: bytes | None) -> Mapping[int, int]:
    """Predictions by class, as `pack_classes` kept them."""
    return _CLASSES.decode(kept) if kept else _NO_CLASSES
