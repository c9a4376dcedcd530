"""Simulated vibration in four parts that never share a machine.

| part | machines | healthy records each | faulty records each | for |
|---|---|---|---|---|
| train | 256 | 10 | none | the weights; the features' reference distributions |
| calibration | 10 | 20 | none | the int8 ranges |
| selection | 12 | 24 | 18: every fault at every severity | deciding which variants may ship |
| final | 16 | 24 | 18 | the scores that are reported; it is `holdout.npz` |

A part's machines are a range of numbers of its own, and a machine is made from its number: no later choice can move a
machine from one part to another. Calibration has healthy records alone, as a real one would.

`part` simulates, about 9 ms a record; another CPU's sines may differ in a last bit and then, rarely, a value by 1/256.
The holdout is committed, so that what is reported can be scored again to the bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.bearing.features import front_end
from models.bearing.machine import machine
from models.bearing.vibration import FAULTS, SEVERITIES, Fault, record
from quantize.data import Samples

TRAIN, CALIBRATION, SELECTION, FINAL = "train", "calibration", "selection", "final"
HOLDOUT = Path(__file__).parent / "holdout.npz"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Which machines a part has, how many healthy records each, and whether it has every fault too."""

    machines: range
    healthy: int
    faulty: bool


PLANS = {
    TRAIN: Plan(machines=range(1_000, 1_256), healthy=10, faulty=False),
    CALIBRATION: Plan(machines=range(2_000, 2_010), healthy=20, faulty=False),
    SELECTION: Plan(machines=range(3_000, 3_012), healthy=24, faulty=True),
    FINAL: Plan(machines=range(4_000, 4_016), healthy=24, faulty=True),
}


@dataclass(frozen=True, kw_only=True)
class Vibration:
    """Spectra FP32 `[n, 512]`, and per record: the fault's place in `tuple(Fault)` (0 is none), its severity (0 to 3)
    and the machine's number, each `[n]`.
    """

    spectra: NDArray[np.float32]
    faults: NDArray[np.uint8]
    severities: NDArray[np.uint8]
    machines: NDArray[np.uint16]

    @property
    def labels(self) -> NDArray[np.int64]:
        """1 where something is wrong, `[n]`."""
        return (self.faults > 0).astype(np.int64)

    def samples(self) -> Samples:
        """The records as `quantize` takes them: the input `spectrum`, and labels."""
        return Samples(inputs={"spectrum": self.spectra}, labels=self.labels)


def part(name: str) -> Vibration:
    """The part of that name, simulated."""
    plan = PLANS[name]
    cases = [(Fault.NONE, 0)] * plan.healthy
    if plan.faulty:
        cases += [(fault, severity) for fault in FAULTS for severity in SEVERITIES]
    places = list(Fault)
    spectra, rows = [], []
    for number in plan.machines:
        subject = machine(number)
        for index, (fault, severity) in enumerate(cases):
            heard = record(subject, index, fault, severity)
            spectra.append(front_end(heard.signal, heard.speed_hz))
            rows.append((places.index(fault), severity, number))
    table: NDArray[Any] = np.array(rows)
    return Vibration(
        spectra=np.stack(spectra),
        faults=table[:, 0].astype(np.uint8),
        severities=table[:, 1].astype(np.uint8),
        machines=table[:, 2].astype(np.uint16),
    )


def write_holdout() -> None:
    """Write the final part: `spectra` float16, which holds them exactly, `faults`, `severities`, `machines`."""
    final = part(FINAL)
    np.savez_compressed(
        HOLDOUT,
        spectra=final.spectra.astype(np.float16),
        faults=final.faults,
        severities=final.severities,
        machines=final.machines,
    )


def holdout() -> Vibration:
    """The final part as it is committed."""
    with np.load(HOLDOUT, allow_pickle=False) as archive:
        return Vibration(
            spectra=archive["spectra"].astype(np.float32),
            faults=archive["faults"],
            severities=archive["severities"],
            machines=archive["machines"],
        )
