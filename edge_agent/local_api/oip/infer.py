"""One inference over the protocol: a request's JSON and bytes to arrays, a prediction to the answer.

Order: the length of the JSON, the JSON, each input's data (JSON, the bytes behind it, or shared memory), the
call, each wanted output's data. Everything the request says of outputs is checked before the model runs.
Invariant: every byte of the body belongs to something; what is left over is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_agent.errors import InferenceError, InvalidInputError
from edge_agent.local_api.encoding import encode_json
from edge_agent.local_api.oip import tensors
from edge_agent.local_api.oip.classification import best_classes
from edge_agent.local_api.oip.describing import Signature, signature_of
from edge_agent.local_api.oip.messages import (
    CallParameters,
    InferRequest,
    InputTensor,
    OutputParameters,
    decode_infer,
)
from edge_agent.local_api.oip.shared_memory import REGIONS
from edge_agent.local_api.service import DEFAULT_CALL, CallOptions, InferenceService
from edge_agent.prediction import Prediction
from fleet_protocol.manifest import TensorSpec

JSON_LENGTH = "Inference-Header-Content-Length"
_JSON_LENGTH = JSON_LENGTH.lower()
_MAX_DIGITS = 19
_LOWEST_PRIORITY = -100
_DEFAULT_AS_NUMBER = 101
"""The default priority stands between 100 and 101 of the protocol's, which counts downwards from 1."""
_PLAIN = OutputParameters()
_DEFAULTS = CallParameters()


class Answer(NamedTuple):
    """The body of an answer; `json_bytes` of it are JSON, None when all of it is."""

    body: bytes
    json_bytes: int | None


def infer(
    service: InferenceService, name: str, version: str | None, body: bytes | bytearray, headers: Mapping[str, str]
) -> Answer:
    """Answer a request to …/infer. Raises what `InferenceService.infer` does, and InvalidInputError."""
    signature = signature_of(service, name, version)
    json_length = headers.get(_JSON_LENGTH)
    if json_length is None:
        tail = memoryview(b"")
        message = decode_infer(body, numbers_only=signature.numbers_only)
    else:
        whole = memoryview(body)
        split = _length(json_length, len(body))
        if split == 0:
            return _infer_raw(service, name, version, signature, whole)
        tail = whole[split:]
        message = decode_infer(whole[:split], numbers_only=signature.numbers_only)
    inputs = _read_inputs(message, signature, tail)
    parameters = message.parameters or _DEFAULTS
    wanted = _wanted(message, signature)
    prediction = service.infer(name, inputs, _options(parameters, version))
    return _answer(prediction, wanted, signature, parameters, message.id)


def _length(text: str, body_bytes: int) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > _MAX_DIGITS or int(text) > body_bytes:
        raise InvalidInputError(
            f"{JSON_LENGTH} {text[:40]!r} is not the length of JSON in a body of {body_bytes} bytes"
        )
    return int(text)


def _infer_raw(
    service: InferenceService, name: str, version: str | None, signature: Signature, raw: memoryview
) -> Answer:
    if len(signature.inputs) != 1:
        raise InvalidInputError(f"{name} has several inputs: only the data of a single one can come without JSON")
    ((input_name, spec),) = signature.inputs.items()
    shape = tensors.raw_shape(spec, len(raw))
    if spec.datatype == "BYTES":
        raw = memoryview(len(raw).to_bytes(4, "little") + raw)  # the whole body is one element
    array = tensors.from_bytes(spec, spec.datatype, shape, raw)
    parameters = CallParameters(binary_data_output=True)
    prediction = service.infer(name, {input_name: array}, _options(parameters, version))
    return _answer(prediction, None, signature, parameters, None)


def _options(parameters: CallParameters, version: str | None) -> CallOptions:
    if parameters is _DEFAULTS and version is None:
        return DEFAULT_CALL
    priority = parameters.priority
    return CallOptions(
        key=parameters.key,
        version=version,
        priority=max(_LOWEST_PRIORITY, _DEFAULT_AS_NUMBER - priority) if priority else 0,
        timeout_s=parameters.timeout / 1e6 if parameters.timeout else None,
    )


def _read_inputs(message: InferRequest[list[Any]], signature: Signature, tail: memoryview) -> dict[str, NDArray[Any]]:
    inputs: dict[str, NDArray[Any]] = {}
    position = 0
    for tensor in message.inputs:
        spec = signature.inputs.get(tensor.name)
        if spec is None:
            raise InvalidInputError(
                f"the model has no input {tensor.name[:80]!r}: it takes {', '.join(signature.inputs)}"
            )
        if tensor.name in inputs:
            raise InvalidInputError(f"input {tensor.name!r} is there twice")
        tensors.check_datatype(spec, tensor.datatype)
        parameters = tensor.parameters
        if parameters is None or (parameters.binary_data_size is None and parameters.shared_memory_region is None):
            if tensor.data is msgspec.UNSET:
                raise InvalidInputError(f"input {tensor.name!r} has no data")
            inputs[tensor.name] = tensors.from_json(
                spec, tensor.datatype, tensor.shape, tensor.data, numbers_only=signature.numbers_only
            )
            continue
        if tensor.data is not msgspec.UNSET:
            raise InvalidInputError(f"input {tensor.name!r} has its data twice: in JSON and as bytes")
        size = parameters.binary_data_size
        if size is None:
            inputs[tensor.name] = _from_shared_memory(spec, tensor)
            continue
        if parameters.shared_memory_region is not None:
            raise InvalidInputError(f"input {tensor.name!r} has its data twice: in the body and in shared memory")
        if size > len(tail) - position:
            raise InvalidInputError(f"input {tensor.name!r} says it has {size} bytes, the body ends before")
        inputs[tensor.name] = tensors.from_bytes(spec, tensor.datatype, tensor.shape, tail[position : position + size])
        position += size
    if position != len(tail):
        raise InvalidInputError(f"the body has {len(tail) - position} bytes that belong to no input")
    return inputs


def _from_shared_memory(spec: TensorSpec, tensor: InputTensor[list[Any]]) -> NDArray[Any]:
    place = tensor.parameters
    if place is None or place.shared_memory_region is None or place.shared_memory_byte_size is None:
        raise InvalidInputError(f"input {tensor.name!r} in shared memory needs shared_memory_byte_size")
    region = REGIONS.get(place.shared_memory_region)
    content = region.read(place.shared_memory_offset, place.shared_memory_byte_size)
    return tensors.from_bytes(spec, tensor.datatype, tensor.shape, content)


def _wanted(message: InferRequest[list[Any]], signature: Signature) -> dict[str, OutputParameters] | None:
    """The outputs that are asked for, each with how; None for all of them as they come."""
    parameters = message.parameters
    if parameters is not None and (parameters.sequence_id or parameters.sequence_start or parameters.sequence_end):
        raise InvalidInputError("models keep no state between calls here: there are no sequences")
    if not message.outputs:
        return None
    wanted: dict[str, OutputParameters] = {}
    for output in message.outputs:
        spec = signature.outputs.get(output.name)
        if spec is None:
            raise InvalidInputError(
                f"the model has no output {output.name[:80]!r}: it gives {', '.join(signature.outputs)}"
            )
        if output.name in wanted:
            raise InvalidInputError(f"output {output.name!r} is asked for twice")
        wanted[output.name] = how = output.parameters or _PLAIN
        _check_output(spec, how, is_binary=_is_binary(how, parameters or _DEFAULTS))
    return wanted


def _check_output(spec: TensorSpec, how: OutputParameters, *, is_binary: bool) -> None:
    if how.datatype is not None:
        if spec.datatype != "FP32" or how.classification:
            raise InvalidInputError(f"output {spec.name!r}: only an FP32 tensor can be given as {how.datatype}")
        if not is_binary and how.shared_memory_region is None:
            raise InvalidInputError(f"output {spec.name!r} as {how.datatype} needs binary_data: it has no JSON form")
    if how.shared_memory_region is not None:
        if how.binary_data:
            raise InvalidInputError(f"output {spec.name!r} goes into shared memory or the body, not both")
        if how.shared_memory_byte_size is None:
            raise InvalidInputError(f"output {spec.name!r} in shared memory needs shared_memory_byte_size")
        REGIONS.get(how.shared_memory_region)


def _answer(
    prediction: Prediction,
    wanted: Mapping[str, OutputParameters] | None,
    signature: Signature,
    parameters: CallParameters,
    request_id: str | None,
) -> Answer:
    head: dict[str, Any] = {"model_name": prediction.model, "model_version": prediction.version}
    if request_id is not None:
        head["id"] = request_id
    if parameters.prediction_id:
        head["parameters"] = {"prediction_id": prediction.id}
    binary: list[bytes] = []
    head["outputs"] = [
        _output(
            signature.outputs[name],
            _made(prediction, name),
            _PLAIN if wanted is None else wanted[name],
            signature=signature,
            parameters=parameters,
            binary=binary,
        )
        for name in (wanted or signature.outputs)
    ]
    text = encode_json(head)
    return Answer(b"".join((text, *binary)), len(text)) if binary else Answer(text, None)


def _made(prediction: Prediction, name: str) -> NDArray[Any]:
    array = prediction.outputs.get(name)
    if array is None:
        raise InferenceError(f"version {prediction.version} of {prediction.model} gives no output {name!r}")
    return array


def _is_binary(how: OutputParameters, parameters: CallParameters) -> bool:
    return parameters.binary_data_output if how.binary_data is None else how.binary_data


def _output(
    spec: TensorSpec,
    array: NDArray[np.generic],
    how: OutputParameters,
    *,
    signature: Signature,
    parameters: CallParameters,
    binary: list[bytes],
) -> dict[str, Any]:
    name = spec.name
    datatype: str = how.datatype or spec.datatype
    if how.classification:
        labels = signature.labels if name == next(iter(signature.outputs)) else ()
        array, datatype = best_classes(name, array, how.classification, labels), "BYTES"
    output: dict[str, Any] = {"name": name, "datatype": datatype, "shape": array.shape}
    if how.shared_memory_region is not None:
        content = tensors.to_bytes(datatype, array)
        place = REGIONS.get(how.shared_memory_region)
        place.write(how.shared_memory_offset, how.shared_memory_byte_size or 0, content)
        output["parameters"] = {
            "shared_memory_region": place.name,
            "shared_memory_offset": how.shared_memory_offset,
            "shared_memory_byte_size": len(content),
        }
    elif _is_binary(how, parameters):
        content = tensors.to_bytes(datatype, array)
        output["parameters"] = {"binary_data_size": len(content)}
        binary.append(content)
    else:
        output["data"] = tensors.to_json(name, array)
    return output
