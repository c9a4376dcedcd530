"""A bounded pool of threads for work that may wait. The standard library's pool costs its import.

Invariants: everything here is called and counted on the loop's thread, the threads only take and do; a thread
is started when there is more work than threads, never before; threads that were not needed for a while end.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue

REST_S = 30.0
"""How long a thread may have been too many before it ends."""

_Work = Callable[[], None]


class Workers:
    """At most `threads` threads, and at most `max_waiting` pieces of work beside those being done.

    Whoever submits calls `done` when a piece is done.
    """

    def __init__(self, *, name: str, threads: int, max_waiting: int) -> None:
        self.name = name
        self.pending = 0
        self.threads = 0
        self._most_threads = threads
        self._limit = threads + max_waiting
        self._queue: SimpleQueue[_Work | None] = SimpleQueue()
        self._most_pending = 0
        self._rested_at = 0.0

    @property
    def is_full(self) -> bool:
        """Whether `submit` may not be called now."""
        return self.pending >= self._limit

    def submit(self, work: _Work) -> None:
        """Have a thread do `work`, which must not raise. Raises RuntimeError when the system grants not one thread."""
        if self.pending >= self.threads and self.threads < self._most_threads:
            self._start_thread()
        self.pending += 1
        self._most_pending = max(self._most_pending, self.pending)
        self._queue.put(work)

    def done(self) -> None:
        """A piece of work is done."""
        self.pending -= 1

    def rest(self, now: float) -> None:
        """Let go of the threads that were too many since REST_S ago. Called from time to time."""
        if now - self._rested_at < REST_S:
            return
        self._rested_at = now
        self._dismiss(self.threads - self._most_pending)
        self._most_pending = self.pending

    def close(self) -> None:
        """Do nothing that has not begun; what has begun ends by itself."""
        try:
            while True:
                self._queue.get_nowait()
        except Empty:
            self._dismiss(self.threads)

    def _start_thread(self) -> None:
        name = f"edgefleet-{self.name}-{self.threads + 1}"
        # a model that hangs must not keep the process from ending
        thread = threading.Thread(target=self._work, name=name, daemon=True)
        try:
            thread.start()
        except RuntimeError:
            if not self.threads:
                raise
            return  # those that there are do the work
        self.threads += 1

    def _dismiss(self, count: int) -> None:
        for _ in range(count):
            self.threads -= 1
            self._queue.put(None)

    def _work(self) -> None:
        while (work := self._queue.get()) is not None:
            work()
            del work  # a waiting thread holds no request
