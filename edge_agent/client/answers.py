"""What an agent answers to the client: values, or the error that a status stands for."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_agent.client.connections import Answer
from edge_agent.client.tensors import DATATYPES, from_bytes
from edge_agent.errors import (
    AgentError,
    DeadlineExceededError,
    InferenceError,
    InvalidInputError,
    MemoryBudgetError,
    NetworkError,
    OverloadedError,
    UnknownModelError,
)

_JSON_LENGTH = "inference-header-content-length"


class Tensor(msgspec.Struct, frozen=True):
    """A tensor of a model's signature; -1 is any size."""

    name: str
    datatype: str
    shape: list[int]


class Metadata(msgspec.Struct, frozen=True):
    """A model's signature and the versions that answer."""

    name: str
    inputs: list[Tensor]
    outputs: list[Tensor]
    versions: list[str] = msgspec.field(default_factory=list)
    platform: str = ""


class ServedModel(msgspec.Struct, frozen=True):
    """One model and arm that answers."""

    name: str
    version: str
    variant: str
    arm: str
    phase: str
    inputs: list[Tensor]
    outputs: list[Tensor]
    labels: list[str]
    bundle: str | None = None
    weight: float = 1.0
    shadow: bool = False


class AgentHealth(msgspec.Struct, frozen=True):
    """Whether the agent answers inference calls, and if not, why."""

    ready: bool
    reasons: list[str] = msgspec.field(default_factory=list)


class ClientPrediction(msgspec.Struct, frozen=True):
    """One answer: its outputs by name, what made them, and the id for `report_outcome`."""

    outputs: dict[str, NDArray[Any]]
    model: str
    version: str
    id: str


class _OutputParameters(msgspec.Struct, frozen=True):
    binary_data_size: int | None = None


class _Output(msgspec.Struct, frozen=True):
    name: str
    datatype: str
    shape: tuple[int, ...]
    parameters: _OutputParameters = _OutputParameters()
    data: Any = None


class _AnswerParameters(msgspec.Struct, frozen=True):
    prediction_id: str = ""


class _InferAnswer(msgspec.Struct, frozen=True):
    model_name: str
    outputs: list[_Output]
    model_version: str = ""
    parameters: _AnswerParameters = _AnswerParameters()


class Models(msgspec.Struct, frozen=True):
    """The answer of /models."""

    models: list[ServedModel]


_T = TypeVar("_T")
_INFER_ANSWER = msgspec.json.Decoder(_InferAnswer)


def prediction_of(answer: Answer) -> ClientPrediction:
    """The prediction that a successful answer of …/infer tells. Raises NetworkError for what is none."""
    body = memoryview(answer.body)
    split = answer.headers.get(_JSON_LENGTH)
    position = int(split) if split and split.isdigit() else len(body)
    try:
        head = _INFER_ANSWER.decode(body[:position])
        outputs = {}
        for output in head.outputs:
            size = output.parameters.binary_data_size
            if size is None:
                dtype = object if output.datatype == "BYTES" else DATATYPES[output.datatype]
                outputs[output.name] = np.array(output.data, dtype=dtype).reshape(output.shape)
            else:
                content = body[position : position + size]
                outputs[output.name] = from_bytes(output.datatype, output.shape, content)
                position += size
    except (msgspec.MsgspecError, ValueError, KeyError, TypeError) as error:
        raise NetworkError(f"the agent's answer is not of the protocol: {error}") from None
    return ClientPrediction(
        outputs=outputs, model=head.model_name, version=head.model_version, id=head.parameters.prediction_id
    )


def retry_after_s(answer: Answer) -> float | None:
    """How long an agent without room asks to wait; None when it is not that."""
    if answer.status != 503:
        return None
    try:
        return max(0.0, float(answer.headers["retry-after"]))
    except (KeyError, ValueError):
        return None


def require_success(answer: Answer) -> Answer:
    """`answer` when it is one; else raises the error that its status stands for."""
    if answer.status == 200:
        return answer
    reason, wait_s = reason_of(answer), retry_after_s(answer)
    if answer.status == 503:
        raise MemoryBudgetError(reason) if wait_s is None else OverloadedError(reason, retry_after_s=wait_s)
    raise _ERRORS.get(answer.status, AgentError)(reason)


_ERRORS: dict[int, type[AgentError]] = {
    400: InvalidInputError,
    404: UnknownModelError,
    413: InvalidInputError,
    500: InferenceError,
    504: DeadlineExceededError,
}


def reason_of(answer: Answer) -> str:
    """What an error says."""
    try:
        return str(msgspec.json.decode(answer.body)["error"])
    except (msgspec.MsgspecError, KeyError, TypeError):
        return f"the agent answered status {answer.status}"


def decoded(answer: Answer, kind: type[_T]) -> _T:
    """An answer of JSON. Raises NetworkError for what is none."""
    try:
        return msgspec.json.decode(answer.body, type=kind)
    except msgspec.MsgspecError as error:
        raise NetworkError(f"this is no edgefleet agent's answer: {error}") from None
