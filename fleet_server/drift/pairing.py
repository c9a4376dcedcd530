"""Who is held against whom, and which units take part. Pure.

`Pairing` says which test is right: it follows from who is compared with whom (`pairing_of`), never from the values.
Invariants:
- a unit with fewer than MIN_VALUES_PER_DEVICE values is left out and counted: its shares are mostly chance;
- devices that are on both sides of a comparison of devices with others stand on the seen side only;
- what keeps a signal from being judged is said in words, and then there is no p-value.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from fleet_server.drift.evidence import MIN_DEVICES, MIN_VALUES, MIN_VALUES_PER_DEVICE
from fleet_server.drift.findings import SignalFinding
from fleet_server.drift.signals import Matrix
from fleet_server.drift.tallies import Course, Tally, in_time

MIN_PEERS = 20
"""Devices that one device is held against: with fewer, even the strangest of them is no rarity."""
MIN_PAIRED_SHARE = 0.5
"""Of the smaller side's devices that must be on both sides, for devices to be held against themselves."""

Places = NDArray[np.int64]


class Pairing(StrEnum):
    """Who is held against whom."""

    REFERENCE = "devices against the reference"
    BETWEEN = "devices against other devices"
    PAIRED = "devices against themselves"
    ONE_DEVICE = "one device against the reference"
    OWN_PAST = "one device against its own past"

    @property
    def is_one_device(self) -> bool:
        """Whether the units are one device's windows, not devices."""
        return self in (Pairing.ONE_DEVICE, Pairing.OWN_PAST)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sides:
    """Which units take part: places in the seen tally and in the expected one, and how many were left out."""

    seen: Places
    expected: Places
    left_out: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """One signal with its evidence, without a verdict: that needs all signals.

    `lacking` says why there is no p-value. `names` `[units]` were judged; `deviations` `[units, scores]` are their mean
    scores less the `baseline`, `noise` the covariance of one value's scores, `values` `[units]` how many each counted,
    `moves` `[units]` the move of the mean in standard deviations. `loss` is of accuracy, in shares.
    """

    finding: SignalFinding
    lacking: str = ""
    names: tuple[str, ...] = ()
    deviations: Matrix = field(default_factory=lambda: np.zeros((0, 1)))
    baseline: Matrix = field(default_factory=lambda: np.zeros(1))
    noise: Matrix = field(default_factory=lambda: np.zeros((1, 1)))
    values: Matrix = field(default_factory=lambda: np.zeros(0))
    moves: Matrix | None = None
    course: Course | None = None
    places: Places = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """Of `names` in the seen tally, whose course this is."""
    loss: float | None = None
    means: tuple[float, float] | None = None
    """Of an accuracy: expected and seen."""


def pairing_of(seen: Tally, expected: Tally | None, *, seen_device: str = "", expected_device: str = "") -> Pairing:
    """Which test is right for these two populations; `expected` None is the reference."""
    if expected is None:
        return Pairing.ONE_DEVICE if seen_device else Pairing.REFERENCE
    if seen_device and seen_device == expected_device:
        return Pairing.OWN_PAST
    both = len(set(seen.names) & set(expected.names))
    is_paired = both >= MIN_DEVICES and both >= MIN_PAIRED_SHARE * min(len(seen.names), len(expected.names))
    return Pairing.PAIRED if is_paired else Pairing.BETWEEN


def choose_sides(
    totals: Matrix, others: Matrix | None, *, seen: Tally, expected: Tally | None, pairing: Pairing
) -> Sides:
    """The units with enough values: `totals` `[units]` of the seen tally, `others` `[units]` of the expected one."""
    none = np.zeros(0, dtype=np.int64)
    there = totals > 0
    if pairing.is_one_device:
        order, past = in_time(seen.names), none
        if others is not None and expected is not None:
            past = in_time(expected.names)
            past = past[others[past] > 0]
        return Sides(seen=order[there[order]], expected=past, left_out=0)
    enough = np.flatnonzero(totals >= MIN_VALUES_PER_DEVICE)
    left_out = int(there.sum()) - len(enough)
    if others is None or expected is None:
        return Sides(seen=enough, expected=none, left_out=left_out)
    peers = np.flatnonzero(others >= MIN_VALUES_PER_DEVICE)
    if pairing is Pairing.PAIRED:
        places = {expected.names[place]: place for place in peers.tolist()}
        both = [(place, places[seen.names[place]]) for place in enough.tolist() if seen.names[place] in places]
        pairs = np.array(both, dtype=np.int64).reshape(-1, 2)
        return Sides(seen=pairs[:, 0], expected=pairs[:, 1], left_out=int(there.sum()) - len(pairs))
    own = set(seen.names)
    kept = [place for place in peers.tolist() if expected.names[place] not in own]
    return Sides(seen=enough, expected=np.array(kept, dtype=np.int64), left_out=left_out)


def lacking_units(sides: Sides, *, values: int, pairing: Pairing) -> str:
    """What keeps these units from being judged, "" when nothing does."""
    seen, expected = len(sides.seen), len(sides.expected)
    if pairing.is_one_device:
        if values < MIN_VALUES:
            return f"the device saw {values} values and {MIN_VALUES} are needed"
        if pairing is Pairing.OWN_PAST and not expected:
            return "the device sent nothing in the time that it is held against"
        return ""
    if pairing is Pairing.BETWEEN and seen == 1:
        if expected < MIN_PEERS:
            return f"{expected} other devices saw enough values and {MIN_PEERS} are needed to know what is usual"
        return ""
    needed = f"{MIN_DEVICES} are needed to know how devices differ"
    if seen < MIN_DEVICES:
        both = " on both sides" if pairing is Pairing.PAIRED else ""
        return f"{seen} devices saw {MIN_VALUES_PER_DEVICE} values or more{both} and {needed}"
    if pairing is Pairing.BETWEEN and expected < MIN_DEVICES:
        return f"{expected} devices to compare with saw {MIN_VALUES_PER_DEVICE} values or more and {needed}"
    return ""
