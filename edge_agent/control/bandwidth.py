"""A token bucket: how much of a download may be read now, so that over any time it stays below its cap.

Decides, and sleeps nowhere: the caller waits. Source: RFC 2697's committed rate and burst, with one bucket.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

BURST_S = 0.1
"""The bucket holds what the rate brings in this time."""
MIN_BURST_BYTES = 1024
_MIN_WAIT_S = 0.001


class TokenBucket:
    """`bytes_per_s` may pass on average, and no more than the burst at once; None lets everything pass."""

    def __init__(self, bytes_per_s: int | None, *, now_s: Callable[[], float] = time.monotonic) -> None:
        self._rate = bytes_per_s or math.inf
        self.burst_bytes = max(MIN_BURST_BYTES, int(self._rate * BURST_S)) if bytes_per_s else None
        self._now_s = now_s
        self._tokens, self._at_s = float(self.burst_bytes or 0), now_s()

    def allowed(self, most: int) -> int:
        """How many of `most` bytes may be read now, at least one; `wait_s` must have been waited."""
        return most if self.burst_bytes is None else max(1, min(most, int(self._refilled())))

    def wait_s(self) -> float:
        """How long nothing may be read: until half a burst is there, so that no single bytes are asked for."""
        if self.burst_bytes is None:
            return 0.0
        missing = self.burst_bytes / 2 - self._refilled()
        return max(missing / self._rate, _MIN_WAIT_S) if missing > 0 else 0.0

    def took(self, size_bytes: int) -> None:
        """So many bytes were read."""
        if self.burst_bytes is not None:
            self._tokens = self._refilled() - size_bytes

    def _refilled(self) -> float:
        assert self.burst_bytes is not None  # noqa: S101 - its callers asked
        now = self._now_s()
        self._tokens = min(float(self.burst_bytes), self._tokens + (now - self._at_s) * self._rate)
        self._at_s = now
        return self._tokens
