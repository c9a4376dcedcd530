"""Points of measurements other than windows: what they may hold, and the bytes they are kept as. Pure.

Invariants: a point that was taken comes back as it was, numbers with their type; what no store could keep is refused
before anything is written.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import msgspec

from fleet_server.errors import InvalidRequestError, StoreUnavailableError
from fleet_server.telemetry_store.port import MAX_INT64, Point

MAX_POINTS = 100_000
"""Points of one answer."""
MAX_TAGS = 16
MAX_FIELDS = 64
MAX_TEXT_CHARS = 4_096
MAX_POINT_BYTES = 32_768
"""Of all tags, and of all fields, of one point."""

_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}\Z")
_TAKEN_MEASUREMENTS = frozenset({"inference", "inference_fleet", "inference_device_hour", "outcome", "resource"})
_TAKEN_NAMES = frozenset({"fleet", "time", "point", "point_tags"})
_FIELDS = msgspec.json.Decoder(dict[str, int | float | str])
_TAGS = msgspec.json.Decoder(dict[str, str])


def check_points(points: Sequence[Point]) -> None:
    """Raise InvalidRequestError, naming the first point that no store could keep and why."""
    for point in points:
        reason = _fault(point)
        if reason:
            raise InvalidRequestError(f"a point of {point.measurement!r} cannot be kept: {reason}")


def check_measurement(measurement: str) -> None:
    """Raise InvalidRequestError for a name that is no measurement's, or is one of windows."""
    if not _NAME.match(measurement) or measurement in _TAKEN_MEASUREMENTS:
        raise InvalidRequestError(
            f"{measurement!r} is no measurement of points: use a-z, 0-9, _, and none of"
            f" {', '.join(sorted(_TAKEN_MEASUREMENTS))}"
        )


def _fault(point: Point) -> str:
    check_measurement(point.measurement)
    if not 0 <= point.at_ns <= MAX_INT64:
        return f"its time {point.at_ns} is not within 1970 and 2262"
    if not point.fields or len(point.fields) > MAX_FIELDS or len(point.tags) > MAX_TAGS:
        return f"it needs 1 to {MAX_FIELDS} fields and at most {MAX_TAGS} tags"
    for name in (*point.tags, *point.fields):
        if not _NAME.match(name) or name in _TAKEN_NAMES or (name in point.tags and name in point.fields):
            return f"{name!r} is no name of a tag or field: use a-z, 0-9, _, each once, not fleet, time or point.."
    for name, value in (*point.tags.items(), *point.fields.items()):
        if isinstance(value, str):
            if len(value) > MAX_TEXT_CHARS:
                return f"{name} has more than {MAX_TEXT_CHARS} characters"
        elif isinstance(value, float):
            if not math.isfinite(value):
                return f"{name} is {value}: leave it out"
        elif abs(value) > MAX_INT64:
            return f"{name} does not fit into 64 bits"
    try:
        size_bytes = max(len(pack_tags(point.tags).encode()), len(pack_fields(point.fields).encode()))
    except UnicodeEncodeError:
        return "its text is no Unicode"
    return f"it has {size_bytes} bytes, more than {MAX_POINT_BYTES}" if size_bytes > MAX_POINT_BYTES else ""


def pack_tags(tags: Mapping[str, str]) -> str:
    """Tags as text, the same for equal ones."""
    return msgspec.json.encode(dict(sorted(tags.items()))).decode()


def pack_fields(fields: Mapping[str, float | int | str]) -> str:
    """Fields as text."""
    return msgspec.json.encode({name: _plain(value) for name, value in sorted(fields.items())}).decode()


def unpack_point(measurement: str, at_ns: int, tags: str, fields: str, where: str) -> Point:
    """The point of kept text. Raises StoreUnavailableError, naming `where` it was kept."""
    try:
        return Point(measurement=measurement, at_ns=at_ns, tags=_TAGS.decode(tags), fields=_FIELDS.decode(fields))
    except msgspec.DecodeError as error:
        raise StoreUnavailableError(f"a point of {measurement} kept in {where} cannot be read ({error})") from None


def _plain(value: float | int | str) -> float | int | str:
    return int(value) if isinstance(value, bool) else value  # a yes or no is a number in every store
