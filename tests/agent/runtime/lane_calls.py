"""Lanes for tests, and calls that wait for them one behind the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np

from edge_agent.runtime.lanes import Lanes
from edge_agent.runtime.session import Model

Run = tuple[dict[str, np.ndarray], float, int]
MADE: list[Lanes] = []


@contextmanager
def callers() -> Iterator[ThreadPoolExecutor]:
    """Threads that call. What a failed test left waiting gets lanes at the end, so that it does not hang."""
    MADE.clear()
    with ThreadPoolExecutor(32) as pool:
        yield pool
        for lanes in MADE:
            lanes.set_limit(64)


def lanes_of(*, limit: int = 1, max_waiting: int = 64, max_batch: int = 16) -> Lanes:
    MADE.append(Lanes(name="m", limit=limit, max_waiting=max_waiting, max_batch=max_batch))
    return MADE[-1]


def until(condition: Callable[[], bool]) -> None:
    ends = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < ends, "waited 10 s in vain"
        time.sleep(0.0005)


def x(value: float, *, rows: int = 1) -> dict[str, np.ndarray]:
    return {"x": np.full((rows, 3), value, np.float32)}


def queue_up(
    threads: ThreadPoolExecutor, lanes: Lanes, model: Model, calls: list[dict[str, np.ndarray]], **options: Any
) -> list[Future[Run]]:
    """Let calls wait one behind the other."""
    futures = []
    for call in calls:
        before = lanes.load().waiting
        futures.append(threads.submit(lanes.run, model, call, **options))
        until(lambda: lanes.load().waiting == before + 1)  # noqa: B023 - called at once
    return futures


def teach(lanes: Lanes, *, largest: int = 16) -> None:
    """Let the lanes know that every run takes the same time, so that all that waits shares one."""
    for size_class in range(largest.bit_length()):
        for _ in range(2):
            lanes._sizer.measured(rows=2**size_class, run_us=1e6)
