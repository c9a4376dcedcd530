"""SIGINT and SIGTERM as a flag to wait for.

A Python signal handler runs in the main thread, between any two of its instructions: one that sets a
`threading.Event` may find the main thread inside that very event's wait, holding its lock, and stop for ever.
So the handler only sets an attribute, and waiting looks at it again and again.
"""

from __future__ import annotations

import signal
import time

_LOOK_S = 0.05


class StopFlag:
    """Set by the first SIGINT or SIGTERM. Make it in the main thread."""

    def __init__(self) -> None:
        self._is_set = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)

    def is_set(self) -> bool:
        """Whether the signal came."""
        return self._is_set

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for the signal, at most `timeout_s` seconds; whether it came."""
        deadline = float("inf") if timeout_s is None else time.monotonic() + timeout_s
        while not self._is_set and (left_s := deadline - time.monotonic()) > 0:
            time.sleep(min(_LOOK_S, left_s))
        return self._is_set

    def _on_signal(self, *_: object) -> None:
        self._is_set = True
