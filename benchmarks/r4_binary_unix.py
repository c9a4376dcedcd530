"""R4: an inference as binary tensors (Open Inference Protocol) over the Unix socket, over a bare `session.run`.

The client is one blocking socket: it makes the request's bytes from an array and reads the scores of the answer as
one. The bare session is in the client's process, one thread, the agent's own settings for a small model; while it
runs, the agent is idle, and the other way round. Turns of TURN calls alternate, CALLS of each in all, medians.
"""

from __future__ import annotations

import socket
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.running import EXPECTED_CLASS, model_folder
from benchmarks.result import Result
from fleet_server.demo.processes import ChildProcess, wait_until

ID = "R4"
TITLE = "binary inference over the Unix socket p50 / bare session.run p50, kws model"
TARGET = 2.5
CALLS = 10_000
TURN = 100
WARM_UPS = 500
_START_TIMEOUT_S = 30.0
_RECEIVE_BYTES = 65_536


def run() -> Result:
    """Start an agent on a socket and take turns."""
    model = model_folder() / "kws.onnx"
    heard = np.load(model_folder() / "kws_inputs.npy").astype(np.float32).reshape(1, 49, 10, 1)
    bare = bare_call(model, heard)
    with ExitStack() as opened:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="edgefleet-r4-")))
        path = folder / "api.sock"
        agent = ChildProcess(
            "agent",
            [sys.executable, "-m", "edge_agent", "run", "--model", f"kws={model}", "--socket", path],
            folder=folder,
        )
        opened.callback(agent.stop)
        wait_until(path.exists, timeout_s=_START_TIMEOUT_S, what="the agent's socket")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.connect(str(path))
            over_socket = socket_call(connection, heard)
            for call in (bare, over_socket):
                assert int(call().argmax()) == EXPECTED_CLASS
            _take_turns(bare, over_socket, WARM_UPS)
            bare_us, socket_us = _take_turns(bare, over_socket, CALLS)
        agent.require_running()
    ratio = round(float(np.median(socket_us) / np.median(bare_us)), 3)
    figures = {"bare_us": _percentiles(bare_us), "socket_us": _percentiles(socket_us), "calls": CALLS}
    return Result(id=ID, title=TITLE, ratio=ratio, target=f"<= {TARGET}", holds=ratio <= TARGET, figures=figures)


def bare_call(model: Path, inputs: NDArray[np.float32]) -> Callable[[], NDArray[np.float32]]:
    """One run of a bare session, and its scores."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"input_1": inputs})[0]


def socket_call(connection: socket.socket, inputs: NDArray[np.float32]) -> Callable[[], NDArray[np.float32]]:
    """One request on an open connection, and the scores of its answer."""
    described: dict[str, object] = {"name": "input_1", "shape": inputs.shape, "datatype": "FP32"}
    described["parameters"] = {"binary_data_size": inputs.nbytes}
    header = msgspec.json.encode({"inputs": [described], "parameters": {"binary_data_output": True}})
    head = (
        f"POST /v2/models/kws/infer HTTP/1.1\r\nHost: device\r\nContent-Type: application/octet-stream\r\n"
        f"Inference-Header-Content-Length: {len(header)}\r\nContent-Length: {len(header) + inputs.nbytes}\r\n\r\n"
    ).encode() + header

    def call() -> NDArray[np.float32]:
        connection.sendall(head + inputs.tobytes())
        answer = connection.recv(_RECEIVE_BYTES)
        while (end := answer.find(b"\r\n\r\n")) < 0 or len(answer) < end + 4 + _number(answer, b"\ncontent-length: "):
            part = connection.recv(_RECEIVE_BYTES)
            if not part:
                raise ConnectionError("the agent closed the connection")
            answer += part
        if not answer.startswith(b"HTTP/1.1 200 "):
            raise ConnectionError(answer[:300].decode("latin-1"))
        start = end + 4 + _number(answer, b"\ninference-header-content-length: ")
        return np.frombuffer(answer, np.float32, offset=start)

    return call


def _number(answer: bytes, name: bytes) -> int:
    start = answer.lower().index(name) + len(name)
    return int(answer[start : answer.index(b"\r", start)])


def _take_turns(
    first: Callable[[], object], second: Callable[[], object], calls: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    took_us: tuple[list[float], list[float]] = ([], [])
    for _ in range(calls // TURN):
        for call, taken in zip((first, second), took_us, strict=True):
            for _ in range(TURN):
                began = time.perf_counter_ns()
                call()
                taken.append((time.perf_counter_ns() - began) / 1000)
    return np.array(took_us[0]), np.array(took_us[1])


def _percentiles(values_us: NDArray[np.float64]) -> dict[str, float]:
    return {f"p{q}": round(float(np.percentile(values_us, q)), 1) for q in (50, 90, 99)}
