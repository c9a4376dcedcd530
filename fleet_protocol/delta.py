"""The form of a delta: how one file is written as its byte-wise difference from another that the reader holds.

    b"EFDELTA1" · an xz stream of ( header length, uint32 little-endian · header, MessagePack · residual )

The header's segments, in order, make up the new file. A segment of `length` bytes at `base_offset` is the base's bytes
there plus the residual's, each byte modulo 256; with the offset NO_BASE it is the residual's bytes alone. Each
segment's residual begins at a multiple of ALIGNMENT in the residual (zeros fill the gap), so that the bytes of floats
keep their place for the compressor. Difference coding after C. Percival, "Naive Differences of Executable Code", 2003.

Invariants a reader keeps, in this order: never more than MAX_HEADER_BYTES of header, never another size than the one
that was promised, never a byte beyond the base; and what comes out is believed for its own digest alone.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from fleet_protocol.errors import MalformedMessage
from fleet_protocol.manifest import MAX_ARTIFACT_BYTES
from fleet_protocol.names import Sha256

DELTA_MAGIC = b"EFDELTA1"
DELTA_FORMAT = 1
NO_BASE = -1
ALIGNMENT = 4
MAX_HEADER_BYTES = 1024 * 1024
MAX_SEGMENTS = 50_000
MAX_DICTIONARY_BYTES = 1024 * 1024
"""The largest LZMA dictionary of a delta: what a reader needs in memory, and little more."""

Size = Annotated[int, Meta(ge=0, le=MAX_ARTIFACT_BYTES)]
Segment = tuple[Annotated[int, Meta(ge=NO_BASE, le=MAX_ARTIFACT_BYTES)], Size]
"""(base_offset, length), in bytes."""


class DeltaHeader(Struct, frozen=True, kw_only=True, array_like=True):
    """What the residual is applied to, and how."""

    base_size_bytes: Size
    size_bytes: Size
    segments: Annotated[tuple[Segment, ...], Meta(max_length=MAX_SEGMENTS)]


class DeltaOffer(Struct, frozen=True, kw_only=True):
    """A server's answer to "is there a delta?": the file `delta`, fetched as any artifact, of `size_bytes`."""

    delta: Sha256
    size_bytes: Size
    format: int = DELTA_FORMAT


def encode_header(header: DeltaHeader) -> bytes:
    """The header with its length before it. Raises MalformedMessage for more than MAX_HEADER_BYTES."""
    body = msgspec.msgpack.encode(header)
    if len(body) > MAX_HEADER_BYTES:
        raise MalformedMessage(f"a delta's header of {len(body)} bytes exceeds {MAX_HEADER_BYTES}")
    return len(body).to_bytes(4, "little") + body


def decode_header(body: bytes, *, size_bytes: int, base_size_bytes: int) -> DeltaHeader:
    """The header (without its length) of a delta that makes `size_bytes` of a base of `base_size_bytes`.

    Raises MalformedMessage when it does not parse, makes another size, or reaches beyond the base.
    """
    try:
        header: DeltaHeader = msgspec.msgpack.decode(body, type=DeltaHeader)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedMessage(f"not a delta's header: {error}") from None
    if (header.size_bytes, header.base_size_bytes) != (size_bytes, base_size_bytes):
        raise MalformedMessage(
            f"the delta makes {header.size_bytes} bytes of {header.base_size_bytes}, "
            f"not {size_bytes} of {base_size_bytes}"
        )
    if sum(length for _, length in header.segments) != size_bytes:
        raise MalformedMessage("the delta's segments do not make up the file")
    if any(offset != NO_BASE and offset + length > base_size_bytes for offset, length in header.segments):
        raise MalformedMessage("the delta reaches beyond its base")
    return header


def decode_offer(answer: bytes) -> DeltaOffer:
    """A server's answer. Raises MalformedMessage, also for a format that this release does not read."""
    try:
        offer: DeltaOffer = _offers().decode(answer)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedMessage(f"not an offer of a delta: {error}") from None
    if offer.format != DELTA_FORMAT:
        raise MalformedMessage(f"deltas of format {offer.format} are not read here")
    return offer


def padding(position: int) -> int:
    """How many zeros follow `position` bytes of residual before the next segment's."""
    return -position % ALIGNMENT


def _offers() -> Any:
    return msgspec.json.Decoder(DeltaOffer)
