"""The same fleet in virtual time: its windows without a broker, as fast as they can be drawn.

Invariants:
- the same fleet and span give the same windows, by growing end;
- a device is who it is in a simulation over MQTT with the same seed; the noise of its windows is another;
- memory is that of a block of MAX_BLOCK windows, whatever the span.
What a net does to them is `network.deliver`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec
import numpy as np
from numpy.typing import NDArray

from fleet_protocol.messages import MAIN_ARM, OutboxStatus, Resources, Window
from fleet_server.errors import InvalidRequestError
from fleet_server.simulator.behaviour import FleetBehaviour
from fleet_server.simulator.devices import Character, Traits, traits_of
from fleet_server.simulator.drawing import Spans, draw_windows
from fleet_server.simulator.machine import FILE_VARIANT, resources

MAX_BLOCK = 8_192
MAX_DEVICES = 100_000
_NOISE = 3
_NS = 10**9


def device_names(prefix: str, devices: int) -> list[str]:
    """The names of a simulation's devices.

    >>> device_names("sim", 2)
    ['sim-00001', 'sim-00002']
    """
    return [f"{prefix}-{number:05d}" for number in range(1, devices + 1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class VirtualFleet:
    """`devices` devices that all run one version of one model, from a simulation's first moment to its last.

    `variant` "" is the manifest's first one, FILE_VARIANT without a manifest.
    """

    behaviour: FleetBehaviour
    model: str
    version: str
    devices: int
    seed: int = 0
    prefix: str = "sim"
    variant: str = ""
    arm: str = MAIN_ARM
    characters: tuple[Character, ...] = field(init=False)

    def __post_init__(self) -> None:
        if not 1 <= self.devices <= MAX_DEVICES:
            raise InvalidRequestError(f"{self.devices} devices: a virtual fleet has 1 to {MAX_DEVICES}")
        drawn = (Character.drawn(self.behaviour, seed=self.seed, index=index) for index in range(self.devices))
        object.__setattr__(self, "characters", tuple(drawn))
        manifest = self.behaviour.manifests.get((self.model, self.version))
        if not self.variant:
            object.__setattr__(self, "variant", manifest.variants[0].name if manifest else FILE_VARIANT)

    @property
    def names(self) -> list[str]:
        """The devices' names, by number."""
        return device_names(self.prefix, self.devices)

    def labels(self) -> dict[str, dict[str, str]]:
        """What each device reports of itself, by name."""
        return {name: character.labels() for name, character in zip(self.names, self.characters, strict=True)}

    def traits(self) -> Traits:
        """The devices' traits, by number."""
        return traits_of(
            self.behaviour,
            self.behaviour.reference(self.model, self.version),
            model=self.model,
            version=self.version,
            seed=self.seed,
            devices=list(zip(range(self.devices), self.names, self.characters, strict=True)),
        )


def simulate_windows(fleet: VirtualFleet, *, start_ns: int, end_ns: int) -> Iterator[Window]:
    """Every window that ends in (start_ns, end_ns]: of each device one after the other without a gap.

    Devices' windows end evenly spread over a window's length, so a device's first one may be short.
    """
    length_ns, count, names = round(fleet.behaviour.window_s * _NS), fleet.devices, fleet.names
    traits = fleet.traits()
    random = np.random.default_rng([fleet.seed, _NOISE])
    boot_id = f"{fleet.seed & 0xFFFFFFFF:08x}-00000001"
    phase_ns = np.arange(1, count + 1) * length_ns // count
    rounds = max(0, end_ns - start_ns) // length_ns + 1
    for first in range(0, rounds * count, MAX_BLOCK):
        rows = np.arange(first, min(first + MAX_BLOCK, rounds * count))
        turn, device = rows // count, rows % count
        ends = start_ns + turn * length_ns + phase_ns[device]
        kept = ends <= end_ns
        turn, device, ends = turn[kept], device[kept], ends[kept]
        if len(ends) == 0:
            continue
        starts = np.maximum(ends - length_ns, start_ns)
        spans = Spans(device=device, start_ns=starts, end_ns=ends, begun_ns=start_ns)
        drawn = draw_windows(fleet.behaviour, traits, spans, model=fleet.model, version=fleet.version, random=random)
        machines = _machines(fleet, device, ends, [seen.count for seen in drawn], random)
        for number, seen, machine, begin, end, sequence in zip(
            device.tolist(), drawn, machines, starts.tolist(), ends.tolist(), (turn + 1).tolist(), strict=True
        ):
            yield Window(
                device=names[number],
                boot_id=boot_id,
                sequence=sequence,
                model=fleet.model,
                version=fleet.version,
                variant=fleet.variant,
                arm=fleet.arm,
                start_ns=begin,
                end_ns=end,
                resources=machine,
                outbox=OutboxStatus(),
                **msgspec.structs.asdict(seen),
            )


def _machines(
    fleet: VirtualFleet,
    device: NDArray[np.int64],
    ends_ns: NDArray[np.int64],
    counts: list[int],
    random: np.random.Generator,
) -> list[Resources]:
    noise = random.standard_normal((len(device), 2)).tolist()
    return [
        resources(
            fleet.characters[number],
            busy_s=count * fleet.behaviour.of(fleet.version).latency_us / 1e6,
            span_s=fleet.behaviour.window_s,
            at_ns=at_ns,
            noise=(first, second),
        )
        for number, count, at_ns, (first, second) in zip(device.tolist(), counts, ends_ns.tolist(), noise, strict=True)
    ]
