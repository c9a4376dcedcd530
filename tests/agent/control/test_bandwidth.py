"""The bandwidth cap: exact over seconds, whatever the pieces."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.control.bandwidth import BURST_S, TokenBucket


class Clock:
    """A clock that stands until it is told."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@settings(max_examples=30, deadline=None)
@given(
    rate=st.integers(1024, 5_000_000),
    sizes=st.lists(st.integers(100, 64 * 1024), min_size=1, max_size=40),
    late_s=st.floats(0, 0.01),
)
def test_ten_seconds_bring_what_the_cap_says_within_five_percent(rate: int, sizes: list[int], late_s: float) -> None:
    clock = Clock()
    bucket = TokenBucket(rate, now_s=clock)
    read_bytes, turn = 0, 0
    while clock.now_s < 10.0:
        pause_s = bucket.wait_s()
        if pause_s:
            clock.now_s += pause_s + late_s  # a sleep lasts a little longer than was asked for
            continue
        took = bucket.allowed(max(sizes[turn % len(sizes)], rate // 1000))
        bucket.took(took)
        read_bytes += took
        turn += 1

    assert read_bytes <= rate * clock.now_s + rate * BURST_S + 1024
    if late_s * rate < (bucket.burst_bytes or 0) / 4:
        assert 0.95 * rate * 10 <= read_bytes <= 1.05 * rate * 10 + 1024


def test_without_a_cap_nothing_waits() -> None:
    bucket = TokenBucket(None)

    bucket.took(10**12)

    assert (bucket.wait_s(), bucket.allowed(10**9)) == (0.0, 10**9)
