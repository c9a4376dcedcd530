"""How devices differ: their character, and their habits with a model. Pure but for the random generator.

Invariant: a device's character and habits depend on the seed, its number, the fleet's settings and the model's name
alone: not on how many others there are, nor on the version, so a new version finds the device as it was.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from fleet_server.simulator.behaviour import FleetBehaviour
from fleet_server.simulator.references import EMBEDDING_FACTORS, SCALE_PER_SPREAD, ModelReference

SILENT_TRAFFIC = 0.01
EARLY_SHARE = 0.1
_CHARACTER, _HABITS = 1, 2

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """A kind of device. `battery` says whether it has one."""

    name: str
    cpu_signature: str
    battery: bool


HARDWARE = (
    Hardware(name="x86-box", cpu_signature="x86_64:avx2", battery=False),
    Hardware(name="arm-board", cpu_signature="aarch64:dotprod", battery=False),
    Hardware(name="arm-handheld", cpu_signature="aarch64:neon", battery=True),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Character:
    """How one device differs: factors on latency and traffic, a shift of the log-odds of being right; where it is."""

    latency_factor: float
    traffic_factor: float
    accuracy_shift: float
    hardware: Hardware
    site: str
    utc_offset_h: float
    cohort: str

    @classmethod
    def drawn(cls, behaviour: FleetBehaviour, *, seed: int, index: int) -> Character:
        """Device number `index` (from 0) of a fleet."""
        random = np.random.default_rng([seed, index, _CHARACTER])
        speed, skill, busyness = random.standard_normal(3)
        silent, early, place = random.random(3)
        traffic = math.exp(behaviour.traffic_spread * busyness - behaviour.traffic_spread**2 / 2)
        sites = sorted(behaviour.sites)
        site = sites[int(place * len(sites))] if sites else ""
        hardware = HARDWARE[index % len(HARDWARE)]
        return cls(
            latency_factor=math.exp(behaviour.spread * speed),
            traffic_factor=traffic * (SILENT_TRAFFIC if silent < behaviour.silent_share else 1.0),
            accuracy_shift=behaviour.spread * skill,
            hardware=hardware,
            site=site,
            utc_offset_h=behaviour.sites[site] if site else 0.0,
            cohort="early" if early < EARLY_SHARE else "broad",
        )

    def labels(self) -> dict[str, str]:
        """What the device reports of itself."""
        labels = {"simulated": "true", "hardware": self.hardware.name, "cohort": self.cohort}
        return {**labels, "site": self.site} if self.site else labels


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """Character and habits of several devices with one model, by row.

    `location` and `log_scale` `[devices, numeric signals]` of the normal scale, `classes` `[devices, classes]`,
    `embedding` `[devices, EMBEDDING_FACTORS]`, `drifts` `[drifts, devices]`: 1 where the device has it.
    """

    latency_factor: Floats
    traffic_factor: Floats
    accuracy_shift: Floats
    utc_offset_h: Floats
    location: Floats
    log_scale: Floats
    classes: Floats
    embedding: Floats
    drifts: Floats


def traits_of(
    behaviour: FleetBehaviour,
    reference: ModelReference,
    *,
    model: str,
    version: str,
    seed: int,
    devices: Sequence[tuple[int, str, Character]],
) -> Traits:
    """The traits of devices, given as (number, name, character)."""
    spread, signals = behaviour.spread, len(reference.numeric)
    normal = np.zeros((len(devices), 2 * signals + EMBEDDING_FACTORS))
    classes = np.tile(reference.classes, (len(devices), 1))
    # the relative spread of a class with an even share is then `spread`
    concentration = max((len(reference.classes) - 1) / spread**2 - 1, 0.5) if spread else 0.0
    for row, (index, _, _) in enumerate(devices):
        random = np.random.default_rng([seed, index, _HABITS, crc32(model.encode())])
        normal[row] = spread * random.standard_normal(normal.shape[1])
        if concentration and len(reference.classes) > 1:
            drawn = random.standard_gamma(concentration * reference.classes)
            classes[row] = drawn / drawn.sum() if drawn.sum() else reference.classes
    characters = [character for _, _, character in devices]
    return Traits(
        latency_factor=np.array([character.latency_factor for character in characters]),
        traffic_factor=np.array([character.traffic_factor for character in characters]),
        accuracy_shift=np.array([character.accuracy_shift for character in characters]),
        utc_offset_h=np.array([character.utc_offset_h for character in characters]),
        location=normal[:, :signals],
        log_scale=SCALE_PER_SPREAD * normal[:, signals : 2 * signals],
        classes=classes,
        embedding=normal[:, 2 * signals :],
        drifts=np.array(
            [
                [
                    drift.version in ("", version)
                    and drift.is_on(
                        {**character.labels(), "cpu_signature": character.hardware.cpu_signature},
                        device=name,
                        place=place,
                        seed=seed,
                    )
                    for _, name, character in devices
                ]
                for place, drift in enumerate(behaviour.drifts)
            ],
            dtype=np.float64,
        ).reshape(len(behaviour.drifts), len(devices)),
    )
