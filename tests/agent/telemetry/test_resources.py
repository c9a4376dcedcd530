"""Resources: what the machine tells, None for what it does not, and never an error or a wait."""

from __future__ import annotations

import time
from pathlib import Path

import psutil
import pytest

from edge_agent.telemetry import resources
from edge_agent.telemetry.resources import ASK_AGAIN_AFTER, ResourceProbe, Sensor, Throttling


def counters(folder: Path, *counts: int) -> Path:
    for cpu, count in enumerate(counts):
        file = folder / f"cpu{cpu}" / "thermal_throttle" / "core_throttle_count"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{count}\n")
    return folder


def test_this_machine_tells_its_cpu_memory_and_disk_within_milliseconds(tmp_path: Path) -> None:
    probe = ResourceProbe(tmp_path)
    deadline = time.monotonic() + 0.1
    while time.monotonic() < deadline:
        pass
    durations = []
    for _ in range(5):
        start = time.process_time()
        figures = probe.read()
        durations.append(time.process_time() - start)

    assert figures.rss_bytes and figures.disk_free_bytes
    assert figures.cpu_percent is not None
    assert sorted(durations)[2] < 0.005


def test_the_machines_cpu_is_of_all_its_cores(tmp_path: Path) -> None:
    probe = ResourceProbe(tmp_path)
    deadline = time.monotonic() + 0.3
    while time.monotonic() < deadline:
        pass

    percent = probe.read().machine_cpu_percent

    assert percent is not None
    assert 0.0 < percent <= 100.0


def test_throttling_is_told_when_a_counter_has_grown(tmp_path: Path) -> None:
    throttling = Throttling(cpus=counters(tmp_path, 3, 0), pi_throttled=tmp_path / "none")

    assert throttling.read() is False
    counters(tmp_path, 3, 2)
    assert throttling.read() is True
    assert throttling.read() is False


@pytest.mark.parametrize(
    ("before", "now", "throttled"),
    [(0, 0, False), (0, 0x4, True), (0x50000, 0x50000, False), (0, 0x40000, True), (0x50000, 0x50005, True)],
)
def test_a_raspberry_pi_tells_by_its_firmwares_bits(tmp_path: Path, before: int, now: int, throttled: bool) -> None:
    pi = tmp_path / "get_throttled"
    pi.write_text(f"{before:x}\n")
    throttling = Throttling(cpus=tmp_path / "none", pi_throttled=pi)
    pi.write_text(f"{now:x}\n")

    assert throttling.read() is throttled


def test_a_machine_without_counters_cannot_tell(tmp_path: Path) -> None:
    assert Throttling(cpus=tmp_path, pi_throttled=tmp_path / "none").read() is None


def test_figures_that_cannot_be_read_are_none_and_never_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = ResourceProbe(tmp_path, cpus=counters(tmp_path, 1), pi_throttled=tmp_path)

    def broken(*_: object, **__: object) -> None:
        raise OSError("no such sensor")

    for name in ("sensors_temperatures", "sensors_battery", "disk_usage", "cpu_times"):
        monkeypatch.setattr(psutil, name, broken, raising=False)
    (tmp_path / "cpu0" / "thermal_throttle" / "core_throttle_count").write_text("many")
    figures = probe.read()

    assert (figures.temperature_c, figures.battery_percent, figures.disk_free_bytes, figures.throttled) == (None,) * 4
    assert figures.machine_cpu_percent is None


def test_a_sensor_that_is_slow_is_left_alone_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "SLOW_SENSOR_S", -1.0)
    asked: list[float] = []

    def read() -> float:
        asked.append(40.0)
        return asked[-1]

    sensor = Sensor(read)

    figures = [sensor.read() for _ in range(ASK_AGAIN_AFTER + 2)]

    assert figures == [40.0] + [None] * ASK_AGAIN_AFTER + [40.0]
    assert len(asked) == 2


def test_a_battery_is_told_where_there_is_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Battery:
        percent = 88

    monkeypatch.setattr(psutil, "sensors_battery", Battery, raising=False)

    assert ResourceProbe(tmp_path).read().battery_percent == 88.0
