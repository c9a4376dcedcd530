"""The null fleet of D2 and D3: unequal devices, day and night, a bad net, and no drift at all.

Devices' means differ by 0.2 standard deviations of the reference, their traffic by a factor e, a few are nearly silent;
half the features follow the hour; windows come late by minutes to days, repeated, reordered, not at all; devices go
dark. The population over whole days is the reference's (`fleet_server.simulator.references`), so every alarm is false.
Invariant: a seed's fleet-week is the same for everybody.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from fleet_protocol.bins import BinSketch
from fleet_protocol.bundle_folder import read_manifest
from fleet_protocol.manifest import Manifest
from fleet_server.simulator import Arrival, DayNight, Drift, FleetBehaviour, NetFaults, VirtualFleet, deliver
from fleet_server.simulator.generator import simulate_windows

MODEL, VERSION = "digits", "1.1.0"
BUNDLE = Path(__file__).parents[2] / "models" / MODEL / "bundles" / VERSION
HOUR_NS, DAY_NS = 3_600 * 10**9, 86_400 * 10**9
MONDAY_NS = 1_750_032_000 * 10**9 // DAY_NS * DAY_NS
"""2025-06-16T00:00:00Z, when every fleet-week begins."""
DAYS = 7
REFERENCE_DAYS = 10
NETWORK = NetFaults(
    jitter_s=120,
    late_share=0.03,
    late_s=1_800,
    late_spread=1.5,
    repeat_share=0.03,
    lost_share=0.005,
    dark_every_s=4 * 86_400,
    dark_for_s=3 * 3_600,
)

Floats = NDArray[np.float64]
Columns = dict[str, NDArray[np.float64]]


def manifest() -> Manifest:
    """The bundle whose reference the fleet follows: four features, ten classes, scores, embedding sums."""
    return read_manifest(BUNDLE)


def null_behaviour(
    *,
    window_s: float = 3_600.0,
    spread: float = 0.2,
    rate_per_s: float = 0.01,
    weekend: float = 1.0,
    network: NetFaults = NETWORK,
    drifts: tuple[Drift, ...] = (),
) -> FleetBehaviour:
    """The fleet's settings. `weekend` other than 1 makes the days at its edges look otherwise than whole ones."""
    return FleetBehaviour(
        rate_per_s=rate_per_s,
        window_s=window_s,
        spread=spread,
        traffic_spread=1.0,
        silent_share=0.03,
        outcome_share=0.1,
        day=DayNight(traffic=0.6, features=0.3, weekend=weekend),
        sites={"lisbon": 0.0, "denver": -7.0, "tokyo": 9.0},
        manifests={(MODEL, VERSION): manifest()},
        network=network,
        drifts=drifts,
    )


def fleet_of(behaviour: FleetBehaviour, *, devices: int, seed: int) -> VirtualFleet:
    """`devices` devices of that behaviour."""
    return VirtualFleet(behaviour=behaviour, model=MODEL, version=VERSION, devices=devices, seed=seed)


def arrivals(fleet: VirtualFleet, *, days: float = DAYS) -> Iterator[Arrival]:
    """What a server would receive of the fleet's first days, in the order of arrival, repeats among it."""
    windows = simulate_windows(fleet, start_ns=MONDAY_NS, end_ns=MONDAY_NS + int(days * DAY_NS))
    return deliver(windows, fleet.behaviour.network, seed=fleet.seed, started_ns=MONDAY_NS)


def pooled_days(fleet: VirtualFleet, *, rows_per_day: int) -> Iterator[Columns]:
    """Raw values of each day: of windows that ended in it and were there an hour after it, each once.

    A row is one prediction; at most `rows_per_day` of them, taken at random. A value lies anywhere in its bin.
    """
    random = np.random.default_rng([fleet.seed, 11])
    by_day: list[dict[tuple[str, int], object]] = [{} for _ in range(DAYS)]
    for arrival in arrivals(fleet):
        window = arrival.window
        day = (window.end_ns - 1 - MONDAY_NS) // DAY_NS
        if window.count and arrival.at_ns <= MONDAY_NS + (day + 1) * DAY_NS + HOUR_NS:
            by_day[day][window.device, window.sequence] = window
    for windows in by_day:
        yield _rows(list(windows.values()), rows_per_day, random)


def reference_rows(*, rows: int, seed: int) -> Columns:
    """`rows` predictions drawn from the reference itself, one independent of the other."""
    random, bundle = np.random.default_rng([seed, 12]), manifest()
    columns = {
        feature.name: _values(np.array(feature.edges), random.multinomial(rows, _shares(feature.counts)), random)
        for feature in bundle.features
    }
    if bundle.score:
        drawn = random.multinomial(rows, _shares(bundle.score.counts))
        columns["score"] = _values(np.array(bundle.score.edges), drawn, random)
    columns["class"] = np.repeat(
        np.arange(float(len(bundle.classes))), random.multinomial(rows, _shares(bundle.classes))
    )
    return {name: random.permutation(values) for name, values in columns.items()}


def _shares(counts: list[int]) -> Floats:
    return np.array(counts) / sum(counts)


def _rows(windows: list[object], rows: int, random: np.random.Generator) -> Columns:
    """The values of windows, a row's all of one window."""
    bundle = manifest()
    parts: dict[str, list[Floats]] = {}
    for window in windows:
        told = msgspec.structs.asdict(window)  # type: ignore[arg-type] # windows only
        sketches = [
            (feature.name, feature.edges, told["features"].get(feature.name, b"")) for feature in bundle.features
        ]
        if bundle.score:
            sketches.append(("score", bundle.score.edges, told["score"]))
        for name, edges, data in sketches:
            bins = BinSketch.from_bytes(edges, data).bins
            parts.setdefault(name, []).append(random.permutation(_values(np.array(edges), bins, random)))
        classes = np.repeat(np.array(list(told["classes"]), dtype=np.float64), list(told["classes"].values()))
        parts.setdefault("class", []).append(random.permutation(classes))
    columns = {name: np.concatenate(values) for name, values in parts.items()}
    total = min(len(values) for values in columns.values())
    chosen = random.choice(total, min(rows, total), replace=False)
    return {name: values[chosen] for name, values in columns.items()}


def _values(edges: Floats, counts: NDArray[np.int64], random: np.random.Generator) -> Floats:
    low, width = np.repeat(edges[:-1], counts), np.repeat(np.diff(edges), counts)
    return np.asarray(low + width * random.random(len(low)))
