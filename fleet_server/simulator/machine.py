"""The machine under a virtual device: load, memory, warmth, battery by the hour, what it measured of variants. Pure."""

from __future__ import annotations

import math

from fleet_protocol.manifest import Manifest
from fleet_protocol.messages import Resources, VariantFigures
from fleet_server.simulator.devices import Character

FILE_VARIANT = "file"
"""What a version without a manifest runs: a plain file, of which the server expects no sketches."""
RSS_BYTES = 100_000_000
DISK_FREE_BYTES = 8_000_000_000
COLDEST_C, DAY_C, LOAD_C, THROTTLED_C = 38.0, 6.0, 30.0, 80.0
"""At night and idle; what noon adds; what a full core adds; from where the machine slows down."""
CORES = 4
_NS_PER_HOUR = 3_600 * 10**9
_FP32_SLOWNESS = 1.6


def resources(
    character: Character, *, busy_s: float, span_s: float, at_ns: int, noise: tuple[float, float]
) -> Resources:
    """A machine at the end of a window in which inference took `busy_s`; `noise` are two standard normal numbers."""
    hour = (at_ns / _NS_PER_HOUR + character.utc_offset_h) % 24
    load = min(busy_s * character.latency_factor / span_s, 1.0)
    warmth = COLDEST_C + DAY_C * (1 + math.cos((hour - 14) * math.pi / 12)) / 2 + LOAD_C * load + noise[0]
    # charged through the night, used up through the day
    battery = 100 - 80 * (hour - 7) / 16 if 7 <= hour < 23 else min(100.0, 20 + 80 * ((hour - 23) % 24) / 8)
    return Resources(
        cpu_percent=round(100 * load + 1, 1),
        rss_bytes=RSS_BYTES + int(1e6 * abs(noise[1])),
        temperature_c=round(warmth, 1),
        throttled=warmth >= THROTTLED_C,
        disk_free_bytes=DISK_FREE_BYTES,
        machine_cpu_percent=round(min(100.0, 100 * load / CORES + 5 + 2 * abs(noise[1])), 1),
        battery_percent=round(battery, 1) if character.hardware.battery else None,
    )


def variant_figures(manifest: Manifest, character: Character, *, latency_us: float) -> list[VariantFigures]:
    """What the device would have found of the bundle's variants for its architecture: fp32 is the slowest."""
    architecture = character.hardware.cpu_signature.partition(":")[0]
    return [
        VariantFigures(
            variant=variant.name,
            right=True,
            p50_us=latency_us * character.latency_factor * (_FP32_SLOWNESS if variant.name.startswith("fp32") else 1.0),
            memory_bytes=2 * variant.file.size_bytes,
        )
        for variant in manifest.variants
        if not variant.architectures or architecture in variant.architectures
    ]
