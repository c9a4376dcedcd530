"""The careful look at a model's inputs: convert what keeps its meaning, refuse the rest in one clear line.

Conversions: any integer or float to a float type it does not overflow; any integer, or float without a
fraction, to an integer type that holds it; booleans only to BOOL, text only to BYTES. Shapes are never
guessed: no axis is added or dropped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.errors import InvalidInputError
from fleet_protocol.manifest import Datatype, TensorSpec

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

ORT_TYPES: dict[str, Datatype] = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}
"""ONNX Runtime's names of tensor types, to the Open Inference Protocol's."""

NUMPY_TYPES: dict[Datatype, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    "BYTES": np.dtype(object),
}

_MAX_SHOWN = 8


def conform(specs: Sequence[TensorSpec], inputs: Mapping[str, ArrayLike]) -> dict[str, NDArray[Any]]:
    """`inputs` as arrays of exactly the declared types and shapes.

    Raises InvalidInputError, which names the input and says what it is and what it should be.
    """
    if len(inputs) != len(specs) or any(spec.name not in inputs for spec in specs):
        _refuse_names(specs, inputs)
    return {spec.name: _conform_one(spec, inputs[spec.name]) for spec in specs}


def _refuse_names(specs: Sequence[TensorSpec], inputs: Mapping[str, ArrayLike]) -> None:
    wanted = [spec.name for spec in specs]
    missing = [name for name in wanted if name not in inputs]
    unknown = [str(name)[:80] for name in inputs if name not in wanted][:_MAX_SHOWN]
    faults = [f"missing {', '.join(missing)}"] if missing else []
    faults += [f"unknown {', '.join(unknown)}"] if unknown else []
    raise InvalidInputError(f"inputs do not match the model: {'; '.join(faults)}: it takes {', '.join(wanted)}")


def _conform_one(spec: TensorSpec, value: ArrayLike) -> NDArray[Any]:
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, OverflowError, RecursionError):
        raise InvalidInputError(
            f"input {spec.name!r} is not a regular array: every nested list must have the same length"
        ) from None
    if len(array.shape) != len(spec.shape) or any(
        want not in (-1, have) for want, have in zip(spec.shape, array.shape, strict=True)
    ):
        raise InvalidInputError(
            f"input {spec.name!r} has shape {list(array.shape)}, the model takes {spec.shape}{_shape_hint(spec, array)}"
        )
    if not array.size:
        raise InvalidInputError(f"input {spec.name!r} has shape {list(array.shape)}, which holds no values")
    return _cast(spec, array)


def _shape_hint(spec: TensorSpec, array: NDArray[Any]) -> str:
    if len(array.shape) == len(spec.shape) - 1 and spec.shape[0] in (-1, 1):
        return " (-1 is any size): wrap one sample in a list to make a batch of one"
    return " (-1 is any size)" if -1 in spec.shape else ""


def _cast(spec: TensorSpec, array: NDArray[Any]) -> NDArray[Any]:
    target = NUMPY_TYPES[spec.datatype]
    if spec.datatype == "BYTES":
        return _strings(spec, array)
    if array.dtype == target:
        return array
    kinds = (array.dtype.kind, target.kind)
    if kinds[0] not in "iuf" or kinds[1] not in "iuf":
        raise InvalidInputError(f"input {spec.name!r} holds {_what(array)}, the model takes {spec.datatype}")
    if kinds[1] == "f":
        try:
            with np.errstate(over="raise"):
                return array.astype(target)
        except FloatingPointError:
            raise InvalidInputError(f"input {spec.name!r} holds a number too large for {spec.datatype}") from None
    with np.errstate(invalid="ignore"):
        cast = array.astype(target)
    limits = np.iinfo(target)
    # as a float the greatest int64 is 2**63, which it cannot hold, and which ARM turns into it without a word
    is_too_large = float(array.max()) >= float(limits.max) + 1.0 if kinds[0] == "f" else array.max() > limits.max
    if array.min() < limits.min or is_too_large or not np.array_equal(cast, array):
        raise InvalidInputError(
            f"input {spec.name!r} holds a number that {spec.datatype} cannot: use whole numbers from"
            f" {limits.min} to {limits.max}"
        )
    return cast


def _strings(spec: TensorSpec, array: NDArray[Any]) -> NDArray[Any]:
    strings = array.astype(object)
    for value in strings.flat:
        if not isinstance(value, str):
            raise InvalidInputError(f"input {spec.name!r} holds {_what(array)}, the model takes BYTES: send text")
    return strings


def _what(array: NDArray[Any]) -> str:
    if array.dtype.kind == "O":
        return "null, mixed or unreadable values"
    return {"b": "booleans", "U": "text", "S": "bytes"}.get(array.dtype.kind, f"{array.dtype} values")
