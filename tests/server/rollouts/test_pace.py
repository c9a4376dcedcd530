"""How fast devices are exposed: never faster than the policy says, and never slower for being looked at often."""

from __future__ import annotations

from bisect import bisect_right

from hypothesis import given, settings
from hypothesis import strategies as st

from fleet_protocol.messages import MaintenanceHours
from fleet_server.rollouts.pace import allowance, exposure_time_s, next_open_ns, open_devices, pace
from fleet_server.rollouts.policy import RatePolicy

S = 10**9


def _run(rate: RatePolicy, *, looks_s: float, seconds: float, healthy_at_once: bool = True) -> list[int]:
    """The exposure times of a driver that looks every `looks_s`."""
    exposed: list[int] = []
    for look in range(int(seconds / looks_s)):
        now = int(look * looks_s * S)
        current = pace(rate, healthy=len(exposed) if healthy_at_once else 0)
        assert current is not None
        recent = len(exposed) - bisect_right(exposed, now - current.window_ns)
        exposed += [now] * (allowance(current, recent=recent) or 0)
    return exposed


def test_without_a_rate_everybody_may_go_at_once() -> None:
    assert pace(RatePolicy(), healthy=0) is None
    assert allowance(None, recent=10**6) is None
    assert exposure_time_s(RatePolicy(), devices=10**6) == 0.0


@settings(max_examples=30, deadline=None)
@given(st.floats(0.05, 2000), st.sampled_from([0.25, 0.5, 3.0]))
def test_the_rate_holds_in_every_window_and_nothing_is_lost_over_time(per_minute: float, looks_s: float) -> None:
    rate = RatePolicy(per_minute=per_minute)
    seconds = max(240.0, 5 * 60 / per_minute)
    exposed = _run(rate, looks_s=looks_s, seconds=seconds)
    current = pace(rate, healthy=0)
    assert current is not None
    for first, beyond in zip(exposed, exposed[current.burst :], strict=False):
        assert beyond - first >= current.window_ns
    windows = seconds * S / (current.window_ns + looks_s * S)  # a look may come just too late for a window
    assert len(exposed) >= int(windows) * current.burst


def test_a_driver_that_was_away_catches_nothing_up() -> None:
    rate = RatePolicy(per_minute=60)
    current = pace(rate, healthy=0)
    assert current is not None
    assert allowance(current, recent=0) == current.burst == 5


def test_growth_follows_healthy_devices_and_ends_at_the_cap() -> None:
    rate = RatePolicy(per_minute=10, growth=2, grow_every=10, max_per_minute=35)
    rates = [pace(rate, healthy=healthy) for healthy in (0, 9, 10, 20, 30, 10**9)]
    assert [each.per_minute for each in rates if each] == [10, 10, 20, 35, 35, 35]
    slow = _run(RatePolicy(per_minute=10, growth=2, grow_every=10), looks_s=1, seconds=120, healthy_at_once=False)
    assert len(slow) <= 10 * 2 + 1


def test_growth_without_a_cap_does_not_overflow() -> None:
    current = pace(RatePolicy(per_minute=1, growth=10.0, grow_every=1), healthy=10**7)
    assert current is not None
    assert current.burst > 10**6


def test_the_least_time_of_a_stage_is_what_a_driver_needs() -> None:
    rate = RatePolicy(per_minute=30, growth=1.5, grow_every=20, max_per_minute=120)
    exposed = _run(rate, looks_s=0.25, seconds=600)
    needed_s = exposure_time_s(rate, devices=200)
    assert 0.8 * needed_s <= exposed[199] / S <= 1.2 * needed_s + 5
    assert exposure_time_s(rate, devices=0) == 0.0


def test_only_devices_whose_hours_are_open_may_begin() -> None:
    hours = MaintenanceHours(start="22:00", end="05:00")
    zones = {"paris": "Europe/Paris", "york": "America/New_York", "nowhere": ""}
    evening = 1_780_952_400 * S  # 2026-06-08 21:00 UTC: 23:00 in Paris, 17:00 in New York
    assert open_devices(hours, zones, evening) == {"paris"}
    assert open_devices(None, zones, evening) == set(zones)
    assert next_open_ns(hours, zones.values(), evening) == evening
    assert next_open_ns(hours, ["", "America/New_York"], evening) == evening + 3600 * S
    assert next_open_ns(hours, [], evening) == next_open_ns(None, [""], evening) == evening
