"""Cancels runs whose deadline passes, from one thread for the whole process.

Cancelling sets `terminate` of the run's ONNX Runtime options, which the executor reads between two operators of the
graph: a single long operator runs to its end, so a run ends some time after its deadline, not at it.

Invariants: the thread starts with the first run that has a deadline and ends after IDLE_S without one; a run that was
forgotten is never cancelled afterwards, as its options are its own; what is kept is bounded by the runs in progress
(forgotten ones are cleared away when they are the greater part).
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from typing import Any

IDLE_S = 10.0
_KEPT_FORGOTTEN = 64


class WatchedRun:
    """One run in progress. `cancelled` says that its deadline passed before it was forgotten."""

    __slots__ = ("cancelled", "options")

    def __init__(self, options: Any) -> None:
        self.options = options
        self.cancelled = False


class RunDeadlines:
    """The runs that have a deadline, and the thread that cancels them."""

    def __init__(self, *, idle_s: float = IDLE_S) -> None:
        self._idle_s = idle_s
        self._changed = threading.Condition(threading.Lock())
        self._heap: list[tuple[float, int, WatchedRun]] = []
        self._numbers = itertools.count()
        self._live = 0
        self._running = False
        self._wakes_s = 0.0

    def watch(self, deadline_s: float, options: Any) -> WatchedRun:
        """Cancel the run with these ONNX Runtime options at `deadline_s` of `time.perf_counter`, until forgotten."""
        run = WatchedRun(options)
        with self._changed:
            heapq.heappush(self._heap, (deadline_s, next(self._numbers), run))
            self._live += 1
            if not self._running:
                self._running = True
                self._wakes_s = deadline_s
                threading.Thread(target=self._cancel_late_runs, name="run-deadlines", daemon=True).start()
            elif deadline_s < self._wakes_s:
                # only for an earlier one: most runs end long before their deadline and never wake the thread
                self._wakes_s = deadline_s
                self._changed.notify()
        return run

    def forget(self, run: WatchedRun) -> bool:
        """The run has ended. Returns whether it was cancelled."""
        with self._changed:
            if run.options is not None:
                run.options = None
                self._live -= 1
                if len(self._heap) > 2 * self._live + _KEPT_FORGOTTEN:
                    self._heap = [entry for entry in self._heap if entry[2].options is not None]
                    heapq.heapify(self._heap)
            return run.cancelled

    def _cancel_late_runs(self) -> None:
        with self._changed:
            while True:
                now_s = time.perf_counter()
                while self._heap and (self._heap[0][0] <= now_s or self._heap[0][2].options is None):
                    run = heapq.heappop(self._heap)[2]
                    if run.options is not None:
                        run.cancelled = True
                        run.options.terminate = True
                        run.options = None
                        self._live -= 1
                self._wakes_s = self._heap[0][0] if self._heap else now_s + self._idle_s
                self._changed.wait(min(self._wakes_s - now_s, threading.TIMEOUT_MAX))
                if not self._heap and time.perf_counter() >= self._wakes_s:
                    self._running = False
                    return


RUN_DEADLINES = RunDeadlines()
"""The process's own."""
