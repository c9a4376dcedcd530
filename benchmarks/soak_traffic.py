"""The kinds of clients of the soak: each a function that makes one exchange with the agent and checks the answer."""

from __future__ import annotations

import json
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.load import SOCKET_TIMEOUT_S, read_answer
from benchmarks.peers.running import EXPECTED_CLASS, Running, model_folder
from fleet_server.errors import UnavailableError

MODELS = ("kws", "ad", "ic")
MAX_PENDING_OUTCOMES = 1000
BATCH_ITEMS = 8
SLOW_PIECES, SLOW_PAUSE_S = 20, 0.1


class UnexpectedAnswerError(Exception):
    """An answer that is not what this request must get."""


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """One kind of client: `step` makes one exchange and raises when the answer is wrong; then it pauses."""

    name: str
    pause_s: float
    step: Callable[[int], None]


class Connection:
    """A kept-alive connection that is made again after an error."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._socket: socket.socket | None = None

    def ask(self, method: str, path: str, body: bytes, **headers: str) -> tuple[int, bytes]:
        """The status and the body of the answer."""
        if self._socket is None:
            self._socket = open_socket(self._port)
        try:
            self._socket.sendall(request_bytes(method, path, body, headers))
            return read_answer(self._socket)
        except (OSError, UnavailableError):
            self.close()
            raise

    def ask_json(self, path: str, value: Any) -> Any:
        """The decoded answer to a JSON body. Raises UnexpectedAnswerError when it is not a 200."""
        status, body = self.ask("POST", path, json.dumps(value).encode())
        expect(status, 200, body)
        return json.loads(body)

    def close(self) -> None:
        """Close it; the next request opens another."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def open_socket(port: int) -> socket.socket:
    """A connection to the agent that sends at once."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=SOCKET_TIMEOUT_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def request_bytes(method: str, path: str, body: bytes, headers: Mapping[str, str]) -> bytes:
    """A request in HTTP/1.1; an underscore in a header's name stands for its hyphen."""
    lines = {"Host": "127.0.0.1", "Content-Type": "application/json", "Content-Length": str(len(body))}
    lines |= {name.replace("_", "-"): value for name, value in headers.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + body


def expect(status: int, wanted: int, body: bytes) -> None:
    """Raise UnexpectedAnswerError unless the status is the wanted one."""
    if status != wanted:
        raise UnexpectedAnswerError(f"{status} instead of {wanted}: {body[:200]!r}")


def expect_class(scores: Any) -> None:
    """Raise UnexpectedAnswerError unless the real utterance was recognised."""
    if int(np.argmax(scores)) != EXPECTED_CLASS:
        raise UnexpectedAnswerError(f"the wrong class: {scores}")


def kinds_of_traffic(server: Running) -> list[Traffic]:
    """Every kind, each with connections of its own."""
    image = np.load(model_folder() / "kws_inputs.npy").astype(np.float32).reshape(1, 49, 10, 1)
    frames = np.load(model_folder() / "ad_inputs.npy").astype(np.float32).reshape(-1, 640)
    pending: deque[str] = deque(maxlen=MAX_PENDING_OUTCOMES)
    return [
        Traffic(name="predict", pause_s=0.005, step=_predict(server, image, pending)),
        Traffic(name="predict again", pause_s=0.005, step=_predict(server, image, pending)),
        Traffic(name="batch", pause_s=0.02, step=_batch(server, image)),
        Traffic(name="oip json", pause_s=0.005, step=_oip_json(server)),
        Traffic(name="oip binary", pause_s=0.005, step=_oip_binary(server, frames)),
        Traffic(name="outcomes", pause_s=0.003, step=_outcome(server, pending)),
        Traffic(name="bad requests", pause_s=0.02, step=_bad_requests(server, image)),
        Traffic(name="slow clients", pause_s=0.1, step=_slow_clients(server)),
        Traffic(name="load and unload", pause_s=0.5, step=_load_and_unload(server)),
        Traffic(name="reads", pause_s=0.1, step=_reads(server)),
    ]


def _predict(server: Running, image: NDArray[np.float32], pending: deque[str]) -> Callable[[int], None]:
    connection, body = Connection(server.port), {"model": "kws", "inputs": {"input_1": image.tolist()}}

    def step(_: int) -> None:
        answer = connection.ask_json("/predict", body)
        expect_class(answer["outputs"]["Identity"][0])
        pending.append(answer["id"])

    return step


def _batch(server: Running, image: NDArray[np.float32]) -> Callable[[int], None]:
    connection, body = Connection(server.port), {"model": "kws", "inputs": [image.tolist()] * BATCH_ITEMS}

    def step(_: int) -> None:
        predictions = connection.ask_json("/batch", body)["predictions"]
        if len(predictions) != BATCH_ITEMS:
            raise UnexpectedAnswerError(f"{len(predictions)} predictions for {BATCH_ITEMS} items")
        for prediction in predictions:
            expect_class(prediction["outputs"]["Identity"][0])

    return step


def _oip_json(server: Running) -> Callable[[int], None]:
    connection = Connection(server.port)

    def step(_: int) -> None:
        status, body = connection.ask("POST", server.request.path, server.request.body)
        expect(status, 200, body)
        expect_class(json.loads(body)["outputs"][0]["data"])

    return step


def _oip_binary(server: Running, frames: NDArray[np.float32]) -> Callable[[int], None]:
    connection, values = Connection(server.port), frames[:1]
    tensor = {
        "name": "input_1",
        "shape": list(values.shape),
        "datatype": "FP32",
        "parameters": {"binary_data_size": values.nbytes},
    }
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()

    def step(_: int) -> None:
        status, body = connection.ask(
            "POST", "/v2/models/ad/infer", head + values.tobytes(),
            Content_Type="application/octet-stream", Inference_Header_Content_Length=str(len(head)),
        )  # fmt: skip
        expect(status, 200, body)
        answer = np.frombuffer(body[-values.nbytes :], dtype=np.float32)
        if len(answer) != values.size or not np.isfinite(answer).all():
            raise UnexpectedAnswerError(f"{len(answer)} values, or not all finite")

    return step


def _outcome(server: Running, pending: deque[str]) -> Callable[[int], None]:
    connection = Connection(server.port)

    def step(_: int) -> None:
        if pending:
            answer = connection.ask_json("/outcomes", {"id": pending.popleft(), "correct": True})
            if answer != {"accepted": 1, "rejected": []}:
                raise UnexpectedAnswerError(str(answer))

    return step


def _bad_requests(server: Running, image: NDArray[np.float32]) -> Callable[[int], None]:
    misshapen = {"model": "kws", "inputs": {"input_1": image.ravel()[:100].tolist()}}
    bad: tuple[tuple[int, str, str, bytes, dict[str, str]], ...] = (
        (400, "POST", "/predict", b'{"model": "kws", "inputs": ', {}),
        (400, "POST", "/predict", json.dumps(misshapen).encode(), {}),
        (404, "POST", "/predict", b'{"model": "nobody", "inputs": {"x": [1]}}', {}),
        (400, "POST", "/v2/models/kws/infer", b'{"inputs": []}', {}),
        (404, "POST", "/v2/models/nobody/infer", server.request.body, {}),
        (404, "GET", "/nowhere", b"", {}),
        (405, "PUT", "/predict", b"{}", {}),
        (413, "POST", "/predict", b"", {"Content_Length": str(2**40)}),
        (415, "POST", "/predict", b"<x/>", {"Content_Type": "application/xml"}),
    )

    def step(number: int) -> None:
        wanted, method, path, body, headers = bad[number % len(bad)]
        connection = Connection(server.port)
        try:
            status, answer = connection.ask(method, path, body, **headers)
            expect(status, wanted, answer)
            if "error" not in json.loads(answer):
                raise UnexpectedAnswerError(f"a {status} without a reason: {answer[:200]!r}")
        finally:
            connection.close()

    return step


def _slow_clients(server: Running) -> Callable[[int], None]:
    raw = server.request.raw(server.port)
    size = len(raw) // SLOW_PIECES + 1
    pieces = [raw[start : start + size] for start in range(0, len(raw), size)]

    def step(number: int) -> None:
        with open_socket(server.port) as connection:
            sent = pieces if number % 2 == 0 else pieces[: len(pieces) // 2]
            for piece in sent:
                connection.sendall(piece)
                time.sleep(SLOW_PAUSE_S)
            if sent is pieces:
                status, body = read_answer(connection)
                expect(status, 200, body)
            elif number % 4 == 1:
                # gone with a reset instead of a farewell
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    return step


def _load_and_unload(server: Running) -> Callable[[int], None]:
    connection = Connection(server.port)
    values = np.random.default_rng(7).integers(0, 256, (1, 32, 32, 3)).astype(np.float32)
    body = json.dumps(
        {"inputs": [{"name": "input_1", "shape": [1, 32, 32, 3], "datatype": "FP32", "data": values.ravel().tolist()}]}
    ).encode()

    def step(_: int) -> None:
        connection.ask_json("/v2/repository/models/ic/load", {})
        status, answer = connection.ask("POST", "/v2/models/ic/infer", body)
        expect(status, 200, answer)
        connection.ask_json("/v2/repository/models/ic/unload", {})
        status, answer = connection.ask("POST", "/v2/models/ic/infer", body)
        if status not in (400, 404, 503):
            raise UnexpectedAnswerError(f"an unloaded model answered {status}")

    return step


def _reads(server: Running) -> Callable[[int], None]:
    connection = Connection(server.port)
    paths = ("/metrics", "/health", "/models", "/v2/health/live", "/v2/models/kws", "/v2/models/kws/stats")

    def step(number: int) -> None:
        status, body = connection.ask("GET", paths[number % len(paths)], b"")
        expect(status, 200, body)

    return step
