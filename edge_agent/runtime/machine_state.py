"""How loaded, full and hot the machine is: what decides whether it can bear more runs at once.

A figure that the machine cannot tell is None and never stands in the way. One reading costs some 40 us; the slow
ones, temperature and throttling, are read every SLOW_EVERY_S only.
"""

from __future__ import annotations

import time
from pathlib import Path

import psutil
from msgspec import Struct

from edge_agent.runtime.cpu import cpu_quota
from edge_agent.telemetry.resources import hottest_c

SLOW_EVERY_S = 2.0
_STALE_AFTER_S = 1.0
_MAX_THROTTLE_FILES = 16
_CPUS = Path("/sys/devices/system/cpu")


class MachineState(Struct, frozen=True, kw_only=True):
    """The machine at one moment.

    `cpu_percent` is the greater of all cores' use and of this process's use of the cores that it may use; None in the
    first reading after a while. `throttled` says that the CPU has slowed itself down for its heat lately. `cores` is
    what this process may use.
    """

    cores: float
    cpu_percent: float | None = None
    free_memory_percent: float | None = None
    temperature_c: float | None = None
    throttled: bool = False


class MachineProbe:
    """Reads one state after another; CPU use is that since the last reading."""

    def __init__(self, *, cpus: Path = _CPUS) -> None:
        self.cores = cpu_quota()
        self._throttle_files = sorted(cpus.glob("cpu[0-9]*/thermal_throttle/core_throttle_count"))[:_MAX_THROTTLE_FILES]
        self._throttles: int | None = None
        self._read_at_s = float("-inf")
        self._slow_at_s = float("-inf")
        self._busy_s = self._total_s = self._own_s = 0.0
        self._temperature_c: float | None = None
        self._throttled = False

    def read(self) -> MachineState:
        """The state now; never raises."""
        now_s = time.monotonic()
        if now_s - self._slow_at_s >= SLOW_EVERY_S:
            self._slow_at_s = now_s
            self._temperature_c = hottest_c()
            throttles = sum(_count(file) for file in self._throttle_files)
            self._throttled = self._throttles is not None and throttles > self._throttles
            self._throttles = throttles
        return MachineState(
            cores=self.cores,
            cpu_percent=self._cpu_percent(now_s),
            free_memory_percent=_free_memory_percent(),
            temperature_c=self._temperature_c,
            throttled=self._throttled,
        )

    def _cpu_percent(self, now_s: float) -> float | None:
        elapsed_s = now_s - self._read_at_s
        own_s = time.process_time()
        busy_s, total_s = _cpu_seconds()
        percent = None
        if 0 < elapsed_s <= _STALE_AFTER_S:
            percent = 100 * (own_s - self._own_s) / (elapsed_s * self.cores)
            if total_s > self._total_s:
                percent = max(percent, 100 * (busy_s - self._busy_s) / (total_s - self._total_s))
        self._read_at_s, self._own_s, self._busy_s, self._total_s = now_s, own_s, busy_s, total_s
        return percent


def _cpu_seconds() -> tuple[float, float]:
    """(busy, total) seconds of all cores since the machine started."""
    try:
        times = psutil.cpu_times()
    except (OSError, RuntimeError):
        return 0.0, 0.0
    # user and nice hold the guests' time already
    total_s = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
    return total_s - times.idle - getattr(times, "iowait", 0.0), total_s


def _free_memory_percent() -> float | None:
    try:
        memory = psutil.virtual_memory()
    except (OSError, RuntimeError):
        return None
    return 100.0 * memory.available / memory.total if memory.total else None


def _count(file: Path) -> int:
    try:
        return int(file.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 0
