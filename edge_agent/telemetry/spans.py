"""The spans of windows on a device whose clock may be set at any moment, or never. Pure: clocks are arguments.

Invariants:
1. a window is as long as the monotonic clock says, and windows follow each other without gap;
2. the wall clock's slow corrections (below JUMP_NS between two windows) move nothing; a jump moves the start of the
   next window and no other. Windows of one boot therefore overlap at most by what the clock was set back;
3. a clock that was never set (it shows a time before CLOCK_IS_SET_NS) is worth nothing: when it is set, the open window
   and all that was told in this boot before move with it.
"""

from __future__ import annotations

CLOCK_IS_SET_NS = 1_577_836_800 * 10**9
"""2020: a clock that shows less has not been set since the device has power."""
JUMP_NS = 500_000_000


class Spans:
    """Where the open window began, on both clocks (nanoseconds)."""

    __slots__ = ("_monotonic_ns", "_start_ns")

    def __init__(self, *, now_ns: int, monotonic_ns: int) -> None:
        self._start_ns, self._monotonic_ns = max(now_ns, 0), monotonic_ns

    def expected_ns(self, monotonic_ns: int) -> int:
        """What the wall clock would show, had nobody touched it since the open window began."""
        return self._start_ns + monotonic_ns - self._monotonic_ns

    def set_for_the_first_time(self, *, now_ns: int, monotonic_ns: int) -> int:
        """By how much to move what was told before, once, when the clock has just been set; else 0."""
        if self._start_ns >= CLOCK_IS_SET_NS or now_ns < CLOCK_IS_SET_NS:
            return 0
        by_ns = now_ns - self.expected_ns(monotonic_ns)
        if by_ns > 0:
            self._start_ns += by_ns
        return max(by_ns, 0)

    def cut(self, *, now_ns: int, monotonic_ns: int) -> tuple[int, int]:
        """(start, end) of the window that ends now; the next one begins."""
        start_ns, end_ns = self._start_ns, self.expected_ns(monotonic_ns)
        jumped = abs(now_ns - end_ns) > JUMP_NS
        self._start_ns, self._monotonic_ns = max(now_ns, 0) if jumped else end_ns, monotonic_ns
        return start_ns, end_ns
