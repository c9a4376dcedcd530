"""How many devices may be exposed now, and whose maintenance hours are open. Pure.

Invariants:
1. within any span of `Pace.window_ns` at most `Pace.burst` devices are exposed; their quotient is the policy's rate
   exactly, so a driver that looks often loses nothing and one that was away for an hour catches nothing up;
2. the rate grows only with devices that are healthy, never with time or with devices that were merely exposed;
3. no rate is "at once"; no hours are "always".
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fleet_protocol.maintenance import is_open, next_opening_ns
from fleet_protocol.messages import MaintenanceHours
from fleet_server.rollouts.policy import RatePolicy

SMOOTHING_S = 5.0
"""Devices are let go in bursts about this far apart, further where the rate is below one in that time."""
MAX_PER_MINUTE = 1e9
"""Where unbounded growth ends: more than any fleet has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """The rate at one moment: at most `burst` devices within any `window_ns`, together `per_minute`."""

    per_minute: float
    burst: int
    window_ns: int


def pace(rate: RatePolicy, *, healthy: int) -> Pace | None:
    """The pace once `healthy` of the rollout's devices are healthy with the candidate; None is "at once"."""
    if rate.per_minute is None:
        return None
    steps = healthy // rate.grow_every
    cap = MAX_PER_MINUTE if rate.max_per_minute is None else rate.max_per_minute
    # compared as logarithms, because growth by tenfold a device overflows soon
    is_capped = rate.growth > 1 and steps * math.log(rate.growth) >= math.log(cap / rate.per_minute)
    per_minute = cap if is_capped else min(cap, rate.per_minute * rate.growth**steps)
    burst = math.ceil(round(per_minute * SMOOTHING_S / 60, 9))
    return Pace(per_minute=per_minute, burst=burst, window_ns=math.ceil(burst * 60e9 / per_minute))


def allowance(current: Pace | None, *, recent: int) -> int | None:
    """How many more devices may be exposed now, when `recent` were within the last `window_ns`; None is "all"."""
    return None if current is None else max(0, current.burst - recent)


def exposure_time_s(rate: RatePolicy, *, devices: int, healthy: int = 0) -> float:
    """The least time in which `devices` more are exposed, when each is healthy at once, seconds."""
    elapsed_s = 0.0
    while devices > 0:
        current = pace(rate, healthy=healthy)
        if current is None:
            return elapsed_s
        cap = MAX_PER_MINUTE if rate.max_per_minute is None else rate.max_per_minute
        is_last = rate.growth == 1 or current.per_minute >= cap
        until_growth = devices if is_last else rate.grow_every - healthy % rate.grow_every
        now = min(devices, until_growth)
        elapsed_s += now * 60 / current.per_minute
        devices -= now
        healthy += now
    return elapsed_s


def open_devices(hours: MaintenanceHours | None, zones: Mapping[str, str], now_ns: int) -> set[str]:
    """Of the devices (name -> its time zone, "" unknown) those that may begin an update now."""
    if hours is None:
        return set(zones)
    is_open_in = {zone: is_open(hours, now_ns, zone) for zone in set(zones.values())}
    return {device for device, zone in zones.items() if is_open_in[zone]}


def next_open_ns(hours: MaintenanceHours | None, zones: Iterable[str], now_ns: int) -> int:
    """When the first of the devices' time `zones` opens next: `now_ns` when one is open, or there is no zone."""
    if hours is None:
        return now_ns
    return min((next_opening_ns(hours, now_ns, zone) for zone in set(zones)), default=now_ns)
