"""R10: rows per second of batch scoring, over those of a loop written by hand, from .npz to .npz.

By hand: numpy.load, session.run over slices of the best size into an array made beforehand, numpy.savez. Its batch
size and threads are the best of a sweep that is not counted; ours finds its own while it scores. Whole processes
(start, load, score, write) and the work alone in one process, in turns, medians; the outputs must agree. Ours also
checks the input's checksum, keeps a journal to resume from, and has the output on the disk when it ends: by hand
it is in the page cache. `ratio` is the least of the four.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from benchmarks.real_models import mlperf_tiny_file
from benchmarks.result import Result
from edge_agent.batch.engine import score_file
from edge_agent.batch.job import BatchJob

ID = "R10"
TITLE = "batch scoring, rows/s of ours / of a numpy loop by hand; ad and kws, whole processes and work alone"
TARGET = 0.95
ROUNDS = 7
SWEEP_SIZES = (1, 8, 16, 32, 64, 128, 256, 512, 1024)
SWEEP_ROWS = 8192
SWEEP_ROUNDS = 5
MODELS = (("ad", (640,), 200_000), ("kws", (49, 10, 1), 40_000))

_BY_HAND = """
import sys, numpy, onnxruntime
model, source, target, threads, batch = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = threads
session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
x = numpy.load(source)["input_1"]
out = numpy.empty((len(x), session.get_outputs()[0].shape[1]), numpy.float32)
for at in range(0, len(x), batch):
    out[at:at + batch] = session.run(None, {"input_1": x[at:at + batch]})[0]
numpy.savez(target, Identity=out)
"""


def run() -> Result:
    """Measure both models, in turns with the loop by hand."""
    figures: dict[str, Any] = {}
    ratios = []
    with tempfile.TemporaryDirectory(prefix="edgefleet-r10-") as name:
        folder = Path(name)
        for model_name, row_shape, rows in MODELS:
            model, source = mlperf_tiny_file(f"{model_name}.onnx"), folder / f"{model_name}.npz"
            x = np.random.default_rng(10).normal(size=(rows, *row_shape)).astype(np.float32)
            np.savez(source, input_1=x)
            threads, batch = _sweep(model, x[:SWEEP_ROWS])
            del x
            figures[model_name] = measured = _measure(
                model=model, source=source, folder=folder, rows=rows, threads=threads, batch=batch
            )
            ratios += [measured["process_ratio"], measured["work_ratio"]]
            source.unlink()
    ratio = min(ratios)
    return Result(id=ID, title=TITLE, ratio=ratio, target=f">= {TARGET}", holds=ratio >= TARGET, figures=figures)


def _sweep(model: Path, x: NDArray[np.float32]) -> tuple[int, int]:
    """The (threads, batch size) with which the loop by hand is quickest here: medians over rounds in turns."""
    sessions = {threads: _session(model, threads) for threads in {1, len(os.sched_getaffinity(0))}}
    times: dict[tuple[int, int], list[float]] = {(threads, size): [] for threads in sessions for size in SWEEP_SIZES}
    for _ in range(SWEEP_ROUNDS):
        for (threads, size), runs in times.items():
            part = x[: max(512, min(len(x), size * 8))]
            start = time.perf_counter()
            _loop(sessions[threads], part, size)
            runs.append((time.perf_counter() - start) / len(part))
    return min(times, key=lambda candidate: median(times[candidate]))


def _session(model: Path, threads: int) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    return ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def _loop(session: Any, x: NDArray[np.float32], batch: int) -> NDArray[np.float32]:
    out = np.empty((len(x), session.get_outputs()[0].shape[1]), np.float32)
    for at in range(0, len(x), batch):
        out[at : at + batch] = session.run(None, {"input_1": x[at : at + batch]})[0]
    return out


def _measure(*, model: Path, source: Path, folder: Path, rows: int, threads: int, batch: int) -> dict[str, Any]:
    by_hand, ours = folder / "hand.npz", folder / "ours.npz"
    session = _session(model, threads)
    chosen = []

    def hand_work() -> None:
        with np.load(source) as arrays:
            out = _loop(session, arrays["input_1"], batch)
        np.savez(by_hand, Identity=out)

    def our_work() -> None:
        chosen.append(score_file(BatchJob(model_path=model, input_path=source, output_path=ours)).batch_rows)

    def hand_process() -> None:
        command: list[str | Path] = [sys.executable, "-c", _BY_HAND, model, source, by_hand, str(threads), str(batch)]
        subprocess.run(command, check=True)

    def our_process() -> None:
        command: list[str | Path] = [
            sys.executable,
            "-m",
            "edge_agent",
            "batch",
            "--model",
            f"m={model}",
            source,
            ours,
            "--quiet",
        ]
        subprocess.run(command, check=True)

    figures: dict[str, Any] = {"rows": rows, "hand_threads": threads, "hand_batch": batch}
    for kind, hand, our in (("process", hand_process, our_process), ("work", hand_work, our_work)):
        hand_s, our_s = _in_turns(hand, our, clean=(by_hand, ours))
        figures[f"hand_{kind}_rows_per_s"] = round(rows / median(hand_s))
        figures[f"our_{kind}_rows_per_s"] = round(rows / median(our_s))
        figures[f"{kind}_ratio"] = round(median(hand_s) / median(our_s), 3)
    figures["our_batches"] = sorted(set(chosen))
    figures["largest_difference"] = _difference(by_hand, ours)
    return figures


def _in_turns(
    one: Callable[[], None], other: Callable[[], None], *, clean: tuple[Path, ...]
) -> tuple[list[float], list[float]]:
    """The seconds of each, run in turns, the first of a pair changing; a first pair is not counted."""
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(ROUNDS + 1):
        for path in clean:
            path.unlink(missing_ok=True)
        for index in (0, 1) if turn % 2 else (1, 0):
            took_s = _timed((one, other)[index])
            if turn:
                times[index].append(took_s)
    return times


def _timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _difference(by_hand: Path, ours: Path) -> float:
    with np.load(by_hand) as hand, np.load(ours) as our:
        difference = float(np.abs(hand["Identity"] - our["Identity"]).max())
    assert difference < 1e-3, "the scores differ from those by hand"
    return difference
