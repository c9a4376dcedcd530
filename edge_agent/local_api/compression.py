"""Content codings of bodies: gzip, and deflate, which HTTP means as zlib's format (RFC 9110, section 8.4.1).

Invariants: a body never grows beyond its limit while it is expanded, whatever it promises; one that is cut
short, or has something else behind its end, is refused. Answers are compressed only for who asks, and only
above a size where the bytes saved are worth the processor's time on a loopback connection: several HTTP
libraries ask by default.
"""

from __future__ import annotations

import zlib

from edge_agent.errors import InvalidInputError

MIN_COMPRESSED_BYTES = 16 * 1024
"""Smaller answers are sent as they are."""
MAX_MEMBERS = 64
"""A gzip body may have this many members one after the other: each costs a copy of what follows it."""
_LEVEL = 1
_WINDOW_BITS = {"gzip": 31, "x-gzip": 31, "deflate": 15}
_OFFERED = ("gzip", "deflate")


def is_known(coding: str) -> bool:
    """Whether a body in this content coding can be expanded."""
    return coding in _WINDOW_BITS


def expand(body: bytes | bytearray, coding: str, *, max_bytes: int) -> bytes | None:
    """The body behind its coding, None when it exceeds `max_bytes`. Raises InvalidInputError for a damaged one."""
    parts: list[bytes] = []
    left = max_bytes
    rest: bytes | bytearray = body
    while rest or not parts:
        if len(parts) == MAX_MEMBERS:
            raise InvalidInputError(f"the body has more than {MAX_MEMBERS} gzip members")
        stream = zlib.decompressobj(_WINDOW_BITS[coding])
        try:
            part = stream.decompress(rest, left + 1)
        except zlib.error as error:
            raise InvalidInputError(f"the body is not {coding}: {error}") from None
        left -= len(part)
        if left < 0:
            return None
        if not stream.eof:
            raise InvalidInputError(f"the body is {coding} that ends too early")
        if stream.unused_data and coding == "deflate":
            raise InvalidInputError("the body has something behind its deflate data")
        parts.append(part)
        rest = stream.unused_data
    return parts[0] if len(parts) == 1 else b"".join(parts)


def choose(accept_encoding: str) -> str | None:
    """The coding to answer in, None to answer plainly, by the request's Accept-Encoding."""
    wanted: dict[str, bool] = {}
    for part in accept_encoding.lower().split(","):
        name, _, parameter = part.partition(";")
        weight = parameter.partition("=")[2].strip()
        wanted[name.strip()] = not weight.startswith("0") or weight.strip("0.") != ""
    for coding in _OFFERED:
        if wanted.get(coding, wanted.get("*", False)):
            return coding
    return None


def compress(body: bytes, coding: str) -> bytes:
    """The body in one of the codings that `choose` gives."""
    stream = zlib.compressobj(_LEVEL, wbits=_WINDOW_BITS[coding])
    return stream.compress(body) + stream.flush()
