"""What a test of one signal answers, and the checks that the tests share."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fleet_server.drift.findings import Effect
from fleet_server.errors import InvalidRequestError
from fleet_server.statistics.e_values import mixture_calibrator
from fleet_server.statistics.intervals import Interval

Counts = NDArray[np.int64]
Matrix = NDArray[np.float64]

MAX_E_VALUE = 1e12
"""An e-value beyond it says no more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """The test of one signal: more than chance, or not, and how large.

    `p_value` and `e_value` are of this signal alone and of one look. `method` names the test in a few words. `effect`
    holds the sizes, each with its own null-calibrated p-value where it has one. `difference`, of accuracies, is seen
    less expected, with its interval. `design_effect` is by how much values of one device that come close together are
    worth less than independent ones (1: independent; 20: twenty say as much as one); None where devices are the unit.
    """

    p_value: float
    e_value: float
    method: str
    effect: Effect = field(default_factory=Effect)
    difference: float | None = None
    difference_interval: Interval | None = None
    design_effect: float | None = None

    @property
    def shift(self) -> float | None:
        """How far the mean rank moved, -1 to 1; None for what has no order."""
        return self.effect.shift_rank

    @property
    def shift_interval(self) -> Interval | None:
        """The interval of `shift`."""
        ends = self.effect.shift_interval
        return None if ends is None else Interval(lower=ends[0], upper=ends[1])


def e_value_of(p_value: float) -> float:
    """An e-value of a p-value, valid whatever the p-values depend on, and therefore weak (`mixture_calibrator`).

    >>> round(e_value_of(0.001), 1)
    20.8
    """
    return min(MAX_E_VALUE, mixture_calibrator(p_value))


def nothing_to_say(method: str) -> Evidence:
    """The evidence where nothing could differ, or too little is there."""
    return Evidence(p_value=1.0, e_value=e_value_of(1.0), method=method)


def check_counts(name: str, counts: Counts, cells: int) -> None:
    """Raise InvalidRequestError unless `counts` is `[units, cells]` of counts from 0."""
    if counts.ndim != 2 or counts.shape[1] != cells:
        raise InvalidRequestError(f"{name} of shape {counts.shape} and a reference of {cells} cells do not fit")
    if counts.size and int(counts.min()) < 0:
        raise InvalidRequestError(f"{name} holds a count below 0: the sketches were not checked when they were read")


def check_edges_fit(edges: Matrix | None, cells: int) -> None:
    """Raise InvalidRequestError unless `edges`, where there are some, are those of so many cells."""
    if edges is not None and edges.shape != (cells + 1,):
        raise InvalidRequestError(f"{cells} cells have {cells + 1} edges, not an array of shape {edges.shape}")


def check_same_devices(seen: int, expected: int) -> None:
    """Raise InvalidRequestError unless both sides have as many rows."""
    if seen != expected:
        raise InvalidRequestError(f"{seen} and {expected} rows are not the same devices: give both sides the same ones")


def shares(counts: Counts) -> Matrix:
    """Each unit's shares `[units, cells]`; units without a count are left out."""
    totals = counts.sum(axis=1, keepdims=True)
    kept = totals[:, 0] > 0
    found: Matrix = counts[kept] / totals[kept]
    return found
