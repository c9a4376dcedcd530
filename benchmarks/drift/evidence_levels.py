"""How often does the evidence raise an alarm without drift? `python -m benchmarks.drift.evidence_levels`

One line a test, kind of fleet and number of devices: the share of RUNS at 5 %, to be held against the binomial error
that stands beside. The tests hold the same rates with fewer runs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

os.environ.setdefault("OMP_NUM_THREADS", "1")

from fleet_server.drift.evidence import (
    against_reference,
    between_devices,
    embedding_against_reference,
    embedding_paired_devices,
    paired_devices,
)
from tests.server.drift.fleets import ALPHA, EmbeddingFleet, NumberFleet

RUNS = 1_000
RUNS_OF_MANY = 100
MANY = 1_000
SPREADS = (0.2, 0.5, 1.0)
EFFECTS = ("normal", "exponential", "odd")
DEVICES = (5, 10, 50, MANY)

Look = Callable[[int], float]
"""From a seed to the p-value of one look at a fleet without drift."""


def looks() -> Iterator[tuple[str, int, Look]]:
    """What is looked at, with how many devices."""
    for effects in EFFECTS:
        for spread in SPREADS:
            for devices in DEVICES:
                yield f"reference, {effects} {spread}", devices, _numbers(effects, spread, devices)
        for devices in DEVICES[:-1]:
            yield f"other devices, {effects} 1.0", devices, _slices(effects, devices)
            yield f"the same devices, {effects} 1.0", devices, _pairs(effects, devices)
    for odd in (False, True):
        for devices in DEVICES[:-1]:
            yield f"embedding, reference{', odd' * odd}", devices, _embedding(odd, devices)
            yield f"embedding, the same devices{', odd' * odd}", devices, _embedding_pairs(odd, devices)


def _numbers(effects: str, spread: float, devices: int) -> Look:
    def look(seed: int) -> float:
        fleet = NumberFleet(seed, spread=spread, effects=effects)
        return against_reference(fleet.counts(devices), fleet.reference, edges=fleet.edges, effects=False).p_value

    return look


def _slices(effects: str, devices: int) -> Look:
    def look(seed: int) -> float:
        fleet = NumberFleet(seed, spread=1.0, effects=effects)
        sides = fleet.counts(devices), fleet.counts(2 * devices)
        return between_devices(*sides, edges=fleet.edges, seed=seed, effects=False).p_value

    return look


def _pairs(effects: str, devices: int) -> Look:
    def look(seed: int) -> float:
        fleet = NumberFleet(seed, spread=1.0, effects=effects)
        habits = fleet.habits(devices)
        sides = fleet.counts(devices, habits=habits), fleet.counts(devices, habits=habits)
        return paired_devices(*sides, edges=fleet.edges, seed=seed, effects=False).p_value

    return look


def _embedding(odd: bool, devices: int) -> Look:
    def look(seed: int) -> float:
        fleet = EmbeddingFleet(seed, odd=odd)
        return embedding_against_reference(fleet.sums(fleet.habits(devices)), fleet.reference).p_value

    return look


def _embedding_pairs(odd: bool, devices: int) -> Look:
    def look(seed: int) -> float:
        fleet = EmbeddingFleet(seed, odd=odd)
        habits = fleet.habits(devices)
        return embedding_paired_devices(fleet.sums(habits), fleet.sums(habits), seed=seed).p_value

    return look


def main() -> None:
    """Print the shares."""
    for name, devices, look in looks():
        runs = RUNS_OF_MANY if devices == MANY else RUNS
        alarms = sum(look(seed) <= ALPHA for seed in range(runs)) / runs
        error = (ALPHA * (1 - ALPHA) / runs) ** 0.5
        print(f"{name:45s} {devices:5d} devices: {alarms:.3f} (5 % +- {2 * error:.3f})", flush=True)


if __name__ == "__main__":
    main()
