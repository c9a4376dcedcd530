"""What the tests of the simulator share: the digits bundle, fleets of it, and devices' counts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleet_protocol.bins import BinSketch
from fleet_protocol.bundle_folder import read_manifest
from fleet_protocol.messages import Window
from fleet_server.simulator import FleetBehaviour, VirtualFleet, simulate_windows
from models.digits.recipe import HERE

S = 10**9
DAY_S = 86_400
MONDAY_NS = 1_750_032_000 * S
MANIFEST = read_manifest(HERE / "bundles" / "1.1.0")
SITES = {"denver": -7.0, "lisbon": 0.0, "tokyo": 9.0}


def fleet(devices: int = 60, *, seed: int = 1, **settings: Any) -> VirtualFleet:
    """Devices with the digits, hourly windows of about a hundred predictions."""
    usual: dict[str, Any] = {"rate_per_s": 0.03, "window_s": 3_600.0, "sites": SITES}
    behaviour = FleetBehaviour(manifests={("digits", "1.1.0"): MANIFEST}, **{**usual, **settings})
    return VirtualFleet(behaviour=behaviour, model="digits", version="1.1.0", devices=devices, seed=seed)


def day_of(virtual: VirtualFleet, *, days: float = 1.0) -> list[Window]:
    """The windows of the fleet's first days."""
    return list(simulate_windows(virtual, start_ns=MONDAY_NS, end_ns=MONDAY_NS + int(days * DAY_S * S)))


def sketch(window: Window, feature: str) -> BinSketch:
    """A feature's sketch, or the score's."""
    if feature == "score":
        assert MANIFEST.score is not None
        return BinSketch.from_bytes(MANIFEST.score.edges, window.score)
    reference = next(one for one in MANIFEST.features if one.name == feature)
    return BinSketch.from_bytes(reference.edges, window.features.get(feature, b""))


def device_means(windows: Iterable[Window], feature: str) -> dict[str, float]:
    """Each device's mean of a feature in standard deviations of the reference's values, about the reference's mean.

    Values beyond the edges count at the edges.
    """
    reference = next(one for one in MANIFEST.features if one.name == feature)
    edges = np.array(reference.edges)
    at = np.concatenate(((edges[:-1] + edges[1:]) / 2, edges[[0, -1]]))
    counts: defaultdict[str, NDArray[np.int64]] = defaultdict(lambda: np.zeros(len(at), dtype=np.int64))
    for window in windows:
        told = sketch(window, feature)
        counts[window.device] += np.concatenate((told.bins, told.outside[:2]))
    shares = np.array(reference.counts) / sum(reference.counts)
    mean = shares @ at[:-2]
    sd = np.sqrt(shares @ (at[:-2] - mean) ** 2)
    return {name: float((row @ at / row.sum() - mean) / sd) for name, row in counts.items() if row.sum()}
