"""The client's tensors: what an application has, as the datatype that a model takes; bytes on the wire and back.

Apart from the runtime's own, which would load it. Conversions are the same: any integer or float to a float type
that it does not overflow, whole numbers to an integer type that holds them, booleans and text only to their own.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.errors import InvalidInputError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

DATATYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"), "UINT8": np.dtype("u1"), "UINT16": np.dtype("<u2"), "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"), "INT8": np.dtype("i1"), "INT16": np.dtype("<i2"), "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"), "FP16": np.dtype("<f2"), "FP32": np.dtype("<f4"), "FP64": np.dtype("<f8"),
}  # fmt: skip
_TEXT = "BYTES"


def as_datatype(name: str, datatype: str, value: ArrayLike) -> NDArray[Any]:
    """`value` as an array of `datatype` in C order; itself when it is one. Raises InvalidInputError."""
    target = DATATYPES.get(datatype)
    if target is not None and type(value) is np.ndarray and value.dtype == target:
        return value if value.flags.c_contiguous else np.ascontiguousarray(value)
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, OverflowError):
        raise InvalidInputError(f"input {name!r} is not a regular array of numbers or text") from None
    if datatype == _TEXT:
        return _texts(name, array)
    if target is None:
        raise InvalidInputError(f"input {name!r} is {datatype}, which this client does not know")
    kinds = array.dtype.kind, target.kind
    if kinds != ("b", "b") and (kinds[0] not in "iuf" or kinds[1] not in "iuf"):
        raise InvalidInputError(f"input {name!r} holds {array.dtype} values, the model takes {datatype}")
    with np.errstate(all="ignore"):
        cast = np.ascontiguousarray(array.astype(target))
    if kinds[1] == "f":
        lost = bool((np.isinf(cast) & np.isfinite(array)).any())
    elif kinds[1] in "iu" and array.size:
        limits = np.iinfo(target)
        lost = not (array.min() >= limits.min and array.max() <= limits.max and np.array_equal(cast, array))
    else:
        lost = False
    if lost:
        raise InvalidInputError(f"input {name!r} holds a number that {datatype} cannot")
    return cast


def to_bytes(datatype: str, array: NDArray[Any]) -> bytes | memoryview:
    """An array of `as_datatype` as it travels: numbers from where they lie, text as lengths and UTF-8."""
    if datatype != _TEXT:
        return array.reshape(-1).view(np.uint8).data if array.size else b""
    parts: list[bytes] = []
    for text in array.ravel().tolist():
        content = text.encode()
        parts += (struct.pack("<I", len(content)), content)
    return b"".join(parts)


def from_bytes(datatype: str, shape: tuple[int, ...], content: memoryview) -> NDArray[Any]:
    """The array that came as `content`, which it shares when it is of numbers. Raises ValueError and KeyError."""
    if datatype != _TEXT:
        array = np.frombuffer(content, dtype=DATATYPES[datatype]) if len(content) else np.empty(0, DATATYPES[datatype])
        return array.reshape(shape) if array.flags.aligned else array.copy().reshape(shape)
    texts, position = [], 0
    while position < len(content):
        if position + 4 > len(content):
            raise ValueError("text ends inside its length")
        (size,) = struct.unpack_from("<I", content, position)
        if size > len(content) - position - 4:
            raise ValueError("text is longer than the data")
        texts.append(str(content[position + 4 : position + 4 + size], "utf-8"))
        position += 4 + size
    array = np.empty(len(texts), dtype=object)
    array[:] = texts
    return array.reshape(shape)


def _texts(name: str, array: NDArray[Any]) -> NDArray[Any]:
    texts = array.astype(object)
    for text in texts.flat:
        if not isinstance(text, str):
            raise InvalidInputError(f"input {name!r} holds {array.dtype} values, the model takes BYTES: send text")
    return texts
