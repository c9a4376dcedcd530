"""What the agent process and its machine use right now. A machine that cannot tell a figure reports None.

Invariant: nothing here raises; a sensor that took longer than SLOW_SENSOR_S is not asked again for a while.
Figures are rounded to what a reading is worth, in the binary system: their zeros travel for nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import psutil

from fleet_protocol.messages import Resources

SLOW_SENSOR_S = 0.02
ASK_AGAIN_AFTER = 60
"""Windows until a sensor that was slow is asked again."""
_CPUS = Path("/sys/devices/system/cpu")
_PI_THROTTLED = Path("/sys/devices/platform/soc/soc:firmware/get_throttled")
_PI_NOW = 0xF  # under-voltage, capped, throttled, soft temperature limit: at this moment
_MAX_THROTTLE_FILES = 64
_STEP = 0.125  # of percentages and degrees
_DISK_STEP_BYTES = 1024 * 1024
_UNREADABLE = (AttributeError, OSError, RuntimeError, ValueError, TypeError, psutil.Error)

T = TypeVar("T")


class ResourceProbe:
    """Reads the figures for one window after another; CPU % and throttling are since the last reading."""

    def __init__(self, data_dir: Path | None, *, cpus: Path = _CPUS, pi_throttled: Path = _PI_THROTTLED) -> None:
        self._disk = data_dir or Path("/")
        self._process = psutil.Process()
        self._process.cpu_percent()
        self._busy_s, self._total_s = _cpu_seconds()
        self._throttling = Throttling(cpus=cpus, pi_throttled=pi_throttled)
        self._temperature, self._battery = Sensor(hottest_c), Sensor(battery_percent)

    def read(self) -> Resources:
        """The current figures; never raises."""
        memory = _or_none(self._process.memory_info)
        cpu_percent = _or_none(self._process.cpu_percent)
        return Resources(
            cpu_percent=_stepped(cpu_percent),
            rss_bytes=memory.rss if memory else None,
            temperature_c=_stepped(self._temperature.read()),
            throttled=self._throttling.read(),
            disk_free_bytes=_or_none(self._disk_free_bytes),
            machine_cpu_percent=_stepped(self._machine_cpu_percent()),
            battery_percent=_stepped(self._battery.read()),
        )

    def _disk_free_bytes(self) -> int:
        return int(psutil.disk_usage(str(self._disk)).free) // _DISK_STEP_BYTES * _DISK_STEP_BYTES

    def _machine_cpu_percent(self) -> float | None:
        busy_s, total_s = _cpu_seconds()
        elapsed_s = total_s - self._total_s
        percent = 100.0 * (busy_s - self._busy_s) / elapsed_s if elapsed_s > 0 else None
        self._busy_s, self._total_s = busy_s, total_s
        return None if percent is None else min(max(percent, 0.0), 100.0)


class Sensor:
    """One figure that may be slow to read: some drivers wait for a bus."""

    def __init__(self, read: Callable[[], float | None]) -> None:
        self._read, self._skip = read, 0

    def read(self) -> float | None:
        """The figure; None where there is none, and after a slow reading for ASK_AGAIN_AFTER times."""
        if self._skip:
            self._skip -= 1
            return None
        start_s = time.monotonic()
        figure = _or_none(self._read)
        if time.monotonic() - start_s > SLOW_SENSOR_S:
            self._skip = ASK_AGAIN_AFTER
        return figure


class Throttling:
    """Whether the CPU was slowed for heat, or a weak supply, since the last reading.

    By Linux's counters of thermal throttling, and by a Raspberry Pi's firmware, whose bits say what is so now (0 to 3)
    and what was since boot (16 on).
    """

    def __init__(self, *, cpus: Path, pi_throttled: Path) -> None:
        self._files = sorted(cpus.glob("cpu[0-9]*/thermal_throttle/*_throttle_count"))[:_MAX_THROTTLE_FILES]
        self._pi = pi_throttled
        self._events, self._bits = self._counted(), self._pi_bits()

    def read(self) -> bool | None:
        """None where the machine has neither."""
        events, bits = self._counted(), self._pi_bits()
        before, bits_before = self._events, self._bits
        self._events, self._bits = events, bits
        if events is None and bits is None:
            return None
        more = events is not None and before is not None and events > before
        slowed = bits is not None and bool(bits & _PI_NOW or bits & ~(bits_before or 0))
        return more or slowed

    def _counted(self) -> int | None:
        counts = [count for file in self._files if (count := _number(file, 10)) is not None]
        return sum(counts) if counts else None

    def _pi_bits(self) -> int | None:
        return _number(self._pi, 16)


def hottest_c() -> float | None:
    """The reading of the hottest sensor in degrees Celsius."""
    try:
        sensors = psutil.sensors_temperatures()
    except _UNREADABLE:
        return None
    return max((reading.current for chip in sensors.values() for reading in chip), default=None)


def battery_percent() -> float | None:
    """The battery's charge."""
    battery = psutil.sensors_battery()
    return None if battery is None else float(battery.percent)


def _cpu_seconds() -> tuple[float, float]:
    """(busy, total) seconds of all cores since the machine started."""
    times = _or_none(psutil.cpu_times)
    if times is None:
        return 0.0, 0.0
    # user and nice hold the guests' time already
    total_s = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
    return total_s - times.idle - getattr(times, "iowait", 0.0), total_s


def _stepped(figure: float | None) -> float | None:
    return None if figure is None else round(figure / _STEP) * _STEP


def _number(file: Path, base: int) -> int | None:
    return _or_none(lambda: int(file.read_text(encoding="ascii").strip(), base))


def _or_none(read: Callable[[], T]) -> T | None:
    try:
        return read()
    except _UNREADABLE:
        return None
