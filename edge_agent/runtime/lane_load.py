"""What lanes do and did, in numbers: for scaling decisions, for metrics, and for the answer to who is refused."""

from __future__ import annotations

from msgspec import Struct

MIN_RETRY_AFTER_S = 0.05
MAX_RETRY_AFTER_S = 30.0
FIRST_SERVICE_S = 0.05
"""What a call is taken to need before one was measured."""
_WEIGHT = 0.2
_WAIT_HALVES_EVERY_S = 1.0


class LaneLoad(Struct, frozen=True, kw_only=True):
    """What lanes do at one moment, and did since they were made.

    `at_s` is the moment, on the clock of `time.perf_counter`. Since they were made: `busy_ns` is the time for which
    lanes were taken, added up over the lanes; `queued` calls had to wait, `queue_wait_ns` in all; `shed` were refused
    or displaced, `cancelled` reached their deadline. `queue_wait_ewma_ms` is the recent wait of calls that waited, and
    fades while nobody does; `longest_wait_ms` is that of the one who waits now. `service_us` is the recent lane time
    per call of `Lanes.run`, 0 before the first.
    """

    at_s: float
    limit: int
    running: int
    waiting: int
    busy_ns: int
    queued: int
    queue_wait_ns: int
    queue_wait_ewma_ms: float
    longest_wait_ms: float
    service_us: float
    shed: int
    cancelled: int


class CallFigures:
    """The figures of a `LaneLoad` that add up call by call. Guarded by its owner's lock."""

    __slots__ = ("_wait_ewma_s", "_waited_at_s", "cancelled", "queued", "service_s", "shed", "wait_s")

    def __init__(self) -> None:
        self.queued = 0
        self.wait_s = 0.0
        self.service_s = 0.0
        self.shed = 0
        self.cancelled = 0
        self._wait_ewma_s = 0.0
        self._waited_at_s = 0.0

    def waited(self, wait_s: float, *, now_s: float) -> None:
        """A call has waited `wait_s` and runs now."""
        self.queued += 1
        self.wait_s += wait_s
        self._wait_ewma_s += _WEIGHT * (wait_s - self._wait_ewma_s)
        self._waited_at_s = now_s

    def served(self, lane_s: float) -> None:
        """A call took a lane for `lane_s`, its share of it where others ran along."""
        self.service_s += _WEIGHT * (lane_s - self.service_s) if self.service_s else lane_s

    def wait_ewma_s(self, now_s: float) -> float:
        """The recent wait of calls that waited; it halves every second in which none did."""
        return self._wait_ewma_s * float(0.5 ** (max(0.0, now_s - self._waited_at_s) / _WAIT_HALVES_EVERY_S))

    def retry_after_s(self, *, waiting: int, limit: int) -> float:
        """When the queue should have room for somebody who is refused: what waits now has run by then."""
        expected_s = waiting * (self.service_s or FIRST_SERVICE_S) / limit
        return min(MAX_RETRY_AFTER_S, max(MIN_RETRY_AFTER_S, expected_s))
