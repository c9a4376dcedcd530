"""R6: from the start of `edge-agent run` to the first prediction answered over HTTP, over a bare script's whole run.

The bare script imports onnxruntime, makes a session and runs it once; its time is that of the whole process. The
agent is started by the same interpreter with the same flags; its time ends with the answer to the first POST
/predict. Both find their bytecode compiled, as an installed package has it. Starts are interleaved, STARTS of each,
medians. Three agents are measured: with the model on the command line, which is the ratio; with a graph cache that
it must fill (cold); and with one that is full (warm).
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.bytecode import environment_with_bytecode
from benchmarks.peers.running import model_folder
from benchmarks.result import Result
from fleet_server.demo.processes import free_port

ID = "R6"
TITLE = "start of `edge-agent run` to the first HTTP prediction / a bare ONNX Runtime script, kws model"
TARGET = 1.3
STARTS = 15
WARM_UPS = 2
_DEADLINE_S = 30.0
_LOOK_S = 0.001

_BARE = """
import sys
import numpy
import onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
print(session.run(None, {"input_1": numpy.zeros((1, 49, 10, 1), numpy.float32)})[0].shape)
"""


def run() -> Result:
    """Start each in turn, STARTS times."""
    model = model_folder() / "kws.onnx"
    with tempfile.TemporaryDirectory(prefix="edgefleet-r6-") as name:
        folder = Path(name)
        bare = folder / "bare.py"
        bare.write_text(_BARE)
        environment = environment_with_bytecode(folder)
        starts: dict[str, Callable[[], float]] = {
            "bare": lambda: bare_s([sys.executable, bare, model], environment),
            "agent": lambda: agent_s(["--model", f"kws={model}"], environment),
            "agent_cold_cache": lambda: agent_s(["--config", _config(folder, model, keep_cache=False)], environment),
            "agent_warm_cache": lambda: agent_s(["--config", _config(folder, model, keep_cache=True)], environment),
        }
        times: dict[str, list[float]] = {name: [] for name in starts}
        for turn in range(WARM_UPS + STARTS):
            for case, start in starts.items():
                seconds = start()
                if turn >= WARM_UPS:
                    times[case].append(seconds * 1000)
    figures = {f"{name}_ms": {"median": round(median(ms), 1), "min": round(min(ms), 1)} for name, ms in times.items()}
    ratios = {name: round(median(ms) / median(times["bare"]), 3) for name, ms in times.items()}
    return Result(
        id=ID,
        title=TITLE,
        ratio=ratios["agent"],
        target=f"<= {TARGET}",
        holds=ratios["agent"] <= TARGET,
        figures={**figures, "ratios": ratios, "starts": STARTS},
    )


def bare_s(command: Sequence[str | Path], environment: Mapping[str, str]) -> float:
    """The wall time of a whole process, in seconds."""
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
    return time.perf_counter() - began


def agent_s(arguments: Sequence[str | Path], environment: Mapping[str, str]) -> float:
    """From the start of an agent to its first prediction over HTTP, in seconds."""
    port = free_port()
    began = time.perf_counter()
    agent = subprocess.Popen(
        [*_command(), "run", *arguments, "--http", f"127.0.0.1:{port}"], stderr=subprocess.DEVNULL, env=environment
    )
    try:
        _first_answer(port, agent)
        return time.perf_counter() - began
    finally:
        agent.terminate()
        agent.wait(_DEADLINE_S)


def _command() -> list[str | Path]:
    # the installed command, by the interpreter that runs the bare script: `-m` would import more
    installed = Path(sys.executable).with_name("edge-agent")
    return [sys.executable, installed] if installed.is_file() else [sys.executable, "-m", "edge_agent"]


def _first_answer(port: int, agent: subprocess.Popen[bytes]) -> None:
    body = json.dumps({"inputs": {"input_1": np.zeros((1, 49, 10, 1)).tolist()}}).encode()
    asked = b"POST /predict HTTP/1.1\r\nHost: d\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    deadline = time.perf_counter() + _DEADLINE_S
    while agent.poll() is None and time.perf_counter() < deadline:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1) as client:
            client.sendall(asked)
            if client.recv(4096).startswith(b"HTTP/1.1 200"):
                return
        time.sleep(_LOOK_S)
    raise RuntimeError(f"the agent did not answer on port {port}: exit status {agent.poll()}")


def _config(folder: Path, model: Path, *, keep_cache: bool) -> Path:
    cache = folder / ("warm" if keep_cache else "cold")
    if not keep_cache:
        shutil.rmtree(cache, ignore_errors=True)
    cache.mkdir(exist_ok=True)
    config = folder / f"{cache.name}.toml"
    config.write_text(
        f'[models.kws]\npath = "{model}"\n[runtime]\ncache_dir = "{cache}"\ntune = false\n', encoding="utf-8"
    )
    return config
