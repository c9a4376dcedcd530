"""Where the weights lie in an ONNX file, read from its bytes alone, so that the server needs no onnx.

Only the path ModelProto.graph → GraphProto.initializer → TensorProto.raw_data is walked
(https://protobuf.dev/programming-guides/encoding, onnx.proto3); everything else is stepped over. A file that is no ONNX
file, or is torn, has no weights: what asks here gets along without.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

_GRAPH, _INITIALIZER, _NAME, _RAW_DATA = 7, 5, 8, 9
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_WEIGHTS = 20_000
_MAX_NAME_BYTES = 4096

Bytes = bytes | memoryview


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """One initializer's bytes: `length` of them at `offset`."""

    name: bytes
    offset: int
    length: int


def weights_in(content: Bytes) -> list[Weights]:
    """The initializers with raw data, in the file's order; none for what is not an ONNX file."""
    try:
        return [
            weights
            for graph in _fields(content, 0, len(content), _GRAPH)
            for start, end in _fields(content, *graph, _INITIALIZER)
            if (weights := _weights(content, start, end)) is not None
        ][:_MAX_WEIGHTS]
    except _NotProtobuf:
        return []


def _weights(content: Bytes, start: int, end: int) -> Weights | None:
    name, data = b"", None
    for number, first, last in _all_fields(content, start, end):
        if number == _NAME:
            name = bytes(content[first : min(last, first + _MAX_NAME_BYTES)])
        elif number == _RAW_DATA:
            data = first, last
    return Weights(name=name, offset=data[0], length=data[1] - data[0]) if data else None


def _fields(content: Bytes, start: int, end: int, wanted: int) -> Iterator[tuple[int, int]]:
    return ((first, last) for number, first, last in _all_fields(content, start, end) if number == wanted)


def _all_fields(content: Bytes, position: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(number, start, end) of every length-delimited field."""
    while position < end:
        key, position = _varint(content, position, end)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            _, position = _varint(content, position, end)
        elif kind == _BYTES:
            length, position = _varint(content, position, end)
            if length > end - position:
                raise _NotProtobuf
            yield number, position, position + length
            position += length
        elif kind in (_FIXED32, _FIXED64):
            position += 4 if kind == _FIXED32 else 8
        else:
            raise _NotProtobuf
    if position != end:
        raise _NotProtobuf


def _varint(content: Bytes, position: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while position < end and shift < 64:
        byte = content[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise _NotProtobuf


class _NotProtobuf(Exception):
    """These bytes do not parse."""
