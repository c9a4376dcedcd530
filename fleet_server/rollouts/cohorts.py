"""Which devices a stage holds, and which are control: a salted hash decides, every hardware class is represented.

Invariants:
- the same devices, salt and stage give the same answer everywhere, without any stored state;
- a larger stage holds every device of a smaller one, and whoever is exposed already stays;
- every hardware class has its share in every stage and in the control, up to rounding to whole devices;
- a device that joins the fleet moves few others, because each keeps its place within its class;
- control is in no stage: its devices come after the last one has passed. Its places are drawn by other bits of the
  hash than the stages', so that control is neither the early nor the late devices.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fleet_server.rollouts.policy import ControlPolicy, Stage

_STAGES, _CONTROL = 0, 1
"""Which 64 bits of the digest place a device: each purpose has its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cohorts:
    """A rollout's devices: `control`, and everybody else in the `order` of exposure."""

    order: Sequence[str]
    control: Sequence[str]

    def stage(self, stage: Stage) -> Sequence[str]:
        """The devices of `stage`, when nobody is exposed yet."""
        return self.order[: stage_size(len(self.order) + len(self.control), stage)]


def position(device: str, salt: str) -> float:
    """The device's place in [0, 1) under `salt`: the top 53 bits of sha256("salt:device")."""
    return float(_places(_digests([device], salt), _STAGES)[0])


def draw_cohorts(hardware: Mapping[str, str], control: ControlPolicy, salt: str) -> Cohorts:
    """The cohorts of a rollout that has not begun, `hardware` being each device's class. Hashes every device once."""
    names, classes = list(hardware), _codes(hardware.values())
    digests = _digests(names, salt)
    size = _control_size(len(names), control)
    if size == 0:
        return Cohorts(order=_named(names, _interleaved(names, classes, _places(digests, _STAGES))), control=())
    chosen = _interleaved(names, classes, _places(digests, _CONTROL))[:size]
    is_left = np.ones(len(names), dtype=bool)
    is_left[chosen] = False
    others = np.flatnonzero(is_left)
    left = _named(names, others)
    order = _interleaved(left, classes[others], _places(digests[others], _STAGES))
    return Cohorts(order=_named(left, order), control=_named(names, chosen))


def exposure_order(hardware: Mapping[str, str], salt: str) -> list[str]:
    """Every device (name -> hardware class) in the order of exposure.

    Within a class by position; the classes are interleaved in proportion to their sizes, so that each prefix
    of the order holds about the same share of every class.
    """
    return _ordered(hardware, salt, _STAGES)


def control_devices(
    hardware: Mapping[str, str],
    control: ControlPolicy,
    salt: str,
    *,
    held: AbstractSet[str] = frozenset(),
    exposed: AbstractSet[str] = frozenset(),
) -> list[str]:
    """The devices held on the incumbent: of `hardware` the policy's percentage, rounded down.

    Who is `held` already stays so as long as it is selected, and whoever is `exposed` never becomes control.
    """
    size = _control_size(len(hardware), control)
    order = _ordered(hardware, salt, _CONTROL) if size > 0 or held else []
    kept = [device for device in order if device in held and device not in exposed]
    new = [device for device in order if device not in held and device not in exposed]
    return [*kept, *new[: max(0, size - len(kept))]]


def stage_size(devices: int, stage: Stage) -> int:
    """How many of `devices` the stage exposes: a percentage rounds up, so at least 1 of any."""
    if stage.percent is not None:
        # a tenth of a percent of 1,000 must be 1, not the 2 that binary rounding would make of it
        return min(devices, math.ceil(round(devices * stage.percent / 100, 9)))
    return min(devices, stage.count or 0)


def stage_devices(
    hardware: Mapping[str, str],
    stage: Stage,
    salt: str,
    exposed: AbstractSet[str] = frozenset(),
    control: AbstractSet[str] = frozenset(),
) -> list[str]:
    """The devices of `stage`, those `exposed` already among them, in the order of exposure, without the `control`.

    A percentage is one of all devices in `hardware`, the control among them. `exposed` devices count towards the
    stage's size and are never taken out, even when they are more.
    """
    held = control - exposed
    order = exposure_order({d: h for d, h in hardware.items() if d not in held} if held else hardware, salt)
    size = min(len(order), stage_size(len(hardware), stage))
    if not exposed:
        return order[:size]
    kept = [device for device in order if device in exposed]
    new = [device for device in order if device not in exposed][: max(0, size - len(kept))]
    return [*kept, *new]


def _control_size(devices: int, control: ControlPolicy) -> int:
    return math.floor(round(devices * control.percent / 100, 9))


def _ordered(hardware: Mapping[str, str], salt: str, purpose: int) -> list[str]:
    names = list(hardware)
    places = _places(_digests(names, salt), purpose)
    return _named(names, _interleaved(names, _codes(hardware.values()), places))


def _interleaved(names: Sequence[str], classes: NDArray[np.int64], places: NDArray[np.float64]) -> NDArray[np.int64]:
    """The indices of `names`: within a class by place, the classes in proportion to their sizes."""
    if not names:
        return np.empty(0, dtype=np.int64)
    # sorting a million names is worth it only where two places are equal, which 53 bits hardly ever are
    by_place = np.argsort(places)
    if bool((np.diff(places[by_place]) == 0).any()):
        by_place = np.array(sorted(range(len(names)), key=lambda index: (places[index], names[index])))
    sizes = np.bincount(classes)
    by_class = by_place[np.argsort(classes[by_place], kind="stable")]
    starts = np.concatenate(([0], np.cumsum(sizes)[:-1]))
    share = np.empty(len(names))
    share[by_class] = (np.arange(len(names)) - np.repeat(starts, sizes) + 0.5) / np.repeat(sizes, sizes)
    return by_place[np.argsort(share[by_place], kind="stable")]


def _codes(classes: Iterable[str]) -> NDArray[np.int64]:
    codes: dict[str, int] = {}
    return np.array([codes.setdefault(each, len(codes)) for each in classes], dtype=np.int64)


def _digests(names: Sequence[str], salt: str) -> NDArray[np.uint64]:
    """The sha256 of each "salt:name" as four numbers: `[names, 4]`."""
    prefix, sha256 = f"{salt}:".encode(), hashlib.sha256
    joined = b"".join([sha256(prefix + name.encode()).digest() for name in names])
    return np.frombuffer(joined, dtype=">u8").reshape(-1, 4).astype(np.uint64)


def _places(digests: NDArray[np.uint64], purpose: int) -> NDArray[np.float64]:
    places: NDArray[np.float64] = (digests[:, purpose] >> np.uint64(11)) / float(2**53)
    return places


def _named(names: Sequence[str], indices: NDArray[np.int64]) -> list[str]:
    return list(map(names.__getitem__, indices.tolist()))
