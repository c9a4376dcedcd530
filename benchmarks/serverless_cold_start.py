"""Serverless: the first event of a fresh process, over a bare script that loads ONNX Runtime and runs once.

Both are processes of the same Python, in turns, medians, timed from their start until they have the answer: imports,
one session of the keyword model, one inference of the same input, bytecode compiled before. Ours answers an API
Gateway request in JSON. How a process ends does not count: a function's is kept.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.bytecode import environment_with_bytecode
from benchmarks.real_models import mlperf_tiny_file
from benchmarks.result import Result

ID = "serverless_cold_start"
TITLE = "serverless handler: process start to the first answer / a bare ONNX Runtime script, kws"
TARGET = 1.3
ROUNDS = 21

_BARE = """
import sys, numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
session.run(None, {"input_1": numpy.load(sys.argv[2])})
print("answered", flush=True)
"""
_OURS = """
import json, sys
from edge_agent.serverless import handler
with open(sys.argv[2]) as file:
    answer = handler(json.load(file), None)
assert answer["statusCode"] == 200, answer
print("answered", flush=True)
"""


def run() -> Result:
    """Start both in turns."""
    model = mlperf_tiny_file("kws.onnx")
    x = np.random.default_rng(0).normal(size=(1, 49, 10, 1)).astype(np.float32)
    body = json.dumps({"model": "kws", "inputs": {"input_1": x.tolist()}})
    event = {"version": "2.0", "rawPath": "/predict", "requestContext": {"http": {"method": "POST"}}, "body": body}
    times: dict[str, list[float]] = {"bare": [], "ours": []}
    with tempfile.TemporaryDirectory(prefix="edgefleet-cold-") as name:
        folder = Path(name)
        np.save(folder / "x.npy", x)
        (folder / "event.json").write_text(json.dumps(event))
        commands = {
            "bare": [sys.executable, "-c", _BARE, str(model), str(folder / "x.npy")],
            "ours": [sys.executable, "-c", _OURS, str(model), str(folder / "event.json")],
        }
        environment = {**environment_with_bytecode(folder), "EDGEFLEET_MODEL_KWS": str(model)}
        for turn in range(ROUNDS + 1):
            for kind in ("bare", "ours") if turn % 2 else ("ours", "bare"):
                took_s = _answer_s(commands[kind], environment)
                if turn:  # the first pair fills the page cache and compiles
                    times[kind].append(took_s)
    figures = {f"{kind}_ms": round(median(values) * 1000, 1) for kind, values in times.items()}
    ratio = round(median(times["ours"]) / median(times["bare"]), 3)
    return Result(id=ID, title=TITLE, ratio=ratio, target=f"<= {TARGET}", holds=ratio <= TARGET, figures=figures)


def _answer_s(command: list[str], environment: dict[str, str]) -> float:
    start = time.perf_counter()
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        took_s = time.perf_counter() - start
    if line != "answered\n" or process.returncode:
        raise RuntimeError(f"{command[2]} ended with {process.returncode} and said {line!r}")
    return took_s
