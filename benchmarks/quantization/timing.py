"""Latency of several files of one model, in turns, in the agent's runtime with one thread.

`python -m benchmarks.quantization.timing CASE_FOLDER NAME=FILE ...` times in its own process and prints a JSON object.

One sample a run, and a run of each file in every turn, the order going backwards every other turn; the samples are the
final part's, one after the other. Where in memory a session happens to lie moves its speed, so several processes are
started, and a figure is the median of theirs. Files with the same bytes are one file: their ratio is 1.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.quantization.bundles import in_a_process, is_small
from benchmarks.quantization.parts import read_case
from edge_agent.runtime.session import Model

PROCESSES = 3
RUNS = 2000
_SMALL_RUNS = 200
_WARM_UP_RUNS = 200
_SAMPLES = 64
_TIMEOUT_S = 600.0


def p50_us(case_folder: Path, files: Mapping[str, Path]) -> dict[str, float]:
    """The median latency of each file by name, `runs()` runs in each of PROCESSES processes."""
    same = {name: _first_with_same_bytes(name, files) for name in files}
    named = [f"{name}={files[name]}" for name in dict.fromkeys(same.values())]
    told = [
        in_a_process("benchmarks.quantization.timing", case_folder, *named, timeout_s=_TIMEOUT_S)
        for _ in range(PROCESSES)
    ]
    return {name: median(one[first] for one in told) for name, first in same.items()}


def _first_with_same_bytes(name: str, files: Mapping[str, Path]) -> str:
    digests = {other: hashlib.sha256(path.read_bytes()).digest() for other, path in files.items()}
    return next(other for other in files if digests[other] == digests[name])


def runs() -> int:
    """How often each file runs in one process."""
    return _SMALL_RUNS if is_small() else RUNS


def timed(case_folder: Path, files: Mapping[str, Path]) -> dict[str, float]:
    """The median of `runs()` runs of each file, in this process."""
    models = {name: Model.load(path, threads=1) for name, path in files.items()}
    final = read_case(case_folder).final.inputs
    count = min(_SAMPLES, len(next(iter(final.values()))))
    rows = [{name: array[place : place + 1].copy() for name, array in final.items()} for place in range(count)]
    times: dict[str, list[int]] = {name: [] for name in models}
    order = list(models)
    for turn in range(_WARM_UP_RUNS + runs()):
        row = rows[turn % count]
        for name in order if turn % 2 else reversed(order):
            model = models[name]
            start = time.perf_counter_ns()
            model.run(row)
            times[name].append(time.perf_counter_ns() - start)
    return {name: float(np.median(found[_WARM_UP_RUNS:])) / 1000 for name, found in times.items()}


def main(case_folder: str, *named: str) -> None:
    """Time what the command line names."""
    files = dict(one.split("=", 1) for one in named)
    print(json.dumps(timed(Path(case_folder), {name: Path(path) for name, path in files.items()})))


if __name__ == "__main__":
    main(*sys.argv[1:])
