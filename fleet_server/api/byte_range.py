"""Which bytes of a file a request wants. Pure; RFC 9110, sections 13.1.5 and 14.

One range is served; a request for several gets the whole file, as section 14.2 allows: assembling many small
ranges costs the server more than it helps a download that resumes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_ONE_RANGE = re.compile(r"bytes=(?:(\d{1,18})-(\d{1,18})?|-(\d{1,18}))\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class ByteRange:
    """Bytes `first` to `last`, both included."""

    first: int
    last: int

    @property
    def size_bytes(self) -> int:
        """How many bytes."""
        return self.last - self.first + 1


class UnsatisfiableRangeError(ValueError):
    """The file has none of the bytes asked for."""


def wanted_range(range_header: str | None, if_range: str | None, *, etag: str, size_bytes: int) -> ByteRange | None:
    """The range to send; None for the whole file. Raises UnsatisfiableRangeError.

    A header that is malformed, in another unit, or of several ranges is ignored; so is any whose If-Range
    names another entity (a date never matches: files have no history here).
    """
    if range_header is None or (if_range is not None and if_range.strip() != etag):
        return None
    match = _ONE_RANGE.match(range_header.replace(" ", ""))
    if match is None:
        return None
    first, last, suffix = (int(text) if text else None for text in match.groups())
    if suffix is not None:
        if suffix == 0 or size_bytes == 0:
            raise UnsatisfiableRangeError
        return ByteRange(first=max(0, size_bytes - suffix), last=size_bytes - 1)
    assert first is not None  # noqa: S101 - the pattern has a first or a suffix
    if last is not None and last < first:
        return None
    if first >= size_bytes:
        raise UnsatisfiableRangeError
    return ByteRange(first=first, last=size_bytes - 1 if last is None else min(last, size_bytes - 1))


def matches_etag(if_none_match: str | None, etag: str) -> bool:
    """Whether an If-None-Match header names the entity."""
    if if_none_match is None:
        return False
    return any(tag.strip().removeprefix("W/") in (etag, "*") for tag in if_none_match.split(","))
