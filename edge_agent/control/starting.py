"""Whether a device may begin an update now, and if not, why it waits. Pure.

Invariants:
1. nothing begins before `not_before_ns`, nor before this device's share of the jitter: the same for one generation,
   however often it is asked;
2. with maintenance hours nothing begins outside of them. They hold back what has not begun: an update under way goes
   on to its end, and a revert waits for nothing;
3. a clock that was never set opens no maintenance hours, but it does not hold an update for good: after
   UNSET_CLOCK_PATIENCE_S the time that the server told goes for the clock, run on since;
4. the deadline is the server's: a device that comes after it updates all the same, as the newest desired state is what
   it should run, and its report ends what the server called lost.
"""

from __future__ import annotations

import hashlib

from fleet_protocol.messages import Desired

UNSET_CLOCK_PATIENCE_S = 3_600.0
"""So long the network has to set the clock before the server's time has to do."""


def why_it_waits(desired: Desired, *, now_ns: int, is_clock_set: bool, waited_s: float, time_zone: str) -> str:
    """The reason, "" when the update may begin.

    `now_ns` is the time as far as it is known, UTC; without a set clock what the server told, run on. `waited_s` is for
    how long this process has had the desired state. `time_zone` is the device's, an IANA name.
    """
    start_ns = max(desired.not_before_ns, desired.issued_at_ns if desired.jitter_s else 0) + _share_of_jitter_ns(
        desired
    )
    if now_ns < start_ns:
        return f"it may begin in {(start_ns - now_ns) / 1e9:.0f} s"
    hours = desired.maintenance
    if hours is None:
        return ""
    if not is_clock_set and waited_s < UNSET_CLOCK_PATIENCE_S:
        return "the clock was never set, and there are maintenance hours to keep"
    from fleet_protocol.maintenance import is_open

    if is_open(hours, now_ns, time_zone):
        return ""
    return f"maintenance hours are {hours.start} to {hours.end}{' ' + ', '.join(hours.days) if hours.days else ''}"


def _share_of_jitter_ns(desired: Desired) -> int:
    seed = hashlib.sha256(f"{desired.device}:{desired.generation}".encode()).digest()
    return int(int.from_bytes(seed[:8], "big") / 2**64 * desired.jitter_s * 1e9)
