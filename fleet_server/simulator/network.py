"""What happens to windows on their way: late, repeated, reordered, lost, a dark device, a wrong clock, a lie.

Pure but for the random generator. Invariants:
- a device's faults depend on the seed and the device alone, not on how many others there are;
- `deliver` gives everything that is delivered in the order of its arrival, and never before the window ended;
- a device's windows are handed in by growing end.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator

import msgspec
import numpy as np
from msgspec import Struct

from fleet_protocol.messages import Window
from fleet_server.errors import InvalidRequestError

MAX_LATE_S = 14 * 86_400.0
_NS = 10**9
_STREAM = 7
"""Of the random numbers of a device's net, apart from those of what it does."""


class NetFaults(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How bad the net is. Shares are of windows, but `clock_share` and `liar_share`, which are of devices.

    Every window takes up to `jitter_s`, which reorders; `late_share` of them take a log-normal time more, `late_s` its
    median and `late_spread` of its logarithm. A device goes dark every `dark_every_s` on average (0: never) for
    `dark_for_s` on average, and brings a backlog. A wrong clock is `clock_off_s` away; a liar says `liar_version`.
    """

    jitter_s: float = 0.0
    late_share: float = 0.0
    late_s: float = 1_800.0
    late_spread: float = 1.5
    repeat_share: float = 0.0
    lost_share: float = 0.0
    dark_every_s: float = 0.0
    dark_for_s: float = 0.0
    clock_share: float = 0.0
    clock_off_s: float = 0.0
    liar_share: float = 0.0
    liar_version: str = ""

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if name.endswith("_share") and not 0 <= value <= 1:
                raise InvalidRequestError(f"network: {name} is {value}: use a share from 0 to 1")
            if name.endswith("_s") and name != "clock_off_s" and not 0 <= value <= MAX_LATE_S:
                raise InvalidRequestError(f"network: {name} is {value}: use 0 to {MAX_LATE_S:.0f} seconds")
        if not abs(self.clock_off_s) <= 100 * 365 * 86_400:
            raise InvalidRequestError(f"network: clock_off_s is {self.clock_off_s}: use at most a hundred years")
        if not 0 <= self.late_spread <= 3:
            raise InvalidRequestError(f"network: late_spread is {self.late_spread}: use 0 to 3")
        if self.liar_share and not self.liar_version:
            raise InvalidRequestError("network: a device that lies needs a liar_version to claim")
        if bool(self.dark_every_s) != bool(self.dark_for_s):
            raise InvalidRequestError("network: dark_every_s and dark_for_s go together")

    @property
    def is_perfect(self) -> bool:
        """Whether every window arrives at once, once, and says what is so."""
        return self == NetFaults()


class DeviceNet:
    """The net of one device."""

    __slots__ = ("_dark_from_ns", "_dark_until_ns", "_faults", "_random", "clock_off_ns", "version")

    def __init__(self, faults: NetFaults, *, seed: int, index: int, started_ns: int) -> None:
        self._faults = faults
        self._random = np.random.default_rng([seed, index, _STREAM])
        clock, lie = self._random.random(2)
        self.clock_off_ns = round(faults.clock_off_s * _NS) if clock < faults.clock_share else 0
        self.version = faults.liar_version if lie < faults.liar_share else ""
        """The version it claims to run; "" where it tells the truth."""
        self._dark_from_ns = self._dark_until_ns = started_ns
        self._next_spell()

    def arrivals_ns(self, end_ns: int) -> tuple[int, ...]:
        """When a window that ended then arrives: never for one that is lost, twice for one that is repeated."""
        faults, random = self._faults, self._random
        if faults.is_perfect:
            return (end_ns,)
        lost, repeated, late = random.random(3)
        if lost < faults.lost_share:
            return ()
        leaves_ns = self._leaves_ns(end_ns) + round(_NS * faults.jitter_s * random.random())
        if late < faults.late_share:
            wait_s = faults.late_s * np.exp(faults.late_spread * random.standard_normal())
            leaves_ns += round(_NS * min(float(wait_s), MAX_LATE_S))
        if repeated >= faults.repeat_share:
            return (leaves_ns,)
        return (leaves_ns, leaves_ns + round(_NS * random.exponential(max(faults.late_s, 1.0))))

    def told(self, window: Window) -> Window:
        """The window as this device tells it: by its own clock, of the version it claims."""
        if not (self.clock_off_ns or self.version):
            return window
        start_ns = max(0, window.start_ns + self.clock_off_ns)
        end_ns = max(start_ns, window.end_ns + self.clock_off_ns)
        return msgspec.structs.replace(window, start_ns=start_ns, end_ns=end_ns, version=self.version or window.version)

    def _leaves_ns(self, end_ns: int) -> int:
        if not self._faults.dark_every_s:
            return end_ns
        while end_ns >= self._dark_until_ns:
            self._next_spell()
        return self._dark_until_ns if end_ns >= self._dark_from_ns else end_ns

    def _next_spell(self) -> None:
        faults = self._faults
        if faults.dark_every_s:
            light_s, dark_s = self._random.exponential((faults.dark_every_s, faults.dark_for_s))
            self._dark_from_ns = self._dark_until_ns + round(_NS * light_s)
            self._dark_until_ns = self._dark_from_ns + round(_NS * min(dark_s, MAX_LATE_S)) + 1


class Arrival(Struct, frozen=True, kw_only=True):
    """A window as it came in. Times are UTC nanoseconds."""

    at_ns: int
    window: Window


def deliver(windows: Iterable[Window], faults: NetFaults, *, seed: int, started_ns: int) -> Iterator[Arrival]:
    """The windows in the order in which they arrive, repeats among them. `windows` come by growing end.

    What is still on its way when they end arrives after them.
    """
    nets: dict[str, DeviceNet] = {}
    waiting: list[tuple[int, int, Window]] = []
    number = 0
    for window in windows:
        while waiting and waiting[0][0] <= window.end_ns:
            at_ns, _, arrived = heapq.heappop(waiting)
            yield Arrival(at_ns=at_ns, window=arrived)
        net = nets.get(window.device)
        if net is None:
            index = int(window.device.rpartition("-")[2]) - 1
            net = nets[window.device] = DeviceNet(faults, seed=seed, index=index, started_ns=started_ns)
        told = net.told(window)
        for at_ns in net.arrivals_ns(window.end_ns):
            number += 1
            heapq.heappush(waiting, (at_ns, number, told))
    while waiting:
        at_ns, _, arrived = heapq.heappop(waiting)
        yield Arrival(at_ns=at_ns, window=arrived)
