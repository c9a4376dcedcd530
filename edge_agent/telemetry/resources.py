"""What the agent process and its machine use right now. A machine that cannot tell a figure reports None."""

from __future__ import annotations

from pathlib import Path

import psutil

from fleet_protocol.messages import Resources


class ResourceProbe:
    """Reads the figures for one window after another; CPU % is since the last reading."""

    def __init__(self, data_dir: Path | None) -> None:
        self._process = psutil.Process()
        self._process.cpu_percent()
        self._disk = data_dir or Path("/")

    def read(self) -> Resources:
        """The current figures; never raises."""
        return Resources(
            cpu_percent=self._process.cpu_percent(),
            rss_bytes=self._process.memory_info().rss,
            temperature_c=hottest_c(),
            disk_free_bytes=_free_bytes(self._disk),
        )


def hottest_c() -> float | None:
    """The reading of the hottest sensor in degrees Celsius."""
    try:
        sensors = psutil.sensors_temperatures()
    except (AttributeError, OSError):
        return None
    return max((reading.current for chip in sensors.values() for reading in chip), default=None)


def _free_bytes(path: Path) -> int | None:
    try:
        return int(psutil.disk_usage(str(path)).free)
    except OSError:
        return None
