"""H0: the agent's own event loop beside the HTTP stacks it could use instead, around one and the same handler.

The handler decodes the JSON of a keyword utterance, runs the model (one thread) and encodes the scores; it runs on
the loop's thread everywhere. One process per stack (granian: two), all in one environment of their own; they stay up
side by side and only one has work at a time. Rounds of `wrk` alternate between the stacks, 1 and then 16 connections;
medians. Memory is PSS after the load. The import is what the stack costs a process that has onnxruntime and the
local API's routes already. The agent's loop keeps every limit and deadline of the local API meanwhile; the bare
protocols keep none.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.environments import environment
from benchmarks.load import LoadFigures, Request, read_answer, require_wrk, wrk
from benchmarks.peers.running import EXPECTED_CLASS, Running, model_folder
from benchmarks.result import Result
from benchmarks.stacks.serve import IMPORTS, STACKS
from fleet_server.demo.processes import ChildProcess, accepts, free_port, wait_until

ID = "H0"
TITLE = "own event loop p50 / best other HTTP stack p50, JSON, kws model, 1 client"
TARGET = 1.15
"""As fast as the best, within what one round differs from the next: the reason for it is memory and start time."""
OURS = "reactor"
ROUNDS = 5
ROUND_S = 2
CONNECTIONS = (1, 16)
IMPORT_ROUNDS = 9
_START_TIMEOUT_S = 60.0
_ROOT = Path(__file__).parent.parent


def run() -> Result:
    """Start every stack, take turns, end them."""
    require_wrk()
    python = environment("http-stacks", _ROOT / "benchmarks" / "stacks" / "requirements.txt")
    heard = np.load(model_folder() / "kws_inputs.npy").astype(np.float32).reshape(1, 49, 10, 1)
    request = Request(path="/predict", body=json.dumps({"inputs": {"input_1": heard.tolist()}}).encode())
    loads: dict[tuple[str, int], list[LoadFigures]] = {}
    with ExitStack() as opened:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="edgefleet-h0-")))
        servers = {stack: _start(stack, python, request, folder, opened) for stack in STACKS}
        for _ in range(ROUNDS):
            for stack, server in servers.items():
                for connections in CONNECTIONS:
                    figures = wrk(server.port, request, connections=connections, duration_s=ROUND_S, folder=folder)
                    loads.setdefault((stack, connections), []).append(figures)
        memory = {stack: server.memory() for stack, server in servers.items()}
    imports = _import_ms(python)
    table = {stack: _row(stack, loads, memory[stack], imports[stack]) for stack in STACKS}
    ours = table[OURS]["1"]["p50_us"]
    ratio = round(ours / min(row["1"]["p50_us"] for stack, row in table.items() if stack != OURS), 3)
    return Result(id=ID, title=TITLE, ratio=ratio, target=f"<= {TARGET}", holds=ratio <= TARGET, figures=table)


def _start(stack: str, python: Path, request: Request, folder: Path, opened: ExitStack) -> Running:
    port, began = free_port(), time.monotonic()
    command: list[str | Path] = [python, "-m", "benchmarks.stacks.serve", stack, str(port)]
    process = ChildProcess(stack, command, folder=folder, environment=_environment())
    opened.callback(process.stop)
    wait_until(lambda: accepts(port), timeout_s=_START_TIMEOUT_S, what=f"the start of {stack}")
    _check(port, request)
    start_s = round(time.monotonic() - began, 2)
    return Running(port=port, request=request, folder=folder, start_s=start_s, process=process)


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(_ROOT), "BENCH_MODEL": str(model_folder() / "kws.onnx")}


def _check(port: int, request: Request) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(request.raw(port))
        status, body = read_answer(connection)
    assert status == 200, body
    assert int(np.argmax(json.loads(body)["outputs"]["Identity"])) == EXPECTED_CLASS


def _row(stack: str, loads: dict[tuple[str, int], list[LoadFigures]], memory: Any, import_ms: float) -> dict[str, Any]:
    row: dict[str, Any] = {"import_ms": import_ms, **memory}
    for connections in CONNECTIONS:
        taken = loads[stack, connections]
        row[str(connections)] = {
            "p50_us": round(median(load.p50_us for load in taken), 1),
            "p99_us": round(median(load.p99_us for load in taken), 1),
            "requests_per_s": round(median(load.requests_per_s for load in taken)),
            "failures": sum(load.failures for load in taken),
        }
    return row


def _import_ms(python: Path) -> dict[str, float]:
    """The median time that each stack's modules take to import after onnxruntime."""
    program = (
        "import onnxruntime, time, edge_agent.local_api.routes; began = time.perf_counter(); import {}; "
        "print(time.perf_counter() - began)"
    )
    times: dict[str, list[float]] = {stack: [] for stack in STACKS}
    with tempfile.TemporaryDirectory(prefix="edgefleet-h0-bytecode-") as bytecode:
        environment_ = {name: value for name, value in _environment().items() if name != "PYTHONDONTWRITEBYTECODE"}
        environment_["PYTHONPYCACHEPREFIX"] = bytecode
        for turn in range(IMPORT_ROUNDS + 1):
            for stack, modules in IMPORTS.items():
                said = subprocess.run(
                    [python, "-c", program.format(modules)],
                    env=environment_,
                    check=True,
                    capture_output=True,
                    text=True,
                )
                if turn:  # the first one compiles
                    times[stack].append(float(said.stdout) * 1000)
    return {stack: round(median(ms), 1) for stack, ms in times.items()}
