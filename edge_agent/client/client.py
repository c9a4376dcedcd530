"""An application's connection to an agent in another process, over HTTP or a Unix socket: arrays in, arrays out.

    with Client("unix:///run/edgefleet.sock") as client:
        prediction = client.infer("kws", features)
        client.report_outcome(prediction.id, label=5)

Tensors travel as the Open Inference Protocol's binary data. A model's signature is asked for once, so that a bare
array finds its input and lists or other number types are converted; an answer that does not fit it any more (a new
version was rolled out) makes the client ask again. The client may be used from any number of threads. It loads
neither the runtime nor anything else of the agent. A process that forks makes a client of its own.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import msgspec
from numpy.typing import NDArray

from edge_agent.client.answers import (
    AgentHealth,
    ClientPrediction,
    Metadata,
    Models,
    ServedModel,
    decoded,
    prediction_of,
    reason_of,
    require_success,
    retry_after_s,
)
from edge_agent.client.connections import Answer, Pool
from edge_agent.client.tensors import as_datatype, to_bytes
from edge_agent.errors import ConfigError, DeadlineExceededError, InvalidInputError, UnknownPredictionError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

DEFAULT_TIMEOUT_S = 10.0
MAX_CONNECTIONS = 16
MAX_RETRIES = 100
_MAX_KEPT = 256
"""Signatures, and prepared heads of requests, that are kept."""
_ADDRESS = re.compile(r"http://(?:\[([0-9A-Fa-f:.]+)\]|([^/:@\[\]]+)):(\d{1,5})/?|unix://(/[^\0]+)")
_PLAIN_NAME = re.compile(r"[A-Za-z0-9._-]+")


class _Known(msgspec.Struct, kw_only=True):
    """A signature, and the heads of requests that were prepared for it."""

    metadata: Metadata
    heads: dict[Any, bytes] = msgspec.field(default_factory=dict)


class Client:
    """Calls to the agent at `url`, "http://HOST:PORT" or "unix:///PATH".

    `timeout_s` bounds every call, its retries included. `retries` is how often a call that the agent had no room
    for is made again, each time after the wait that the agent asked for; a call whose answer was lost never is.
    """

    def __init__(self, url: str, *, timeout_s: float = DEFAULT_TIMEOUT_S, retries: int = 0) -> None:
        match = _ADDRESS.fullmatch(url)
        if not match or (match[3] and not 0 < int(match[3]) <= 65_535):
            raise ConfigError(f"{url!r} is not http://HOST:PORT or unix:///PATH, for example http://127.0.0.1:8080")
        if not timeout_s > 0 or not 0 <= retries <= MAX_RETRIES:
            raise ConfigError(f"timeout_s must be above 0 and retries from 0 to {MAX_RETRIES}")
        self._timeout_s, self._retries = timeout_s, retries
        host = match[1] or match[2]
        address = (host, int(match[3])) if host else match[4]
        self._host = f"[{host}]:{match[3]}" if match[1] else f"{host}:{match[3]}" if host else "localhost"
        self._pool = Pool(address, name=url, max_connections=MAX_CONNECTIONS)
        self._known: dict[tuple[str, str | None], _Known] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the connections. Calls under way end as they would."""
        self._pool.close()

    def infer(
        self,
        model: str,
        inputs: Mapping[str, ArrayLike] | ArrayLike,
        *,
        version: str | None = None,
        key: str | None = None,
        priority: int = 0,
        timeout_s: float | None = None,
    ) -> ClientPrediction:
        """Run `inputs`, by name or bare for a model with a single one, through `model`.

        `key` always meets the same arm; `version` asks for one; the higher `priority` (-100 to 100) runs first.
        `timeout_s` also lets the agent take the call from its queue, or cancel it, when that is over. Raises
        UnknownModelError, InvalidInputError, InferenceError, OverloadedError, MemoryBudgetError,
        DeadlineExceededError and NetworkError.
        """
        if not -100 <= priority <= 100:
            raise InvalidInputError(f"priority is {priority}: use -100 to 100")
        if timeout_s is not None and not timeout_s > 0:
            raise DeadlineExceededError(f"timeout_s is {timeout_s}: there is no time to answer")
        deadline = time.monotonic() + (self._timeout_s if timeout_s is None else timeout_s)
        call = (model, version, key, priority, timeout_s)
        kept = self._known.get((model, version))
        try:
            return self._infer(call, inputs, kept or self._ask_metadata(model, version, deadline), deadline)
        except InvalidInputError:
            if kept is None:
                raise
            fresh = self._ask_metadata(model, version, deadline)
            if fresh.metadata == kept.metadata:
                raise
        return self._infer(call, inputs, fresh, deadline)  # refused before it ran, for a signature of another time

    def report_outcome(
        self,
        prediction_id: str,
        *,
        label: int | str | None = None,
        value: float | None = None,
        correct: bool | None = None,
    ) -> None:
        """Tell the truth about an earlier prediction: exactly one of `label`, `value` and `correct`.

        Raises UnknownPredictionError, InvalidInputError and NetworkError.
        """
        truth = {"label": label, "value": value, "correct": correct}
        outcome = {"id": prediction_id, **{name: given for name, given in truth.items() if given is not None}}
        answer = self._ask("POST", "/outcomes", body=msgspec.json.encode(outcome))
        if answer.status == 404:
            raise UnknownPredictionError(reason_of(answer))
        require_success(answer)

    def models(self) -> list[ServedModel]:
        """Every model and arm that answers. Raises NetworkError."""
        return decoded(require_success(self._ask("GET", "/models")), Models).models

    def health(self) -> AgentHealth:
        """Whether the agent is ready. Raises NetworkError when there is none."""
        answer = self._ask("GET", "/health")
        return decoded(answer if answer.status == 503 else require_success(answer), AgentHealth)

    def metadata(self, model: str, *, version: str | None = None) -> Metadata:
        """The signature of `model` now. Raises UnknownModelError and NetworkError."""
        return self._ask_metadata(model, version, time.monotonic() + self._timeout_s).metadata

    def _ask_metadata(self, model: str, version: str | None, deadline: float) -> _Known:
        answer = self._ask("GET", _model_path(model, version), deadline=deadline)
        known = _Known(metadata=decoded(require_success(answer), Metadata))
        if len(self._known) >= _MAX_KEPT:
            self._known.clear()
        self._known[model, version] = known
        return known

    def _infer(
        self,
        call: tuple[str, str | None, str | None, int, float | None],
        inputs: Mapping[str, ArrayLike] | ArrayLike,
        known: _Known,
        deadline: float,
    ) -> ClientPrediction:
        metadata = known.metadata
        arrays = _arrays(inputs, metadata)
        contents = [to_bytes(tensor.datatype, array) for tensor, array in zip(metadata.inputs, arrays, strict=True)]
        shape = tuple((array.shape, len(content)) for array, content in zip(arrays, contents, strict=True))
        head = known.heads.get((call, shape))
        if head is None:
            head = self._head(call, metadata, arrays, contents)
            if len(known.heads) >= _MAX_KEPT:
                known.heads.clear()
            known.heads[call, shape] = head
        answer = self._retried([head, *contents], deadline=deadline, is_safe=False)
        return prediction_of(require_success(answer))

    def _head(
        self,
        call: tuple[str, str | None, str | None, int, float | None],
        metadata: Metadata,
        arrays: list[NDArray[Any]],
        contents: list[bytes | memoryview],
    ) -> bytes:
        """The request up to the tensors' bytes: the same for every call of the same shapes."""
        model, version, key, priority, timeout_s = call
        parameters: dict[str, Any] = {"binary_data_output": True, "prediction_id": True}
        if priority:
            parameters["priority"] = 101 - priority  # the protocol's counts downwards from 1
        if timeout_s is not None:
            parameters["timeout"] = max(1, round(timeout_s * 1e6))
        if key is not None:
            parameters["key"] = key
        tensors = [
            {
                "name": tensor.name,
                "shape": array.shape,
                "datatype": tensor.datatype,
                "parameters": {"binary_data_size": len(content)},
            }
            for tensor, array, content in zip(metadata.inputs, arrays, contents, strict=True)
        ]
        text = msgspec.json.encode({"inputs": tensors, "parameters": parameters})
        size_bytes = len(text) + sum(map(len, contents))
        return (
            f"POST {_model_path(model, version)}/infer HTTP/1.1\r\nHost: {self._host}\r\n"
            f"Content-Type: application/octet-stream\r\nInference-Header-Content-Length: {len(text)}\r\n"
            f"Content-Length: {size_bytes}\r\n\r\n"
        ).encode() + text

    def _ask(self, method: str, path: str, *, body: bytes = b"", deadline: float | None = None) -> Answer:
        about = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n" if body else ""
        head = f"{method} {path} HTTP/1.1\r\nHost: {self._host}\r\n{about}\r\n".encode()
        deadline = deadline or time.monotonic() + self._timeout_s
        return self._retried([head + body], deadline=deadline, is_safe=method == "GET")

    def _retried(self, pieces: list[bytes | memoryview], *, deadline: float, is_safe: bool) -> Answer:
        """The answer; after waiting, the next one, while the agent has no room and says when to come again."""
        for attempt in range(self._retries + 1):
            left = deadline - time.monotonic()
            if left <= 0:
                raise DeadlineExceededError("the time of this call is over")
            answer = self._pool.exchange(pieces, timeout_s=left, is_safe=is_safe)
            wait_s = retry_after_s(answer)
            if wait_s is None or attempt == self._retries or time.monotonic() + wait_s >= deadline:
                break
            time.sleep(wait_s)
        return answer


def _arrays(inputs: Mapping[str, ArrayLike] | ArrayLike, metadata: Metadata) -> list[NDArray[Any]]:
    """The arrays in the order of the model's inputs, in its types. Raises InvalidInputError."""
    wanted = ", ".join(tensor.name for tensor in metadata.inputs)
    if not isinstance(inputs, Mapping):
        if len(metadata.inputs) != 1:
            raise InvalidInputError(f"{metadata.name} has several inputs: name each of {wanted}")
        return [as_datatype(metadata.inputs[0].name, metadata.inputs[0].datatype, inputs)]
    if len(inputs) != len(metadata.inputs) or any(tensor.name not in inputs for tensor in metadata.inputs):
        raise InvalidInputError(f"{metadata.name} takes {wanted}, not {', '.join(map(str, inputs)) or 'nothing'}")
    return [as_datatype(tensor.name, tensor.datatype, inputs[tensor.name]) for tensor in metadata.inputs]


def _model_path(model: str, version: str | None) -> str:
    path = f"/v2/models/{_quoted(model)}"
    return path if version is None else f"{path}/versions/{_quoted(version)}"


def _quoted(name: str) -> str:
    if _PLAIN_NAME.fullmatch(name):
        return name
    return "".join(chr(byte) if chr(byte).isalnum() and byte < 128 else f"%{byte:02X}" for byte in name.encode())
