"""local_soak: ten minutes of mixed traffic against one agent; its memory must stay flat and no answer be wrong.

`python -m benchmarks.local_soak --seconds 120` shortens it; the slope of a short run is mostly warm-up and noise.

Each kind of client (soak_traffic.py) is a thread with a connection of its own and a pause between requests, so that
the agent is busy but not overloaded: a 503 here is a failure. Every answer is checked, the refusals too.
Memory is sampled once a second. Judged is the part of PSS that is no file's (Pss_Anon): the other part is pages of
libraries and models that the kernel divides among all processes that map them, so it moves by megabytes when another
process that uses ONNX Runtime starts or ends; its slope stands beside. The warm-up, one fifth, is long enough to fill
the agent's bounded tables (20,000 ids of reported outcomes), which is no growth. The slope is the median of the slopes
between all pairs of samples (Theil-Sen), which a single step up or down, as of an allocator, does not bend.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.edgefleet import EDGEFLEET
from benchmarks.peers.peer import Command, Launch
from benchmarks.peers.running import Running, model_folder, running
from benchmarks.result import Result
from benchmarks.soak_traffic import MODELS, Traffic, kinds_of_traffic
from fleet_server.errors import UnavailableError

ID = "local_soak"
TITLE = "growth of the agent's own memory (Pss_Anon), mixed traffic for ten minutes, over 100 kB/min"
LONG = True
"""Runs only when it is asked for by name."""
ALLOWANCE_KB_PER_MIN = 100.0
DURATION_S = 600.0
WARM_UP_SHARE = 0.2
SAMPLE_EVERY_S = 1.0
MAX_EXAMPLES = 5


class Tally:
    """What all clients together did, by kind of traffic."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.answered: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = {}

    def count(self, name: str, error: Exception | None) -> None:
        """One exchange."""
        with self._lock:
            if error is None:
                self.answered[name] += 1
                return
            self.failed[name] += 1
            examples = self.examples.setdefault(name, [])
            if len(examples) < MAX_EXAMPLES:
                examples.append(f"{type(error).__name__}: {error}")


def run(*, duration_s: float = DURATION_S) -> Result:
    """Serve, load, weigh, judge."""
    tally, stopped = Tally(), threading.Event()
    agent = replace(EDGEFLEET, command=_three_models)
    with running(agent, Path(sys.executable), EDGEFLEET.configurations[0]) as server:
        threads = [
            threading.Thread(target=_drive, args=(traffic, tally, stopped), name=traffic.name)
            for traffic in kinds_of_traffic(server)
        ]
        for thread in threads:
            thread.start()
        try:
            seconds, pss_kb, own_kb = _weigh(server, duration_s)
        finally:
            stopped.set()
            for thread in threads:
                thread.join()
    late = seconds >= WARM_UP_SHARE * duration_s
    slope = slope_per_minute(seconds[late], own_kb[late])
    ratio = round(max(0.0, slope) / ALLOWANCE_KB_PER_MIN, 3)
    failures = sum(tally.failed.values())
    return Result(
        id=ID,
        title=TITLE,
        ratio=ratio,
        target="<= 1.0, 0 failures",
        holds=ratio <= 1.0 and failures == 0,
        figures={
            "slope_kb_per_min": round(slope, 1),
            "seconds": duration_s,
            "judged_seconds": round((1 - WARM_UP_SHARE) * duration_s, 1),
            "pss_slope_kb_per_min": round(slope_per_minute(seconds[late], pss_kb[late]), 1),
            "own_kb": _course(own_kb, late),
            "pss_kb": _course(pss_kb, late),
            "exchanges": dict(tally.answered),
            "failures": failures,
            "failures_by_kind": dict(tally.failed),
            "examples": tally.examples,
        },
    )


def slope_per_minute(seconds: NDArray[np.float64], values: NDArray[np.float64]) -> float:
    """The Theil-Sen slope, per minute. Raises UnavailableError with fewer than two samples."""
    first, second = np.triu_indices(len(seconds), k=1)
    if len(first) == 0:
        raise UnavailableError("too short a run: memory was sampled less than twice after the warm-up")
    return float(np.median((values[second] - values[first]) / (seconds[second] - seconds[first]))) * 60


def _three_models(launch: Launch) -> Command:
    models = [part for name in MODELS for part in ("--model", f"{name}={model_folder() / f'{name}.onnx'}")]
    return [launch.python, "-m", "edge_agent", "run", *models, "--http", f"127.0.0.1:{launch.port}"]


def _course(sizes_kb: NDArray[np.float64], late: NDArray[np.bool_]) -> dict[str, int]:
    return {
        "first": int(sizes_kb[0]),
        "after_warm_up": int(sizes_kb[late][0]),
        "last": int(sizes_kb[-1]),
        "highest": int(sizes_kb.max()),
    }


def _weigh(server: Running, duration_s: float) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    began = time.monotonic()
    samples: list[tuple[float, int, int]] = []
    while (now := time.monotonic() - began) < duration_s:
        server.process.require_running()
        samples.append((now, *server.own_memory()))
        time.sleep(SAMPLE_EVERY_S)
    seconds, pss_kb, own_kb = np.array(samples, dtype=np.float64).T
    return seconds, pss_kb, own_kb


def _drive(traffic: Traffic, tally: Tally, stopped: threading.Event) -> None:
    number = 0
    while not stopped.wait(traffic.pause_s):
        try:
            traffic.step(number)
        except Exception as error:  # noqa: BLE001 - whatever goes wrong in an exchange is this benchmark's finding
            tally.count(traffic.name, error)
        else:
            tally.count(traffic.name, None)
        number += 1


def main() -> int:
    """`python -m benchmarks.local_soak [--seconds N]`: one JSON object; 0 when it holds."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.local_soak", description=TITLE)
    parser.add_argument("--seconds", type=float, default=DURATION_S, metavar="N")
    result = run(duration_s=parser.parse_args().seconds)
    print(json.dumps(result.as_json()))
    return 0 if result.holds else 1


if __name__ == "__main__":
    sys.exit(main())
