"""The JSON bodies of requests, as checked structs. What does not parse is one InvalidInputError.

Parameters that are not named here are ignored, as the protocol lets a server do; those of sequences are named
because ignoring them would give wrong answers.
"""

from __future__ import annotations

from typing import Annotated, Any, Generic, Literal, TypeVar, cast

import msgspec
from msgspec import Meta, Struct

from edge_agent.local_api.encoding import UNREADABLE, nested_lists, refusal

MAX_TENSORS = 256
MAX_RANK = 32
MAX_SIZE = 2**63 - 1
"""Sizes, counts and offsets are at most this."""
MAX_TIMEOUT_US = 365 * 86_400 * 1_000_000

Size = Annotated[int, Meta(ge=0, le=MAX_SIZE)]
_Shape = Annotated[list[Size], Meta(max_length=MAX_RANK)]
_Datatype = Literal[
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64",
    "BF16", "BYTES",
]  # fmt: skip
_Data = TypeVar("_Data")


class TensorParameters(Struct, frozen=True):
    """Where an input's bytes are, when they are not in its `data`."""

    binary_data_size: Size | None = None
    shared_memory_region: str | None = None
    shared_memory_byte_size: Size | None = None
    shared_memory_offset: Size = 0


class InputTensor(Struct, Generic[_Data], frozen=True):
    """One input. Its data are here, behind the JSON, or in shared memory."""

    name: str
    shape: _Shape
    datatype: _Datatype
    data: _Data | msgspec.UnsetType = msgspec.UNSET
    parameters: TensorParameters | None = None


class OutputParameters(Struct, frozen=True):
    """How an output is wanted. `datatype` BF16 rounds an FP32 output; `classification` n gives its n best classes."""

    binary_data: bool | None = None
    classification: Size = 0
    datatype: Literal["BF16"] | None = None
    shared_memory_region: str | None = None
    shared_memory_byte_size: Size | None = None
    shared_memory_offset: Size = 0


class RequestedOutput(Struct, frozen=True):
    """An output that the caller wants."""

    name: str
    parameters: OutputParameters | None = None


class CallParameters(Struct, frozen=True):
    """How a request is to be answered.

    `priority` 1 is the highest, 0 the default, which comes after 100. `timeout` is in microseconds, 0 for none.
    edgefleet's own: `key` always meets the same arm; `prediction_id` asks for the id that outcomes name.
    """

    priority: Size = 0
    timeout: Annotated[int, Meta(ge=0, le=MAX_TIMEOUT_US)] = 0
    binary_data_output: bool = False
    key: str | None = None
    prediction_id: bool = False
    sequence_id: int | str = 0
    sequence_start: bool = False
    sequence_end: bool = False


class InferRequest(Struct, Generic[_Data], frozen=True):
    """The body of …/infer, or its JSON part."""

    inputs: Annotated[list[InputTensor[_Data]], Meta(max_length=MAX_TENSORS)]
    id: str | None = None
    parameters: CallParameters | None = None
    outputs: Annotated[list[RequestedOutput], Meta(max_length=MAX_TENSORS)] | None = None


class IndexRequest(Struct, frozen=True):
    """The body of /v2/repository/index. `ready` asks for the models that answer only."""

    ready: bool = False


class LoadRequest(Struct, frozen=True):
    """The body of …/load. A config or files in it are not supported, so that what runs is what was configured."""

    parameters: dict[str, Any] | None = None


class RegionRequest(Struct, frozen=True):
    """The body of …/systemsharedmemory/region/R/register."""

    key: str
    byte_size: Annotated[int, Meta(ge=1, le=MAX_SIZE)]
    offset: Size = 0


_NUMBERS = msgspec.json.Decoder(InferRequest[nested_lists(int | float)])  # type: ignore[misc]  # built at run time
_ANYTHING = msgspec.json.Decoder(InferRequest[nested_lists(bool | int | float | str)])  # type: ignore[misc]
_INDEX = msgspec.json.Decoder(IndexRequest)
_LOAD = msgspec.json.Decoder(LoadRequest)
_REGION = msgspec.json.Decoder(RegionRequest)


def decode_infer(body: bytes | bytearray | memoryview, *, numbers_only: bool) -> InferRequest[list[Any]]:
    """The body of …/infer; with `numbers_only`, data that are not numbers are refused. Raises InvalidInputError."""
    try:
        return cast(InferRequest[list[Any]], (_NUMBERS if numbers_only else _ANYTHING).decode(body))
    except UNREADABLE as error:
        raise refusal(error) from None


def decode_index(body: bytes | bytearray) -> IndexRequest:
    """The body of /v2/repository/index; an empty one asks for everything. Raises InvalidInputError."""
    try:
        return _INDEX.decode(body) if body else IndexRequest()
    except UNREADABLE as error:
        raise refusal(error) from None


def decode_load(body: bytes | bytearray) -> LoadRequest:
    """The body of …/load or …/unload, which may be empty. Raises InvalidInputError."""
    try:
        return _LOAD.decode(body) if body else LoadRequest()
    except UNREADABLE as error:
        raise refusal(error) from None


def decode_region(body: bytes | bytearray) -> RegionRequest:
    """The body of …/register. Raises InvalidInputError."""
    try:
        return _REGION.decode(body)
    except UNREADABLE as error:
        raise refusal(error) from None
