"""Where a drift is: the part of the fleet that moved, and how many devices did. Pure functions of arrays.

A segment is the devices that share a label's value, a CPU signature or a variant. Each segment is held against all
other devices, by their mean scores: Dempster's test for two groups with variances of their own, so that a segment of
five devices that differ much raises no alarm by itself. Which segments are told is decided by e-BH over all of a
report's signals and segments (`fleet_server.statistics.e_values`). A label that holds a device's own name, or
one with more than MAX_VALUES_PER_KEY values, makes no segments.

A device moved when its own mean lies further from what was expected, in the drift's direction, than the spread of
its peers (the devices outside the segment, else all; or those that lie the other way) and its own chance explain:
Benjamini-Hochberg over devices at MOVED_FALSE_SHARE, so of ten devices named about one is named by chance.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import f as f_distribution
from scipy.stats import norm

from fleet_server.drift.evidence import MIN_DEVICES
from fleet_server.drift.signals import Matrix

MAX_VALUES_PER_KEY = 20
MAX_SEGMENTS = 100
"""Segments of one report; keys with fewer values come first, for they say more."""
MOVED_FALSE_SHARE = 0.1
_NO_VARIANCE = 1e-18
_MAD_TO_DEVIATION = 1.4826
_MIN_OTHER_WAY = 10

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFacts:
    """What is known of a device beside its telemetry."""

    labels: Mapping[str, str]
    cpu_signature: str = ""


NO_FACTS = DeviceFacts(labels={})


@dataclass(frozen=True, slots=True, kw_only=True)
class Segmentation:
    """The segments of a list of devices: (by, value) and who belongs to each."""

    names: tuple[tuple[str, str], ...]
    members: Mask
    """`[segments, devices]`"""


def segment_devices(
    devices: Sequence[str],
    facts: Mapping[str, DeviceFacts],
    variants: Mapping[str, str],
) -> Segmentation:
    """Every segment of `devices` with at least MIN_DEVICES inside and outside. `variants` are theirs, by name."""
    values: dict[str, list[str]] = {}
    for place, device in enumerate(devices):
        known = facts.get(device, NO_FACTS)
        described = {**known.labels, "cpu_signature": known.cpu_signature, "variant": variants.get(device, "")}
        for key, value in described.items():
            if value:
                values.setdefault(key, [""] * len(devices))[place] = value
    keyed = {key: Counter(value for value in column if value) for key, column in values.items()}
    few = sorted((len(counts), key) for key, counts in keyed.items() if len(counts) <= MAX_VALUES_PER_KEY)
    names: list[tuple[str, str]] = []
    members = []
    for _, key in few:
        column = np.array(values[key])
        for value, count in sorted(keyed[key].items()):
            if MIN_DEVICES <= count <= len(devices) - MIN_DEVICES and len(names) < MAX_SEGMENTS:
                names.append((key, value))
                members.append(column == value)
    mask: Mask = np.array(members, dtype=bool).reshape(len(names), len(devices))
    return Segmentation(names=tuple(names), members=mask)


def segment_p_values(
    deviations: Matrix, members: Mask, *, noise: Matrix | None = None, values: Matrix | None = None
) -> Matrix:
    """p-values `[segments]` that the devices of each segment `[segments, devices]` differ from all others.

    `deviations` `[devices, scores]`. Where `noise` `[scores, scores]`, the covariance of one value's scores, and
    `values` `[devices]`, how many each counted, are told, the variance of a side is never less than they alone make:
    ten devices with one rare error each differ by nothing, and are no proof of it. 1 where one side has fewer than
    MIN_DEVICES or nothing could differ.
    """
    chance = None if noise is None or values is None else (noise, 1.0 / np.maximum(values, 1.0))
    p_values = np.ones(len(members))
    centred = deviations - deviations.mean(axis=0) if len(deviations) else deviations
    total_sum, total_square = centred.sum(axis=0), centred.T @ centred
    for row, mask in enumerate(members):
        inside = int(mask.sum())
        outside = len(centred) - inside
        if min(inside, outside) < MIN_DEVICES:
            continue
        own = centred[mask]
        own_sum, own_square = own.sum(axis=0), own.T @ own
        first = _at_least(_variance_of_mean(own_sum, own_square, inside), chance, mask)
        second = _at_least(_variance_of_mean(total_sum - own_sum, total_square - own_square, outside), chance, ~mask)
        difference = own_sum / inside - (total_sum - own_sum) / outside
        p_values[row] = _dempster(difference, first, second, inside, outside)
    return p_values


def moved_devices(
    deviations: Matrix, *, direction: Matrix, noise: Matrix, values: Matrix, peers: Mask | None = None
) -> Mask:
    """Which devices `[devices]` moved in `direction` `[scores]`.

    `noise` `[scores, scores]` is the covariance of one value's scores, `values` `[devices]` how many each counted.
    """
    projected = deviations @ direction
    chance = np.maximum(float(direction @ noise @ direction), 0.0) / np.maximum(values, 1.0)
    others = projected if peers is None or int(peers.sum()) < MIN_DEVICES else projected[peers]
    spread = float(np.median(np.abs(others - np.median(others)))) * _MAD_TO_DEVIATION
    other_way = -others[others < 0]  # where half of the fleet moved, its middle lies between two groups
    if peers is None and len(other_way) >= _MIN_OTHER_WAY:
        spread = min(spread, float(np.median(other_way)) * _MAD_TO_DEVIATION)
    usual = float(np.median(chance if others is projected else chance[peers]))
    between = max(spread**2 - usual, 0.0)
    p_values = norm.sf(projected / np.sqrt(np.maximum(between + chance, _NO_VARIANCE)))
    order = np.argsort(p_values)
    limits = MOVED_FALSE_SHARE * np.arange(1, len(order) + 1) / len(order)
    passed = np.flatnonzero(p_values[order] <= limits)
    moved: Mask = np.zeros(len(order), dtype=bool)
    if len(passed):
        moved[order[: passed[-1] + 1]] = True
    return moved


def _variance_of_mean(total: Matrix, square: Matrix, size: int) -> Matrix:
    variance: Matrix = (square - np.outer(total, total) / size) / (size - 1) / size
    return variance


def _at_least(variance: Matrix, chance: tuple[Matrix, Matrix] | None, members: Mask) -> Matrix:
    """The variance of a mean of devices, filled up to what chance makes of their values."""
    if chance is None:
        return variance
    noise, shares = chance
    least = noise * float(shares[members].mean()) / int(members.sum())
    lacking = float(np.trace(least) - np.trace(variance))
    return variance + least * (lacking / float(np.trace(least))) if lacking > 0 else variance


def _dempster(difference: Matrix, first: Matrix, second: Matrix, inside: int, outside: int) -> float:
    whole = first + second
    trace = float(np.trace(whole))
    if trace <= _NO_VARIANCE:
        return 1.0
    spent = float((first**2).sum()) / (inside - 1) + float((second**2).sum()) / (outside - 1)
    numerator, denominator = trace**2 / float((whole**2).sum()), trace**2 / max(spent, _NO_VARIANCE**2)
    return float(f_distribution.sf(float(difference @ difference) / trace, numerator, denominator))
