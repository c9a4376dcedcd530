"""A rotating machine as numbers: its bearing, what rings when it is struck, how well it runs.

Machines are unequal: each is drawn from its own seed, which is its number. Units: hertz, metres per second squared,
radians, and orders (events per turn of the shaft).

The characteristic orders are those of pure rolling: outer ring fixed, inner ring turning with the shaft, n elements
of diameter d on a pitch circle of diameter D, contact angle phi, `reach` = d/D cos phi (R. B. Randall and J. Antoni,
"Rolling element bearing diagnostics: a tutorial", Mechanical Systems and Signal Processing 25, 2011):

    cage (FTF)     (1 - reach) / 2
    outer (BPFO)   n (1 - reach) / 2
    inner (BPFI)   n (1 + reach) / 2
    ball (BSF)     D / (2 d) (1 - reach^2)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

_SEED = 52_011


@dataclass(frozen=True, kw_only=True)
class Bearing:
    """A rolling element bearing's geometry. `diameter_ratio` is d/D."""

    elements: int
    diameter_ratio: float
    contact_rad: float

    @property
    def _reach(self) -> float:
        return self.diameter_ratio * math.cos(self.contact_rad)

    @property
    def cage_order(self) -> float:
        """Turns of the cage per turn of the shaft (FTF)."""
        return (1 - self._reach) / 2

    @property
    def outer_order(self) -> float:
        """Elements that pass a place of the outer ring (BPFO)."""
        return self.elements * (1 - self._reach) / 2

    @property
    def inner_order(self) -> float:
        """Elements that pass a place of the inner ring (BPFI)."""
        return self.elements * (1 + self._reach) / 2

    @property
    def ball_order(self) -> float:
        """Turns of an element about itself (BSF); a defect on it strikes twice a turn, once on each ring."""
        return (1 - self._reach**2) / (2 * self.diameter_ratio)


@dataclass(frozen=True, kw_only=True)
class Resonance:
    """One mode of the housing: natural frequency, damping ratio, and its share of the response."""

    frequency_hz: float
    damping: float
    gain: float


@dataclass(frozen=True, kw_only=True)
class Machine:
    """One machine and its sensor.

    `harmonics` are the healthy amplitudes at 1, 2, 3... times the shaft's speed at nominal speed, `passing` those of
    `vanes` per turn and its double. `friction` and `flow` are root mean squares of the noise that rings the
    resonances and of the broad one; `hum` is at twice the mains' 50 Hz. `impact` scales every defect's blows:
    how far the defect is from the sensor.
    """

    number: int
    nominal_hz: float
    bearing: Bearing
    resonances: tuple[Resonance, ...]
    harmonics: tuple[float, ...]
    vanes: int
    passing: float
    hum: float
    friction: float
    flow: float
    sensor_noise: float
    sensor_gain: float
    load_zone_rad: float
    modulation: float
    impact: float


def machine(number: int) -> Machine:
    """The machine of that number, always the same one."""
    random = np.random.default_rng(np.random.SeedSequence(_SEED, spawn_key=(number,)))

    def about(value: float, spread: float) -> float:
        return float(value * math.exp(spread * random.standard_normal()))

    return Machine(
        number=number,
        nominal_hz=float(random.uniform(20, 40)),
        bearing=Bearing(
            elements=int(random.integers(7, 14)),
            diameter_ratio=float(random.uniform(0.16, 0.30)),
            contact_rad=float(random.uniform(0.0, math.radians(15))),
        ),
        resonances=tuple(
            Resonance(
                frequency_hz=float(random.uniform(low, high)),
                damping=float(random.uniform(0.02, 0.06)),
                gain=about(1.0, 0.4),
            )
            for low, high in ((1_200, 2_600), (2_600, 4_400), (4_400, 7_000))
        ),
        harmonics=tuple(about(amplitude, 0.4) for amplitude in (0.30, 0.12, 0.06, 0.04, 0.03, 0.02)),
        vanes=int(random.integers(5, 10)),
        passing=about(0.08, 0.5),
        hum=about(0.03, 0.6),
        friction=about(0.25, 0.25),
        flow=about(0.10, 0.3),
        sensor_noise=about(0.02, 0.2),
        sensor_gain=float(random.uniform(0.9, 1.1)),
        load_zone_rad=float(random.uniform(math.radians(50), math.radians(85))),
        modulation=float(random.uniform(0.02, 0.12)),
        impact=about(1.0, 0.25),
    )
