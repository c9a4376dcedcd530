"""How many lanes a model has: decided from its load and the machine's state, look by look.

Order of a decision, and its invariants:
1. Never outside `min`..`max` of [lanes]; `max` 0 is one lane per usable core.
2. While memory is short or the CPU hot or throttled, one lane less at every look, and no growth until it has
   recovered by a band beyond the limit: a machine at its limit must not swing about it.
3. More while calls wait longer than `scale_up_wait_ms` at SLOW_LOOKS looks in a row, with the lanes busy for
   GROW_BUSY_SHARE of the time (two calls that meet in an idle model need no lane), and the CPU has room: one lane, or
   twice as many when the queue is long.
4. One less after `scale_down_after_s` in which the lanes' work would have left the remaining ones less busy than
   `scale_down_busy_percent`; each further one after half that time, while it stays so.
`decide` is a pure function; `LaneScaler` looks every LOOK_EVERY_S while something waits or is to be taken back,
and reads the machine only then.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from edge_agent.runtime.cpu import cpu_quota
from edge_agent.runtime.lane_load import LaneLoad

if TYPE_CHECKING:
    from edge_agent.config import LanesSection
    from edge_agent.runtime.lanes import Lanes
    from edge_agent.runtime.machine_state import MachineProbe, MachineState

LOOK_EVERY_S = 0.25
SLOW_LOOKS = 2
GROW_BUSY_SHARE = 0.5
LONG_QUEUE_PER_LANE = 4
"""More waiting calls than this for each lane double the lanes."""
FURTHER_DOWN_SHARE = 0.5
"""Of `scale_down_after_s`: how long lanes after the first are kept."""
COOLED_BAND_C = 5.0
MEMORY_BAND_PERCENT = 2.0
_BUSY_MEMORY_S = 2.0
_KEPT_CHANGES = 32

_LOG = logging.getLogger(__name__)


class ScalingMemory(Struct, frozen=True, kw_only=True):
    """What a decision keeps for the next one.

    `slow_looks` is at how many looks in a row calls waited too long, `busy_lanes` how many lanes were busy lately,
    `quiet_since_s` since when one less would do, `further_down` that one was taken away in this quiet time already,
    `strained` that the machine has not yet recovered.
    """

    load: LaneLoad
    slow_looks: int = 0
    busy_lanes: float = 0.0
    quiet_since_s: float | None = None
    further_down: bool = False
    strained: bool = False


class ScalingDecision(Struct, frozen=True, kw_only=True):
    """How many lanes from now on, and why: an empty reason where nothing changes."""

    limit: int
    reason: str
    memory: ScalingMemory


class LaneChange(Struct, frozen=True, kw_only=True):
    """The lanes of the model `name` went from `before` to `after`."""

    name: str
    before: int
    after: int
    reason: str


class ScalingHistory(Struct, frozen=True, kw_only=True):
    """What scaling did so far; `changes` are the latest, oldest first."""

    ups: int
    downs: int
    changes: tuple[LaneChange, ...]


def highest_limit(settings: LanesSection, *, cores: float) -> int:
    """The most lanes a model may have on a machine with this many usable cores."""
    return max(settings.min, settings.max or math.ceil(cores))


def decide(
    load: LaneLoad, previous: ScalingMemory | None, settings: LanesSection, machine: MachineState
) -> ScalingDecision:
    """How many lanes there should be now. `previous` is the memory of the last decision, None for the first."""
    before = previous or ScalingMemory(load=load)
    highest = highest_limit(settings, cores=machine.cores)
    limit = min(max(load.limit, settings.min), highest)
    memory = _look(load, before, settings)
    strain = strain_of(machine, settings, recovering=before.strained)
    memory = replace(memory, strained=bool(strain))
    if limit != load.limit:
        return _change(limit, f"the limits are {settings.min} to {highest}", memory)
    if strain:
        if limit > settings.min and not strain.startswith(_RECOVERING):
            return _change(limit - 1, strain, memory)
        return ScalingDecision(limit=limit, reason="", memory=memory)
    has_room = machine.cpu_percent is not None and machine.cpu_percent < settings.scale_up_cpu_percent
    if memory.slow_looks >= SLOW_LOOKS and limit < highest and has_room:
        step = limit if load.waiting > LONG_QUEUE_PER_LANE * limit else 1
        wait_ms = max(_mean_wait_ms(load, before.load), load.longest_wait_ms)
        return _change(min(highest, limit + step), f"calls waited {wait_ms:.1f} ms", memory)
    needed_s = settings.scale_down_after_s * (FURTHER_DOWN_SHARE if memory.further_down else 1.0)
    if limit > settings.min and memory.quiet_since_s is not None and load.at_s - memory.quiet_since_s >= needed_s:
        after = _change(limit - 1, f"{memory.busy_lanes:.2f} lanes were busy", memory)
        return replace(after, memory=replace(after.memory, further_down=True))
    return ScalingDecision(limit=limit, reason="", memory=memory)


def _change(limit: int, reason: str, memory: ScalingMemory) -> ScalingDecision:
    return ScalingDecision(limit=limit, reason=reason, memory=replace(memory, slow_looks=0, quiet_since_s=None))


def _look(load: LaneLoad, before: ScalingMemory, settings: LanesSection) -> ScalingMemory:
    """The memory with this look in it."""
    elapsed_s = load.at_s - before.load.at_s
    busy_lanes, busy_now = before.busy_lanes, 0.0
    if elapsed_s > 0:
        busy_now = max(0.0, (load.busy_ns - before.load.busy_ns) / 1e9 / elapsed_s)
        busy_lanes += (busy_now - busy_lanes) * min(1.0, elapsed_s / _BUSY_MEMORY_S)
    waited = max(_mean_wait_ms(load, before.load), load.longest_wait_ms) > settings.scale_up_wait_ms
    slow = waited and busy_now >= GROW_BUSY_SHARE * before.load.limit
    allowed = (load.limit - 1) * settings.scale_down_busy_percent / 100
    quiet = not waited and load.limit > 1 and busy_lanes < allowed
    return ScalingMemory(
        load=load,
        slow_looks=before.slow_looks + 1 if slow else 0,
        busy_lanes=busy_lanes,
        quiet_since_s=(load.at_s if before.quiet_since_s is None else before.quiet_since_s) if quiet else None,
        further_down=before.further_down and quiet,
        strained=before.strained,
    )


def _mean_wait_ms(load: LaneLoad, before: LaneLoad) -> float:
    """How long the calls waited that began to run since the last look."""
    calls = load.queued - before.queued
    return (load.queue_wait_ns - before.queue_wait_ns) / calls / 1e6 if calls > 0 else 0.0


_RECOVERING = "recovering"


def strain_of(machine: MachineState, settings: LanesSection, *, recovering: bool) -> str:
    """Why the machine bears no more, or not as much as now; empty when it does."""
    free, hot = machine.free_memory_percent, machine.temperature_c
    if machine.throttled:
        return "the CPU is throttled for its heat"
    if hot is not None and hot > settings.max_temperature_c:
        return f"{hot:.0f} °C are over {settings.max_temperature_c:.0f} °C"
    if free is not None and free < settings.min_free_memory_percent:
        return f"{free:.1f} % of memory are free, under {settings.min_free_memory_percent:.1f} %"
    if recovering:
        if hot is not None and hot > settings.max_temperature_c - COOLED_BAND_C:
            return f"{_RECOVERING}: {hot:.0f} °C"
        if free is not None and free < settings.min_free_memory_percent + MEMORY_BAND_PERCENT:
            return f"{_RECOVERING}: {free:.1f} % of memory are free"
    return ""


class LaneScaler:
    """Looks at all watched lanes and sets how many there are. Its thread starts with the first that may grow."""

    def __init__(
        self,
        *,
        settings: LanesSection,
        on_change: Callable[[LaneChange], None] = lambda _change: None,
        probe: MachineProbe | None = None,
    ) -> None:
        """`on_change` is called on the scaler's thread for every change; `probe` reads the machine."""
        self._settings = settings
        self._on_change = on_change
        self._probe = probe
        self._guard = threading.Lock()
        self._watched: dict[Lanes, ScalingMemory | None] = {}
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._ups = 0
        self._downs = 0
        self._changes: deque[LaneChange] = deque(maxlen=_KEPT_CHANGES)

    def watch(self, lanes: Lanes) -> None:
        """Scale these lanes until they are closed or unwatched."""
        with self._guard:
            self._watched[lanes] = None
            cores = self._probe.cores if self._probe is not None else cpu_quota()
            can_grow = highest_limit(self._settings, cores=cores) > self._settings.min
            if can_grow and self._thread is None and not self._stopping.is_set():
                self._thread = threading.Thread(target=self._look_again_and_again, name="lane-scaler", daemon=True)
                self._thread.start()

    def unwatch(self, lanes: Lanes) -> None:
        """Leave these lanes as they are; unknown ones are a normal call."""
        with self._guard:
            self._watched.pop(lanes, None)

    def machine_has_to_spare(self) -> bool:
        """Whether the machine is neither hot nor short of memory: what may wait asks before it runs."""
        return not strain_of(self._read_machine(), self._settings, recovering=True)

    def history(self) -> ScalingHistory:
        """What happened so far."""
        with self._guard:
            return ScalingHistory(ups=self._ups, downs=self._downs, changes=tuple(self._changes))

    def stop(self) -> None:
        """End the thread; the lanes stay as they are. Safe to call twice."""
        self._stopping.set()
        with self._guard:
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def look(self) -> None:
        """Decide for all watched lanes once; the thread calls this."""
        with self._guard:
            for lanes in [lanes for lanes in self._watched if lanes.is_closed]:
                del self._watched[lanes]
            watched = [(lanes, lanes.load(), memory) for lanes, memory in self._watched.items()]
        needs_machine = [(lanes, load, memory) for lanes, load, memory in watched if self._matters(load, memory)]
        machine = self._read_machine() if needs_machine else None
        for lanes, load, memory in watched:
            if machine is None or not self._matters(load, memory):
                self._remember(lanes, ScalingMemory(load=load))
                continue
            decision = decide(load, memory, self._settings, machine)
            self._remember(lanes, decision.memory)
            if decision.limit != load.limit:
                self._apply(lanes, load, decision)

    def _matters(self, load: LaneLoad, memory: ScalingMemory | None) -> bool:
        """Whether anything could change: lanes to take back, or calls that wait or waited."""
        if load.limit != self._settings.min or load.waiting:
            return True
        return memory is not None and (memory.strained or load.queued != memory.load.queued)

    def _read_machine(self) -> MachineState:
        if self._probe is None:
            from edge_agent.runtime.machine_state import MachineProbe

            self._probe = MachineProbe()
        return self._probe.read()

    def _remember(self, lanes: Lanes, memory: ScalingMemory) -> None:
        with self._guard:
            if lanes in self._watched:
                self._watched[lanes] = memory

    def _apply(self, lanes: Lanes, load: LaneLoad, decision: ScalingDecision) -> None:
        lanes.set_limit(decision.limit)
        change = LaneChange(name=lanes.name, before=load.limit, after=decision.limit, reason=decision.reason)
        with self._guard:
            self._ups += change.after > change.before
            self._downs += change.after < change.before
            self._changes.append(change)
        _LOG.info("%s: lanes %d -> %d: %s", change.name, change.before, change.after, change.reason)
        self._on_change(change)

    def _look_again_and_again(self) -> None:
        while not self._stopping.wait(LOOK_EVERY_S):
            try:
                self.look()
            except Exception:  # noqa: BLE001 - one bad look must not end scaling: a busy model would stay slow
                _LOG.exception("could not look at the lanes")
