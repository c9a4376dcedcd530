"""The sign of life of one thread: it says when it was last about, and for how long it may now be away."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

LIMIT_S = 120.0
"""For a thread that does nothing longer than a slow disk takes."""
ANY_TIME_S = math.inf
"""For work that bounds itself, such as a download."""


class Heartbeat:
    """Written by one thread, read by another, without a lock: both figures are one tuple."""

    __slots__ = ("_clock", "_last")

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last = (clock(), LIMIT_S)

    def beat(self, limit_s: float = LIMIT_S) -> None:
        """Alive; the next beat comes within `limit_s`."""
        self._last = (self._clock(), limit_s)

    @property
    def overdue_s(self) -> float:
        """For how long the next beat has been missing; 0 or less while all is well."""
        at_s, limit_s = self._last
        return self._clock() - at_s - limit_s
