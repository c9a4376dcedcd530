"""The client beside the real local API: over TCP and a Unix socket, under load, and when things break."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto

from edge_agent import Client
from edge_agent.errors import (
    AgentError,
    ConfigError,
    DeadlineExceededError,
    InferenceError,
    InvalidInputError,
    MemoryBudgetError,
    NetworkError,
    OverloadedError,
    UnknownModelError,
    UnknownPredictionError,
)
from edge_agent.local_api.limits import Timeouts
from edge_agent.local_api.server import LocalApi
from tests.agent.local_api.small_service import SmallService, wait_until
from tests.agent.runtime import onnx_files

DEADLINE_S = 20.0


@pytest.fixture
def service(tmp_path: Path) -> SmallService:
    return SmallService({"linear": onnx_files.linear(tmp_path / "linear.onnx")}, labels=("no", "yes"))


@pytest.fixture(params=["tcp", "unix"])
def url(request: pytest.FixtureRequest, service: SmallService, tmp_path: Path) -> Iterator[str]:
    path = tmp_path / "agent.sock"
    with LocalApi(service=service, host="127.0.0.1", port=0, socket_path=path) as api:
        yield f"http://127.0.0.1:{api.port}" if request.param == "tcp" else f"unix://{path}"


@contextmanager
def api_over(service: SmallService, *, idle_s: float = 75.0) -> Iterator[str]:
    with LocalApi(service=service, host="127.0.0.1", port=0, timeouts=Timeouts(idle_s=idle_s, spare_s=0.1)) as api:
        yield f"http://127.0.0.1:{api.port}"


def test_arrays_go_in_and_come_out_and_the_outcome_follows(url: str, service: SmallService) -> None:
    with Client(url) as client:
        prediction = client.infer("linear", {"x": np.array([[1, 2, 3]], dtype=np.float32)})
        client.report_outcome(prediction.id, label="yes")

    np.testing.assert_array_equal(prediction.outputs["scores"], [[0.0, 12.0]])
    assert (prediction.model, prediction.version) == ("linear", "1.0.0")
    assert prediction.outputs["scores"].flags.writeable
    assert [given for given, _ in service.outcomes] == [prediction.id]


@pytest.mark.parametrize(
    "x",
    [
        [[1, 2, 3]],
        np.array([[1, 2, 3]]),
        np.array([[1.0, 2.0, 3.0]]),
        np.array([[1, 2, 3]], dtype=">f4"),
        np.array([[1], [2], [3]], dtype=np.float32).T,
        np.array([[1, 0, 2, 0, 3]], dtype=np.float32)[:, ::2],
    ],
    ids=["list", "int64", "float64", "big endian", "transposed", "strided"],
)
def test_a_bare_array_of_any_kind_finds_its_input_and_type(url: str, x: object) -> None:
    with Client(url) as client:
        assert client.infer("linear", x).outputs["scores"].tolist() == [[0.0, 12.0]]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("element", "values"),
    [
        (TensorProto.BOOL, np.array([True, False])),
        (TensorProto.INT8, np.array([-128, 127], dtype=np.int8)),
        (TensorProto.UINT64, np.array([0, 2**64 - 1], dtype=np.uint64)),
        (TensorProto.FLOAT16, np.array([0.5, -2], dtype=np.float16)),
        (TensorProto.DOUBLE, np.array([np.nan, np.inf])),
        (TensorProto.STRING, np.array(["grün", ""], dtype=object)),
    ],
)
def test_every_element_type_travels_unchanged(tmp_path: Path, element: int, values: np.ndarray) -> None:
    service = SmallService({"same": onnx_files.identity(tmp_path / "same.onnx", element, ["n"])})
    with api_over(service) as url, Client(url) as client:
        answer = client.infer("same", values).outputs["y"]

    assert answer.dtype == values.dtype
    np.testing.assert_array_equal(answer, values)


def test_a_large_tensor_travels_whole(tmp_path: Path) -> None:
    service = SmallService({"same": onnx_files.identity(tmp_path / "same.onnx", TensorProto.FLOAT, ["n"])})
    values = np.random.default_rng(0).normal(size=2_000_000).astype(np.float32)
    with api_over(service) as url, Client(url) as client:
        np.testing.assert_array_equal(client.infer("same", values).outputs["y"], values)


def test_several_inputs_are_told_apart_by_name_in_any_order(tmp_path: Path) -> None:
    service = SmallService({"sum": onnx_files.two_inputs(tmp_path / "sum.onnx")})
    with api_over(service) as url, Client(url) as client:
        assert client.infer("sum", {"b": [10, 20], "a": [1, 2]}).outputs["total"].tolist() == [11.0, 22.0]
        with pytest.raises(InvalidInputError, match="several inputs"):
            client.infer("sum", [1.0])
        with pytest.raises(InvalidInputError, match="takes a, b"):
            client.infer("sum", {"a": [1.0]})


@pytest.mark.parametrize("x", [[[1, 2]], [["a", "b", "c"]], [[1], [2, 3]], [[1e39, 0, 0]], None, [[True, False, True]]])
def test_inputs_that_do_not_fit_are_the_callers_error(url: str, x: object) -> None:
    with Client(url) as client, pytest.raises(InvalidInputError):
        client.infer("linear", {"x": x})  # type: ignore[dict-item]


def test_what_is_not_there_is_told(url: str) -> None:
    with Client(url) as client:
        with pytest.raises(UnknownModelError, match="other"):
            client.infer("other", [[1, 2, 3]])
        with pytest.raises(UnknownModelError):
            client.infer("a/b c?", [[1, 2, 3]])
        with pytest.raises(UnknownModelError):
            client.infer("linear", [[1, 2, 3]], version="9.9.9")
        with pytest.raises(UnknownPredictionError):
            client.report_outcome("foreign", correct=True)
        with pytest.raises(InvalidInputError):
            client.report_outcome("p1")


@pytest.mark.parametrize(
    "fault",
    [
        InferenceError("it failed"),
        OverloadedError("full", retry_after_s=3.0),
        MemoryBudgetError("too large"),
        DeadlineExceededError("too late"),
        InvalidInputError("no"),
    ],
)
def test_an_error_in_the_agent_is_the_same_error_here(service: SmallService, fault: AgentError) -> None:
    with api_over(service) as url, Client(url) as client:
        service.fault = fault
        with pytest.raises(type(fault)) as caught:
            client.infer("linear", [[1, 2, 3]])

        if isinstance(fault, OverloadedError):
            assert isinstance(caught.value, OverloadedError)
            assert caught.value.retry_after_s == 3.0
        service.fault = None
        assert client.infer("linear", [[1, 2, 3]]).outputs


def test_models_health_and_metadata_are_answered(url: str) -> None:
    with Client(url) as client:
        assert client.health().ready
        assert [(model.name, model.labels) for model in client.models()] == [("linear", ["no", "yes"])]
        metadata = client.metadata("linear")

    assert [(tensor.name, tensor.datatype, tensor.shape) for tensor in metadata.inputs] == [("x", "FP32", [-1, 3])]


def test_options_of_a_call_reach_the_agent(service: SmallService) -> None:
    with api_over(service) as url, Client(url) as client:
        client.infer("linear", [[1, 2, 3]], key="user-7", priority=5, version="1.0.0", timeout_s=2.5)
        given = service.calls[-1]
        client.infer("linear", [[1, 2, 3]], priority=-100)

    assert (given.key, given.priority, given.version, given.timeout_s) == ("user-7", 5, "1.0.0", 2.5)
    assert service.calls[-1].priority == -100


def test_many_threads_each_get_their_own_answer(url: str) -> None:
    def ask(number: int) -> bool:
        return bool(client.infer("linear", [[number, 0, 0]]).outputs["scores"][0, 1] == 2.0 * number)

    with Client(url) as client, ThreadPoolExecutor(24) as pool:
        assert all(pool.map(ask, range(400)))


def test_one_connection_serves_many_calls() -> None:
    seen = 0

    def answer(connection: socket.socket) -> None:
        nonlocal seen
        seen += 1
        while connection.recv(65_536):
            connection.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 27\r\n\r\n{"ready":true,"reasons":[]}')

    with stub(answer) as url, Client(url) as client:
        for _ in range(5):
            assert client.health().ready
    assert seen == 1


def test_a_connection_that_the_agent_closed_is_replaced_without_an_error(service: SmallService) -> None:
    with api_over(service, idle_s=0.3) as url, Client(url) as client:
        client.infer("linear", [[1, 2, 3]])
        idle = client._pool._idle[0]
        wait_until(lambda: not idle.is_open())
        calls = service.running

        assert client.infer("linear", [[1, 2, 3]]).outputs
        assert service.running == calls + 1


@contextmanager
def stub(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server that lets `answer` deal with each connection, for answers that no real agent gives."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                answer(connection)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(DEADLINE_S)


META = json.dumps({"name": "m", "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1]}], "outputs": []}).encode()


def http(body: bytes, *, status: str = "200 OK", more: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\n{more}Content-Length: {len(body)}\r\n\r\n".encode() + body


def test_a_call_whose_answer_was_lost_is_not_made_again() -> None:
    asked: list[bytes] = []

    def answer(connection: socket.socket) -> None:
        while content := connection.recv(65_536):
            asked.append(content.split(b" ", 1)[0])
            if content.startswith(b"POST"):
                return  # it was read, and perhaps it ran
            connection.sendall(http(META))

    with stub(answer) as url, Client(url, retries=3) as client, pytest.raises(NetworkError):
        client.infer("m", [1.0])

    assert asked == [b"GET", b"POST"]


def test_a_question_that_changes_nothing_is_asked_again_when_the_kept_connection_dies() -> None:
    asked = 0

    def answer(connection: socket.socket) -> None:
        nonlocal asked
        connection.recv(65_536)
        connection.sendall(http(b'{"ready":true}'))
        if connection.recv(65_536):
            asked += 1

    with stub(answer) as url, Client(url) as client:
        assert client.health().ready
        assert client.health().ready
    assert asked == 1


def test_an_overloaded_agent_is_asked_again_after_the_time_it_says_and_only_when_told_to() -> None:
    times: list[float] = []

    def answer(connection: socket.socket) -> None:
        while connection.recv(65_536):
            times.append(time.monotonic())
            if len(times) % 3:
                connection.sendall(http(b'{"error":"full"}', status="503 Busy", more="Retry-After: 0.2\r\n"))
            else:
                connection.sendall(http(b'{"models":[]}'))

    with stub(answer) as url, Client(url, retries=2) as client:
        assert client.models() == []
    assert len(times) == 3
    assert times[2] - times[0] >= 0.4

    with stub(answer) as url, Client(url) as client, pytest.raises(OverloadedError):
        client.models()


@pytest.mark.parametrize(
    "content",
    [
        b"SSH-2.0-OpenSSH\r\n",
        http(b"hello"),
        http(b'{"inputs": 5}'),
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort",
        b"",
    ],
)
def test_what_is_no_agent_is_a_network_error(content: bytes) -> None:
    def answer(connection: socket.socket) -> None:
        connection.recv(65_536)
        connection.sendall(content)

    with stub(answer) as url, Client(url) as client, pytest.raises(NetworkError):
        client.metadata("m")


@pytest.mark.parametrize(
    "body",
    [
        b'{"model_name":"m","outputs":[{"name":"y","datatype":"FP32","shape":[9],"parameters":{"binary_data_size":8}}]}',
        b'{"model_name":"m","outputs":[{"name":"y","datatype":"FP9","shape":[2],"parameters":{"binary_data_size":8}}]}',
        b'{"outputs":[]}',
        b"[",
    ],
)
def test_an_answer_that_contradicts_itself_is_refused(body: bytes) -> None:
    def answer(connection: socket.socket) -> None:
        while content := connection.recv(65_536):
            length = f"Inference-Header-Content-Length: {len(body)}\r\n"
            connection.sendall(http(META) if content.startswith(b"GET") else http(body + b"\0" * 8, more=length))

    with stub(answer) as url, Client(url) as client, pytest.raises(NetworkError, match="protocol"):
        client.infer("m", [1.0])


def test_a_silent_agent_ends_in_the_deadline(service: SmallService) -> None:
    with api_over(service) as url, Client(url, timeout_s=0.3) as client:
        client.metadata("linear")
        service.gate = threading.Event()
        start = time.monotonic()
        with pytest.raises(DeadlineExceededError):
            client.infer("linear", [[1, 2, 3]])
        took_s = time.monotonic() - start
        service.gate.set()

        assert took_s < 2.0
        assert client.infer("linear", [[1, 2, 3]]).outputs["scores"].tolist() == [[0.0, 12.0]]


def test_a_model_with_another_signature_is_met_with_it(service: SmallService, tmp_path: Path) -> None:
    with api_over(service) as url, Client(url) as client:
        client.infer("linear", [[1, 2, 3]])
        service.paths["linear"] = onnx_files.identity(tmp_path / "wide.onnx", TensorProto.DOUBLE, ["n", 4])
        service.load_model("linear")

        assert client.infer("linear", [[1, 2, 3, 4]]).outputs["y"].tolist() == [[1.0, 2.0, 3.0, 4.0]]
        with pytest.raises(InvalidInputError):
            client.infer("linear", [[1, 2, 3]])


def test_without_an_agent_it_is_a_network_error(tmp_path: Path) -> None:
    with Client(f"unix://{tmp_path}/none.sock") as client, pytest.raises(NetworkError, match=r"none\.sock"):
        client.health()
    with Client("http://127.0.0.1:9") as client, pytest.raises(NetworkError):
        client.health()


def test_a_closed_client_says_so(url: str) -> None:
    client = Client(url)
    client.close()
    with pytest.raises(NetworkError, match="closed"):
        client.health()


@pytest.mark.parametrize(
    "url", ["", "127.0.0.1:80", "https://h:1", "http://h", "http://h:0", "http://h:99999", "unix://x"]
)
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ConfigError):
        Client(url)


def test_the_client_loads_no_runtime() -> None:
    script = (
        "import sys, numpy; before = set(sys.modules)\n"
        "from edge_agent import Client; Client('http://127.0.0.1:1')\n"
        "print(sorted({name.partition('.')[0] for name in set(sys.modules) - before}))"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=60
    ).stdout

    assert "edge_agent" in loaded
    for heavy in ("onnxruntime", "paho", "nacl", "psutil", "asyncio", "ssl", "sqlite3", "fleet_protocol"):
        assert f"'{heavy}'" not in loaded
