"""Telemetry payloads made smaller: zlib (RFC 1950) over a preset dictionary of the names that every window repeats.

A packed payload starts 0x78, which no MessagePack map does, so a reader takes both forms. The stream itself names its
dictionary by an Adler-32: a later one is told from a torn payload, and this release's stays readable for ever.

Invariants, in the order `unpack` applies them: a dictionary that is not known is refused (UnsupportedSchema); never
more than `limit` bytes are inflated; the stream ends where the payload ends and its checksum holds (MalformedMessage).
"""

from __future__ import annotations

import zlib

from fleet_protocol.errors import MalformedMessage, UnsupportedSchema

_HAS_DICTIONARY = 0x20
_HEADER_BYTES = 6
_LEVEL = 6
_TINY_BYTES = 64

# What stands nearest to the end is referred to with the fewest bits. Never change it: add another one beside it.
_WORDS_1 = (
    "compared disagreed squared_error_sum squared_error_count covers provider shadow candidate invalid_input overloaded"
    " deadline inference errors 0.0.0 fp32-optimised int8-qoperator-u8s8 int8-dynamic-u8s7 int8-qdq-u8s7 int8-qdq-s8s8"
    " int8-qdq-u8s8 fp32 file shaft_ background loudness dynamics change projection_ channel_mean_ spectral_centroid"
    " contrast sharpness brightness column_ feature_ mean_ worst_ error_ mean std"
)
_FRAME_1 = (
    b"\xa5model\xa7version\xa51.0.0\xa7variant\xa3arm\xa4main\xa8start_ns\xcf\x18\xa6end_ns\xcf\x18\xa5count\xcd"
    b"\xa7latency\xc5\x01\xaaqueue_wait\xc4\x02\x00\xabbatch_sizes\x81\x01\xcd\xa8features\x8a\xa4mean\xc4\x80"
    + b"\x01\x01\x01\x02\x01\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d\x0e\x0f\x10\x11\x12\x13"
    + b"\x00\x02\x01\x00\x03\x01"
    + b"\xa7classes\x8a\x00\xcd\x01\xcd\x02\xcd\x03\xcd\x04\xcd\x05\xcd\x06\xcd\x07\xcd\x08\xcd\x09\xcd"
    + b"\xa5score\xc4\x80"
    + b"\xafembedding_count\xcd\xaeembedding_sums\xc5\x02\x00\xa8outcomes\x82\xa7correct\xcd\xa5wrong\xcd"
    + b"\xb2estimated_accuracy\x83\xa5count\xcd\xaeconfidence_sum\xcb@\xacvariance_sum\xcb@"
    + b"\xa9resources\x87\xabcpu_percent\xcb@\xa9rss_bytes\xce\xadtemperature_c\xcb@\xa9throttled\xc2"
    + b"\xafdisk_free_bytes\xcf\x00\x00\x00\xb3machine_cpu_percent\xcb@\xafbattery_percent\xcb@Y\x00\x00\x00"
    + b"\x00\x00\x00"
    + b"\xa6outbox\x83\xa5depth\x01\xa7dropped\x00\xa6merged\x00"
    + b"\x8f\xde\x00\x12\xde\x00\x13\xde\x00\x14\xde\x00\x15\xa6schema\x01\xa6device\xa8\xa7boot_id\xb1"
    + b"00000001-\xa8sequence\xcd\xa5model\xa7"
)
_DICTIONARY_1 = _WORDS_1.encode("ascii") + _FRAME_1
DICTIONARIES = {zlib.adler32(dictionary): dictionary for dictionary in (_DICTIONARY_1,)}
"""Every dictionary that a window was ever packed with, by its Adler-32."""


def is_packed(payload: bytes) -> bool:
    """Whether the payload is a zlib stream."""
    return payload[:1] == b"\x78"


def pack(plain: bytes) -> bytes:
    """`plain` packed where that is smaller, else as it is. The same bytes for the same `plain`."""
    if len(plain) < _TINY_BYTES:
        return plain
    packer = zlib.compressobj(level=_LEVEL, zdict=_DICTIONARY_1)
    packed = packer.compress(plain) + packer.flush()
    return packed if len(packed) < len(plain) else plain


def unpack(payload: bytes, *, limit: int) -> bytes:
    """What was packed, of at most `limit` bytes; a payload that is not packed is answered as it is.

    Raises UnsupportedSchema for a later release's dictionary, and MalformedMessage for a stream that is torn, followed
    by anything, or larger than `limit`.
    """
    if not is_packed(payload):
        return payload
    try:
        reader = zlib.decompressobj(zdict=_dictionary_of(payload))
        plain = reader.decompress(payload, limit + 1)
    except zlib.error as error:
        raise MalformedMessage(f"a packed payload cannot be read: {error}") from None
    if len(plain) > limit:
        raise MalformedMessage(f"a packed payload holds more than the limit of {limit} bytes")
    if not reader.eof or reader.unused_data:
        raise MalformedMessage("a packed payload is torn, or something follows its end")
    return plain


def _dictionary_of(payload: bytes) -> bytes:
    if len(payload) < _HEADER_BYTES or not payload[1] & _HAS_DICTIONARY:
        return b""
    name = int.from_bytes(payload[2:_HEADER_BYTES], "big")
    if name not in DICTIONARIES and int.from_bytes(payload[:2], "big") % 31 == 0:
        raise UnsupportedSchema(f"a payload is packed with dictionary {name:08x}, unknown to this release: upgrade it")
    return DICTIONARIES.get(name, b"")
