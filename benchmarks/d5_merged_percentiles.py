"""D5: the merged p99.9 of a fleet against the exact one of every raw latency.

Devices with latencies of their own (log-normal bodies around a device's own median, Pareto tails, and two modes where a
device is throttled half of the time) count them in real windows, which the ingest's ledger counts, the embedded store
keeps and the merger merges into minutes and hours. The exact value is that of the sorted raw latencies at the same
rank, ceil(q n), per minute, per hour and per device hour. The ratio is the worst relative error of p50, p90, p99 and
p99.9 over 0.8 %; what averaging the devices' own p99.9 would have said stands beside it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from benchmarks.result import Result
from fleet_protocol.histogram import LatencyHistogram
from fleet_protocol.messages import Window
from fleet_server.database.engine import open_engine
from fleet_server.database.schema import upgrade
from fleet_server.ingest.device_records import record_batch
from fleet_server.merging.merger import Merger
from fleet_server.merging.reading import merged_windows
from fleet_server.telemetry_store import EmbeddedStore, Grain, MergedWindow, Slice

ID = "D5"
TITLE = "worst relative error of a merged percentile / 0.8 %"
TARGET = 0.008
LEVELS = (0.5, 0.9, 0.99, 0.999)
DEVICES, MINUTES = 200, 60
_NS = 10**9
_START_NS = 1_750_003_200 * _NS
_FLEET = "d5"
_LONGEST_US = 2.0**35
"""Half of what the histogram covers: nine hours."""
_Key = tuple[int, str]


def run() -> Result:
    """Make the fleet, merge it, compare."""
    rng = np.random.default_rng(5)
    raw: dict[_Key, list[NDArray[np.float64]]] = defaultdict(list)
    with TemporaryDirectory(prefix="edgefleet-d5-") as folder:
        engine = open_engine(f"sqlite:///{Path(folder) / 'fleet.db'}")
        upgrade(engine)
        store = EmbeddedStore(Path(folder) / "telemetry.db")
        now_ns = _START_NS + 3 * 3_600 * _NS
        for device in range(DEVICES):
            windows = list(_windows(rng, device, raw))
            store.write(_FLEET, windows)
            with engine.begin() as connection:
                record_batch(connection, _FLEET, windows, [], now_ns=_START_NS)
        merger = Merger(engine=engine, store=store, fleet=_FLEET, raw_retention_s=14 * 86_400, now_ns=lambda: now_ns)
        while merger.step():
            pass
        now_ns += 3_600 * _NS
        while merger.step():
            pass
        where = Slice(fleet=_FLEET, start_ns=0, end_ns=2**62)
        errors = {
            grain.value: _errors(merged_windows(engine, store, where, grain, exact=False), grain, raw)
            for grain in Grain
        }
        store.close()
        engine.dispose()
    return _judge(errors, raw)


def _windows(rng: np.random.Generator, device: int, raw: dict[_Key, list[NDArray[np.float64]]]) -> Iterable[Window]:
    median_us, spread = rng.lognormal(8, 1.5), rng.uniform(0.1, 0.8)
    is_throttled = rng.random() < 0.3
    for minute in range(MINUTES):
        count = 1 + rng.poisson(rng.lognormal(4, 1.2))
        values = rng.lognormal(math.log(median_us), spread, count)
        slow = rng.random(count) < (0.5 if is_throttled else 0.0)
        values[slow] *= 12.0
        tail = rng.random(count) < 0.01
        values[tail] *= 1.0 + rng.pareto(1.1, int(tail.sum()))
        values = np.minimum(values, _LONGEST_US)
        start_ns = _START_NS + minute * 60 * _NS
        name = f"device-{device}"
        raw[start_ns, ""].append(values)
        raw[_START_NS, name].append(values)
        yield Window(
            device=name, boot_id="00000000-00000001", sequence=minute + 1, model="d5", version="1.0.0", variant="fp32",
            arm="main", start_ns=start_ns, end_ns=start_ns + 60 * _NS - device, count=count,
            latency=LatencyHistogram.of(values).to_bytes(),
        )  # fmt: skip  # as one call reads


def _errors(
    merged: Iterable[MergedWindow], grain: Grain, raw: dict[_Key, list[NDArray[np.float64]]]
) -> dict[float, list[float]]:
    found: dict[float, list[float]] = {level: [] for level in LEVELS}
    for one in merged:
        values = np.sort(np.concatenate(_raw_of(one, grain, raw)))
        histogram = LatencyHistogram.from_bytes(one.latency)
        if histogram.count != len(values):
            raise RuntimeError(f"{histogram.count} latencies are merged of {len(values)} that were counted")
        for level in LEVELS:
            exact = float(values[max(1, math.ceil(level * len(values))) - 1])
            found[level].append(float(abs(histogram.quantile_us(level) - exact) / exact))
    return found


def _raw_of(one: MergedWindow, grain: Grain, raw: dict[_Key, list[NDArray[np.float64]]]) -> list[NDArray[np.float64]]:
    if grain is Grain.FLEET_HOUR:
        return [part for (_, device), parts in raw.items() if not device for part in parts]
    return raw[one.start_ns, one.key.device]


def _judge(errors: dict[str, dict[float, list[float]]], raw: dict[_Key, list[NDArray[np.float64]]]) -> Result:
    worst = max(max(found) for of_grain in errors.values() for found in of_grain.values())
    everything = np.sort(np.concatenate(_raw_of_fleet(raw)))
    exact = float(everything[math.ceil(0.999 * len(everything)) - 1])
    averaged = float(np.mean([_p999(parts) for (_, device), parts in raw.items() if device]))
    return Result(
        id=ID,
        title=TITLE,
        ratio=round(worst / TARGET, 3),
        target="<= 1",
        holds=worst <= TARGET,
        figures={
            "worst_relative_error": {
                grain: {f"p{100 * level:g}": round(max(found), 5) for level, found in of_grain.items()}
                for grain, of_grain in errors.items()
            },
            "merged_windows_compared": {grain: len(of_grain[0.5]) for grain, of_grain in errors.items()},
            "latencies": len(everything),
            "devices": DEVICES,
            "error_of_averaging_the_devices_p999": round(abs(averaged - exact) / exact, 3),
        },
    )


def _raw_of_fleet(raw: dict[_Key, list[NDArray[np.float64]]]) -> list[NDArray[np.float64]]:
    return [part for (_, device), parts in raw.items() if not device for part in parts]


def _p999(parts: list[NDArray[np.float64]]) -> float:
    values = np.sort(np.concatenate(parts))
    return float(values[math.ceil(0.999 * len(values)) - 1])
