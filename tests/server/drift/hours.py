"""Fleets with places and a day behind them: device hours in which one site moves at a known hour."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from fleet_protocol.bins import BinSketch
from fleet_protocol.manifest import Manifest
from fleet_protocol.messages import EstimatedAccuracy, Outcomes, Window
from fleet_server.drift.segments import DeviceFacts
from tests.server.drift.fleets import T0_NS, S, manifest, window

HOUR_NS = 3_600 * S
DAY_START_NS = T0_NS // HOUR_NS * HOUR_NS - 24 * HOUR_NS


def place_manifest(seed: int = 1) -> Manifest:
    """Two features, "brightness" and "contrast", standard normal over the fleet's devices."""
    random = np.random.default_rng(seed)
    return manifest({"brightness": random.normal(size=4_000), "contrast": random.normal(size=4_000)})


class PlacedFleet:
    """Devices with a site and a kind of hardware, whose own means differ by `spread`."""

    def __init__(self, seed: int, *, devices: int = 40, sites: Sequence[str] = ("lisbon", "oslo"), spread: float = 0.2):
        self._random = np.random.default_rng(seed)
        self.made = place_manifest()
        self.names = [f"device-{number:03d}" for number in range(devices)]
        self.sites = {name: sites[number % len(sites)] for number, name in enumerate(self.names)}
        self.facts = {
            name: DeviceFacts(labels={"site": self.sites[name], "hardware": f"kind-{number // 5 % 3}"})
            for number, name in enumerate(self.names)
        }
        self._offsets = {name: self._random.normal(0, spread, 2) for name in self.names}

    def windows(
        self,
        *,
        start_ns: int = DAY_START_NS,
        hours: int = 24,
        moved: float = 0.0,
        site: str = "",
        from_hour: int = 0,
        values: int = 60,
        share: float = 1.0,
        accuracy: tuple[float, float] | None = None,
    ) -> list[Window]:
        """One window an hour and device; "brightness" moves by `moved` at `site` from that hour on.

        `accuracy` is the mean confidence before and after, of devices that move.
        """
        found = []
        movers = [name for name in self.names if site in ("", self.sites[name])]
        movers = movers[: round(share * len(movers))]
        for hour in range(hours):
            end_ns = start_ns + (hour + 1) * HOUR_NS
            for name in self.names:
                is_moved = moved != 0 and name in movers and hour >= from_hour
                first, second = self._offsets[name]
                brightness = first + (moved if is_moved else 0.0) + self._random.normal(0, 1, values)
                features = {"brightness": brightness, "contrast": second + self._random.normal(0, 1, values)}
                one = window(self.made, name, features, sequence=hour + 1, end_ns=end_ns)
                if accuracy is not None:
                    mean = accuracy[1] if is_moved else accuracy[0]
                    estimate = EstimatedAccuracy(
                        count=values, confidence_sum=mean * values, variance_sum=mean * (1 - mean) * values
                    )
                    one = msgspec.structs.replace(one, estimated_accuracy=estimate)
                found.append(one)
        return found


def with_outcomes(windows: Sequence[Window], accuracy: float, *, judged: int, seed: int) -> list[Window]:
    """The windows with so many outcomes each, right as often as this."""
    random = np.random.default_rng(seed)
    right = random.binomial(judged, accuracy, size=len(windows)).tolist()
    return [
        msgspec.structs.replace(one, outcomes=Outcomes(correct=correct, wrong=judged - correct))
        for one, correct in zip(windows, right, strict=True)
    ]


def sketch_of(made: Manifest, feature: int, values: Sequence[float]) -> bytes:
    """The wire bytes of one feature's values."""
    sketch = BinSketch(made.features[feature].edges)
    sketch.record_many(list(values))
    return sketch.to_bytes()
