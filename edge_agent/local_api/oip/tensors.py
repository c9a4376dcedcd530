"""Tensor data between the protocol's two forms and arrays: JSON lists, and little-endian bytes.

Invariants:
- a tensor has the datatype and the number of elements it declares, or it is one InvalidInputError; nothing is
  rounded, wrapped or cut: a whole number that its type cannot hold, a boolean among numbers, text among
  booleans and null anywhere are refused;
- JSON data is flat, or nested exactly as `shape` says;
- BYTES elements are UTF-8 text, because that is what ONNX strings are; as bytes each is a little-endian uint32
  length and its content;
- BF16, which ONNX Runtime's Python interface does not have, only travels as bytes: read as the float that it
  is the upper half of (exact for FP32 and FP64; for FP16 refused where it is not), written as the nearest, ties
  to even;
- JSON has neither NaN nor infinities: an output that holds one is refused in JSON, with the advice to ask for
  binary data. null would turn an infinity into "not a number" in most clients, and bare NaN breaks strict ones.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from itertools import chain
from typing import Any, cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_agent.errors import InvalidInputError
from edge_agent.local_api.encoding import encode_json
from fleet_protocol.manifest import TensorSpec

ELEMENTS: dict[str, tuple[np.dtype[Any], str]] = {
    "BOOL": (np.dtype("?"), "?"),
    "UINT8": (np.dtype("u1"), "B"),
    "UINT16": (np.dtype("<u2"), "H"),
    "UINT32": (np.dtype("<u4"), "I"),
    "UINT64": (np.dtype("<u8"), "Q"),
    "INT8": (np.dtype("i1"), "b"),
    "INT16": (np.dtype("<i2"), "h"),
    "INT32": (np.dtype("<i4"), "i"),
    "INT64": (np.dtype("<i8"), "q"),
    "FP16": (np.dtype("<f2"), "e"),
    "FP32": (np.dtype("<f4"), "f"),
    "FP64": (np.dtype("<f8"), "d"),
}
"""The fixed-size element types: numpy's on the wire, and `struct`'s code."""

BF16 = "BF16"
_FLOATS = frozenset({"FP16", "FP32", "FP64"})
_LENGTH = struct.Struct("<I")
_BF16_BITS = 16
_BF16_HALF = 0x7FFF
_QUIET_NAN = 0x0040


def check_datatype(spec: TensorSpec, datatype: str) -> None:
    """Raise InvalidInputError unless a tensor of `datatype` can be the input `spec`."""
    if datatype == spec.datatype or (datatype == BF16 and spec.datatype in _FLOATS):
        return
    raise InvalidInputError(f"input {spec.name!r} is {datatype[:20]}, the model takes {spec.datatype}")


def from_json(
    spec: TensorSpec, datatype: str, shape: Sequence[int], data: list[Any], *, numbers_only: bool
) -> NDArray[Any]:
    """The array of an input whose `data` came in JSON. `numbers_only` says that the decoder let nothing else in.

    Raises InvalidInputError.
    """
    if datatype == BF16:
        raise InvalidInputError(f"input {spec.name!r} is BF16, which only travels as binary data")
    count = math.prod(shape)
    flat = _flat(spec, shape, data) if data and type(data[0]) is list else data
    if len(flat) != count:
        raise _wrong_count(spec, shape, f"has {len(flat)} elements")
    if datatype == "BYTES":
        return _texts(spec, flat).reshape(shape)
    dtype, code = ELEMENTS[datatype]
    if datatype == "BOOL":
        if not all(type(value) is bool for value in flat):
            raise InvalidInputError(f"input {spec.name!r} is BOOL: its data are true and false")
    elif not numbers_only:
        flat = _numbers(spec, datatype, flat)
    try:
        # the "<" matters: only packing in a standard size refuses a float that overflows
        packed = struct.pack(f"<{count}{code}", *flat)
    except (struct.error, OverflowError):
        packed = struct.pack(f"<{count}{code}", *_numbers(spec, datatype, flat))
    return np.ndarray(shape, dtype, packed)


def from_bytes(spec: TensorSpec, datatype: str, shape: Sequence[int], raw: memoryview | bytes) -> NDArray[Any]:
    """The array of an input that came as bytes; a view of them where their place in memory allows it.

    Raises InvalidInputError.
    """
    if datatype == "BYTES":
        return _parse_bytes(spec, shape, raw)
    count = math.prod(shape)
    dtype = np.dtype("<u2") if datatype == BF16 else ELEMENTS[datatype][0]
    if len(raw) != count * dtype.itemsize:
        raise _wrong_count(spec, shape, f"of {datatype} came with {len(raw)} bytes, not {count * dtype.itemsize}")
    array: NDArray[Any] = np.ndarray(shape, dtype, raw)
    if not array.flags.aligned:
        array = array.copy()
    if datatype == BF16:
        return _widen(spec, array)
    if datatype == "BOOL" and count and array.view(np.uint8).max() > 1:
        raise InvalidInputError(f"input {spec.name!r} is BOOL: its bytes are 0 and 1")
    return array


def raw_shape(spec: TensorSpec, size_bytes: int) -> list[int]:
    """The shape of an input that came as `size_bytes` of data and nothing else. Raises InvalidInputError.

    One variable dimension follows from the size; of several, the first does and the others are 1.
    """
    known = math.prod(size for size in spec.shape if size > 0)
    each = known * (size_bytes if spec.datatype == "BYTES" else ELEMENTS[spec.datatype][0].itemsize)
    free = size_bytes // each if each else 1
    shape = []
    for size in spec.shape:
        shape.append(free if size < 0 else size)
        free = 1 if size < 0 else free
    return shape


def to_json(name: str, array: NDArray[Any]) -> msgspec.Raw:
    """The elements in row-major order, as a flat JSON list. Raises InvalidInputError for what JSON cannot say."""
    text = encode_json(array.ravel().tolist())
    # what is not finite is encoded as null, and a list of numbers has no other letters but "e"
    if array.dtype.kind == "f" and b"n" in text:
        raise InvalidInputError(
            f"output {name!r} holds NaN or an infinity, which JSON does not have: ask for it with"
            ' "parameters": {"binary_data": true}'
        )
    return msgspec.Raw(text)


def to_bytes(datatype: str, array: NDArray[Any]) -> bytes:
    """The elements in row-major order, as little-endian bytes; `datatype` BF16 rounds an FP32 array."""
    if datatype == "BYTES":
        contents = [str(text).encode() for text in array.ravel().tolist()]
        return b"".join(chain.from_iterable((_LENGTH.pack(len(content)), content) for content in contents))
    if datatype == BF16:
        return _narrow(array).tobytes()
    return array.astype(ELEMENTS[datatype][0], copy=False).tobytes()


def _flat(spec: TensorSpec, shape: Sequence[int], data: list[Any]) -> list[Any]:
    level: list[Any] = [data]
    try:
        for size in shape:
            # text has a length too, and would come apart into its letters
            if spec.datatype == "BYTES" and set(map(type, level)) != {list}:
                raise _wrong_count(spec, shape, "is nested otherwise")
            if size == 1:
                level = [item for (item,) in level]
            elif set(map(len, level)) == {size}:
                level = list(chain.from_iterable(level))
            else:
                raise _wrong_count(spec, shape, "is nested otherwise")
    except (TypeError, ValueError):  # a number among lists, or a list that does not have one item
        raise _wrong_count(spec, shape, "is nested otherwise") from None
    return level


def _texts(spec: TensorSpec, flat: list[Any]) -> NDArray[Any]:
    if not all(type(value) is str for value in flat):
        raise InvalidInputError(f"input {spec.name!r} is BYTES: its data are strings")
    texts = np.empty(len(flat), dtype=object)
    texts[:] = flat
    return texts


def _numbers(spec: TensorSpec, datatype: str, flat: list[Any]) -> list[int] | list[float]:
    """`flat` as numbers that `datatype` holds: a whole number may be written as 3.0, and a float as any integer."""
    holds = InvalidInputError(f"input {spec.name!r} holds a number that {datatype} cannot")
    if not all(type(value) in (int, float) for value in flat):
        raise InvalidInputError(f"input {spec.name!r} is {datatype}: its data are numbers in flat or regular lists")
    try:
        if datatype in _FLOATS:
            numbers = [float(value) for value in flat]
            with np.errstate(over="ignore"):
                narrowed = np.asarray(numbers).astype(ELEMENTS[datatype][0])
            if np.isinf(narrowed).any():
                raise holds
            return numbers
        whole = [int(value) for value in flat]
    except (OverflowError, ValueError):
        raise holds from None
    limits = np.iinfo(ELEMENTS[datatype][0])
    if whole != flat or (whole and (min(whole) < limits.min or max(whole) > limits.max)):
        raise holds
    return whole


def _parse_bytes(spec: TensorSpec, shape: Sequence[int], raw: memoryview | bytes) -> NDArray[Any]:
    texts: list[str] = []
    position = 0
    try:
        while position < len(raw):
            (size,) = _LENGTH.unpack_from(raw, position)
            position += _LENGTH.size
            if size > len(raw) - position:
                raise InvalidInputError(f"input {spec.name!r}: element {len(texts)} is longer than the data")
            texts.append(str(raw[position : position + size], "utf-8"))
            position += size
    except struct.error:
        raise InvalidInputError(f"input {spec.name!r}: its bytes end inside the length of an element") from None
    except UnicodeDecodeError:
        raise InvalidInputError(f"input {spec.name!r}: element {len(texts)} is not UTF-8 text") from None
    if len(texts) != math.prod(shape):
        raise _wrong_count(spec, shape, f"has {len(texts)} elements")
    return _texts(spec, cast(list[Any], texts)).reshape(shape)


def _widen(spec: TensorSpec, halves: NDArray[Any]) -> NDArray[Any]:
    wide = (halves.astype(np.uint32) << _BF16_BITS).view(np.float32)
    with np.errstate(over="ignore"):
        array = wide.astype(ELEMENTS[spec.datatype][0], copy=False)
    if spec.datatype == "FP16" and not np.array_equal(array.astype(np.float32), wide, equal_nan=True):
        raise InvalidInputError(f"input {spec.name!r} holds a BF16 number that FP16 cannot")
    return array


def _narrow(array: NDArray[Any]) -> NDArray[Any]:
    bits = np.ascontiguousarray(array, dtype=np.float32).view(np.uint32)
    upper = bits >> _BF16_BITS
    rounded = (bits.astype(np.uint64) + _BF16_HALF + (upper & 1)) >> _BF16_BITS
    return np.where(np.isnan(array), upper | _QUIET_NAN, rounded).astype("<u2")


def _wrong_count(spec: TensorSpec, shape: Sequence[int], what: str) -> InvalidInputError:
    return InvalidInputError(f"input {spec.name!r} says shape {list(shape)} and {what}")
