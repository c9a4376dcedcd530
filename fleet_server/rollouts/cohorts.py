"""Which devices a stage holds: a salted hash decides, hardware classes are represented, nobody leaves.

Invariants:
- the same devices, salt and stage give the same answer everywhere, without any stored state;
- a larger stage holds every device of a smaller one, and whoever is exposed already stays;
- every hardware class has its share in every stage, up to rounding to whole devices;
- a device that joins the fleet moves few others, because each keeps its place within its class.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Mapping
from collections.abc import Set as AbstractSet

from fleet_server.rollouts.policy import Stage


def position(device: str, salt: str) -> float:
    """The device's place in [0, 1) under `salt`: the top 53 bits of sha256("salt:device")."""
    digest = hashlib.sha256(f"{salt}:{device}".encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53


def exposure_order(hardware: Mapping[str, str], salt: str) -> list[str]:
    """Every device (name -> hardware class) in the order of exposure.

    Within a class by position; the classes are interleaved in proportion to their sizes, so that each prefix
    of the order holds about the same share of every class.
    """
    classes: defaultdict[str, list[tuple[float, str]]] = defaultdict(list)
    for device, hardware_class in hardware.items():
        classes[hardware_class].append((position(device, salt), device))
    placed = [
        ((rank + 0.5) / len(members), place, device)
        for members in classes.values()
        for rank, (place, device) in enumerate(sorted(members))
    ]
    return [device for _, _, device in sorted(placed)]


def stage_size(devices: int, stage: Stage) -> int:
    """How many of `devices` the stage exposes: a percentage rounds up, so at least 1 of any."""
    if stage.percent is not None:
        # a tenth of a percent of 1,000 must be 1, not the 2 that binary rounding would make of it
        return min(devices, math.ceil(round(devices * stage.percent / 100, 9)))
    return min(devices, stage.count or 0)


def stage_devices(
    hardware: Mapping[str, str], stage: Stage, salt: str, exposed: AbstractSet[str] = frozenset()
) -> list[str]:
    """The devices of `stage`, those `exposed` already among them, in the order of exposure.

    `exposed` devices count towards the stage's size and are never taken out, even when they are more.
    """
    order = exposure_order(hardware, salt)
    kept = [device for device in order if device in exposed]
    missing = max(0, stage_size(len(order), stage) - len(kept))
    new = [device for device in order if device not in exposed][:missing]
    return [*kept, *new]
